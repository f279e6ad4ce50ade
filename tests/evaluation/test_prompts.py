"""The published prompts, byte by byte."""

import hashlib
from random import Random

import pytest

from neuralmem.errors import UserError
from neuralmem.evaluation.prompts import NOISE, continuations, find_task, needle, prompt, random_value, random_word

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
