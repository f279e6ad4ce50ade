"""`prepare`: the same bytes however they came about, faults counted, and folders that are refused."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralmem.data import build_shards as build_module
from neuralmem.data import encode as encode_module
from neuralmem.data.build_shards import Settings, build_shards
from neuralmem.data.document import Document
from neuralmem.data.prepare import Bar, main
from neuralmem.data.shard_files import Piece, ShardWriter
from neuralmem.data.sources import Source, Texts, open_source
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer, Tokenizer, train_bpe

ROOT = Path(__file__).parent.parent.parent
ABOUT = {"name": "texts", "fingerprint": "0"}
SMALL = Settings(shard_tokens=500, longest=1024)


def texts(count: int = 60) -> Texts:
    return Texts([(f"t{i}", f"document {i} " * (i % 7)) for i in range(count)])


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def build(folder: Path, source: Source | None = None, **how: Any) -> dict[str, bytes]:
    tokenizer = how.pop("tokenizer", ByteTokenizer())
    build_shards(source or texts(), tokenizer, folder, about=ABOUT, **({"settings": SMALL} | how))
    return content(folder)


def documents(folder: Path) -> list[list[int]]:
    """What a reader makes of the files who knows nothing but their description."""
    manifest, found = json.loads((folder / "manifest.json").read_text()), []
    for shard in manifest["shards"]:
        tokens = np.fromfile(folder / f"{shard['name']}.tokens", dtype=manifest["dtype"])
        places = np.fromfile(folder / f"{shard['name']}.documents", dtype="<u8")[: shard["documents"] + 1]
        assert places[-1] == len(tokens) == shard["tokens"]
        found += [tokens[a:b].tolist() for a, b in pairwise(places)]
    return found


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(["low lower lowest, document 12 of 34 documents"] * 9, 280)


@pytest.mark.parametrize("wide", [False, True])
def test_shards_hold_every_document_once(tmp_path: Path, bpe: Tokenizer, wide: bool, monkeypatch: Any) -> None:
    if wide:
        monkeypatch.setattr(type(bpe), "vocab_size", 70_000, raising=False)
        monkeypatch.setattr(bpe, "vocab_size", 70_000)
    files = build(tmp_path / "out", tokenizer=bpe)
    wanted = [[*bpe.encode(document.text), bpe.eos_id] for document in texts().read() if document.text]
    assert documents(tmp_path / "out") == wanted
    manifest = json.loads(files["manifest.json"])
    assert manifest["dtype"] == ("uint32" if wide else "uint16")
    assert manifest["documents"] == len(wanted)
    assert manifest["tokens"] == sum(map(len, wanted))
    assert all(500 <= shard["tokens"] < 1100 for shard in manifest["shards"][:-1])
    assert {name for name in files if name.endswith(("json", "part"))} == {"manifest.json", "tokenizer.json"}


def test_the_bytes_do_not_depend_on_the_size_of_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tmp_path / "whole")
    for documents_at_once, together in ((1, 1), (7, 50), (128, 1 << 20)):
        monkeypatch.setattr(encode_module, "_DOCUMENTS", documents_at_once)
        monkeypatch.setattr(encode_module, "_TOGETHER", together)
        assert build(tmp_path / f"{documents_at_once}") == whole


def test_the_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path, bpe: Tokenizer) -> None:
    """Of a numbered source, whose workers read it themselves, and of a stream, whose documents are sent to them."""
    numbered, stream = texts(300), Stream(texts(300))
    alone = build(tmp_path / "1", numbered, tokenizer=bpe)
    assert build(tmp_path / "2", numbered, tokenizer=bpe, processes=2) == alone
    assert build(tmp_path / "3", stream, tokenizer=bpe, processes=2) == alone
    assert build(tmp_path / "4", stream, tokenizer=bpe) == alone


class Stream(Source):
    """Documents whose number is not known."""

    count = None

    def __init__(self, source: Source) -> None:
        self.name, self._source = source.name, source

    def scan(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Any:
        return self._source.scan(start, step, shuffle=shuffle)


class Killed(BaseException):
    """As if the process had ended here."""


@pytest.mark.parametrize(("source", "every"), [(texts(28), 1), (Stream(texts(28)), 5)], ids=["numbered", "stream"])
def test_a_run_that_was_cut_off_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Source, every: int
) -> None:
    """Cut off before each of the operations that change the folder."""
    whole = build(tmp_path / "whole", source)
    calls, stop = 0, -1

    def cut(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise Killed
            return real(*arguments, **options)

        return call

    for place, name in ((os, "replace"), (os, "fsync"), (Path, "unlink"), (ShardWriter, "add")):
        monkeypatch.setattr(place, name, cut(getattr(place, name)))
    monkeypatch.setattr(ShardWriter, "discard", lambda self: self._file.close())  # a killed process tidies nothing up
    build(tmp_path / "counted", source)
    total = calls
    assert total > 20
    for stop in range(1, total + 1, every):
        folder, calls = tmp_path / f"cut{stop}", 0
        with pytest.raises(Killed):
            build(folder, source)
        calls = -(10**9)
        assert build(folder, source) == whole, stop


def test_kill_9_then_again_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(json.dumps({"text": f"line {i} " * 40}) + "\n" for i in range(4000))
    (tmp_path / "lines.jsonl").write_text(lines)
    arguments = [str(tmp_path / "lines.jsonl"), "--tokenizer", "bpe:300", "--shard-tokens", "50000", "--quiet"]
    monkeypatch.setenv("NEURALMEM_CACHE", str(tmp_path / "cache"))
    assert main([*arguments, "--out", str(tmp_path / "whole"), "--processes", "1"]) == 0
    arguments += ["--out", str(tmp_path / "killed")]
    command = [sys.executable, "-m", "neuralmem.data.prepare", *arguments, "--processes", "2"]
    running = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    while not (tmp_path / "killed" / "00001.json").exists():
        assert running.poll() is None, "it was done before it could be killed"
        time.sleep(0.01)
    workers = [int(pid) for pid in Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()]
    assert len(workers) >= 2
    running.send_signal(signal.SIGKILL)
    running.wait()
    for worker in workers:  # none is left behind
        while Path(f"/proc/{worker}/cmdline").exists() and Path(f"/proc/{worker}/cmdline").read_bytes():
            time.sleep(0.01)
    assert not (tmp_path / "killed" / "manifest.json").exists()
    kept = (tmp_path / "killed" / "00001.tokens").stat().st_mtime_ns
    assert main([*arguments, "--processes", "1"]) == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert (tmp_path / "killed" / "00001.tokens").stat().st_mtime_ns == kept  # a complete shard was not made again


def test_what_is_wrong_with_documents_is_counted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "text"
    folder.mkdir()
    rows = ['{"text": "fine"}', "no json", '{"text": ""}', '{"body": 1}', '{"text": "' + "x" * 3000 + '"}', "[" * 10**5]
    rows += ['{"text": "half a pair \\ud83d"}', '{"text": ' + "1" * 5000 + "}"]
    (folder / "a.jsonl").write_bytes("\n".join(rows).encode() + b'\n{"text": "caf\xe9"}\n')
    (folder / "b.txt").write_bytes(b"latin \xe9\xe8")
    (folder / "empty.txt").write_text("")
    broken = pa.array([b"good", b"bad \xff"], type=pa.binary()).view(pa.string())
    parquet.write_table(pa.table({"text": broken}), folder / "c.parquet")
    parquet.write_table(pa.table({"text": ["row " * 500] * 100}), folder / "d.parquet", compression="gzip")
    data = bytearray((folder / "d.parquet").read_bytes())
    data[40:60] = b"\xff" * 20
    (folder / "d.parquet").write_bytes(data)
    out = tmp_path / "out"
    assert main([str(folder), "--out", str(out), "--longest", "1024", "--quiet", "--processes", "1"]) == 0
    read = json.loads((out / "manifest.json").read_text())["read"]
    assert read["counts"] == {"empty": 1, "corrupt": 4 + 100, "not_utf8": 4, "huge": 1}
    assert read["documents"] == 9 + 1 + 2 + 100
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "104 of 112 documents were corrupt (left out; first: source a.jsonl#2 is not a JSON line" in said[1]
    assert "4 of 112 documents were not UTF-8 (replaced by U+FFFD; first: b.txt)" in said[1]
    assert "1 of 112 documents were huge (cut; first: a.jsonl#5)" in said[1]
    decoded = [ByteTokenizer().decode(ids) for ids in documents(out)]
    assert sorted(decoded)[:3] == ["bad \ufffd", "caf\ufffd", "fine"]
    assert [len(text) for text in decoded if text.startswith("x")] == [1024, 1024, 952]


def test_where_nothing_can_be_read_the_settings_are_wrong(tmp_path: Path) -> None:
    for count, wanted in ((5, r"has no text: 5 of 5 .* fields are body"), (300, r"fields are body.*none of the first")):
        (tmp_path / f"{count}.jsonl").write_text('{"body": "x"}\n' * count)
        source = open_source(str(tmp_path / f"{count}.jsonl"), share=0)
        with pytest.raises(UserError, match=wanted):
            build(tmp_path / f"out{count}", source)


def test_folders_that_are_refused(tmp_path: Path, bpe: Tokenizer) -> None:
    build(tmp_path / "done")
    broken = tmp_path / "broken"
    build(broken)
    (broken / "manifest.json").write_bytes((broken / "manifest.json").read_bytes()[:99])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("")
    for call, message in [
        (lambda: build(tmp_path / "done", tokenizer=bpe), "begun with another tokenizer"),
        (lambda: build(tmp_path / "done", settings=Settings()), "begun with another settings"),
        (lambda: build_shards(texts(), ByteTokenizer(), tmp_path / "done", about={}), "begun with another source"),
        (lambda: build(tmp_path / "other"), "holds thesis.tex; it must be new"),
        (lambda: build(broken), "manifest.json is damaged; remove"),
        (lambda: build(tmp_path / "file"), "cannot be written: File exists"),
        (lambda: Settings(shard_tokens=0), "shard_tokens is 0"),
        (lambda: Settings(limit=0), "limit is 0"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "years of work"


def test_two_writers(tmp_path: Path) -> None:
    class Nested(Stream):
        def scan(self, *place: Any, **how: Any) -> Any:
            with pytest.raises(UserError, match="being written by another process"):
                build(tmp_path)
            return super().scan(*place, **how)

    build(tmp_path, Nested(texts()))


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tmp_path / "whole")
    real, calls = ShardWriter.add, 0

    def full(self: ShardWriter, piece: Piece) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, piece)

    monkeypatch.setattr(ShardWriter, "add", full)
    with pytest.raises(UserError, match="No space left on device; free some and run the same command again"):
        build(tmp_path / "out")
    assert (tmp_path / "out" / "00001.json").exists()
    assert build(tmp_path / "out") == whole


def test_damage_is_repaired_by_the_same_command(tmp_path: Path) -> None:
    whole = build(tmp_path)
    for name in ("00002.tokens", "00001.documents", "tokenizer.json"):
        data = bytearray(whole[name])
        data[len(data) // 2] ^= 1
        (tmp_path / name).write_bytes(data)
        assert build(tmp_path) == whole


def test_limit_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(9)))
    source, out = str(tmp_path / "a.jsonl"), str(tmp_path / "out")
    assert main([source, "--out", out, "--limit", "4", "--text-field", "body", "--processes", "1", "--quiet"]) == 0
    assert len(documents(tmp_path / "out")) == 4
    assert capsys.readouterr().out.endswith("nothing was wrong with the documents\n")
    assert main(["--check", out]) == 0
    (tmp_path / "out" / "00000.tokens").write_bytes(b"\1" * (tmp_path / "out" / "00000.tokens").stat().st_size)
    for arguments, message in [
        (["--check", out], "00000.tokens is damaged: its sha256"),
        (["--check", str(tmp_path)], "is no folder of shards"),
        ([source], "source or --out is missing"),
        (["nothing.jsonl", "--out", out], "which is no file or folder"),
        ([source, "--out", out, "--processes", "0"], "processes is 0"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_bar_tells_speed_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(every=0)
    with bar:
        bar.show(build_module.Done(100, 10_000, 0, 1000))
        bar.show(build_module.Done(200, 20_000, 10_000, 1000))
    assert "200 of 1,000 documents, 20,000 tokens" in capsys.readouterr().err
    line = bar.line(build_module.Done(200, 20_000, 10_000, 1000), 10.0)
    assert line == "200 of 1,000 documents, 20,000 tokens, 1,000 tokens/s, 0:01:20 left"


def test_a_piece_splits_anywhere() -> None:
    lengths, parts = np.array([3, 2, 2, 4]), np.array([1, 0, 2, 1, 0])
    faults = ((1, "empty", "b"), (4, "empty", "e"))
    piece = Piece(np.arange(11), lengths, np.arange(4, dtype=np.uint64), parts, faults)
    for count in range(6):
        head, tail = piece.split(count)
        assert len(head.parts) == count
        for name in ("tokens", "lengths", "hashes", "parts"):
            both = np.concatenate([getattr(head, name), getattr(tail, name)])
            assert both.tolist() == getattr(piece, name).tolist()
        assert len(head.tokens) == head.lengths.sum()
        assert head.counted().counts.get("empty", 0) + tail.counted().counts.get("empty", 0) == 2
    assert [piece.reaching(tokens) for tokens in (1, 3, 4, 7, 8, 11, 12)] == [1, 1, 3, 3, 4, 4, 5]


def test_documents_are_typed() -> None:
    assert Document("a", "b") == ("a", "b", 0, "")
