"""Datasets of the Hugging Face hub, through the package `datasets`, imported here only and only when asked for.

`hf:owner/name?config=c&split=train&field=text&streaming=1`: `config`, `split`, `data_files`, `data_dir` and `revision`
go to `datasets.load_dataset`; `validation=NAME` names the split that is validation, without which it is taken out of
`split` by hash. With `streaming=1` nothing is stored on disk, shuffling is within a `buffer` of documents (1000), and a
resumed run reads the stream from its beginning to where it was.

The commonest ones have short names, `fineweb-edu`, which take the same options: data/names.py.
"""

import json
import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from neuralmem.data.document import Document, Indexed, Side, Source, Unreadable, check_share, described, on_side
from neuralmem.data.files import text_of
from neuralmem.data.names import NAMES
from neuralmem.errors import UserError, nearest

_PASSED_ON = ("data_files", "data_dir", "revision")
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
        return _Stream(spec, _Undivided(dataset), key, field, side, share, int(options.get("buffer", 1000)))
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


class _Undivided:
    """The rows of a streamed dataset, all of them in a loader process too.

    Iterated directly there, it yields the part that `datasets` gives to this process, of which a reader would once more
    take its own: documents would be lost, and with fewer files than processes some would find none.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for rows in self._dataset.iter(batch_size=1):
            yield {name: column[0] for name, column in rows.items()}


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
        rows = ((self._key(number), row) for number, row in enumerate(self._rows()))
        mine = (pair for pair in rows if on_side(pair[0], self._side, self._share))
        mixed = mine if shuffle is None else _buffered(mine, self._buffer, shuffle)
        for key, row in islice(mixed, start, None, step):
            yield self._document(key, row)

    def _document(self, key: str, row: Any) -> Document | Unreadable:
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


def _buffered(items: Iterator[Any], size: int, seed: int) -> Iterator[Any]:
    """Shuffle within a buffer of `size` items."""
    chance, held = random.Random(seed), list(islice(items, size))
    for item in items:
        place = chance.randrange(len(held))
        held[place], item = item, held[place]
        yield item
    chance.shuffle(held)
    yield from held
