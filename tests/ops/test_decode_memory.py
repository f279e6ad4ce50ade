"""`decode_memory`: the last row of the paper's loop over one unfinished chunk, to 1e-10, and its gradients."""

import importlib
from itertools import product

import pytest
import torch
from torch import Tensor

from neuralmem import probe
from neuralmem.errors import UserError
from neuralmem.ops import decode_memory, evaluate_memory
from neuralmem.ops.neural_memory.native import CPU_ERROR
from tests.ops.memory_cases import (
    ACTIVATION,
    NATIVE,
    B,
    Call,
    D,
    H,
    assert_all_close,
    each_backend,
    make,
    needs_native,
    papers_loop,
    relative_error,
)


def chunk(tokens: int, **options: object) -> Call:
    """A call whose tokens are all in one chunk, which they do not fill."""
    return make(tokens, chunk_size=tokens + 1, **options)


def decoded(call: Call, backend: str) -> Tensor:
    options = {name: value for name, value in call.options.items() if name != "chunk_size"}
    return decode_memory(call.tensors["q"][:, -1:], *list(call.tensors.values())[1:], **options, backend=backend)


def gradients(y: Tensor, call: Call) -> list[Tensor]:
    weighted = (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)).sum()
    return list(torch.autograd.grad(weighted, call.leaves(), allow_unused=True, materialize_grads=True))


def check_against_the_papers_loop(call: Call, backend: str) -> None:
    expected = papers_loop(call)[0][:, -1:]
    with torch.no_grad():
        assert_all_close([decoded(call, backend)], [expected.detach()])
    y = decoded(call, backend)
    assert_all_close([y], [expected])
    assert_all_close(gradients(y, call), gradients(expected, call))


@pytest.mark.parametrize(("layers", "norm", "residual"), list(product((1, 2, 3), (True, False), (True, False))))
@each_backend
def test_depth_norm_and_residual(layers: int, norm: bool, residual: bool, backend: str) -> None:
    check_against_the_papers_loop(chunk(5, layers=layers, norm=norm, residual=residual), backend)


@pytest.mark.parametrize("tokens", [1, 2, 7])
@pytest.mark.parametrize(("momentum", "mask"), list(product((True, False), repeat=2)))
@each_backend
def test_lengths_momentum_and_mask(tokens: int, momentum: bool, mask: bool, backend: str) -> None:
    check_against_the_papers_loop(chunk(tokens, momentum=momentum, mask=mask), backend)


@pytest.mark.parametrize("activation", ACTIVATION)
@each_backend
def test_activations(activation: str, backend: str) -> None:
    check_against_the_papers_loop(chunk(4, activation=activation), backend)


@pytest.mark.parametrize(("gate", "value"), list(product(("theta", "eta", "alpha"), (0.0, 1.0))))
@each_backend
def test_gates_of_exactly_zero_and_one(gate: str, value: float, backend: str) -> None:
    call = chunk(6, mask=True)
    tensor = call.tensors[gate].detach().clone()
    tensor[:, 1::2] = value
    check_against_the_papers_loop(Call({**call.tensors, gate: tensor.requires_grad_()}, call.options), backend)


@each_backend
def test_rows_have_different_numbers_of_tokens(backend: str) -> None:
    call = chunk(6, write_mask=torch.arange(6) < torch.tensor([[0], [4]]))
    check_against_the_papers_loop(call, backend)
    frozen = evaluate_memory(call.tensors["q"][:, -1:], call.tensors["weights"], norm=call.options["norm"])
    assert_all_close([decoded(call, backend)[0]], [frozen[0]])


@each_backend
def test_a_chunk_without_a_token_is_read_at_its_first_weights(backend: str) -> None:
    call, query = make(0), torch.randn(B, 1, H, D, dtype=torch.float64)
    rest = list(call.tensors.values())[1:]
    with torch.no_grad():
        y = decode_memory(query, *rest, norm=call.options["norm"], backend=backend)
    assert_all_close([y], [evaluate_memory(query, call.tensors["weights"], norm=call.options["norm"])])


@each_backend
@torch.no_grad()
def test_narrow_dtypes(backend: str) -> None:
    call = chunk(7, norm=False).map(lambda x: x.detach().float())
    exact = decoded(call.map(torch.Tensor.double), "reference")
    assert relative_error([decoded(call, backend)], [exact]) < 1e-5
    narrow = Call({k: v.bfloat16() if k in "qkv" else v for k, v in call.tensors.items()}, call.options)
    y = decoded(narrow, backend)
    assert y.dtype == torch.bfloat16
    assert relative_error([y], [decoded(narrow.map(torch.Tensor.double), "reference")]) < 0.01
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decoded(call, backend), y)


def test_nothing_is_written_and_native_is_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = importlib.import_module("neuralmem.ops.neural_memory").DECODERS
    used: list[str] = []
    for name, run in list(decoders.items()):
        monkeypatch.setitem(decoders, name, lambda call, name=name, run=run: used.append(name) or run(call))
    call = chunk(3)
    before = [x.clone() for x in call.leaves()]
    decoded(call, "auto")
    assert all(torch.equal(a, b) for a, b in zip(before, call.leaves(), strict=True))
    assert used == ["chunked" if CPU_ERROR else "native"]


@pytest.mark.parametrize("backend", ["chunked", NATIVE])
@pytest.mark.parametrize("tokens", [0, 3])
def test_gradcheck_twice(tokens: int, backend: str) -> None:
    call = make(max(tokens, 1), chunk_size=4, hidden=3, mask=True)
    query = call.tensors["q"][:, -1:].detach().clone().requires_grad_()
    call = Call({k: x[:, :tokens] if isinstance(x, Tensor) else x for k, x in call.tensors.items()}, call.options)
    call.options["write_mask"] = call.options["write_mask"][:, :tokens]

    def run(query: Tensor, *leaves: Tensor) -> Tensor:
        rest = iter(leaves)
        moved = call.map(lambda _: next(rest))
        options = {name: moved.options[name] for name in ("norm", "write_mask")}
        return decode_memory(query, *list(moved.tensors.values())[1:], **options, backend=backend)

    leaves = tuple(x.detach().requires_grad_() for x in call.leaves())
    assert torch.autograd.gradcheck(run, (query, *leaves), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (query, *leaves), fast_mode=True, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(run(query, *leaves), run(query.requires_grad_(), *leaves))


@needs_native
def test_gradients_where_one_tensor_is_two_arguments() -> None:
    call, found = chunk(3), []
    x = call.tensors["k"]
    for backend in ("native", "chunked"):
        y = decoded(Call({**call.tensors, "q": x, "v": x}, call.options), backend)
        found.append(torch.autograd.grad(y.square().sum(), [x, *call.tensors["weights"]]))
    assert_all_close(*map(list, found))


@pytest.mark.parametrize("backend", ["chunked", NATIVE])
def test_it_compiles_without_a_break_in_the_graph(backend: str) -> None:
    call = chunk(5, mask=True)
    compiled = torch.compile(decoded, fullgraph=True, backend="aot_eager")
    y = compiled(call, backend)
    expected = decoded(call, "reference")
    assert_all_close([y, *gradients(y, call)], [expected, *gradients(expected, call)])
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["chunked", NATIVE])
@torch.no_grad()
def test_looking_at_the_surprise_changes_nothing(backend: str) -> None:
    call, network = chunk(5), torch.nn.Linear(1, 1)
    y = decoded(call, backend)
    with probe.recording(network) as record, probe.inside(network):
        assert torch.equal(decoded(call, backend), y)
    with probe.recording(network) as other, probe.inside(network):
        call.run(backend="chunked")
    assert record.means() == pytest.approx(other.means())
    assert "/surprise" in record.means()


@pytest.mark.parametrize(
    ("message", "changes"),
    {
        r"q has shape \[2, 3, 2, 4\]; it must be \[B, 1, H, D\]": {"q": torch.zeros(B, 3, H, D)},
        r"k has shape \[2, 3, 2, 5\]; it must be \[2, 'n', 2, 4\]": {"k": torch.zeros(B, 3, H, D + 1)},
        "k has dtype torch.float32; it must be torch.float64 like q": {"k": torch.zeros(B, 3, H, D)},
        r"v has shape \[2, 2, 2, 4\]; it must be \[2, 3, 2, 4\]": {"v": torch.zeros(B, 2, H, D)},
        r"theta has shape \[2, 1, 2\]; it must be \[2, 3, 2\]": {"theta": torch.zeros(B, 1, H)},
        "eta and momentum belong together": {"eta": None},
        "write_mask has shape": {"write_mask": torch.zeros(B, 4, dtype=torch.bool)},
        "activation is 'silo'": {"activation": "silo"},
        "backend is 'nativ'": {"backend": "nativ"},
    }.items(),
)
def test_what_does_not_fit_is_refused(message: str, changes: dict[str, object]) -> None:
    call = make(3)
    arguments = {**call.tensors, "q": call.tensors["q"][:, :1], **changes}
    with pytest.raises(UserError, match=f"^{message}"):
        decode_memory(**arguments)
