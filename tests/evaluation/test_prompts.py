"""The published prompts, byte by byte."""

import hashlib
from random import Random

import pytest

from neuralmem.data.corpus import fixed_slice
from neuralmem.errors import UserError
from neuralmem.evaluation import protocols
from neuralmem.evaluation.cell import Cell
from neuralmem.evaluation.contexts import TokenisedHaystack
from neuralmem.evaluation.haystack import Haystack, split_sentences
from neuralmem.evaluation.prompts import NOISE, continuations, find_task, needle, prompt, random_value, random_word
from neuralmem.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()

# evaluation.md section 2.7, extracted from the page and hashed on its own, not through this package.
GOLDEN = "83d78c4a9a5b56f82c3c1c170b0caa8f7233706870438fc5e81065de2828ede8"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_golden_noise_prompt() -> None:
    context = "\n".join([NOISE, needle("numbers", "abiding-zebra", "7405831"), NOISE])
    assert sha256(prompt("numbers", "abiding-zebra", context)) == GOLDEN


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("numbers", "7405831", "A special magic number is hidden|about the number after|numbers for a-b is: 7405831."),
        ("uuids", "x-y", "A special magic uuid is hidden|about the uuid after|uuids for a-b is: x-y."),
        ("words", "c-d", "A special magic word is hidden|about the word after|words for a-b is: c-d."),
    ],
)
def test_singular_frame_and_plural_needle(kind: str, value: str, expected: str) -> None:
    text = prompt(kind, "a-b", needle(kind, "a-b", value))
    for part in expected.split("|"):
        assert part in text
    assert text.endswith(f"? The special magic {kind[:-1]} for a-b mentioned in the provided text is")


def test_values_have_their_types() -> None:
    random = Random(0)
    numbers = [random_value("numbers", random) for _ in range(200)]
    assert all(len(n) == 7 and n[0] != "0" for n in numbers)
    assert all(u[14] == "4" and u[19] in "89ab" for u in (random_value("uuids", random) for _ in range(50)))


def test_keys_are_rulers() -> None:
    from wonderwords import RandomWord

    lists = RandomWord()._categories
    adjectives, nouns = set(lists["adjectives"]), set(lists["nouns"])
    # Upstream draws from the set of all joined pairs. Drawing each half is the same as long as no two pairs join alike.
    longer = [b.removeprefix(f"{a}-") for a in adjectives for b in adjectives if b.startswith(f"{a}-")]
    assert not any(noun.startswith(f"{rest}-") for rest in longer for noun in nouns)
    assert len(adjectives) * len(nouns) == 6_171_620, "as many as the set that RULER builds"
    word = random_word(Random(3))
    assert any(word == f"{a}-{word[len(a) + 1 :]}" and word[len(a) + 1 :] in nouns for a in adjectives)


def test_continuations_are_ten_and_different() -> None:
    found = continuations("numbers", "1234567", Random(1))
    assert found[0] == " 1234567"
    assert len(set(found)) == 10


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--tasks holds 's-niah-kp'.*did you mean 's-niah-pk'"):
        find_task("s-niah-kp")


# A prompt of 2,048 bytes by each rule, from Python's own text that is the same in all versions; made once, kept since.
WHOLE = {
    "s-niah-pk exact": "e51a663e74ccc5bcc1bf88d087d1df36d48dfc1b03afb84b952dc75ab92f3416",
    "s-niah-n exact": "33f1f22b1c7a2761a7e3fb0ea5603d365458abd91edfca01cbf84b9c4a450c73",
    "s-niah-w exact": "b11f756dac51f08fa4fe9b50d362c95de00f7d94568997c3a956bf115f2cd40e",
    "s-niah-w-words exact": "17786bbce4f584430d56de3726e60464252776770122bf6d3ba0aa244cb0cc93",
    "s-niah-pk ruler2024": "a44f9416141386de199d93412657137a9c3e587b427b4275206792d1b6887f9e",
    "s-niah-n ruler2024": "27bded4a53f0f4b369a0045c4eab2a1fb9b147db49e024b2ab72e1e611d72a60",
    "s-niah-w ruler2024": "1652c46e396f5aad41b3192b0846693b71ec8a7a752fd21192f601795f1f106b",
    "s-niah-w-words ruler2024": "42d2e0d15e0feadab6ee49b53a2ed7918bfd914773ced37d653f735b9e3d4bf3",
}


@pytest.mark.parametrize(("which", "expected"), WHOLE.items())
def test_golden_prompts_whole(which: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "sentence_splitter", lambda: ("own-sentences", split_sentences))
    task, protocol = which.split()
    haystack = Haystack("noise") if task == "s-niah-pk" else Haystack("fixed", fixed_slice())
    cell = Cell(find_task(task), protocol, 2048, haystack, 42, BYTES.encode)
    separator = "\n" if haystack.is_noise else " "
    tokens = TokenisedHaystack.of_units(haystack.sentences, separator, BYTES.encode, 1 << 16)
    build = protocols.exact(cell, tokens) if protocol == "exact" else protocols.ruler(cell)
    sample = build(0, 0.5, cell.random(0))
    assert sha256(BYTES.decode(sample.rope.slice(0, len(sample.rope)))) == expected
