"""Recomputed and compiled layers: the same losses and the same weights as plain ones."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from neuralmem.models.checkpoint import load
from neuralmem.training.compute import recompute
from neuralmem.training.logs import read_metrics
from neuralmem.training.module import LanguageModel

Train = Callable[..., Path]


def result(run: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    return [row["loss"] for row in read_metrics(run / "metrics.csv")], load(run)[0].state_dict()


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("mac", ["--data.carry", "true"]),
        ("lmm", ["--optimizer.write_cost", "0.1"]),
        ("hope", ["--trainer.precision", "bf16-mixed"]),
        ("ttt_e2e", []),
    ],
)
def test_recomputing_changes_nothing(train: Train, config: str, options: list[str]) -> None:
    options = ["--trainer.max_steps", "3", *options]
    losses, weights = result(train(config, "plain", *options))
    same, again = result(train(config, "again", *options, "--compute.recompute", "true"))
    assert same == losses
    assert all(torch.equal(again[name], x) for name, x in weights.items())


def test_recomputing_keeps_less() -> None:
    kept = []
    for again in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(vocab_size=17, width=32, depth=2, pattern=["titans_mag"]).model
        if again:
            for layer in model.layers:
                recompute(layer)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: (to.append(x.numel()), x)[1], lambda x: x):
            model(torch.randint(17, (2, 64)))[0].sum()
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 4


@pytest.mark.soak
@pytest.mark.skipif(
    not any(map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])),
    reason="torch.compile needs a C++ compiler, and this machine has none",
)
@pytest.mark.filterwarnings("ignore")  # the compiler has many to say
@pytest.mark.parametrize("options", [[], ["--compute.recompute", "true"]], ids=["plain", "recomputed"])
def test_compiling_changes_nothing_but_rounding(train: Train, options: list[str]) -> None:
    short = ["--trainer.max_steps", "3"]
    losses, weights = result(train("lmm", "plain", *short))
    same, compiled = result(train("lmm", "compiled", *short, *options, "--compute.compile", "true"))
    # Not the weights by value: AdamW's first steps have one size, whatever the gradient, of which rounding may be all.
    assert same == pytest.approx(losses, rel=1e-5)
    assert compiled.keys() == weights.keys()
