"""Prompts equal those that the original generators made, by hash, from what the originals drew.

`official.json` holds what each original drew for one prompt, and the sha256 of that prompt; no text of theirs. Words,
numbers and uuids are those of the needles, their own first, then those of the haystack; `samples` are keys that are
asked for and places, or words; `orders` are what shuffles did; `size` counts words, lines, needles or coded words.

The originals' functions were run once, outside this repository, with seed 42 (58 for needles in 150 sentences):

- "ruler2024", needles: hsiehjackson/RULER (the author's) 6216ac9 scripts/data/synthetic/niah.py. The other tasks:
  fayejf/RULER e58a79b variable_tracking.py, common_words_extraction.py, freq_words_extraction.py in that folder, with
  the templates of FerrisChi/RULER 08b1725 constants.py. The author's variable_tracking.py of 4f6507e is older: its
  example is the same in all prompts and lacks the last word of the question.
- "lm-eval": EleutherAI/lm-evaluation-harness lm_eval/tasks/ruler/prepare_niah.py (00afadf), vt_utils.py (2467e35),
  cwe_utils.py (00afadf), fwe_utils.py (0f8479c); input and `gen_prefix` joined by a space, as lm_eval/api/task.py does.
- "ruler2025": copies of RULER's newer files: oleg0x/Ruler-chunks 903fab3 niah.py, HaoranDeng/RULER 3e0999c
  common_words_extraction.py and 272665c variable_tracking.py.

Stubbed or left out of them: the tokenizer (one token for every `tokens` bytes), the essays (`fixed_slice`, or its first
`sentences`), nltk's sentences (`split_sentences`), the command line, messages, reading and writing of files, which for
lists of 2025 means words beyond those of wonderwords, and text as the haystack of variable tracking.
"""

import hashlib
import itertools
import json
import statistics
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from neuralmem.data.corpus import fixed_slice
from neuralmem.evaluation import cell as cells
from neuralmem.evaluation import cwe, fwe, protocols, vt
from neuralmem.evaluation.cell import Cell, Sizes
from neuralmem.evaluation.haystack import Haystack, split_sentences
from neuralmem.evaluation.prompts import TASKS, find_task

RECORDS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("official.json").read_text(encoding="utf-8"))
CASES = [
    pytest.param(record, protocol, id=f"{record['task']} {protocol} {record['length']}x{record['tokens']}-{number}")
    for number, record in enumerate(RECORDS)
    for protocol in record["protocols"]
]
MODULES: dict[str, ModuleType] = {"vt": vt, "cwe": cwe, "fwe": fwe}


class Drawn(Random):
    """Gives what an original drew; once that is used up, anything, for the values that are ranked."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(0)
        self.halves = [half for word in record.get("words", ()) for half in word.split("|")]
        self.numbers = list(record.get("numbers", ()))
        self.bits = [uuid.UUID(text).int for text in record.get("uuids", ())]
        self.letters = list(record.get("letters", ()))
        self.values = list(record.get("values", ()))
        self.samples = list(record.get("samples", ()))
        self.orders = list(record.get("orders", ()))

    @property
    def left(self) -> list[Any]:
        return [*self.halves, *self.numbers, *self.bits, *self.letters, *self.values, *self.samples, *self.orders]

    def choice(self, seq: Any) -> Any:
        return seq[seq.index(self.halves.pop(0))] if self.halves else super().choice(seq)

    def randint(self, a: int, b: int) -> int:
        return self.numbers.pop(0) if self.numbers else super().randint(a, b)

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        return self.values.pop(0) if self.values else super().randrange(start, stop, step)

    def getrandbits(self, k: int) -> int:
        return self.bits.pop(0) if self.bits and k == 128 else super().getrandbits(k)

    def choices(self, population: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return list(self.letters.pop(0)) if self.letters else super().choices(population, *args, **kwargs)

    def sample(self, population: Any, k: int, **kwargs: Any) -> list[Any]:
        drawn = self.samples.pop(0)
        assert len(drawn) == k
        return [population[population.index(one) if isinstance(one, str) else one] for one in drawn]

    def shuffle(self, x: Any) -> None:
        x[:] = [x[i] for i in self.orders.pop(0)]


def encoding(size: int) -> tuple[Callable[[str], list[int]], Callable[[Sequence[int]], str]]:
    """A tokenizer that makes a token of every `size` bytes."""
    numbers: dict[bytes, int] = {}

    def encode(text: str) -> list[int]:
        data = text.encode()
        return [numbers.setdefault(data[i : i + size], len(numbers)) for i in range(0, len(data), size)]

    def decode(ids: Sequence[int]) -> str:
        known = list(numbers)
        return b"".join(known[i] for i in ids).decode()

    return encode, decode


def text_of(record: dict[str, Any]) -> Haystack:
    if find_task(record["task"]).haystack != "text":
        return Haystack("noise")
    if "sentences" not in record:
        return Haystack("fixed", fixed_slice())
    sentences = split_sentences(" ".join(fixed_slice().split()))
    return Haystack("fixed", " ".join(sentences[: record["sentences"]]))


def as_drawn(example: dict[str, Any]) -> type[vt.Example]:
    """The solved example with what an original drew for it once."""

    class Recorded(vt.Example):
        def __init__(self, cell: Cell) -> None:
            super().__init__(cell)
            assert self.lines == example["lines"]
            self.value, self.places = example["value"], example["places"]

    return Recorded


Search = Callable[[Callable[[int], bool], Sizes], int]


def near(record: dict[str, Any], protocol: str) -> Search:
    """The search for a size, which may hang on the words that are drawn meanwhile: these were others upstream."""
    listed, found = record["task"] == "ruler_cwe", cells._largest
    if listed:
        found = usual(found if protocol == "ruler2025" else first_too_large)

    def search(fits: Callable[[int], bool], sizes: Sizes) -> int:
        # In steps as the older rules have them, only the words of a list make a difference: one step at most.
        slack = sizes.step if listed else max(1, record["size"] // 40) if protocol == "ruler2025" else 0
        assert abs(found(fits, sizes) - record["size"]) <= slack
        return record["size"]

    return search


def first_too_large(fits: Callable[[int], bool], sizes: Sizes) -> int:
    """As the older rules search: step by step, up to the first list that is too long because of its words."""
    return sizes.clip(next(count for count in itertools.count(1) if not fits(count)) - 1)


def usual(search: Search) -> Search:
    """The median of many searches, each of which meets other words."""
    return lambda fits, sizes: statistics.median_low(search(fits, sizes) for _ in range(25))


@pytest.mark.parametrize(("record", "protocol"), CASES)
def test_prompt_of_an_original(record: dict[str, Any], protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "sentence_splitter", lambda: ("own-sentences", split_sentences))
    if "example" in record:
        monkeypatch.setattr(vt, "Example", as_drawn(record["example"]))
    task, (encode, decode) = find_task(record["task"]), encoding(record["tokens"])
    monkeypatch.setattr(cells, "_largest", near(record, protocol))
    cell, drawn = Cell(task, protocol, record["length"], text_of(record), 42, encode), Drawn(record)
    sample = MODULES.get(task.name, protocols).ruler(cell)(0, None, drawn)
    whole = decode(sample.rope.slice(0, len(sample.rope)).tolist())
    assert list(sample.answers) == record["answers"]
    assert hashlib.sha256(whole.encode()).hexdigest() == record["sha256"]
    assert not drawn.left


def test_every_task_of_the_originals_is_recorded() -> None:
    recorded = {(record["task"], protocol) for record in RECORDS for protocol in record["protocols"]}
    tasks = [task.ruler for task in TASKS.values() if task.ruler]
    missing = {(task, protocol) for task in tasks for protocol in ("ruler2024", "lm-eval", "ruler2025")} - recorded
    assert missing == {("ruler_fwe", "ruler2025")}, "no copy of it was found"
