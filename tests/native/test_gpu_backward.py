"""Backward of the CUDA kernels, run by the emulator behind forward of the same: all gradients against float64.

The gate: at most three times the error of the op in torch with operands of the same dtype, on the same inputs. What the
emulator cannot show is said in cuda/gpu/simt_emulator.h; nothing here has seen a GPU.
"""

import subprocess
import sys
from itertools import cycle, product
from typing import Any

import pytest
import torch

from tests.native.emulated import ACTIVATIONS, compare, make
from tests.native.test_build import needs_compiler
from tests.native.tree import ROOT

pytestmark = needs_compiler

DTYPES = (torch.bfloat16, torch.float16, torch.float16, torch.bfloat16)
SWITCHES: list[dict[str, Any]] = [
    dict(zip(("momentum", "norm", "residual", "mask", "reset"), on, strict=True))
    for on in product((False, True), repeat=5)
    if sum(on) % 2  # half of all: every pair of switches in all four states
]


@pytest.mark.parametrize(
    ("switches", "activation", "dtype", "keep_every"),
    list(zip(SWITCHES, cycle(ACTIVATIONS), cycle(DTYPES), cycle((1, 2, 3)), strict=False)),
    ids=lambda x: "-".join(name for name, on in x.items() if on) if isinstance(x, dict) else str(x),
)
def test_every_switch(switches: dict[str, Any], activation: str, dtype: torch.dtype, keep_every: int) -> None:
    assert not compare(make(70, activation=activation, dtype=dtype, **switches), keep_every, schedule=keep_every)


@pytest.mark.parametrize(
    ("tokens", "chunk_size", "options"),
    [
        (3, 64, {}),
        (1, 16, {"shape": (3, 2)}),
        (60, 17, {"norm": False}),
        (100, 48, {}),
        (150, 128, {"norm": False}),
        (130, 100, {}),
        (64, 64, {"expansion": 2}),
        (100, 32, {"expansion": 4, "shape": (1, 2)}),
        (40, 16, {"width": 128, "shape": (1, 2)}),
        (70, 64, {"width": 128, "expansion": 2, "shape": (1, 2), "mask": True}),
        (36, 32, {"width": 128, "expansion": 4, "shape": (1, 2), "dtype": torch.float16}),
    ],
    ids=str,
)
def test_shapes_and_ragged_ends(tokens: int, chunk_size: int, options: dict[str, Any]) -> None:
    assert not compare(make(tokens, chunk_size, activation="gelu_tanh", **options), keep_every=2)


def test_every_schedule_gives_the_same_bits() -> None:
    example = make(40, mask=True, reset=True)
    first = example.emulated(keep_every=2)
    for schedule in (1, 2):
        for ours, theirs in zip(example.emulated(2, schedule), first, strict=True):
            assert all(torch.equal(ours[name], x) for name, x in theirs.items())


@pytest.mark.parametrize(("tokens", "shape"), [(0, (2, 2)), (20, (0, 2)), (20, (2, 0))])
@pytest.mark.parametrize("momentum", [True, False])
def test_without_tokens_the_gradient_goes_through(tokens: int, shape: tuple[int, int], momentum: bool) -> None:
    example = make(tokens, shape=shape, momentum=momentum)
    gradients = example.emulated()[1]
    for name, x in gradients.items():
        assert torch.equal(x, example.dend[name] if name in example.dend else torch.zeros_like(x)), name


def test_what_a_masked_token_writes_has_no_gradient() -> None:
    example = make(40, mask=True)
    silent = ~example.masks["write_mask"]
    gradients = example.emulated(keep_every=2)[1]
    for name in ("k", "v", "theta", "eta", "alpha"):
        assert not gradients[name][silent].any()
        assert gradients[name][~silent].any()


@pytest.mark.parametrize(("fault", "status"), [*((["barrier", str(i)], 3) for i in range(4)), (["lane"], 1)])
def test_a_fault_is_noticed(fault: list[str], status: int) -> None:
    command = [sys.executable, "-m", "tests.native.emulated", *fault]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert status == 1 or "race" in done.stderr
