"""Scores on recorded outputs, intervals, and the null model.

`official_scores.json` holds outputs and what the originals' own functions said of them, run once outside this
repository: RULER's `string_match_all` after `postprocess_pred` (a copy of scripts/eval, xuuHuang/RULER fa17be2), in
percent to two digits, on outputs of mag-tiny and others made from the answers; and BABILong's `compare_answers`
(booydar/babilong eeec607 babilong/metrics.py), with the number of labels to tell places from people.
"""

import json
import math
from pathlib import Path

import pytest

from neuralmem.evaluation import babi
from neuralmem.evaluation.scoring import official, rank_of_first, strict
from neuralmem.evaluation.stats import share_within, wilson

UUID = "f3c1a2b4-9d0e-4a7b-8c21-0123456789ab"

# output, answer, type, official, strict: what models of several kinds said to needle prompts
RECORDED = [
    (" 7405831.", "7405831", "numbers", 1, 1),
    (": 7405831. One of the special magic", "7405831", "numbers", 1, 1),
    (" 7405832. The number 7405831 is", "7405831", "numbers", 1, 0),
    (" 74058311", "7405831", "numbers", 1, 0),
    (" 740583", "7405831", "numbers", 0, 0),
    ("\n\n7405831", "7405831", "numbers", 1, 1),
    ("", "7405831", "numbers", 0, 0),
    (f" {UUID.upper()}.", UUID, "uuids", 1, 1),
    (f" {UUID[:-1]}", UUID, "uuids", 0, 0),
    (": Abiding-Zebra.", "abiding-zebra", "words", 1, 1),
    (" abiding-zebras", "abiding-zebra", "words", 1, 0),
    (" the abiding-zebra", "abiding-zebra", "words", 1, 0),
    ("007\n@", "007", "numbers", 1, 1),
    ("0070", "007", "numbers", 1, 0),
]


@pytest.mark.parametrize(("output", "answer", "kind", "lenient", "exact"), RECORDED)
def test_recorded_outputs(output: str, answer: str, kind: str, lenient: int, exact: int) -> None:
    assert official(output, [answer]) == lenient
    assert strict(output, [answer], kind) == exact


OFFICIAL = json.loads((Path(__file__).parent / "official_scores.json").read_text())


def test_needles_are_scored_as_ruler_scores_them() -> None:
    scores = [(official(said, answers), score) for said, answers, score in OFFICIAL["string_match_all"]]
    assert [round(100 * ours, 2) for ours, _ in scores] == [theirs for _, theirs in scores]
    assert len({theirs for _, theirs in scores}) > 8  # shares of several answers too


def test_facts_are_scored_as_babilong_scores_them() -> None:
    places, people = babi.TASKS["qa1"].labels, babi.TASKS["qa5"].labels
    for said, truth, question, count, score in OFFICIAL["compare_answers"]:
        assert babi.correct(said, truth, question, places if count == len(places) else people) is score, said


def test_rank_counts_ties_and_nan_against_the_truth() -> None:
    assert rank_of_first([0.0, -1.0, -2.0]) == 1
    assert rank_of_first([-1.0] * 10) == 10
    assert rank_of_first([math.nan, -1.0, -1.0]) == 3


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # from the textbook form (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), to six places
        (490, 500, 0.963580, 0.989101),
        (250, 500, 0.456341, 0.543659),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (1, 3, 0.061492, 0.792340),
    ],
)
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    share = wilson(hits, n)
    assert share.share == hits / n
    assert share.low == pytest.approx(low, abs=1e-6)
    assert share.high == pytest.approx(high, abs=1e-6)


def test_wilson_without_trials_says_nothing() -> None:
    share = wilson(0, 0)
    assert math.isnan(share.share)
    assert (share.low, share.high) == (0.0, 1.0)


@pytest.mark.parametrize(("length", "expected"), [(8192, 1.0), (16384, 0.5), (32768, 0.25), (131072, 0.0625)])
def test_null_model_is_the_sliding_window_row_of_ttt_e2e(length: int, expected: float) -> None:
    needles = [(start, start + 1) for start in range(length)]
    assert share_within(8192, length, needles) == pytest.approx(expected, abs=1e-3)
