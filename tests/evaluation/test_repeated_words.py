"""Repeated words: prompts, edit distance against the textbook's table, and a model that copies."""

from functools import partial
from pathlib import Path
from random import Random

import pytest

from neuralmem.errors import UserError
from neuralmem.evaluation.asking import IDENTITY, ask_missing
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.levenshtein import distance, similarity
from neuralmem.evaluation.reader import Answer, Reader
from neuralmem.evaluation.repeated_words import (
    PROMPT,
    find_pair,
    new_tokens,
    places,
    samples,
    score,
    some_places,
    summarise,
    text_of,
)
from neuralmem.evaluation.rows import Subject
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.fake import Copier

BYTES = ByteTokenizer()
APPLES = ("apple", "apples")


def table_distance(a: str, b: str) -> int:
    """The textbook's table, row by row."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def test_distance_is_the_textbooks() -> None:
    random = Random(0)
    for _ in range(400):
        a, b = ("".join(random.choice("abc ") for _ in range(random.randrange(24))) for _ in "ab")
        assert distance(a, b) == table_distance(a, b), (a, b)
    assert similarity("apple apples", "apple apple") == 1 - 1 / 12


def test_distance_of_a_long_text_takes_no_long_time() -> None:
    text = text_of(APPLES, 10_000, 5000)
    random = Random(0)
    other = "".join(c for c in text if random.random() > 0.001)
    assert distance(text, other) == len(text) - len(other), "only deletions, and no shorter way"


def test_published_places() -> None:
    assert places(25) == list(range(25))
    assert places(99) == list(range(99))
    assert places(500) == [*range(0, 500, 5), 499]
    assert places(10_000)[-2:] == [9900, 9999]
    assert some_places(10_000, 4) == [0, 3300, 6600, 9999]


def test_prompt_and_spans() -> None:
    first, *_, last = samples(APPLES, 5, None, BYTES.encode, 0)
    whole = bytes(first.rope.slice(0, len(first.rope)).tolist()).decode()
    assert whole == ("Simply replicate the following text, output the exact same text: apples apple apple apple apple")
    text = bytes(last.rope.slice(0, len(last.rope)).tolist()).decode()
    assert text[slice(*last.needles[0])] == "apples"
    assert text[slice(*last.context)] == "apple apple apple apple apples"
    assert new_tokens([first, last]) == 2 * 30


@pytest.mark.parametrize("pair", ["apple", "apple/apple", "a b/c", "a/b/c", "/x"])
def test_pairs_that_are_none(pair: str) -> None:
    with pytest.raises(UserError, match=r"^--pairs holds "):
        find_pair(pair)


SAID = [  # what was said of "apple apples apple", exact, there, in its place, words too many
    ("apple apples apple", 1, 1, 1, 0),
    (" apple apples apple\n", 1, 1, 1, 0),
    ("apple apple apple", 0, 0, 0, 0),
    ("apples apple apple", 0, 1, 0, 0),
    ("apple apples apple apple apple", 0, 1, 1, 2),
    ("", 0, 0, 0, -3),
]


@pytest.mark.parametrize(("said", "exact", "there", "in_place", "delta"), SAID)
def test_scores(said: str, exact: int, there: int, in_place: int, delta: int) -> None:
    sample = samples(APPLES, 3, None, BYTES.encode, 0)[1]
    found = score(sample, Answer("none", said, (), 0, 0.0), reach=10)
    assert [found[k] for k in ("exact", "odd_present", "odd_in_place", "word_delta")] == [exact, there, in_place, delta]
    text = "apple apples apple"
    expected = 1 - table_distance(text, said.strip()) / max(18, len(said.strip())) if said else 0
    assert found["similarity"] == pytest.approx(expected)
    assert found["null_similarity"] == 1 - 1 / 18
    assert found["beyond_window"] is True


def test_a_copier_copies_and_without_memory_equals_the_null_model(tmp_path: Path) -> None:
    cell = samples(APPLES, 6, 3, BYTES.encode, 0)
    model = Copier(PROMPT, len("apples") + 5 * len(" apple"))
    subject = Subject(20, BYTES.fingerprint, "c" * 64, 32, 32, "float32", "cpu")

    def ask() -> list[dict]:
        journal = Journal(tmp_path / "x.jsonl", IDENTITY)
        scored = partial(score, reach=20)
        reader = Reader(model, BYTES, 16)
        reader._first = lambda sample, mode: 0  # type: ignore[method-assign] # it knows where it is from the prompt
        return ask_missing(cell, ("none", "off", "reset"), reader, subject, journal, scored, new_tokens(cell), 2)

    rows = ask()
    on, off, reset = summarise(rows)
    assert (on.ablation, off.ablation, reset.ablation) == ("none", "off", "reset")
    assert (on.exact.share, on.in_place.share, on.similarity.value, on.delta) == (1, 1, 1, 0)
    assert off.present.share == 0
    assert off.similarity.value > 0.9, "which is why similarity says little"
    assert reset.similarity.value == 0
    assert on.beyond == 1
    calls = len(model.reads)
    assert ask() == rows
    assert len(model.reads) == calls
