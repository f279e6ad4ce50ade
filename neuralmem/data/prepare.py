"""`python -m neuralmem.data.prepare`: tokenise text once, into shards that any number of runs train on.

Run it again after a crash or Ctrl-C: it goes on where it was, and the result is the same to the byte. Training reads
the folder as `source: shards:FOLDER` and `tokenizer: FOLDER`, and needs neither the text nor the package `datasets`.

  python -m neuralmem.data.prepare fineweb-edu?config=sample-10BT --tokenizer llama/tokenizer.json --out prepared/edu
  python -m neuralmem.data.prepare "books/*.txt" more.jsonl --tokenizer bpe:32000 --out prepared/books --processes 8
  python -m neuralmem.data.prepare --check prepared/books
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuralmem.data.build_shards import Done, Settings, build_shards
from neuralmem.data.faults import Faults, texts_of
from neuralmem.data.fingerprint import source_fingerprint
from neuralmem.data.shards import Shards
from neuralmem.data.sources import DOCUMENT_BYTES, open_source
from neuralmem.data.tokenizers import make_tokenizer
from neuralmem.errors import UserError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: the options; None takes those the program was started with

    Returns:
        The exit code: 0, 2 for a user's error, 130 when interrupted.
    """
    given = _parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # --processes says how many cores are used
    try:
        if given.check is not None:
            print(_described(Shards(given.check, verify=True).manifest, Path(given.check)))
        else:
            _prepare(given)
    except UserError as error:
        if given.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m neuralmem.data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", nargs="*", help="builtin, stdlib, a path, folder or glob, fineweb-edu, slimpajama, pg19, or hf:NAME")
    add("--out", help="folder of the shards; new, or that of an earlier run of the same command")
    add("--tokenizer", default="bytes", help="bytes, bpe:NUMBER, words:NUMBER, or the path of a tokenizer.json (bytes)")
    add("--processes", type=int, default=os.cpu_count() or 1, help="how many read and tokenise (all cores)")
    add("--shard-tokens", type=int, default=Settings.shard_tokens, help="tokens of a shard (100 million)")
    add("--longest", type=int, default=Settings.longest, help="characters; a longer document is cut (16 million)")
    add("--limit", type=int, help="look at so many documents only")
    add("--text-field", default="text", help="field of jsonl, parquet and hub records that holds the text (text)")
    add("--document-bytes", type=int, default=DOCUMENT_BYTES, help="a larger text file is read as several (262144)")
    add("--check", metavar="FOLDER", help="compare all files of a folder of shards with their sha256, and stop")
    add("--quiet", action="store_true", help="no progress bar")
    add("--debug", action="store_true", help="show where an error comes from")
    return parser


def _prepare(given: argparse.Namespace) -> None:
    if not given.source or given.out is None:
        raise UserError("source or --out is missing; it must be `SOURCE... --out FOLDER`, or `--check FOLDER`")
    if given.processes < 1:
        raise UserError(f"processes is {given.processes}; it must be at least 1")
    settings = Settings(given.shard_tokens, given.longest, given.limit)
    reading = {"text_field": given.text_field, "document_bytes": given.document_bytes}
    source = open_source(given.source, share=0, **reading)
    tokenizer = make_tokenizer(given.tokenizer, texts_of(source))
    about = {"name": " + ".join(given.source), "fingerprint": source_fingerprint(given.source), **reading}
    bar = Bar(quiet=given.quiet)
    with bar:
        out = Path(given.out)
        manifest = build_shards(
            source,
            tokenizer,
            out,
            about=about,
            settings=settings,
            processes=given.processes,
            progress=bar.show,
        )
    print(_described(manifest, out))


def _described(manifest: dict[str, Any], folder: Path) -> str:
    """-> what there is, and what was wrong with the documents it is from."""
    shards = len(manifest["shards"])
    size = sum(entry["bytes"] for shard in manifest["shards"] for entry in shard["files"].values())
    what = f"{manifest['tokens']:,} tokens of {manifest['documents']:,} documents in {shards} shard(s)"
    faults = Faults.from_dict(manifest["read"]).line()
    return f"{folder}: {what}, {size / 1e6:,.1f} MB\n{faults or 'nothing was wrong with the documents'}"


class Bar:
    """Documents, tokens, tokens per second and time left; a line every half minute where there is no terminal.

    Args:
        quiet: nothing at all
        every: seconds between lines
    """

    def __init__(self, quiet: bool = False, every: float = 30.0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self.quiet, self.every, self.began = quiet, every, time.monotonic()
        self.shown = self.began
        self._first: Done | None = None
        columns = (BarColumn(bar_width=16), TextColumn("{task.description}"))
        self._console = Console(stderr=True)
        self._bar = Progress(*columns, console=self._console, disable=quiet or not self._console.is_terminal)
        self._task = self._bar.add_task("reading", total=None)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, done: Done) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._first is None:
            self._first, self.began = done, now  # the time before is that of opening the source and starting workers
        line = self.line(done, now - self.began)
        self._bar.update(self._task, description=line, completed=done.documents, total=done.total)
        if self._bar.disable and not self.quiet and now - self.shown >= self.every:
            self.shown = now
            print(line, file=sys.stderr, flush=True)

    def line(self, done: Done, seconds: float) -> str:
        """-> how far it is, in words."""
        known = f" of {done.total:,}" if done.total else ""
        parts = [f"{done.documents:,}{known} documents, {done.tokens:,} tokens"]
        if self._first is not None and seconds > 0:
            parts.append(f"{(done.new_tokens - self._first.new_tokens) / seconds:,.0f} tokens/s")
            new = done.documents - self._first.documents
            if done.total and new > 0:
                left = int((done.total - done.documents) * seconds / new)
                parts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
