"""Datasets of the Hugging Face hub, through the package `datasets`, imported here only and only when asked for.

`hf:owner/name?config=c&split=train&field=text&streaming=1`: `config`, `split`, `data_files`, `data_dir` and `revision`
go to `datasets.load_dataset`; `validation=NAME` names the split that is validation, without which it is taken out of
`split` by hash. With `streaming=1` nothing is stored on disk, shuffling is within a `buffer` of documents (1000), and a
resumed run reads the stream from its beginning to where it was. A file of a stream that holds something damaged ends
there, for `datasets` reads no further; that counts as one corrupt document, and the next file follows.

The commonest ones have short names, `fineweb-edu`, which take the same options: data/names.py.
"""

import gzip
import json
import lzma
import random
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from neuralmem.data.document import Document, Indexed, Side, Source, Unreadable, check_share, described, on_side
from neuralmem.data.files import text_of
from neuralmem.data.names import NAMES
from neuralmem.errors import UserError, nearest

_PASSED_ON = ("data_files", "data_dir", "revision")
KEPT_CHARACTERS = 1 << 26
_OPTIONS = ("config", "split", "validation", "field", "streaming", "buffer", *_PASSED_ON)


def is_hub(spec: str) -> bool:
    """Whether a source is a dataset of the hub.

    Example:
        >>> is_hub("fineweb-edu?config=sample-100BT"), is_hub("hf:owner/name"), is_hub("books/*.txt")
        (True, True, False)
    """
    return spec.startswith("hf:") or spec.partition("?")[0] in NAMES


def options_of(spec: str) -> tuple[str, dict[str, str]]:
    """-> name of the dataset and its options, those of a short name included; the user's win.

    Raises:
        UserError: an option that there is not, or a buffer that is no positive number.

    Example:
        >>> options_of("pg19?streaming=0")[1]["streaming"]
        '0'
    """
    short, _, given = spec.partition("?")
    name, _, known = NAMES.get(short, spec.split("?")[0] if short.startswith("hf:") else f"hf:{short}").partition("?")
    options = dict(parse_qsl(known)) | dict(parse_qsl(given))
    for option in options:
        if option not in _OPTIONS:
            allowed = f"{', '.join(_OPTIONS)}{nearest(option, _OPTIONS)}"
            raise UserError(f"source {spec!r} has option {option!r}; it must be one of {allowed}")
    if not options.get("buffer", "1").isdigit() or int(options.get("buffer", 1)) < 1:
        raise UserError(f"source {spec!r} has buffer {options['buffer']!r}; it must be a positive number of documents")
    return name.removeprefix("hf:"), options


def open_hub(spec: str, *, side: Side = "all", share: float = 0.0, text_field: str = "text") -> Source:
    """Open `hf:NAME?option=value&...`, or one of `NAMES` with options.

    Raises:
        UserError: an unknown option, `datasets` missing, or a dataset that cannot be loaded.
    """
    name, options = options_of(spec)
    split, validation = options.get("split", "train"), options.get("validation")
    if validation is not None and side != "all":
        split, side, share = (validation if side == "validation" else split), "all", 0.0
    streaming, field = options.get("streaming", "0") not in ("0", "false", "no"), options.get("field", text_field)
    wanted = {key: value for key, value in options.items() if key in _PASSED_ON}
    dataset = _load(name, options.get("config"), split, streaming, wanted)
    key = partial(_key, name)
    if streaming:
        rows, buffer = _Undivided(f"source {spec!r}", dataset), int(options.get("buffer", 1000))
        return _Stream(spec, rows, key, field, side, share, buffer)
    content = _content(name, split, field, options)
    return Indexed(
        spec, len(dataset), key, partial(_text, dataset, name, field), side=side, share=share, content=content
    )


def _content(name: str, split: str, field: str, options: dict[str, str]) -> str:
    """What was asked for: the same data for ever only if a `revision` was."""
    said = {key: value for key, value in options.items() if key in ("config", *_PASSED_ON)}
    return f"{name} {json.dumps(said | {'split': split, 'field': field}, sort_keys=True)}"


def _key(name: str, number: int) -> str:
    return f"{name}#{number}"


def _text(dataset: Any, name: str, field: str, number: int) -> tuple[str, int]:
    return text_of(dataset[number], _key(name, number), field), 0


def _load(name: str, config: str | None, split: str, streaming: bool, options: dict[str, str]) -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            "source is a Hugging Face name, which needs the package datasets; pip install datasets, or read shards "
            "that `python -m neuralmem.data.prepare` made where it is"
        ) from None
    try:
        return load_dataset(name, config, split=split, streaming=streaming, **options)
    except Exception as error:  # the package raises dozens of kinds: offline, not found, gated, unknown split or config
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"source 'hf:{name}' cannot be loaded: {reason}; without a network set HF_HUB_OFFLINE=1 to fail at once, "
            "and use a local path or 'builtin'"
        ) from None


def _is_damage(error: Exception) -> bool:
    """Whether content is not what it should be. Everything else is taken for a connection that broke, after which it is
    not known what follows."""
    from huggingface_hub.errors import HfHubHTTPError
    from pyarrow import ArrowException
    from zstandard import ZstdError

    if isinstance(error, HfHubHTTPError):  # some of which are kinds of ValueError
        return False
    if type(error) is OSError and error.errno is None:  # what pyarrow and bz2 raise at bytes that they cannot unpack
        return True
    kinds = (ValueError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ArrowException, ZstdError)
    return isinstance(error, kinds)


class _Undivided:
    """The rows of a streamed dataset, file by file, all of them in a loader process too.

    Iterated directly there, it yields the part that `datasets` gives to this process, of which a reader would once more
    take its own: documents would be lost, and with fewer files than processes some would find none.
    """

    def __init__(self, name: str, dataset: Any) -> None:
        self._name, self._dataset = name, dataset

    def __iter__(self) -> Iterator[dict[str, Any] | Unreadable]:
        count = self._dataset.num_shards
        for index in range(count):
            try:
                for rows in self._dataset.shard(num_shards=count, index=index).iter(batch_size=1):
                    yield {name: column[0] for name, column in rows.items()}
            except Exception as error:
                if not _is_damage(error):
                    raise
                reason = " ".join(str(error).split())[:200]
                place = f"file {index + 1} of {count} of {self._name}"
                yield Unreadable(place, f"{place} is damaged and was not read to its end: {reason}")


class _Stream(Source):
    """A stream: shuffled within a buffer, split by the number of the document."""

    count = None

    def __init__(self, name: str, dataset: Any, key: Any, field: str, side: Side, share: float, buffer: int) -> None:
        check_share(name, side, share)
        self.name, self._dataset, self._key, self._field, self._buffer = name, dataset, key, field, buffer
        self._side, self._share = side, share

    def fingerprint(self) -> list[str]:
        name, options = options_of(self.name)
        content = _content(name, options.get("split", "train"), self._field, options)
        return [f"the stream of {described(self._side, self._share)} of {content}, buffer {self._buffer}"]

    def scan(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Iterator[Document | Unreadable]:
        if self._side == "validation" and shuffle is None:
            yield from islice(self._kept, start, None, step)
            return
        mine = self._mine()
        mixed = mine if shuffle is None else _buffered(mine, self._buffer, shuffle)
        for key, row in islice(mixed, start, None, step):
            yield self._document(key, row)

    @cached_property
    def _kept(self) -> "_Kept":
        """The documents of a side so small that a stream is read for hours to find them; validation asks again."""
        return _Kept(self._documents)

    def _documents(self) -> Iterator[Document | Unreadable]:
        return (self._document(key, row) for key, row in self._mine())

    def _mine(self) -> Iterator[tuple[str, Any]]:
        """-> key and row of every document of this side, and of every file that is damaged: who reads hears of it."""
        rows = ((self._key(number), row) for number, row in enumerate(self._rows()))
        return ((key, row) for key, row in rows if isinstance(row, Unreadable) or on_side(key, self._side, self._share))

    def _document(self, key: str, row: Any) -> Document | Unreadable:
        if isinstance(row, Unreadable):
            return row
        try:
            return Document(key, text_of(row, key, self._field))
        except UserError as error:
            return Unreadable(key, str(error))

    def _rows(self) -> Iterator[Any]:
        number = -1
        try:
            for number, row in enumerate(self._dataset):  # noqa: B007 - used where the stream breaks
                yield row
        except Exception as error:  # as in _load; a stream that broke has no next document
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"source {self.name!r} broke after {number + 1} documents: {reason}; run again, in training with "
                "--resume auto, to go on"
            ) from None


class _Kept:
    """Documents that are read once: the first `KEPT_CHARACTERS` of them stay in memory, what follows is read again.

    Args:
        read: documents from the first on
    """

    def __init__(self, read: Callable[[], Iterator[Document | Unreadable]]) -> None:
        self._read = read
        self._found: list[Document | Unreadable] = []
        self._room = KEPT_CHARACTERS
        self._rest: Iterator[Document | Unreadable] | None = None
        self._whole = False  # nothing follows what was found

    def __iter__(self) -> Iterator[Document | Unreadable]:
        number = 0
        while number < len(self._found) or self._go_on():
            yield self._found[number]
            number += 1
        if not self._whole and self._room <= 0:
            yield from islice(self._read(), number, None)

    def _go_on(self) -> bool:
        """Keep one document more. -> False if there is none, or no room."""
        if self._whole or self._room <= 0:
            return False
        try:
            self._rest = self._rest or islice(self._read(), len(self._found), None)
            document = next(self._rest, None)
        except BaseException:
            self._rest = None  # a generator that broke says afterwards that it is done
            raise
        if document is None:
            self._rest, self._whole = None, True
            return False
        self._found.append(document)
        self._room -= len(document.text) if isinstance(document, Document) else 0
        return True

    def __getstate__(self) -> dict[str, Any]:
        """A loader process begins with what was found so far: a stream under way cannot be sent to it."""
        return self.__dict__ | {"_rest": None}


def _buffered(items: Iterator[Any], size: int, seed: int) -> Iterator[Any]:
    """Shuffle within a buffer of `size` items."""
    chance, held = random.Random(seed), list(islice(items, size))
    for item in items:
        place = chance.randrange(len(held))
        held[place], item = item, held[place]
        yield item
    chance.shuffle(held)
    yield from held
