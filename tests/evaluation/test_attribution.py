"""Leaving parts out: as reading the shorter text, right where the answer is known, at chance without a memory."""

import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from neuralmem.config import AttentionConfig, EndToEndConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.evaluation.attribution import (
    IDENTITY,
    Replay,
    grid_unit,
    holding,
    leave_one_out,
    parts_of,
    rank,
    run,
    tokens_to_read,
)
from neuralmem.evaluation.attribution_summary import draw, picture, summarise
from neuralmem.evaluation.cli import main
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.niah import Settings
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.rows import Subject
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import save
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.fake import Oracle

REPLAY = Replay(parts=6, unit=16, rows=4, stream_chunk=100)


def small(pattern: str, rule: str = "titans") -> CausalLM:
    torch.manual_seed(1)
    attention = AttentionConfig(heads=2, window=7, persistent_tokens=1, segment=16)
    memory = MemoryConfig(rule=rule, heads=1, chunk_size=8)
    model = CausalLM(ModelConfig(31, 16, 2, [pattern], attention=attention, memory=memory))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.double().eval()


def read_whole(model: CausalLM, ids: list[int], answer: list[int], mode: str = "on") -> float:
    """Brute force: the text from its start in one call, and the log-likelihood of what follows."""
    with torch.no_grad():
        logits, _ = model(torch.tensor([ids + answer[:-1]]), memory=mode)
    likelihoods = logits[0, len(ids) - 1 :].log_softmax(-1)
    return sum(float(likelihoods[i, token]) for i, token in enumerate(answer))


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [("titans_mag", "titans"), ("titans_mac", "titans"), ("titans_lmm", "delta"), ("transformer", "titans")],
)
@pytest.mark.parametrize("mode", ["on", "off"])
def test_leaving_a_part_out_is_reading_the_text_without_it(pattern: str, rule: str, mode: Any) -> None:
    model, ids, answer = small(pattern, rule), torch.randint(31, (150,)).tolist(), [3, 1, 4]
    parts = [
        (at, at + 16) for at in range(0, 112, 16)
    ]  # two groups of rows, and text between the last and the question
    whole, without = leave_one_out(model, Rope([ids]), 130, answer, parts, mode, REPLAY)
    assert whole == pytest.approx(read_whole(model, ids, answer, mode), abs=1e-10)
    for (start, stop), found in zip(parts, without, strict=True):
        expected = read_whole(model, ids[:start] + ids[stop:], answer, mode)
        assert found == pytest.approx(expected, abs=1e-10), (start, stop)
    if mode == "on" and pattern != "transformer":
        assert len({round(x, 9) for x in without}) == len(parts), "every part matters"


def test_parts_may_leave_gaps_and_be_off_the_grid() -> None:
    model, ids, answer = small("titans_mag"), torch.randint(31, (90,)).tolist(), [5]
    parts = [(3, 10), (20, 50), (61, 62)]
    _, without = leave_one_out(model, Rope([ids]), 80, answer, parts, "on", replace_rows(2))
    for (start, stop), found in zip(parts, without, strict=True):
        assert found == pytest.approx(read_whole(model, ids[:start] + ids[stop:], answer), abs=1e-10)


def replace_rows(rows: int) -> Replay:
    return REPLAY._replace(rows=rows, stream_chunk=9)


def test_with_the_memory_off_only_what_is_in_reach_matters() -> None:
    """The question's first tokens see a part that ends there; those farther back than the reach change nothing."""
    model, ids = small("titans_mag"), torch.randint(31, (150,)).tolist()
    parts = [(at, at + 16) for at in range(0, 144, 16)]
    whole, without = leave_one_out(model, Rope([ids]), 149, [3], parts, "off", REPLAY)
    changed = [abs(x - whole) > 1e-10 for x in without]
    assert model.reach == 2 * 6, "the convolutions of three tokens stand beside the windows"
    assert [stop for (_, stop), here in zip(parts, changed, strict=True) if here] == [144]


def test_progress_adds_up() -> None:
    told: list[int] = []
    parts = [(at, at + 8) for at in range(8, 80, 8)]
    replay = REPLAY._replace(progress=told.append)
    leave_one_out(small("titans_mag"), Rope([list(range(30)) * 4]), 90, [1, 2], parts, "on", replay)
    assert sum(told) == tokens_to_read(120, parts, replay.rows)


class Forgetful(Oracle):
    """Knows what its window shows and nothing else, whatever is asked of its memory."""

    def predict(self, text: bytes, memory: str) -> torch.Tensor:
        return super().predict(text, "off")


def ask(model: Oracle, subject: Subject, out: Path, training: TrainingData, **changes: Any) -> list[dict]:
    settings = Settings((find_task("recall"),), (700,), samples=(8,), ablations=("none", "off"))
    settings = replace(settings, haystacks=(f"file:{training.source}",), **changes)
    journal = Journal(out / "attribution.jsonl", IDENTITY)
    return run(settings, model, model.tokenizer, subject, journal, training, REPLAY)


def test_the_needles_part_is_first_for_an_oracle_and_at_chance_without_its_memory(
    subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    model = Oracle(reach=100)
    rows = ask(model, replace(subject, reach=100), tmp_path, training, samples=(12,))
    on, off = summarise(rows)
    assert (on["n"], on["hit1"], on["rank"]) == (12, 1.0, 1.0)
    assert on["hit1_low"] > 0.75
    assert on["drop_needle"] > 3 > 0.01 > abs(on["drop_others"])
    assert off["ablation"] == "off"
    assert off["hit1_low"] <= off["chance"] <= off["hit1_high"]
    assert off["drop_needle"] == off["drop_others"] == 0
    assert all(row["distance_to_query"] > 100 + row["part_tokens"] for row in rows)


def test_a_model_that_has_no_memory_is_at_chance(subject: Subject, tmp_path: Path, training: TrainingData) -> None:
    rows = ask(
        Forgetful(reach=100), replace(subject, reach=100), tmp_path, training, samples=(12,), ablations=("none",)
    )
    (line,) = summarise(rows)
    assert line["hit1_low"] <= line["chance"] <= line["hit1_high"] < 0.75
    assert line["drop_needle"] == 0


def test_a_run_goes_on_where_it_was(subject: Subject, tmp_path: Path, training: TrainingData) -> None:
    subject = replace(subject, reach=100)
    first = ask(Oracle(reach=100), subject, tmp_path, training, samples=(2,))
    again = Oracle(reach=100)
    assert ask(again, subject, tmp_path, training, samples=(2,)) == first
    assert again.reads == []
    more = ask(again, subject, tmp_path, training, samples=(3,), ablations=("none",))
    assert more[:2] == [row for row in first if row["ablation"] == "none"]
    assert len((tmp_path / "attribution.jsonl").read_text().splitlines()) == 5


def test_a_model_that_says_nan_is_last_and_not_a_crash(
    subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    model = Oracle(reach=100, broken=True)
    (row,) = ask(model, replace(subject, reach=100), tmp_path, training, samples=(1,), ablations=("none",))
    assert (row["hit"], row["rank"], row["log_likelihood"]) == (0, len(row["drops"]), None)
    assert "NaN" not in (tmp_path / "attribution.jsonl").read_text()
    assert picture([row], "x").axes


def test_a_length_with_nothing_beyond_reach_is_refused(
    subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    with pytest.raises(UserError, match="--lengths holds 700; of its needles hardly any"):
        ask(Oracle(reach=690), replace(subject, reach=690), tmp_path, training)


def test_parts_lie_in_the_haystack_beyond_reach_and_hold_the_needle() -> None:
    from neuralmem.evaluation.sample import Sample

    rope = Rope([[0] * 1000])
    task = find_task("recall")
    sample = Sample(task, "exact", 1000, 0, 0, "noise", rope, (50, 980), ((70, 80),), 980, "a", ("1",), ((1,),))
    parts = parts_of(sample, 200, Replay(parts=10, unit=16))
    assert parts == [(50 + i * 80, 130 + i * 80) for i in range(9)], "46 chunks by tens: five in a part, nine parts"
    assert 1000 - parts[-1][1] > 200 >= 1000 - parts[-1][1] - 80, "no room for another"
    assert holding(parts, sample.needles[0]) == [0]
    assert parts_of(sample, 2000, Replay(parts=10, unit=16)) == []


def test_ties_are_drawn_and_numbers_that_are_none_come_last() -> None:
    places = [rank([0.0] * 5, [2], Random(i)) for i in range(200)]
    assert {places.count(place) > 20 for place in range(1, 6)} == {True}
    assert rank([0.0, math.nan, 1.0], [2], Random(0)) == 3
    assert rank([0.0, 1e-7, 0.0], [1], Random(1)) in (1, 2, 3)


def test_the_unit_is_where_chunks_and_segments_begin_together() -> None:
    config = ModelConfig(
        vocab_size=5,
        width=8,
        depth=2,
        pattern=["transformer", "titans_mac"],
        attention=AttentionConfig(segment=24),
        memory=MemoryConfig(chunk_size=16),
    )
    assert grid_unit(config) == 48
    assert grid_unit(replace(config, pattern=["titans_mag"])) == 16
    end_to_end = EndToEndConfig(mini_batch=8)
    assert grid_unit(replace(config, pattern=["transformer"], model="ttt_e2e", end_to_end=end_to_end)) == 8


def test_the_command_writes_its_files(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["attribution", "--checkpoint", str(checkpoint), "--haystack", f"file:{text_file}", "--out", str(tmp_path)]
    assert main([*given, "--lengths", "300", "--samples", "2", "--parts", "4"]) == 0
    shown = capsys.readouterr().out
    for part in ("attribution.jsonl", "attribution.csv", "chance", "recall", "off"):
        assert part in shown
    rows = [json.loads(line) for line in (tmp_path / "attribution.jsonl").read_text().splitlines()]
    assert [row["ablation"] for row in rows] == ["none", "off"] * 2
    assert (tmp_path / "attribution_recall_file_300.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("task", ["mv-niah", "mq-niah", "vt", "cwe", "fwe"])
def test_a_task_of_several_answers_is_refused(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attribution", "--checkpoint", "neuralmem/mag-tiny", "--tasks", task]) == 2
    single = "s-niah-pk, s-niah-n, s-niah-w, s-niah-w-words, mk-niah-1, mk-niah-2, mk-niah-3, recall"
    message = f"error: --tasks holds '{task}', which has several answers; it must be one of {single}\n"
    assert capsys.readouterr().err == message


def test_full_attention_leaves_nothing_to_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ModelConfig(257, 8, 1, ["titans_mag"], attention=AttentionConfig(heads=1, window=None))
    save(tmp_path, CausalLM(config), ByteTokenizer())
    assert main(["attribution", "--checkpoint", str(tmp_path), "--lengths", "512"]) == 2
    assert "--lengths is at most 512; attention sees all of that" in capsys.readouterr().err


def test_the_picture_outlines_the_needles_part(subject: Subject, tmp_path: Path, training: TrainingData) -> None:
    rows = ask(Oracle(reach=100), replace(subject, reach=100), tmp_path, training, samples=(3,))
    on, off, *_ = picture(rows, "quickstart").axes
    assert [len(axes.patches) for axes in (on, off)] == [3, 3]
    for row, outline in zip(
        sorted((r for r in rows if r["ablation"] == "none"), key=lambda r: r["needle_span"]), on.patches, strict=True
    ):
        assert round(outline.get_x() + 0.5) == row["needle_parts"][0]
    assert on.get_title(loc="left").startswith("memory on: first in 100% of 3")
    assert [path.name for path in draw(rows, tmp_path, "x")] == ["attribution_recall_file_700.png"]
