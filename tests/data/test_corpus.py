"""The built-in corpus: always the same, split by module, text of any length."""

import hashlib

import pytest

from neuralmem.data import corpus
from neuralmem.errors import UserError


def test_the_fixed_slice_is_the_one_golden_values_belong_to() -> None:
    text = corpus.fixed_slice()
    assert hashlib.sha256(text.encode()).hexdigest() == corpus.FIXED_SHA256
    assert corpus.fixed_slice(100) == text[:100]


@pytest.mark.parametrize(("flavour", "least"), [("builtin", 1_000_000), ("stdlib", 5_000_000)])
def test_documents_are_sorted_split_and_large(flavour: corpus.Flavour, least: int) -> None:
    every, train, held = (corpus.documents(flavour, side) for side in ("all", "train", "validation"))
    names = [document.id for document in every]
    assert names == sorted(set(names))
    assert sorted([*train, *held]) == sorted(every)
    assert not {document.id for document in train} & {document.id for document in held}
    assert all(document.text.strip() for document in every)
    assert corpus.size(flavour) > least
    assert 0.02 < corpus.size(flavour, "validation") / corpus.size(flavour) < 0.25


def test_both_flavours_of_a_module_are_on_one_side() -> None:
    prose = {document.id.partition("/")[2] for document in corpus.documents("builtin", "validation")}
    sources = {document.id.partition("/")[2] for document in corpus.documents("stdlib", "train")}
    assert prose
    assert not prose & sources


def test_haystacks() -> None:
    size = corpus.size("builtin", "validation")
    text = corpus.haystack_text(2 * size + 10)
    assert len(text) == 2 * size + 10
    assert text[:size] != text[size : 2 * size]  # the second round has another order
    assert sorted(text[:size]) == sorted(text[size : 2 * size])
    assert corpus.haystack_text(1000) == text[:1000]
    assert corpus.haystack_text(1000, seed=1) != text[:1000]


def test_bad_input() -> None:
    with pytest.raises(UserError, match="did you mean 'builtin'"):
        corpus.documents("buildin")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean 'validation'"):
        corpus.documents("builtin", "valid")  # type: ignore[arg-type]
