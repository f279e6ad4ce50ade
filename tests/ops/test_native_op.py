"""torch.ops.neuralmem in torch's machinery: opcheck, compile, checkpointing, DDP, derivatives, what it refuses."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from neuralmem.errors import UserError
from neuralmem.ops import neural_memory
from neuralmem.ops.neural_memory.call import prepare
from tests.ops.memory_cases import (
    Call,
    assert_all_close,
    flatten,
    make,
    needs_native,
    outputs_and_gradients,
)
from tests.ops.native_process import Reader, start, step

pytestmark = needs_native
native = importlib.import_module("neuralmem.ops.neural_memory.native")


def op_arguments(call: Call, keep_every: int) -> list[Any]:
    """What the backend passes to torch.ops.neuralmem.neural_memory; every floating-point tensor a leaf."""
    options = {"activation": "silu", "residual": True, "norm": None, "write_mask": None, **call.options}
    prepared = prepare(**call.tensors, **options)
    arguments = [*native._update_arguments(prepared), prepared.chunk_size, *native._form(prepared), keep_every]

    def leaf(x: Any) -> Any:
        if isinstance(x, list):
            return [leaf(y) for y in x]
        return x.detach().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x

    return [leaf(x) for x in arguments]


def detached(arguments: list[Any]) -> list[Any]:
    pick = lambda x: x.detach() if isinstance(x, Tensor) else x
    return [[pick(y) for y in x] if isinstance(x, list) else pick(x) for x in arguments]


CALLS = {
    "everything": {"mask": True, "reset": True},
    "no momentum, no norm": {"momentum": False, "norm": False},
    "three layers": {"layers": 3},
    "no token": {"tokens": 0},
}


@pytest.mark.parametrize(
    "options", [pytest.param(CALLS[n], id=n, marks=() if n == "everything" else pytest.mark.soak) for n in CALLS]
)
def test_opcheck(options: dict[str, Any]) -> None:
    ops, arguments = torch.ops.neuralmem, op_arguments(make(**options), 2)
    torch.library.opcheck(ops.neural_memory.default, tuple(arguments))
    plain = detached(arguments)
    torch.library.opcheck(ops.neural_memory.default, (*plain[:-1], 0))
    y, weights, momentum, boundaries = ops.neural_memory(*plain)
    for ends in ((weights, momentum), ([], [])):
        torch.library.opcheck(ops.neural_memory_backward.default, (boundaries, y, *ends, *plain))
    q = torch.randn(2, 1, 2, 4, dtype=torch.float64, requires_grad=True)
    decode = (q, *arguments[1:8], *arguments[10:13], *arguments[15:17])
    torch.library.opcheck(ops.neural_memory_decode.default, decode)


def test_a_text_of_any_length_compiles_once() -> None:
    compiled = torch.compile(neural_memory, fullgraph=True, backend="aot_eager", dynamic=True)
    torch._dynamo.utils.counters.clear()
    for tokens in (13, 9, 22):
        call = make(tokens, chunk_size=4)
        ours = outputs_and_gradients(compiled(**call.tensors, **call.options, backend="native"), call)
        theirs = outputs_and_gradients(call.run(backend="native"), call)
        assert_all_close([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], 0.0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@pytest.mark.soak
def test_inductor_gives_the_op_what_it_takes() -> None:
    """Contiguous tensors, whatever the producers make; soak: torch's code generator compiles for 14 to 28 seconds."""
    call = make(7, mask=True)
    stored = [call.tensors[name].detach().transpose(1, 2).contiguous().requires_grad_() for name in "qkv"]

    def run(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        tokens = {"q": q.transpose(1, 2), "k": k.transpose(1, 2), "v": 2 * v.transpose(1, 2)}
        return [2 * x for x in flatten(Call({**call.tensors, **tokens}, call.options).run(backend="native"))]

    found = []
    for function in (torch.compile(run, fullgraph=True), run):
        parts = function(*stored)
        loss = sum(x.square().sum() for x in parts)
        found.append([*parts, *torch.autograd.grad(loss, [*stored, *call.tensors["weights"]])])
    assert_all_close(*found)
    torch._dynamo.reset()


def test_the_compiler_takes_what_a_gpu_can_as_a_constant() -> None:
    """Fails if torch no longer knows the mark that `_constant` leaves."""

    @native._constant
    def answer(number: int) -> str:
        return Path(__file__).read_text()[:number]  # nothing that could be traced

    compiled = torch.compile(lambda x: x + len(answer(3)), fullgraph=True, backend="aot_eager")
    assert compiled(torch.ones(1)) == 4
    torch._dynamo.reset()


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("options", list(CALLS.values())[:3], ids=list(CALLS)[:3])
def test_no_gradient_of_the_last_state_is_one_of_zero(options: dict[str, Any], checkpoint_every: int | None) -> None:
    """Backward leaves out what such a gradient would bring; not one number differs."""
    call, found = make(**options), []
    for share in (None, 0.0):
        y, weights, momentum = call.run(backend="native", checkpoint_every=checkpoint_every)
        loss = y.square().sum()
        if share is not None:
            loss = loss + share * sum(x.sum() for x in (*weights, *(momentum or ())))
        found.append(torch.autograd.grad(loss, call.leaves(), materialize_grads=True))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    assert any(x.any() for x in found[0])


def test_gradients_of_the_last_state_are_all_given_or_none() -> None:
    plain = detached(op_arguments(make(), 1))
    y, weights, momentum, boundaries = torch.ops.neuralmem.neural_memory(*plain)
    with pytest.raises(RuntimeError, match="dmomentum_end has 2 tensors; it must have 0"):
        torch.ops.neuralmem.neural_memory_backward(boundaries, y, [], momentum, *plain)
    with pytest.raises(RuntimeError, match="dmomentum_end has 0 tensors; it must have 2"):
        torch.ops.neuralmem.neural_memory_backward(boundaries, y, weights, [], *plain)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant: bool) -> None:
    call = make(mask=True)
    expected = outputs_and_gradients(call.run(backend="native"), call)

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        return tuple(flatten(call.map(lambda _: next(rest)).run(backend="native")))

    parts = checkpoint(run, *call.leaves(), use_reentrant=use_reentrant)
    y, weights, momentum = parts[0], parts[1:3], parts[3:]
    ours = outputs_and_gradients_of(y, weights, momentum, call)
    assert_all_close(ours, [*expected[0], *expected[1]], 0.0)


def outputs_and_gradients_of(y: Tensor, weights: Any, momentum: Any, call: Call) -> list[Tensor]:
    """As `outputs_and_gradients`, by backward(), which a reentrant checkpoint insists on."""
    for leaf in call.leaves():
        leaf.grad = None
    parts = [y, *weights, *momentum]
    weighted = [(x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in parts]
    torch.stack(weighted).sum().backward()
    return [*parts, *(leaf.grad for leaf in call.leaves())]


def boundary_states(call: Call, **options: Any) -> list[int]:
    """Lengths along the first axis of what is saved for backward in five dimensions or with as many numbers."""
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        call.run(backend="native", **options)
    numbers = 2 * sum(w[0, 0].numel() for w in call.tensors["weights"])
    return [len(x) for x in kept if x.ndim == 4 and x.shape[-1] == numbers]


def test_states_are_kept_for_backward_only_and_as_often_as_asked() -> None:
    call = make(23, chunk_size=2)
    assert boundary_states(call) == [12]
    assert boundary_states(call, checkpoint_every=5) == [3]
    assert boundary_states(call, checkpoint_every=100) == [1]
    assert boundary_states(call.map(Tensor.detach)) == []
    with torch.no_grad():
        without = flatten(call.run(backend="native"))
    assert_all_close(without, flatten(call.run(backend="native")), 0.0)


@pytest.mark.parametrize("wanted", ["q", "k", "theta", "alpha"])
@pytest.mark.parametrize("output", ["y", "weights", "momentum"])
def test_the_gradient_of_one_input_from_one_output(wanted: str, output: str) -> None:
    call, found = make().map(Tensor.detach), []
    for backend in ("native", "chunked"):
        leaf = call.tensors[wanted].clone().requires_grad_()
        y, weights, momentum = Call({**call.tensors, wanted: leaf}, call.options).run(backend=backend)
        loss = {"y": y, "weights": weights[1], "momentum": momentum[0]}[output].square().sum()
        found.append(torch.autograd.grad(loss + 0 * leaf.sum(), leaf))
    assert_all_close(*map(list, found))


def test_second_derivatives_are_refused_with_the_way_out() -> None:
    call = make()
    (gradient,) = torch.autograd.grad(call.run(backend="native")[0].sum(), call.tensors["k"], create_graph=True)
    with pytest.raises(UserError, match=r"^native is differentiable once; .* use backend='chunked'$"):
        gradient.sum().backward()


def test_two_processes_share_gradients(tmp_path: Path) -> None:
    both = [start("ddp", str(rank), str(tmp_path)) for rank in range(2)]
    for process in both:
        _, wrong = process.communicate(timeout=120)
        assert process.returncode == 0, wrong
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = [step(Reader("chunked"), rank) for rank in range(2)]
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], atol=0, rtol=0)
        torch.testing.assert_close(gradient, (alone[0][name] + alone[1][name]) / 2, atol=1e-10, rtol=1e-10)
    assert set(one) == set(alone[0])


REFUSED = {
    "q has dtype": {0: lambda q: q.long()},
    "k has shape": {1: lambda k: k[:, :-1].contiguous()},
    "v has dtype": {2: lambda v: v.float()},
    "theta has shape": {3: lambda x: x[..., :1].contiguous()},
    "eta has dtype": {4: lambda x: x.float()},
    "alpha is not contiguous": {5: lambda x: x.transpose(1, 2).contiguous().transpose(1, 2)},
    "weights has 9 tensors": {6: lambda w: [w[0], w[1]] * 4 + [w[0]]},
    "weights[0] has shape": {6: lambda w: [w[0][..., :-1].contiguous(), w[1]]},
    "weights has 0 tensors": {6: lambda w: []},
    "momentum has 1 tensors; it must have 2": {7: lambda m: m[:1]},
    "momentum has 2 tensors; it must have 0": {4: lambda eta: None},
    "first_weights has 0 tensors": {8: lambda w: []},
    "first_momentum[1] has shape": {9: lambda m: [m[0], m[0]]},
    "gain and bias belong together": {11: lambda bias: None},
    "gain has shape": {10: lambda gain: gain[:1]},
    "write_mask has dtype": {12: lambda mask: mask.float()},
    "reset has shape": {13: lambda reset: reset[:1]},
    "chunk_size is 0": {14: lambda _: 0},
    "activation is 4": {15: lambda _: 4},
    "keep_every is -1": {17: lambda _: -1},
}


@pytest.mark.parametrize("message", REFUSED)
def test_the_op_refuses_what_would_be_read_out_of_bounds(message: str) -> None:
    arguments = detached(op_arguments(make(mask=True, reset=True), 1))
    for place, change in REFUSED[message].items():
        arguments[place] = change(arguments[place])
    with pytest.raises(RuntimeError) as error:
        torch.ops.neuralmem.neural_memory(*arguments)
    assert message in str(error.value)


def test_backward_refuses_states_that_were_not_kept() -> None:
    arguments = detached(op_arguments(make(), 2))
    y, weights, momentum, boundaries = torch.ops.neuralmem.neural_memory(*arguments)
    for wrong, keep, message in ((boundaries[:1], 2, "boundaries has shape"), (boundaries, 0, "keep_every is 0")):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.neuralmem.neural_memory_backward(wrong, y, weights, momentum, *arguments[:-1], keep)
