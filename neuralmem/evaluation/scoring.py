"""Scores of one prediction: the official one, a strict one, and the rank of the truth among other answers.

Special: RULER's official score is a substring anywhere in 128 greedy tokens, which rewards rambling, so the strict
score stands beside it: the first strings of the answers' type must be the answers.
Source: RULER `string_match_all` (NVIDIA/RULER c3f5e3b, scripts/eval); evaluation.md section 2.3 and finding 7.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal

AnswerType = Literal["numbers", "words", "uuids", "variables", "listed", "coded"]

_FIRST: dict[str, re.Pattern[str]] = {
    "numbers": re.compile(r"\d+"),
    "uuids": re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE),
    "variables": re.compile(r"\b[A-Z]{5}\b"),
    "listed": re.compile(r"(?<=\d\. )[^\d\s,;.]+(?: [^\d\s,;.]+)*"),
    "coded": re.compile(r"\b[a-z]{6}\b"),
}
_CONTROL = re.compile(r"[\x00-\x1f]")


def official(prediction: str, answers: Sequence[str]) -> float:
    """Share of the answers that stand anywhere in the prediction, in any case: RULER's `string_match_all`.

    Example:
        >>> official("it is 7405831, or 12", ["7405831"]), official("740583", ["7405831"])
        (1.0, 0.0)
        >>> official("ABCDE and FGHIJ", ["abcde", "KLMNO"])
        0.5
    """
    said = _CONTROL.sub("\n", prediction.strip()).lower()
    return sum(answer.lower() in said for answer in answers) / len(answers)


def strict(prediction: str, answers: Sequence[str], kind: AnswerType) -> int:
    """1 when the first strings of the answers' type in the prediction, as many as there are, are the answers.

    Their order does not matter. A number is a whole run of digits, a variable five capitals, a coded word six small
    letters, a listed word what stands after "1. ". Words may hold spaces and hyphens, so a word answer must come first
    (after a colon or quotes, at most) and must end where a word ends.

    Example:
        >>> strict(": 7405831.", ["7405831"], "numbers"), strict("12 or 7405831", ["7405831"], "numbers")
        (1, 0)
        >>> strict(" 74058312", ["7405831"], "numbers"), strict(": ad hoc-zebra.", ["ad hoc-zebra"], "words")
        (0, 1)
        >>> strict("12, and 11. Or 13", ["11", "12"], "numbers"), strict("1. ad hoc 2. ox", ["ox", "ad hoc"], "listed")
        (1, 1)
    """
    if kind == "words":
        (answer,) = answers
        rest = prediction.lstrip(" \n\t:\"'").lower()
        return int(rest.startswith(answer.lower()) and not re.match(r"[\w-]", rest[len(answer) :]))
    found = [match.group().lower() for match in islice(_FIRST[kind].finditer(prediction), len(answers))]
    return int(sorted(found) == sorted(answer.lower() for answer in answers))


def rank_of_first(log_likelihoods: Sequence[float]) -> int:
    """Rank of the first candidate, 1 is best. A tie counts against it, and so does a value that is not a number.

    Example:
        >>> rank_of_first([-1.0, -2.0, -0.5]), rank_of_first([-1.0, -1.0]), rank_of_first([float("nan"), -9.0])
        (2, 2, 2)
    """
    truth = log_likelihoods[0]
    return 1 + sum(not other < truth for other in log_likelihoods[1:])
