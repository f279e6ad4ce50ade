"""The CUDA kernels on a GPU: the numerics gate at every size that they have, and torch's machinery around them.

`make test-gpu` runs this; it needs torch 2.11 or later, pytest, einops and safetensors.
"""

import importlib
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from neuralmem.backends import cuda_error
from neuralmem.errors import UserError
from neuralmem.ops import decode_memory, neural_memory
from neuralmem.ops.neural_memory.call import prepare
from tests.ops.memory_streams import (
    Shape,
    assert_not_farther,
    check_against_rounded_chunked,
    convert,
    results,
    stream,
)

native = importlib.import_module("neuralmem.ops.neural_memory.native")
UPDATE = ("chunk_size", "reset", "initial")  # what decode_memory has no use for


def why_not() -> str:
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    major, minor = torch.cuda.get_device_capability()
    return cuda_error(10 * major + minor)


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(why_not()), reason=f"no CUDA kernels: {why_not()}")]

SIZES = [
    Shape(tokens=512, width=D, hidden=(expansion * D,), chunk_size=C)
    for D, expansion, C in product((64, 128), (1, 2, 4), (16, 50, 128))
]
FORMS = [
    replace(Shape(tokens=600), momentum=momentum, norm=norm, mask=mask, reset=mask)
    for momentum, norm, mask in product((True, False), repeat=3)
]
LONG = Shape(tokens=4096, heads=1, chunk_size=128)
SMALL = Shape(tokens=150, batch=2, heads=3, mask=True, reset=True)


def is_covered(arguments: dict[str, Any]) -> bool:
    """Whether the kernels run these arguments, so that no test passes by comparing chunked with itself."""
    options = {"residual": True, "norm": None, "write_mask": None, **arguments}
    return native.choose(prepare(**options), "native") == "native"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [*SIZES, *FORMS, LONG], ids=str)
def test_rounded_operands_cost_what_they_cost_chunked(shape: Shape, dtype: torch.dtype) -> None:
    arguments = stream(shape, dtype, "cuda")
    assert is_covered(arguments)
    check_against_rounded_chunked(arguments, checkpoint_every=3)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "identity"])
def test_activations(activation: str) -> None:
    arguments = stream(Shape(tokens=300, activation=activation), torch.bfloat16, "cuda")
    assert is_covered(arguments)
    check_against_rounded_chunked(arguments)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 63, 64, 65, 129])
def test_ugly_lengths(tokens: int) -> None:
    arguments = stream(Shape(tokens=tokens, batch=2, mask=True), torch.bfloat16, "cuda")
    assert is_covered(arguments)
    check_against_rounded_chunked(arguments, checkpoint_every=2)


def flat(found: tuple[Tensor, list[Tensor], list[Tensor]]) -> list[Tensor]:
    return [found[0], *found[1], *found[2]]


def assert_same_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_twice_the_same_is_the_same_and_so_is_another_stream_or_place() -> None:
    arguments = stream(SMALL, torch.bfloat16, "cuda")
    assert is_covered(arguments)
    expected = flat(results(arguments, "native"))
    assert_same_bits(flat(results(arguments, "native")), expected)
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        assert_same_bits(flat(results(arguments, "native")), expected)
    torch.cuda.synchronize()
    elsewhere = convert(arguments, lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape))
    assert_same_bits(flat(results(elsewhere, "native")), expected)
    reversed_axes = convert(arguments, lambda x: x.mT.contiguous().mT)
    assert_same_bits(flat(results(reversed_axes, "native")), expected)


def test_states_kept_less_often_change_nothing_but_rounding() -> None:
    arguments = stream(replace(SMALL, chunk_size=16), torch.bfloat16, "cuda")
    expected = flat(results(arguments, "native"))
    for every in (2, 3, 100):
        for ours, other in zip(flat(results(arguments, "native", checkpoint_every=every)), expected, strict=True):
            assert (ours - other).norm() <= 1e-2 * other.norm()


def test_opcheck() -> None:
    options = {"residual": True, **stream(SMALL, torch.bfloat16, "cuda")}
    call = prepare(**options)
    leaf = lambda x: x.detach().requires_grad_(x.is_floating_point())
    given = [[leaf(y) for y in x] if isinstance(x, list) else leaf(x) for x in native._update_arguments(call)]
    settings = (call.chunk_size, *native._form(call))
    torch.library.opcheck(torch.ops.neuralmem.neural_memory.default, (*given, *settings, 1))
    plain = convert(tuple(tuple(x) if isinstance(x, list) else x for x in given), Tensor.detach)
    arguments = [list(x) if isinstance(x, tuple) else x for x in plain]
    y, weights, momentum, boundaries = torch.ops.neuralmem.neural_memory(*arguments, *settings, 1)
    backward = (boundaries, y, weights, momentum, *arguments, *settings, 1)
    torch.library.opcheck(torch.ops.neuralmem.neural_memory_backward.default, backward)


def test_compile_autocast_and_checkpointing() -> None:
    arguments = stream(SMALL, torch.float32, "cuda")
    narrow = {name: x.bfloat16() if name in ("q", "k", "v") else x for name, x in arguments.items()}
    expected, *_ = neural_memory(**narrow, backend="native")
    compiled = torch.compile(neural_memory, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**narrow, backend="native")[0], expected)
    torch._dynamo.reset()
    with torch.autocast("cuda", torch.bfloat16):
        y, weights, _ = neural_memory(**arguments, backend="native")
    assert torch.equal(y, expected)
    assert weights[0].dtype == torch.float32
    k, found = narrow["k"].requires_grad_(), []
    run = lambda k: neural_memory(**{**narrow, "k": k}, backend="native")[0]
    for y in (run(k), checkpoint(run, k, use_reentrant=False)):
        found += torch.autograd.grad(y.square().sum(), k)
    assert torch.equal(*found)


@pytest.mark.parametrize("shape", [Shape(tokens=n, batch=3, mask=n > 1, norm=n != 40) for n in (1, 5, 40, 63)], ids=str)
@torch.no_grad()
def test_decode(shape: Shape) -> None:
    arguments = {k: x for k, x in stream(shape, torch.bfloat16, "cuda").items() if k not in UPDATE}
    assert is_covered({**arguments, "chunk_size": shape.tokens})
    arguments["q"] = arguments["q"][:, -1:]
    wide = convert(arguments, lambda x: x.double() if x.is_floating_point() else x)
    right = decode_memory(**wide, backend="chunked")
    ours, theirs = (decode_memory(**arguments, backend=name).double() for name in ("native", "chunked"))
    assert_not_farther(ours, theirs, right)


def test_sizes_without_a_kernel_fall_back_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    arguments = stream(Shape(tokens=40, width=24, hidden=(40,)), torch.bfloat16, "cuda")
    native._announced.clear()
    found = [neural_memory(**arguments, backend="native")[0] for _ in range(3)]
    assert_same_bits(found[:1], [neural_memory(**arguments, backend="chunked")[0]])
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("neural_memory: chunked instead of native: ")
    assert caplog.records[0].levelname == "WARNING"


def test_a_text_shorter_than_a_chunk_that_no_kernel_has() -> None:
    arguments = stream(Shape(tokens=100, width=64, hidden=(128,), chunk_size=100), torch.bfloat16, "cuda")
    longer = {**arguments, "chunk_size": 256}
    assert is_covered(longer)
    assert_same_bits(flat(results(longer, "native")), flat(results(arguments, "native")))


def test_what_is_on_two_devices_is_refused() -> None:
    arguments = stream(SMALL, torch.bfloat16, "cuda")
    for name in ("theta", "write_mask"):
        with pytest.raises(UserError, match=f"^{name} is on cpu; it must be on cuda:0 like q"):
            neural_memory(**{**arguments, name: arguments[name].cpu()}, backend="native")
    given = native._update_arguments(prepare(**{"residual": True, **arguments}))
    given[3] = given[3].cpu()
    with pytest.raises(RuntimeError, match="theta is on another device than q"):
        torch.ops.neuralmem.neural_memory(*given, 64, 0, True, 0)


def test_a_gate_that_is_no_number_stays_in_its_document() -> None:
    arguments = stream(replace(SMALL, mask=False), torch.bfloat16, "cuda")
    clean, *_ = neural_memory(**arguments, backend="native")
    arguments["theta"][0, 7] = torch.nan
    y, *_ = neural_memory(**arguments, backend="native")
    assert torch.equal(y[1], clean[1])
    assert y[0, 7:64].isnan().all()
    assert torch.equal(y[0, 64:], clean[0, 64:]), "a document starts at token 64"
