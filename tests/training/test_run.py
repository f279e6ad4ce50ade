"""What a run does and leaves behind, with the command line in this process."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from neuralmem.errors import UserError
from neuralmem.models.checkpoint import load, verify
from neuralmem.provenance import code_version
from neuralmem.training.cli import main
from neuralmem.training.folder_io import differing
from neuralmem.training.logs import read_metrics

Train = Callable[..., Path]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.csv")]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def test_a_run_leaves_a_folder_that_needs_no_lightning(train: Train) -> None:
    run = train("mag", "a")
    names = {"config.json", "model.safetensors", "tokenizer.json", "manifest.json", "config.yaml", "data.json"}
    assert names | {"metrics.csv", "loss.png", "checkpoints", "tensorboard"} <= {file.name for file in run.iterdir()}
    model, tokenizer = load(run)
    logits, _ = model(torch.tensor([tokenizer.encode("def f(x):")]))
    assert logits.isfinite().all()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "data.json").read_text())["class_path"].endswith("TextData")
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 10
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["step=10", "step=5"]


def test_memory_health_is_logged_per_layer(train: Train) -> None:
    last = read_metrics(train("mag", "a") / "metrics.csv")[-1]
    for layer in (0, 1):
        for name in ("surprise", "theta", "eta", "alpha", "state_norm"):
            assert last[f"layers.{layer}.memory/{name}"] > 0
    assert {"step", "loss", "lr", "gradient_norm", "tokens", "tokens_per_second"} <= last.keys()


def test_the_saved_configuration_gives_the_same_run(train: Train, tmp_path: Path) -> None:
    first = train("lmm", "a", "--trainer.max_steps", "3")
    assert main(["--config", str(first / "config.yaml"), "--run", str(tmp_path / "b")]) == 0
    assert weights(first) == weights(tmp_path / "b")


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("mac", []),
        ("lmm", ["--data.carry", "true"]),
        ("lmm", ["--data.num_workers", "2"]),
        ("lmm", ["--tokens_per_step", "384"]),
        ("transformer", ["--trainer.val_check_interval", "3", "--data.validation.batches", "2"]),
        ("recall", []),
    ],
    ids=["plain", "carried memory", "two workers", "accumulation", "validation", "curriculum"],
)
def test_a_resumed_run_is_the_uninterrupted_one(train: Train, config: str, options: list[str]) -> None:
    whole = train(config, "whole", *options)
    half = train(config, "half", *options, "--ckpt_path", str(whole / "checkpoints" / "step=5"))
    assert losses(half) == losses(whole)[5:]
    assert weights(half) == weights(whole)


def test_last_goes_on_in_the_same_folder(train: Train, capsys: pytest.CaptureFixture) -> None:
    whole = train("transformer", "whole")
    part = train("transformer", "part", "--ckpt_path", "last")
    assert "no checkpoint in part" in capsys.readouterr().err
    shutil.rmtree(part / "checkpoints" / "step=10")
    train("transformer", "part", "--ckpt_path", "last")
    assert losses(part) == losses(whole)
    assert weights(part) == weights(whole)


def checkpoints(run: Path) -> set[str]:
    return {file.name for file in (run / "checkpoints").iterdir()}


def content(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_a_second_run_in_a_folder_replaces_the_first(train: Train, capsys: pytest.CaptureFixture) -> None:
    run = train("transformer", "a")
    other = ("--trainer.max_steps", "4", "--checkpoint.every", "2", "--optimizer.lr", "0.5")
    train("transformer", "a", *other)
    assert checkpoints(run) == {"step=2", "step=4"}
    second = weights(run)
    train("transformer", "a", *other, "--ckpt_path", "last")
    assert "\n4 steps" in capsys.readouterr().err.split("saved in a")[-2]
    assert weights(run) == second
    train("transformer", "a", *other, "--trainer.max_steps", "6", "--ckpt_path", "last")
    assert checkpoints(run) == {"step=4", "step=6"}


def test_going_on_from_an_earlier_checkpoint_replaces_the_later_ones(train: Train) -> None:
    run = train("transformer", "a")
    train(
        *("transformer", "a", "--ckpt_path", "a/checkpoints/step=5"),
        *("--trainer.max_steps", "8", "--checkpoint.every", "2"),
    )
    assert checkpoints(run) == {"step=6", "step=8"}


@pytest.mark.parametrize("first", ["__iter__", "__next__"])
def test_a_run_that_fails_before_training_leaves_the_folder_as_it_was(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, first: str
) -> None:
    run = train("transformer", "a")
    before = content(run)

    def fail(self: object) -> None:
        raise UserError("no text")

    def fail_later(self: object) -> Iterator[None]:
        yield from fail(self)

    monkeypatch.setattr("neuralmem.data.packing.PackedText.__iter__", fail if first == "__iter__" else fail_later)
    options = ["--run", "a", "--data.validation.share", "0.2", "--model.depth", "1"]
    assert main(["--config", str(run / "config.yaml"), *options]) == 2
    assert capsys.readouterr().err.endswith("error: no text\n")
    assert content(run) == before


def test_what_it_was_trained_on_is_part_of_the_checkpoint(train: Train) -> None:
    run = train("transformer", "a", "--trainer.max_steps", "1")
    assert "data.json" in verify(run)
    file = run / "data.json"
    file.write_text(file.read_text().replace("0.1", "0.0"))
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        load(run)


def test_a_curriculum_advances_and_says_so(train: Train, capsys: pytest.CaptureFixture) -> None:
    run = train("recall", "a", "--mastery.steps", "2")
    assert "stage 1 of 2 mastered" in capsys.readouterr().err
    assert [row["stage"] for row in read_metrics(run / "metrics.csv")][-1] == 2
    assert "answers" in read_metrics(run / "metrics.csv")[-1]


def test_a_time_budget_ends_the_run_and_its_schedule(train: Train) -> None:
    run = train("transformer", "a", "--trainer.max_steps", "-1", "--trainer.max_time", "00:00:00:03")
    rows = read_metrics(run / "metrics.csv")
    assert len(rows) > 10
    assert rows[-1]["lr"] < 0.15 * max(row["lr"] for row in rows)


def test_tokens_per_step_sets_accumulation(train: Train) -> None:
    rows = read_metrics(
        train("transformer", "a", "--tokens_per_step", "576", "--trainer.max_steps", "2") / "metrics.csv"
    )
    assert 480 < rows[0]["tokens"] <= 576
    assert rows[0]["loss"] == pytest.approx(5.5, abs=0.5)  # nats per token, not the share of one of three batches


def test_the_command_line_wins_over_the_checkpoint(train: Train, capsys: pytest.CaptureFixture) -> None:
    run = train("transformer", "a", "--trainer.max_steps", "5")
    capsys.readouterr()
    other = ["--config", str(run / "config.yaml"), "--run", "b", "--model.depth", "3", "--trainer.max_steps", "6"]
    assert main([*other, "--ckpt_path", str(run / "checkpoints" / "step=5")]) == 2
    assert re.search(r"is of another model: it lacks tensor model\.layers\.2\.[\w.]+\n$", capsys.readouterr().err)


def test_a_resumed_run_learns_by_its_own_settings_and_says_what_changed(
    train: Train, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train("transformer", "a", "--trainer.max_steps", "5", "--optimizer.schedule", "constant")
    options = ("transformer", "a", "--trainer.max_steps", "5", "--optimizer.schedule", "constant", "--resume", "auto")
    capsys.readouterr()
    train(*options, "--trainer.max_steps", "7")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed since")]
    assert said == ["changed since this checkpoint: trainer.max_steps 5 -> 7"]
    before = read_metrics(run / "metrics.csv")[-1]["lr"]
    code = json.loads((run / "checkpoints" / "step=7" / "training.json").read_text())["code"]
    assert code == code_version()
    monkeypatch.setattr("neuralmem.training.folder_io.code_version", lambda: {**code, "torch": "9"})
    train(*options, "--trainer.max_steps", "9", "--optimizer.lr", "1e-6")
    assert re.search(
        r"changed since .*: trainer\.max_steps 7 -> 9, .*optimizer\.lr \S+ -> 1e-06, code\.torch \S+ -> 9\n",
        capsys.readouterr().err,
    )
    assert read_metrics(run / "metrics.csv")[-1]["lr"] == pytest.approx(1e-6, rel=1e-6)
    assert before > 1e-5


def test_configurations_differ_where_they_do() -> None:
    before = {"data": {"source": "stdlib", "stages": [{"length": 1}, {"length": 2}]}, "memory": None, "gone": 1}
    now = {"data": {"source": ["stdlib", "builtin"], "stages": [{"length": 1}, {"length": 3}]}, "memory": {"a": 1}}
    found = {name: (theirs, mine) for name, theirs, mine in differing(before, now)}
    assert found == {
        "data.source": ("stdlib", ["stdlib", "builtin"]),
        "data.stages.1.length": (2, 3),
        "memory": (None, {"a": 1}),
    }
    now["data"]["stages"].append({"length": 4})  # type: ignore[index]
    assert "data.stages" in {name for name, *_ in differing(before, now)}


def test_only_the_newest_checkpoints_are_kept(train: Train) -> None:
    run = train("transformer", "a", "--checkpoint.every", "2", "--checkpoint.keep", "2")
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == ["step=10", "step=8"]
