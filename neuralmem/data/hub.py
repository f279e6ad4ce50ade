"""Datasets by their Hugging Face name, through the package `datasets`, imported here only and only when asked for.

`hf:owner/name?config=c&split=train&field=text&streaming=1`: `config`, `split`, `data_files`, `data_dir` and `revision`
go to `datasets.load_dataset`; with `streaming=1` nothing is stored on disk, shuffling is within a `buffer` of documents
(1000), and a resumed run reads the stream from its beginning to where it was.
"""

import random
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any
from urllib.parse import parse_qsl

from neuralmem.data.document import Document, Indexed, Side, Source, on_side
from neuralmem.data.files import text_of
from neuralmem.errors import UserError, nearest

_OPTIONS = ("config", "split", "field", "streaming", "data_files", "data_dir", "revision", "buffer")


def open_hub(spec: str, *, side: Side = "all", share: float = 0.0, text_field: str = "text") -> Source:
    """Open `hf:NAME?option=value&...`.

    Raises:
        UserError: an unknown option, `datasets` missing, or a dataset that cannot be loaded.
    """
    name, _, query = spec.removeprefix("hf:").partition("?")
    options = dict(parse_qsl(query))
    for option in options:
        if option not in _OPTIONS:
            allowed = f"{', '.join(_OPTIONS)}{nearest(option, _OPTIONS)}"
            raise UserError(f"source {spec!r} has option {option!r}; it must be one of {allowed}")
    streaming, field = options.get("streaming", "0") not in ("0", "false", "no"), options.get("field", text_field)
    wanted = {key: value for key, value in options.items() if key in ("data_files", "data_dir", "revision")}
    dataset = _load(name, options.get("config"), options.get("split", "train"), streaming, wanted)
    if streaming:
        return _Stream(spec, _Undivided(dataset), field, side, share, int(options.get("buffer", 1000)))
    key, text = partial(_key, name), partial(_text, dataset, name, field)
    return Indexed(spec, len(dataset), key, text, side=side, share=share)


def _key(name: str, number: int) -> str:
    return f"{name}#{number}"


def _text(dataset: Any, name: str, field: str, number: int) -> str:
    return text_of(dataset[number], _key(name, number), field)


def _load(name: str, config: str | None, split: str, streaming: bool, options: dict[str, str]) -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            "source is a Hugging Face name, which needs the package datasets; pip install datasets"
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

    def __init__(self, name: str, dataset: Any, field: str, side: Side, share: float, buffer: int) -> None:
        self.name, self._dataset, self._field, self._side, self._share = name, dataset, field, side, share
        self._buffer = buffer

    def read(self, start: int = 0, step: int = 1, *, shuffle: int | None = None) -> Iterator[Document]:
        rows = ((f"{self.name}#{number}", row) for number, row in enumerate(self._dataset))
        mine = (pair for pair in rows if on_side(pair[0], self._side, self._share))
        mixed = mine if shuffle is None else _buffered(mine, self._buffer, shuffle)
        for key, row in islice(mixed, start, None, step):
            yield Document(key, text_of(row, key, self._field))


def _buffered(items: Iterator[Any], size: int, seed: int) -> Iterator[Any]:
    """Shuffle within a buffer of `size` items."""
    chance, held = random.Random(seed), list(islice(items, size))
    for item in items:
        place = chance.randrange(len(held))
        held[place], item = item, held[place]
        yield item
    chance.shuffle(held)
    yield from held
