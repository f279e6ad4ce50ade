"""What `neural_memory` refuses: every message is one line that begins with the argument's name."""

import importlib
from typing import Any

import pytest
import torch

from neuralmem.errors import UserError
from tests.ops.memory_cases import B, D, H, make

T = 6


def wrong(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return changes, {}


def option(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, changes


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype)


STATE = (zeros(B, H, 6, D), zeros(B, H, D, 6))
CASES = {
    "q has shape [2, 6, 8]; it must be [B, T, H, D]": wrong(q=zeros(B, T, H * D)),
    "q has dtype torch.int64": wrong(q=torch.zeros(B, T, H, D, dtype=torch.long)),
    "k has shape [2, 5, 2, 4]; it must be [2, 6, 2, 4]": wrong(k=zeros(B, T - 1, H, D)),
    "k has dtype torch.float32; it must be torch.float64 like q": wrong(k=zeros(B, T, H, D, dtype=torch.float32)),
    "v has shape [2, 6, 2, 5]; it must be [2, 6, 2, 4]": wrong(v=zeros(B, T, H, D + 1)),
    "v is on meta; it must be on cpu like q": wrong(v=zeros(B, T, H, D).to("meta")),
    "theta has shape [2, 6]; it must be [2, 6, 2]": wrong(theta=zeros(B, T)),
    "theta has dtype torch.bool": wrong(theta=zeros(B, T, H, dtype=torch.bool)),
    "eta has shape [2, 2, 6]; it must be [2, 6, 2]": wrong(eta=zeros(B, H, T)),
    "alpha has shape [2, 6, 2, 1]; it must be [2, 6, 2]": wrong(alpha=zeros(B, T, H, 1)),
    "eta and momentum belong together": wrong(eta=None),
    "weights must be a tuple of at least one tensor": wrong(weights=()),
    "weights[0] has shape [2, 2, 6, 5]; it must be ": wrong(weights=(zeros(B, H, 6, 5), STATE[1])),
    "weights[1] has shape [2, 2, 5, 6]; it must be [2, 2, 4, 6]": wrong(weights=(STATE[0], zeros(B, H, 5, 6))),
    "weights[0] has shape [2, 6, 4]": wrong(weights=(zeros(B, 6, D), STATE[1])),
    "momentum has 1 tensors; it must have 2 like weights": wrong(momentum=STATE[:1]),
    "momentum[1] has shape [2, 2, 4, 7]; it must be [2, 2, 4, 6]": wrong(momentum=(STATE[0], zeros(B, H, D, 7))),
    "chunk_size is 0; it must be at least 1": option(chunk_size=0),
    "checkpoint_every is 0; it must be at least 1": option(checkpoint_every=0),
    "activation is 'silo'; it must be one of silu, gelu, gelu_tanh, identity; did you mean 'silu'?": option(
        activation="silo"
    ),
    "norm gain has shape [4]; it must be [2, 4]": option(norm=(zeros(D), zeros(H, D))),
    "norm bias has shape [2, 1, 4]; it must be [2, 4]": option(norm=(zeros(H, D), zeros(H, 1, D))),
    "write_mask has dtype torch.float64; it must be torch.bool": option(write_mask=zeros(B, T)),
    "write_mask has shape [2, 5]; it must be [2, 6]": option(write_mask=zeros(B, 5, dtype=torch.bool)),
    "reset has dtype torch.int64; it must be torch.bool": option(reset=zeros(B, T, dtype=torch.long)),
    "reset is given without initial": option(reset=zeros(B, T, dtype=torch.bool)),
    "initial weights has 1 tensors; it must have 2 like weights": option(initial=(STATE[:1], None)),
    "initial momentum[0] has shape [2, 2, 5, 4]": option(initial=(STATE, (zeros(B, H, 5, D), STATE[1]))),
    "reset is True at row 1, token 3; it may be True only at multiples of chunk_size=5": option(
        reset=torch.arange(B * T).view(B, T) == T + 3, initial=(STATE, STATE)
    ),
    "backend is 'chunky'; it must be one of auto, reference, chunked, native; did you mean 'chunked'?": option(
        backend="chunky"
    ),
}


@pytest.mark.parametrize("message", CASES)
def test_the_message_names_the_argument(message: str) -> None:
    tensors, options = CASES[message]
    call = make(T)
    call.tensors |= tensors
    with pytest.raises(UserError) as error:
        call.run(**options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    native = importlib.import_module("neuralmem.ops.neural_memory.native")
    monkeypatch.setattr(native, "LIBRARY_ERROR", "it was not built")


@pytest.mark.usefixtures("not_built")
def test_a_backend_that_is_asked_for_and_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^backend is 'native', which cannot run here: it was not built$"):
        make(T).run(backend="native")
    make(T).run()
    monkeypatch.setenv("NEURALMEM_BACKEND", "native")
    with pytest.raises(UserError, match=r"^NEURALMEM_BACKEND is 'native', which cannot run here: it was not built$"):
        make(T).run()
    make(T).run(backend="chunked")


def test_a_processor_that_the_library_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    native = importlib.import_module("neuralmem.ops.neural_memory.native")
    monkeypatch.setattr(native, "LIBRARY_ERROR", "")
    monkeypatch.setattr(native, "CPU_ERROR", "it was built for others")
    with pytest.raises(UserError, match=r"^backend is 'native', which cannot run here: it was built for others$"):
        make(T).run(backend="native")
    make(T).run()


def test_a_backend_that_does_not_exist_is_refused_in_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALMEM_BACKEND", "cunked")
    with pytest.raises(UserError, match=r"^NEURALMEM_BACKEND is 'cunked'; .* did you mean 'chunked'"):
        make(T).run()


def test_masks_and_norms_on_another_device_are_refused() -> None:
    call = make(T, mask=True, reset=True)
    for name in ("write_mask", "reset"):
        with pytest.raises(UserError, match=f"^{name} is on meta; it must be on cpu like q"):
            call.run(**{name: call.options[name].to("meta")})
    gain, bias = call.options["norm"]
    with pytest.raises(UserError, match=r"^norm bias is on meta; it must be on cpu like q"):
        call.run(norm=(gain, bias.to("meta")))


def test_momentum_for_a_memory_without_is_refused() -> None:
    with pytest.raises(UserError, match=r"^initial has momentum, but momentum is None"):
        make(T, momentum=False).run(initial=(STATE, STATE))
