"""Tasks in sequence, of facts and of intents, by models that keep all, the last, or nothing."""

import math
from pathlib import Path
from random import Random

import pytest

from neuralmem.evaluation.continual import Continual, measures
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.intents import ACTIONS, ASKING, TELLING, THINGS, Intent
from neuralmem.evaluation.script import Ask, Read
from neuralmem.evaluation.stats import student
from neuralmem.evaluation.streams import USUAL
from tests.evaluation.keeper import GAP, Keeper, Speaker, ask, latest

INTENTS = Continual(2, 3, 4, GAP, intents=True)


def test_measures_of_continual_learning_by_hand() -> None:
    R = [[0.1, 0.2, 0.0], [0.9, 0.3, 0.0], [0.6, 0.8, 0.1], [0.7, 0.5, 1.0]]
    found = measures(R)
    assert found.acc == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert found.bwt == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert found.fwt == pytest.approx(((0.3 - 0.2) + (0.1 - 0.0)) / 2)
    assert found.forgetting == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert found.learned == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert measures([[0.0], [1.0]]).acc == 1.0
    assert math.isnan(measures([[0.0], [1.0]]).bwt)


def test_intents_are_asked_in_words_that_nobody_told(facts: Facts) -> None:
    (cell,) = INTENTS.cells(facts)
    script = cell.write(0, Random(1))
    told, text, labels = dict[str, set[str]](), b"", dict[str, str]()
    for step in script.steps:
        if isinstance(step, Read):
            text += bytes(step.text.slice(0, len(step.text)).tolist())
            continue
        assert isinstance(step, Ask)
        lines = [line.decode().partition(" -> ") for line in text.split(b"\n") if b" -> " in line]
        for utterance, _, label in lines:
            told.setdefault(label, set()).add(utterance)
        assert len(step.questions) == INTENTS.tasks * INTENTS.classes
        for question in step.questions:
            asked, label = bytes(question.tokens).decode(), bytes(question.answer).decode().strip()
            assert labels.setdefault(question.labels["key"], label) == label
            assert asked.removesuffix(" ->") not in set().union(*told.values())
            if question.told is None:
                assert label not in told
            else:
                assert text[: question.told].endswith(f" -> {label}\n".encode())
                assert len(told[label]) == INTENTS.shown, "every example is worded differently"
    assert len(set(labels.values())) == len(labels) == len(told) == INTENTS.tasks * INTENTS.classes


def test_no_wording_belongs_to_two_intents() -> None:
    """Neither of a question nor of an example, so a label follows from the words."""
    intents = [Intent(a, t, 0) for a in range(len(ACTIONS)) for t in range(len(THINGS))]
    for frames in (TELLING, ASKING):
        worded = [utterance for intent in intents for utterance in intent.utterances(frames)]
        assert len(set(worded)) == len(worded)
    assert not set(TELLING) & set(ASKING)


def test_a_model_that_knows_intents_learns_them_and_keeps_them(facts: Facts, tmp_path: Path) -> None:
    """A guess is one of the labels, and nothing is known of a class before it is told."""
    rows = ask(INTENTS, facts, tmp_path, Speaker())
    assert INTENTS.matrix(rows) == [[0, 0], [1, 0], [1, 1]]
    assert {row["values"] for row in rows} == {900}
    assert "a guess is right 0.1% of the time" in INTENTS.notes(rows)[0]
    last = Speaker(lambda told, now: latest(told, INTENTS.classes))
    assert INTENTS.matrix(ask(INTENTS, facts, tmp_path / "last", last)) == [[0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("kept", "matrix", "summary"),
    [
        (99, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], (1.0, 0.0, 0.0, 0.0, 1.0)),
        (2, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], (1 / 3, -1.0, 0.0, 1.0, 1.0)),
        (0, [[0, 0, 0]] * 4, (0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
    ids=["keeps all", "keeps one task", "keeps nothing"],
)
def test_tasks_in_sequence(kept: int, matrix: list, summary: tuple, facts: Facts, tmp_path: Path) -> None:
    measure = Continual(3, 2, 2, GAP)
    rows = ask(measure, facts, tmp_path, Keeper(lambda told, now: latest(told, kept)))
    assert measure.matrix(rows) == matrix
    by_memory = {line["memory"]: line for line in measure.lines(rows) if line["after"] == "all"}
    assert tuple(by_memory["on"][name] for name in measures(matrix)._fields) == pytest.approx(summary)
    for name in USUAL:
        assert by_memory[name]["acc"] == 0.0


def test_texts_that_differ_widen_the_interval_of_what_is_learned(facts: Facts, tmp_path: Path) -> None:
    measure = Continual(3, 2, 2, GAP)
    all_kept, none_kept = (
        ask(measure, facts, tmp_path / str(kept), Keeper(lambda told, now, kept=kept: latest(told, kept)))
        for kept in (99, 0)
    )
    rows = [next(row for row in some if row["ablation"] == "none") for some in (all_kept, none_kept)]
    (line,) = [line for line in measure.lines(rows) if line["after"] == "all"]
    assert (line["acc"], line["learned"], line["texts"]) == (0.5, 0.5, 2)
    assert line["acc ±"] == pytest.approx(student(1) * 0.5)  # of 1 and 0
    assert line["bwt ±"] == 0.0
