"""A token that `write_mask` excludes is an exact no-op, even where its key or value is no number."""

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.ops import decode_memory, delta_descent
from tests.ops.memory_cases import Call, assert_all_close, each_backend, make, outputs_and_gradients

NO_NUMBERS = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)


def spoiled(call: Call, value: float) -> Call:
    """The call with `value` in every key and value that the mask excludes, as leaves."""
    changed = {name: call.tensors[name].detach().clone() for name in "kv"}
    for x in changed.values():
        x[~call.options["write_mask"]] = value
        x.requires_grad_()
    return Call({**call.tensors, **changed}, call.options)


def check(ours: tuple[list[Tensor], list[Tensor]], theirs: tuple[list[Tensor], list[Tensor]], masked: Tensor) -> None:
    """The same bits as without the spoiled numbers, and gradients of 0 for k and v there (leaves 1 and 2)."""
    assert masked.any()
    assert_all_close([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], 0.0)
    assert not any(gradient[masked].any() for gradient in ours[1][1:3])


@each_backend
@NO_NUMBERS
def test_update(backend: str, value: float) -> None:
    call = make(13, mask=True, reset=True)
    broken = spoiled(call, value)
    ours, theirs = (outputs_and_gradients(x.run(backend=backend), x) for x in (broken, call))
    check(ours, theirs, ~call.options["write_mask"])


@each_backend
@NO_NUMBERS
def test_decode(backend: str, value: float) -> None:
    call = make(4, chunk_size=5, mask=True)

    def run(call: Call) -> tuple[list[Tensor], list[Tensor]]:
        options: dict[str, Any] = {name: call.options[name] for name in ("norm", "write_mask")}
        q, *rest = call.tensors.values()
        y = decode_memory(q[:, -1:], *rest, **options, backend=backend)
        return outputs_and_gradients((y, (), None), call)

    check(run(spoiled(call, value)), run(call), ~call.options["write_mask"])


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@NO_NUMBERS
def test_delta_descent(backend: str, value: float) -> None:
    call = make(13, layers=1, mask=True)

    def run(call: Call) -> tuple[list[Tensor], list[Tensor]]:
        q, k, v, theta, _, alpha, (weights,), _ = call.tensors.values()
        mask = call.options["write_mask"]
        y, after = delta_descent(q, k, v, theta, alpha, weights, chunk_size=5, write_mask=mask, backend=backend)
        return outputs_and_gradients((y, (after,), None), call)

    check(run(spoiled(call, value)), run(call), ~call.options["write_mask"])
