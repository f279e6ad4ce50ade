"""What evaluation reads was never trained on: haystacks share no document with training, keys come from training."""

from pathlib import Path

import pytest

from neuralmem.data import sources
from neuralmem.data.corpus import Flavour, documents
from neuralmem.data.document import Document
from neuralmem.data.needles import find_keys
from neuralmem.data.sources import open_source
from neuralmem.evaluation import recall
from neuralmem.evaluation.haystack import open_haystack
from neuralmem.evaluation.held_out import rows_of, shuffled_lines
from neuralmem.evaluation.recall import TrainingData, training_keys
from neuralmem.tokenizer import ByteTokenizer


@pytest.mark.parametrize("name", ["builtin", "stdlib"])
@pytest.mark.parametrize("share", [None, 0.2])
def test_haystacks_share_no_document_with_training(name: Flavour, share: float | None) -> None:
    text = open_haystack(name, 1000, share=share).text
    part = {} if share is None else {"share": share}  # the default of each
    train = [document.text.rstrip("\n") for document in open_source(name, side="train", **part).read()]
    held = [document.text.rstrip("\n") for document in documents(name, "validation", **part)]
    assert len(train) > 5 * len(held) / 2
    assert not [document[:60] for document in train if len(document) > 300 and document in text]
    assert all(document in text for document in held)
    assert len(text) == sum(len(document) + 1 for document in held)


def test_shuffled_lines_are_the_same_lines_wherever_they_stood() -> None:
    """Easy lines, then hard ones: shuffled, the beginning is as hard as the rest."""
    lines = ["easy"] * 200 + [f"hard {i}" for i in range(200)]
    shuffled = shuffled_lines("\n".join(lines), 0).split("\n")
    assert sorted(shuffled) == sorted(lines)
    assert 70 < shuffled[:200].count("easy") < 130
    assert shuffled_lines("\n".join(lines), 0).split("\n") == shuffled
    assert shuffled_lines("\n".join(lines), 1).split("\n") != shuffled


@pytest.mark.parametrize("easy", [2000, 200])
def test_shuffled_rows_are_no_easier_in_front(easy: int) -> None:
    """Whether one document is a row or short ones make one: easy lines stand anywhere in it."""
    easy_lines, hard_lines = "easy\n" * (easy // 5), "hard\n" * (easy // 5)
    documents = (
        [Document("a", easy_lines + hard_lines)]
        if easy > 400
        else [Document("a", easy_lines), Document("b", hard_lines)]
    )
    (row,) = rows_of(documents, ByteTokenizer().encode, 300, 1, shuffled=0)
    assert row.kind == ("beginning" if easy > 400 else "joined")
    text = bytes(row.tokens.tolist()).decode()
    assert 0 < text[:150].count("easy") < 29
    assert 0 < text[150:].count("easy") < 29
    (plain,) = rows_of(documents, ByteTokenizer().encode, 300, 1)
    assert bytes(plain.tokens.tolist()).decode()[:150].count("easy") == 30


def test_recall_takes_its_keys_from_training_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = []

    def spy(*arguments: object, **options: object) -> sources.Source:
        opened.append(options["side"])
        return open_source(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recall, "open_source", spy)
    training = TrainingData(source="builtin")
    keys = training_keys(training, ByteTokenizer(), 6)
    assert opened == ["train"]
    texts = (document.text for document in documents("builtin", "train"))
    allowed = [
        key for key in find_keys(texts, ByteTokenizer(), training.form) if not training.form.is_key_held_out(key)
    ]
    assert keys == allowed
