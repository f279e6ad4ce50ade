"""Every measure against a model whose right result is known beforehand, and against ones that must fail."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.evaluation.capacity import Capacity
from neuralmem.evaluation.continual import Continual
from neuralmem.evaluation.copy import Copy
from neuralmem.evaluation.curves import draw
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.half_life import Forgetting
from neuralmem.evaluation.mqar import ManyQuestions
from neuralmem.evaluation.overwrite import Overwrite
from neuralmem.evaluation.script import Ask, Read
from neuralmem.evaluation.sessions import Sessions
from neuralmem.evaluation.stats import Share
from neuralmem.evaluation.streams import USUAL, Measure, Sampling
from neuralmem.evaluation.tables import Line
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.keeper import GAP, SMALL, SUBJECT, Keeper, Told, ask, latest

MEASURES: list[Measure] = [
    ManyQuestions((3,), GAP),
    Overwrite((1,), 2, GAP),
    Copy((GAP,), 24),
    Sessions(2, 2),
    Forgetting(256, 64),
    Capacity((4,), GAP),
    Continual(2, 2, 2, GAP),
]


def shares(line: Line, *names: str) -> list[float]:
    return [line[name].share for name in names]


def first(fact: Told, told: Sequence[Told]) -> bool:
    """Whether it is the first with its key."""
    return next(other for other in told if other[0] == fact[0]) == fact


def test_recall_counts_what_is_kept(facts: Facts, tmp_path: Path) -> None:
    measure = ManyQuestions((4, 8), GAP)
    # Questions stay in the text with their answers, so a model of the latest five would learn from being asked.
    rows = ask(measure, facts, tmp_path / "a", Keeper(lambda told, now: told[:5]))
    lines = measure.lines(rows)
    assert [line["facts"] for line in lines[:2]] == [4, 8]
    assert [line["accuracy"].share for line in lines[:2]] == [1.0, 5 / 8]
    for line in lines[:2]:
        assert shares(line, *USUAL) == [0.0, 0.0, 0.0]
        assert line["null model"] == 0
    assert lines[0]["beyond reach"].n == 4 * 4
    assert sum(line["beyond reach"].n for line in lines[2:]) == 4 * 12, "every answer has a distance"
    window = measure.lines(ask(measure, facts, tmp_path / "b", Keeper(lambda told, now: [])))
    assert [line["beyond reach"].share for line in window[:2]] == [0.0, 0.0]
    assert window[0]["nll"] == pytest.approx(3 * math.log(11), abs=1e-3)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_the_state_of_another_text_knows_nothing_of_this_one(measure: Measure, facts: Facts, tmp_path: Path) -> None:
    """A model that keeps everything fails there beyond reach; five texts are read as two and three, never as one."""
    sampling = Sampling(samples=5, ablations=("none", "shuffled"), batch_size=2)
    keeper = Keeper(copies=measure.name == "copy")
    rows = ask(measure, facts, tmp_path, keeper, sampling)
    found = {
        name: [a for row in rows if row["ablation"] == name for a in row["answers"]] for name in sampling.ablations
    }
    pairs = [(a, b) for a, b in zip(*found.values(), strict=True) if not a["seen"] and a.get("age", 0) == 0]
    right = [sum(answer["right"] for answer in some) for some in zip(*pairs, strict=True)]
    assert right[1] < 0.5 * right[0]
    lines = (tmp_path / f"{measure.name.replace('-', '_')}.jsonl").read_text().splitlines()
    assert len(lines) == len(rows), "no row stands there twice"
    (tmp_path / f"{measure.name.replace('-', '_')}.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert ask(measure, facts, tmp_path, keeper, sampling) == [
        row | {"wall_s": again["wall_s"]}
        for row, again in zip(rows, ask(measure, facts, tmp_path, keeper, sampling), strict=True)
    ]
    with pytest.raises(UserError, match="read at least two side by side"):
        ask(measure, facts, tmp_path / "one", keeper, replace(sampling, samples=1))


def test_recall_within_reach_is_told_apart(facts: Facts, tmp_path: Path) -> None:
    measure = ManyQuestions((3,), gap=1, spread=0, questions=1)
    keeper = Keeper(lambda told, now: [], reach=200)
    sampling = replace(SMALL, ablations=("none",))
    [line, *_] = measure.lines(ask(measure, facts, tmp_path, keeper, sampling))
    assert line["null model"] == 1.0
    assert (line["within reach"].share, line["beyond reach"].n) == (1.0, 0)


def test_questions_are_of_held_out_pairs_in_the_form_of_training(facts: Facts) -> None:

    decode = ByteTokenizer().decode
    for cell in ManyQuestions((6,), GAP).cells(facts):
        script = cell.write(0, Random(1))
        text = "".join(
            decode(step.text.slice(0, len(step.text)).tolist())
            if isinstance(step, Read)
            else decode([*step.questions[0].tokens, *step.questions[0].answer])
            for step in script.steps
            if isinstance(step, Read | Ask)
        )
        told = [line[1:].split("=") for line in text.splitlines() if line.startswith("@")]
        assert len(told) == 12
        assert sorted(told[:6]) == sorted(told[6:]), "every fact once, then every question with its answer"
        assert all(facts.form.is_held_out(key, int(value)) for key, value in told)
        assert not any(facts.form.is_key_held_out(key) for key, _ in told)
        assert len(text) == script.tokens
        first = text.index("@" + told[6][0] + "=", text.index("@" + told[5][0] + "=") + 1)
        assert first - text.index("@" + told[5][0] + "=") > GAP


@pytest.mark.parametrize(
    ("keeps", "expected"),
    [
        (lambda told, now: told, [(1, 0, 0), (1, 0, 0)]),
        (lambda told, now: [fact for fact in told if first(fact, told)], [(1, 0, 0), (0, 1, 0)]),
        (lambda told, now: [], [(0, 0, 1), (0, 0, 1)]),
    ],
    ids=["keeps the latest", "keeps the first", "keeps nothing"],
)
def test_overwriting(keeps, expected: list, facts: Facts, tmp_path: Path) -> None:
    measure = Overwrite((0, 3), 4, GAP)
    lines = measure.lines(ask(measure, facts, tmp_path, Keeper(keeps)))
    assert [tuple(shares(line, "accuracy", "stale", "other")) for line in lines] == expected
    assert all(shares(line, *USUAL) == [0.0, 0.0, 0.0] for line in lines)
    assert lines[1]["accuracy"].n == 4 * 4


def test_copying(facts: Facts, tmp_path: Path) -> None:
    measure = Copy((GAP,), 24)
    [line] = measure.lines(ask(measure, facts, tmp_path / "a", Keeper(copies=True)))
    assert line["second time"].share == 1.0
    assert line["first time"].share < 0.2
    assert line["nll second"] == pytest.approx(0.0, abs=1e-6)
    assert line["nll saved"] == pytest.approx(1.0)
    assert max(shares(line, *USUAL)) < 0.2, "in the window stands the text in between"
    assert line["second time"].n == 4 * 20
    assert line["distance"] >= GAP + 24 - 1
    [line] = measure.lines(ask(measure, facts, tmp_path / "b", Keeper()))
    assert line["second time"].share < 0.2
    assert line["nll saved"] == pytest.approx(0.0, abs=1e-6)
    assert line["nll first"] == pytest.approx(math.log(257), abs=1e-4)


def test_a_copy_in_reach_is_no_work_of_memory(facts: Facts, tmp_path: Path) -> None:
    measure = Copy((1,), 8)
    keeper = Keeper(reach=200, copies=True)
    [line] = measure.lines(ask(measure, facts, tmp_path, keeper))
    assert line["null model"] == 1.0
    assert shares(line, "second time", "frozen", "off") == [1.0, 1.0, 1.0]


def test_sessions(facts: Facts, tmp_path: Path) -> None:
    measure = Sessions(4, 3)
    lines = measure.lines(ask(measure, facts, tmp_path / "a", Keeper(lambda told, now: latest(told, 6))))
    assert [line["lag"] for line in lines] == [1, 2, 3, 4]
    assert [line["accuracy"].share for line in lines] == [1.0, 1.0, 0.0, 0.0]
    assert all(line["null model"] == 0 for line in lines), "windows are emptied"
    assert all(shares(line, *USUAL) == [0.0, 0.0, 0.0] for line in lines)
    sharp = Sessions(2, 1, spread=1, tail=0)  # all within the window, were it not emptied
    rows = ask(sharp, facts, tmp_path / "b", Keeper(lambda told, now: [], reach=500))
    assert [line["accuracy"].share for line in sharp.lines(rows)] == [0.0, 0.0]


def forgets(half: float):
    """A fact lasts as long as its key says, such that half of them are gone after so many tokens."""

    def lasts(key: bytes) -> float:
        chance = (int(hashlib.sha256(key).hexdigest()[:8], 16) + 0.5) / 2**32
        return -half * math.log2(chance)

    return lambda told, now: [fact for fact in told if now - fact[2] <= lasts(fact[0])]


def test_half_life_of_a_model_that_forgets(facts: Facts, tmp_path: Path) -> None:
    measure, sampling = Forgetting(2048, 64, facts=4), replace(SMALL, samples=16)
    rows = ask(measure, facts, tmp_path, Keeper(forgets(300.0)), sampling)
    found, life = measure.fits(rows, draws=300)["exponential"]
    assert life.low <= 300 <= life.high
    assert found.error < 0.1
    lines = measure.lines(rows)
    assert [line["since"] for line in lines] == [64, 128, 256, 512, 1024, 2048]
    assert all(line["since"] < line["tokens"] < line["since"] + 120 for line in lines), "that of the last fact is exact"
    assert all(shares(line, *USUAL) == [0.0, 0.0, 0.0] for line in lines)


def test_half_life_that_is_not_reached_and_that_is_none(facts: Facts, tmp_path: Path) -> None:
    measure, sampling = Forgetting(512, 64), replace(SMALL, samples=6, ablations=("none",))
    kept = measure.notes(ask(measure, facts, tmp_path / "a", Keeper(), sampling))
    assert kept[0].startswith("Half-life: not reached within 512 tokens (95% interval over 512 to over 512)")
    lost = measure.notes(ask(measure, facts, tmp_path / "b", Keeper(lambda told, now: []), sampling))
    assert lost[0].startswith("Half-life: none, since nothing was recalled;")
    near = ask(measure, facts, tmp_path / "c", Keeper(lambda told, now: [], reach=300), sampling)
    assert [line["null model"] for line in measure.lines(near)] == [1.0, 1.0, 1.0, 0.0]
    assert [line["tokens"] for line in measure.lines(near)] == [64, 128, 256, 512]
    assert measure.notes(near)[0].startswith("Fewer than three distances lie beyond reach")
    seen = measure.notes(ask(measure, facts, tmp_path / "d", Keeper(reach=9999), sampling))
    assert seen[-1] == "Attention sees all of it: this is no half-life of a memory."


def test_capacity_in_bits(facts: Facts, tmp_path: Path) -> None:
    measure = Capacity((4, 8), GAP, parameters=36)
    lines = measure.lines(ask(measure, facts, tmp_path, Keeper(lambda told, now: latest(told, 5))))
    each = math.log2(250)  # a quarter of the thousand values are held out
    assert [line["bits"] for line in lines] == pytest.approx([4 * each, 5 * each], abs=1e-3)
    lost = 3 * math.log2(11) - each  # by a pair that is not known, where nothing is cut off
    assert [line["bits, no cut"] for line in lines] == pytest.approx([4 * each, 5 * each - 3 * lost], abs=1e-3)
    assert [line["bits told"] for line in lines] == pytest.approx([4 * each, 8 * each])
    assert [line["linear memory"] for line in lines] == pytest.approx([4 * each, 6 * each])
    assert lines[1]["bits / state byte"] == pytest.approx(5 * each / 1000, abs=1e-5)
    assert lines[1]["bits / state number"] == pytest.approx(5 * each / 36, abs=1e-3)
    assert [line[f"bits {name}"] for line in lines for name in USUAL] == [0.0] * 6


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_second_run_asks_nothing_and_says_the_same(measure: Measure, facts: Facts, tmp_path: Path) -> None:
    first = ask(measure, facts, tmp_path, Keeper())
    again = Keeper()
    assert ask(measure, facts, tmp_path, again) == first
    assert again.reads == 0
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    after = ask(measure, facts, tmp_path, again)
    assert again.reads > 0
    assert [(r["script_sha256"], r["answers"]) for r in after] == [(r["script_sha256"], r["answers"]) for r in first]
    assert len(path.read_text().splitlines()) == len(first) == 4 * 4
    for row in map(json.loads, path.read_text().splitlines()):
        assert {"ckpt_sha256", "dtype", "seed", "prompt_tokens", "state_bytes", "wall_s", "reach"} <= set(row)
    other = replace(SUBJECT, ckpt_sha256="d" * 64)
    rows = ask(measure, facts, tmp_path, again, Sampling(1, ("none",)), other)
    assert [row["ckpt_sha256"][0] for row in rows] == ["d"]


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_figure_shows_every_curve(measure: Measure, facts: Facts, tmp_path: Path) -> None:
    rows = ask(measure, facts, tmp_path, Keeper(), Sampling(2))
    curves = measure.curves(rows)
    figure = draw(curves, "a run")
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == [curve.name for curve in curves.curves]
    assert any(curve.name == "memory on" for curve in curves.curves) or measure.name == "continual"
    assert all(isinstance(note, str) for note in measure.notes(rows))


class Broken(Keeper):
    """Says NaN."""

    def predict(self, *arguments) -> torch.Tensor:
        return torch.full_like(super().predict(*arguments), torch.nan)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_model_that_says_nan_is_wrong_and_not_a_crash(measure: Measure, facts: Facts, tmp_path: Path) -> None:
    rows = ask(measure, facts, tmp_path, Broken(), Sampling(2))
    assert not any(answer["exact"] for row in rows for answer in row["answers"])
    assert all(answer["nll"] is None for row in rows for answer in row["answers"])
    for line in measure.lines(rows):
        accuracy = line.get("accuracy", line.get("second time", line.get("acc")))
        assert (accuracy.share if isinstance(accuracy, Share) else accuracy) in (0.0, None)
    json.dumps(rows, allow_nan=False)


def test_settings_that_cannot_be_are_refused(facts: Facts, tmp_path: Path) -> None:
    for measure, message in (
        (ManyQuestions((10_000,)), r"--facts is 10000; it must be at most \d+, the keys"),
        (Capacity((10_000,)), "--pairs is 10000"),
        (Sessions(100, 100), "--sessions times --facts is 10000"),
        (Continual(100, 100), "--tasks times --classes is 10000"),
        (Continual(10, 16, intents=True), "--tasks times --classes is 160; it must be at most 150"),
    ):
        with pytest.raises(UserError, match=message):
            ask(measure, facts, tmp_path, Keeper())
    assert list(tmp_path.iterdir()) == [], "nothing is half-written"
    with pytest.raises(UserError, match="--longest is 100; it must be at least 128"):
        Forgetting(100)
    with pytest.raises(UserError, match="--cue is 8; it must be at least 1 and below --block, which is 8"):
        Copy((1,), 8, 8)
