"""Mixing by weight: the shares are exact, the order hangs on the seed alone, and any place can be entered."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from neuralmem.data.mixture import BLOCK, Mixture
from neuralmem.data.packing import PackedText
from neuralmem.data.sources import Document, Source, Texts, open_source
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer

BOOKS = Texts([(f"book{i}", "b" * 300) for i in range(10)])
PAGES = Texts([(f"page{i}", "p" * 30) for i in range(700)])
POEMS = Texts([(f"poem{i}", "o" * 60) for i in range(50)])
SOURCES = {"books": BOOKS, "pages": PAGES, "poems": POEMS}
WEIGHTS = {"books": 5.0, "pages": 3, "poems": 2}


def read(source: Source, count: int, **how: int) -> list[Document]:
    return list(islice(source.read(**how), count))


def test_weights_are_shares_of_the_text() -> None:
    sizes: Counter[str] = Counter()
    for document in read(Mixture(SOURCES, WEIGHTS), 3 * BLOCK, shuffle=1):
        sizes[document.text[0]] += len(document.text)
    shares = {letter: size / sizes.total() for letter, size in sizes.items()}
    assert shares == pytest.approx({"b": 0.5, "p": 0.3, "o": 0.2}, abs=0.002)


def test_a_rare_source_is_not_forgotten() -> None:
    found = read(Mixture(SOURCES, {"books": 1e-9, "pages": 1.0, "poems": 1e-9}), BLOCK, shuffle=1)
    assert {document.text[0] for document in found} == {"b", "p", "o"}


@pytest.mark.parametrize("shuffle", [None, 3])
def test_any_place_can_be_entered(shuffle: int | None) -> None:
    mixed = Mixture(SOURCES, WEIGHTS)
    whole = read(mixed, BLOCK + 50, shuffle=shuffle)  # type: ignore[arg-type]
    assert whole == read(Mixture(SOURCES, WEIGHTS), BLOCK + 50, shuffle=shuffle)  # type: ignore[arg-type]
    for start, step in ((1, 1), (7, 3), (BLOCK - 2, 1), (BLOCK + 9, 4)):
        wanted = whole[start::step][:20]
        assert read(mixed, len(wanted), start=start, step=step, shuffle=shuffle) == wanted  # type: ignore[arg-type]


def test_a_source_is_read_whole_before_it_begins_again_in_another_order() -> None:
    books = [d.id for d in read(Mixture(SOURCES, WEIGHTS), BLOCK, shuffle=3) if d.id.startswith("book")]
    passes = [books[i : i + 10] for i in range(0, 50, 10)]
    assert all(sorted(one) == sorted(f"book{i}" for i in range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) == 5
    other = [d.id for d in read(Mixture(SOURCES, WEIGHTS), BLOCK, shuffle=4) if d.id.startswith("book")]
    assert other[:50] != books[:50]


def test_a_stream_is_mixed_as_its_documents_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"a{i} "}) + "\n" for i in range(20)))
    spec = f"hf:json?data_files={tmp_path / 'a.jsonl'}&streaming=1&buffer=8"
    mixed = open_source({spec: 0.5, "builtin": 0.5}, side="train", share=0.1)
    found = read(mixed, 200, shuffle=2)
    mine = [document.text for document in found if document.text.startswith("a")]
    first = len(set(mine[: len(set(mine))]))
    assert len(set(mine)) == first  # every document before any comes again
    assert read(mixed, 50, start=100, step=2, shuffle=2) == found[100::2]


def test_packing_resumes_exactly() -> None:
    def packed() -> PackedText:
        return PackedText(Mixture(SOURCES, WEIGHTS), ByteTokenizer(), length=64, batch_size=2, seed=5, shard=(1, 2))

    reader, expected, states = packed(), [], []
    for batch in islice(reader, 60):
        expected.append(batch)
        states.append(reader.state_dict())
    for number in (0, 13, 40):
        again = packed()
        again.load_state_dict(states[number])
        for batch, wanted in zip(again, expected[number + 1 :], strict=False):
            assert batch.tokens.equal(wanted.tokens)


def test_refusals() -> None:
    for weights, message in [
        ({"books": 0.0, "pages": 1.0}, "source has weight 0.0 for 'books'; it must be above 0"),
        ({"books": float("nan")}, "source has weight nan"),
        ({}, "source has 0 weights"),
    ]:
        with pytest.raises(UserError, match=message):
            Mixture({name: SOURCES[name] for name in weights}, weights)
    one, other = (
        PackedText(Mixture(SOURCES, WEIGHTS | {"books": books}), ByteTokenizer(), length=8, batch_size=1)
        for books in (5.0, 6.0)
    )
    with pytest.raises(UserError, match=r"^data.source has changed .* it was \[535, .*\] of 4096 documents, it is \["):
        one.load_state_dict(other.state_dict())
