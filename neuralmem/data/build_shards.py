"""From a source of text to a folder of shards: parallel, resumable, and the same to the byte however it came about.

A shard ends after the document with which it has `shard_tokens`. So its content hangs on the documents before it and on
nothing else: not on the number of processes, nor on where an earlier run was killed. Shards that are complete are kept,
the others are made again. Workers read and tokenise; this process puts their work in order and writes it.
"""

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from neuralmem import durable
from neuralmem.data.document import Source
from neuralmem.data.encode import Encode
from neuralmem.data.faults import LONGEST, Faults
from neuralmem.data.shard_files import (
    FORMAT,
    MANIFEST,
    PLAN,
    ShardWriter,
    damage,
    read_json,
    read_manifest,
    write_json,
)
from neuralmem.errors import UserError
from neuralmem.lock import try_alone
from neuralmem.tokenizer import Tokenizer

_HOPELESS = 100  # documents: if none of the first can be read, the settings are wrong


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of the shards, beside the source and the tokenizer.

    Args:
        shard_tokens: a shard ends with the document that brings it to so many tokens
        longest: characters; a longer document becomes several
        limit: documents of the source that are looked at; None: all
    """

    shard_tokens: int = 100_000_000
    longest: int = LONGEST
    limit: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("shard_tokens", 1), ("longest", 1024), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} is {value}; it must be at least {least}")


class Done(NamedTuple):
    """How far a run is: documents of the source, tokens, tokens of this run, and documents in all if that is known."""

    documents: int
    tokens: int
    new_tokens: int
    total: int | None


def build_shards(
    source: Source,
    tokenizer: Tokenizer,
    folder: str | Path,
    *,
    about: dict[str, Any],
    settings: Settings = Settings(),
    processes: int = 1,
    progress: Callable[[Done], None] = lambda done: None,
) -> dict[str, Any]:
    """Tokenise a source into a folder, or go on with what an earlier call left there; -> the manifest.

    Args:
        source: the documents, of both sides
        tokenizer: must have a file form, as all have
        folder: made if it does not exist
        about: plain values that identify the source; a folder that was begun with others is refused
        settings: see there
        processes: 1 works in this process
        progress: called after every piece of work

    Raises:
        UserError: the folder is of another source, tokenizer or settings; another process writes to it; the disk is
            full; nothing of the source can be read.
    """
    folder = Path(folder)
    kind = "uint16" if tokenizer.vocab_size <= 1 << 16 else "uint32"
    made = {"sha256": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id}
    plan = {"format": FORMAT, "source": about, "tokenizer": made, "dtype": kind, "settings": vars(settings)}
    plan = json.loads(json.dumps(plan))  # as it will be read back
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_alone(folder))
            _begin(folder, plan)
            tokenizer.save(folder)
            if (manifest := _finished(folder)) is not None:
                return manifest
            encode = Encode(source, tokenizer, kind, settings.longest)
            shards = _kept(folder)
            rest = _write(folder, shards, encode, settings, processes, progress)
            _finish(folder, plan, shards, rest)
            return read_manifest(folder)
        except OSError as error:
            hint = "; free some and run the same command again" if error.errno == errno.ENOSPC else ""
            raise UserError(f"{folder} cannot be written: {error.strerror or error}{hint}") from None


def _write(
    folder: Path,
    shards: list[dict[str, Any]],
    encode: "Encode",
    settings: Settings,
    processes: int,
    progress: Callable[[Done], None],
) -> Faults:
    """Write the shards that are missing and append them to `shards`; -> what is behind the last one."""
    total = (
        encode.source.count if settings.limit is None else min(encode.source.count or settings.limit, settings.limit)
    )
    first, before = shards[-1]["following"] if shards else 0, sum(shard["tokens"] for shard in shards)
    writer, place, new = ShardWriter(folder, len(shards)), first, 0
    try:
        for piece in encode.pieces(first, total, processes):
            new += len(piece.tokens)
            while len(piece.parts):
                head, piece = piece.split(piece.reaching(settings.shard_tokens - writer.tokens))
                writer.add(head)
                place += len(head.parts)
                if writer.tokens >= settings.shard_tokens:
                    shards.append(writer.close(place))
                    writer = ShardWriter(folder, len(shards))
            if not new and place >= _HOPELESS and writer.faults.counts.get("corrupt") == place:
                raise UserError(f"{writer.faults.first['corrupt']} (none of the first {place} documents can be read)")
            progress(Done(place, before + new, new, total))
        if writer.tokens:
            shards.append(writer.close(place))
            return Faults()
        return writer.faults
    finally:
        writer.discard()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep another process from writing to the folder."""
    with try_alone(folder) as mine:
        if mine is False:
            raise UserError(f"{folder} is being written by another process; wait for it, or use another folder")
        yield


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Note what the folder is for, or see that it is for the same."""
    there = read_json(folder / MANIFEST) or read_json(folder / PLAN)
    if there is None:
        if broken := next((name for name in (MANIFEST, PLAN) if (folder / name).exists()), None):
            raise UserError(f"{folder / broken} is damaged; remove {folder} and run the same command again")
        if stray := next((file for file in sorted(folder.iterdir()) if file not in _unfinished(folder)), None):
            raise UserError(f"out is {str(folder)!r}, which holds {stray.name}; it must be new, or of an earlier run")
        write_json(folder / PLAN, plan)
        return
    for field in plan:
        if there.get(field) != plan[field]:
            raise UserError(
                f"out is {str(folder)!r}, which was begun with another {field} ({_short(there.get(field))}, now "
                f"{_short(plan[field])}); use another folder"
            )


def _short(value: Any) -> str:
    return str(value) if len(str(value)) <= 160 else f"{str(value)[:160]}..."


def _kept(folder: Path) -> list[dict[str, Any]]:
    """-> the complete shards, from the first to the last before one that is not; the files of others are removed."""
    shards: list[dict[str, Any]] = []
    while entry := read_json(folder / f"{len(shards):05d}.json"):
        if damage(folder, entry["files"], deep=True):
            break
        shards.append(entry)
    keep = {
        PLAN,
        "tokenizer.json",
        *(f"{shard['name']}.json" for shard in shards),
        *(n for s in shards for n in s["files"]),
    }
    for file in folder.iterdir():
        if file.name not in keep:
            file.unlink()
    return shards


def _finish(folder: Path, plan: dict[str, Any], shards: list[dict[str, Any]], rest: Faults) -> None:
    """Write the manifest, and remove what only an unfinished folder needs."""
    faults = Faults()
    for shard in shards:
        faults.add(Faults.from_dict(shard["source"]))
    faults.add(rest)
    if not shards:
        raise UserError(f"source {plan['source'].get('name')} has no text: {faults.line() or 'it is empty'}")
    counts = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens")}
    write_json(folder / MANIFEST, plan | counts | {"read": faults.to_dict(), "shards": shards})
    _tidy(folder, shards)


def _tidy(folder: Path, shards: list[dict[str, Any]]) -> None:
    for path in (folder / PLAN, *(folder / f"{shard['name']}.json" for shard in shards), *_unfinished(folder)):
        path.unlink(missing_ok=True)


def _unfinished(folder: Path) -> list[Path]:
    """What a process that was killed was writing."""
    return [*folder.glob("*.part"), *folder.glob(f"{durable.TEMPORARY}*")]


def _finished(folder: Path) -> dict[str, Any] | None:
    """-> the manifest of a folder that is complete and sound; a damaged one becomes an unfinished one."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    shards = manifest["shards"]
    if all(damage(folder, shard["files"], deep=True) is None for shard in shards):
        _tidy(folder, shards)
        return manifest
    for shard in shards:
        write_json(folder / f"{shard['name']}.json", shard)
    plan = {key: value for key, value in manifest.items() if key not in ("documents", "tokens", "read", "shards")}
    write_json(folder / PLAN, plan)
    (folder / MANIFEST).unlink()
    return None
