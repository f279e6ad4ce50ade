"""Local files as documents: text, jsonl and parquet, single files, folders and globs.

A text file is one document (a large one several), a line of a jsonl file one, a row of a parquet file one. Files are
indexed once, without keeping their content, and read by position. What is not UTF-8 is counted and replaced by U+FFFD.
"""

import hashlib
import json
import os
import warnings
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO, get_args

from neuralmem.data.corpus import Flavour
from neuralmem.data.document import Indexed, Side
from neuralmem.data.names import NAMES
from neuralmem.errors import UserError, nearest

TEXT = {".txt", ".text", ".md", ".rst"}
LINES = {".jsonl", ".ndjson"}
TABLES = {".parquet"}
LONGEST = 1 << 30  # bytes of a document
_CLOSED = {".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".json", ".arrow", ".pkl", ".pickle", ".npy", ".npz", ".bin"}
_FIRST = json.JSONDecoder().raw_decode


def find(spec: str) -> list[tuple[str, Path]]:
    """The files that a path, folder or glob names, sorted, each with a name that is the same on every machine.

    A folder is searched in depth for text, jsonl and parquet files; hidden files are left out. A file that is named,
    or matched by a glob, is text whatever its ending, unless the ending is a known other format.

    Raises:
        UserError: nothing there, or nothing readable.
    """
    if has_magic(spec):
        root = Path(spec[: min(spec.find(sign) for sign in "*?[" if sign in spec)] + "*").parent
        paths = [Path(path) for path in glob(spec, recursive=True) if Path(path).is_file()]
    elif (root := Path(spec)).is_dir():
        known = TEXT | LINES | TABLES
        paths = [path for path in root.rglob("*") if path.suffix.lower() in known and path.is_file()]
        paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
        if not paths:
            raise UserError(
                f"source is {spec!r}, which holds no {', '.join(sorted(known))} file; a glob takes any text file"
            )
    else:
        paths, root = [root] if root.is_file() else [], root.parent
    if not paths:
        raise UserError(f"source is {spec!r}, which is no file or folder{_neighbour(Path(spec))}")
    if closed := next((path for path in paths if path.suffix.lower() in _CLOSED), None):
        raise UserError(f"source is {str(closed)!r}; it must be text, .jsonl, .ndjson or .parquet, uncompressed")
    return sorted((path.relative_to(root).as_posix(), path) for path in paths)


def open_files(
    spec: str, *, side: Side = "all", share: float = 0.0, text_field: str = "text", document_bytes: int = 1 << 18
) -> list[Indexed]:
    """-> one source for each kind of file (text, jsonl, parquet) that `spec` names; see `find`."""
    kinds: dict[str, list[tuple[str, Path]]] = {"text": [], "lines": [], "tables": []}
    for name, path in find(spec):
        suffix = path.suffix.lower()
        kinds["lines" if suffix in LINES else "tables" if suffix in TABLES else "text"].append((name, path))
    sources = []
    common: dict[str, Any] = {"side": side, "share": share}
    if files := kinds["text"]:
        spans = _Spans(files, partial(_document_starts, document_bytes=document_bytes), _plain_text)
        content = f"{_content(files)} cut at {document_bytes:,} bytes"
        sources.append(Indexed(spec, len(spans), spans.place, spans.text, content=content, **common))
    if files := kinds["lines"]:
        spans = _Spans(files, _line_starts, partial(_json_text, field=text_field))
        content = f"{_content(files)} by {text_field}"
        sources.append(Indexed(spec, len(spans), spans.place, spans.text, content=content, **common))
    if files := kinds["tables"]:
        rows = _Rows(files, text_field)
        groups, content = rows.firsts[:-1], f"{_content(files)} by {text_field}"
        sources.append(Indexed(spec, len(rows), rows.place, rows.text, groups=groups, content=content, **common))
    return sources


def _content(files: list[tuple[str, Path]]) -> str:
    """How many files and bytes, and a hash of all names and sizes."""
    sizes = {name: path.stat().st_size for name, path in files}
    found = hashlib.blake2b(json.dumps(sizes).encode(), digest_size=8).hexdigest()
    return f"{len(files)} file(s), {sum(sizes.values()):,} bytes, names and sizes {found}"


class _Spans:
    """Byte ranges of files: document number -> file, first byte, last byte.

    Args:
        files: names and paths
        starts_of: where a file's documents begin, and its end
        decode: (content of a document, what gives its place) -> its text
    """

    def __init__(
        self,
        files: list[tuple[str, Path]],
        starts_of: Callable[[Path], Iterator[int]],
        decode: Callable[[str, Callable[[], str]], str],
    ) -> None:
        self.decode = decode
        self.files, self.starts, self.firsts, self.replaced = files, array("q"), [0], 0
        self._opened: tuple[int, BinaryIO | None] = (-1, None)
        for _, path in files:
            self.starts.extend(starts_of(path))  # the last start of a file is its end
            self.firsts.append(len(self.starts) - len(self.firsts))
        # A file of n documents has n + 1 starts: document i of file f begins at starts[i + f].

    def __len__(self) -> int:
        return self.firsts[-1]

    def text(self, number: int) -> tuple[str, int]:
        content, replaced = self._read(number)
        return self.decode(content, partial(self.place, number)), replaced

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": (-1, None)}

    def __del__(self) -> None:
        if (stream := getattr(self, "_opened", (-1, None))[1]) is not None:
            stream.close()

    def _open(self, file: int) -> int:
        """-> handle of a file; the last stays open, and forked processes may share it, since nothing seeks in it."""
        number, stream = self._opened
        if number != file or stream is None:
            if stream is not None:
                stream.close()
            stream = self.files[file][1].open("rb", buffering=0)
            self._opened = file, stream
        return stream.fileno()

    def _file(self, number: int) -> int:
        return bisect_right(self.firsts, number) - 1

    def place(self, number: int) -> str:
        file = self._file(number)
        alone = self.firsts[file + 1] - self.firsts[file] == 1
        return self.files[file][0] if alone else f"{self.files[file][0]}#{number - self.firsts[file] + 1}"

    def _read(self, number: int) -> tuple[str, int]:
        file = self._file(number)
        start, stop = self.starts[number + file], self.starts[number + file + 1]
        if stop - start > LONGEST:
            raise UserError(f"source {self.place(number)} has {stop - start} bytes; {LONGEST} can be read as one")
        data = os.pread(self._open(file), stop - start, start)
        if len(data) < stop - start:
            raise UserError(f"source {self.place(number)} has become shorter since it was opened")
        text, broken = decoded(data)
        if broken:
            if not self.replaced:
                path = str(self.files[file][1])
                warnings.warn(f"source {path!r} is not UTF-8 in {broken} place(s), replaced by U+FFFD", stacklevel=2)
            self.replaced += broken
        return text, broken


def decoded(data: bytes) -> tuple[str, int]:
    """-> text, and the number of places that were not UTF-8 and are U+FFFD now."""
    try:
        return data.decode(), 0
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        return text, text.count("\ufffd") - data.count("\ufffd".encode())


def _document_starts(path: Path, document_bytes: int) -> Iterator[int]:
    """Cut a file larger than `document_bytes` after the first line break from there on; the file's end comes last."""
    size, start = path.stat().st_size, 0
    with path.open("rb") as stream:
        while start < size:
            yield start
            start += document_bytes
            stream.seek(start)
            line = stream.readline(document_bytes)
            # Without a line break nearby, cut in front of the next character.
            broken = line.endswith(b"\n") or start + len(line) >= size
            start += len(line) if broken else next((i for i in range(4) if line[i] & 0xC0 != 0x80), 0)
    yield size


def _line_starts(path: Path) -> Iterator[int]:
    """Where the lines of a file begin, blank ones left out; the file's end comes last."""
    start, place, found = 0, 0, False
    with path.open("rb") as stream:
        while piece := stream.readline(1 << 20):  # a line may be longer than memory
            if not found and not piece.isspace():
                found = True
                yield start
            place += len(piece)
            if piece.endswith(b"\n"):
                start, found = place, False
    yield place


def _plain_text(content: str, place: Callable[[], str]) -> str:
    return content


def _json_text(line: str, place: Callable[[], str], field: str) -> str:
    try:
        row, stop = _FIRST(line)  # a quarter less than json.loads, which looks for white space around it
        usual = not line[stop:].strip(" \t\n\r")
    except (ValueError, RecursionError):
        usual = False
    if not usual:
        row = _parsed(line, place)
    text = row.get(field) if isinstance(row, dict) else None
    return text if isinstance(text, str) else text_of(row if isinstance(row, dict) else {}, place(), field)


def _parsed(line: str, place: Callable[[], str]) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of more than 4300 digits
        raise UserError(f"source {place()} is not a JSON line: {getattr(error, 'msg', error)}") from None


def text_of(row: dict[str, Any], place: str, field: str) -> str:
    """The text field of a record, or a clear refusal."""
    if not isinstance(text := row.get(field), str):
        found = ", ".join(sorted(map(str, row))) or "none"
        raise UserError(
            f"text_field is {field!r}; {place} has no text there, its fields are {found}{nearest(field, row)}"
        )
    return text


class _Rows:
    """Rows of parquet files. A row group is read at a time, and shuffling keeps its rows together.

    Attributes:
        groups: (file, row group), by number of the group
        firsts: number of the first row of each group, and the number of rows
    """

    def __init__(self, files: list[tuple[str, Path]], field: str) -> None:
        self.files, self.field = files, field
        self.groups: list[tuple[int, int]] = []
        self.firsts = [0]
        self._columns: dict[int, list[Any] | UserError] = {}
        for i, (name, path) in enumerate(files):
            names, sizes = _schema(path)
            if field not in names:
                hint = nearest(field, names)
                raise UserError(
                    f"text_field is {field!r}; {name} has no such field, its fields are {', '.join(names)}{hint}"
                )
            self.groups += [(i, group) for group in range(len(sizes))]
            for size in sizes:
                self.firsts.append(self.firsts[-1] + size)

    def __len__(self) -> int:
        return self.firsts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_columns": {}}

    def place(self, number: int) -> str:
        group = self._group(number)
        file, part = self.groups[group]
        return f"{self.files[file][0]}#{part}.{number - self.firsts[group] + 1}"

    def text(self, number: int) -> tuple[str, int]:
        group = self._group(number)
        column = self._column(group)
        if isinstance(column, UserError):
            raise column
        value, replaced = column[number - self.firsts[group]], 0
        if isinstance(value, bytes):  # a text column that is not UTF-8 throughout
            value, replaced = decoded(value)
        return text_of({self.field: value}, self.place(number), self.field), replaced

    def _group(self, number: int) -> int:
        return bisect_right(self.firsts, number) - 1

    def _column(self, group: int) -> list[Any] | UserError:
        """The texts of a row group, or why it cannot be read; those of the last two are kept."""
        if group not in self._columns:
            from pyarrow import ArrowException, parquet

            file, number = self.groups[group]
            column: list[Any] | UserError
            try:
                with parquet.ParquetFile(self.files[file][1]) as table:
                    column = _values(table.read_row_group(number, columns=[self.field]).column(0))
            except (ArrowException, OSError) as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                column = UserError(f"source {self.files[file][0]}#{number} is damaged: {reason}")
            self._columns = dict([*self._columns.items()][-1:]) | {group: column}
        return self._columns[group]


def _values(column: Any) -> list[Any]:
    """A column as Python values; of texts that are not UTF-8 throughout, which Arrow lets pass, the bytes."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return column.cast("large_binary" if "large" in str(column.type) else "binary").to_pylist()


def _schema(path: Path) -> tuple[list[str], list[int]]:
    """Field names of a parquet file, and the number of rows of each row group."""
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise UserError("source holds parquet files, which need the package pyarrow; pip install pyarrow") from None
    try:
        with parquet.ParquetFile(path) as table:
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            return table.schema_arrow.names, sizes
    except (ArrowInvalid, OSError) as error:
        raise UserError(f"source {str(path)!r} is not a parquet file: {str(error).splitlines()[0]}") from None


def _neighbour(path: Path) -> str:
    """The nearest of what could have been meant: a corpus, a dataset, or a file beside the one that is not there."""
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    return nearest(path.name, [*get_args(Flavour), *NAMES, *beside])
