"""`query_projection`: both backends are the loop, to 1e-10 in float64; keys of zero, masks and resets add nothing."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops import query_projection

B, H, D = 2, 2, 4


def make(tokens: int, *, mask: bool = False, reset_every: int | None = None, initial: bool = True) -> dict[str, Any]:
    """Random arguments in float64: keys of any length, one of zero, a carry that is not symmetric."""
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    q, k, carry, start = draw(B, tokens, H, D), draw(B, tokens, H, D), draw(B, H, D, D), draw(B, H, D, D)
    k[:, 2:3, 0] = 0
    arguments: dict[str, Any] = {name: x.requires_grad_() for name, x in (("q", q), ("k", k), ("carry", carry))}
    if mask:
        arguments["write_mask"] = torch.rand(B, tokens, generator=random) > 0.3
    if reset_every:
        starts = torch.zeros(B, tokens, dtype=torch.bool)
        starts[0, ::reset_every] = True
        starts[1, reset_every :: 2 * reset_every] = True
        arguments["reset"] = starts
        if initial:
            arguments["initial"] = start.requires_grad_()
    return arguments


def loop(q, k, carry, write_mask=None, reset=None, initial=None) -> tuple[Tensor, Tensor]:
    """The sum for one sample and head at a time, in plain torch."""
    rows, final = [], []
    for b, h in product(range(B), range(H)):
        matrix, ys = carry[b, h], []
        for t in range(q.shape[1]):
            if reset is not None and reset[b, t]:
                matrix = torch.zeros_like(matrix) if initial is None else initial[b, h]
            key = k[b, t, h]
            if key.any() and (write_mask is None or write_mask[b, t]):
                matrix = matrix + torch.outer(key, key) / (key @ key)
            ys.append(matrix @ q[b, t, h])
        rows.append(torch.stack(ys) if ys else q[b, :, h])
        final.append(matrix)
    return torch.stack(rows).unflatten(0, (B, H)).transpose(1, 2), torch.stack(final).unflatten(0, (B, H))


def with_gradients(result: tuple[Tensor, Tensor], arguments: dict[str, Any]) -> list[Tensor]:
    leaves = [x for x in arguments.values() if x.is_floating_point()]
    total = sum((x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in result)
    return [*result, *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)]


def assert_all_close(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-10) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-10)


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 13])
@pytest.mark.parametrize(("mask", "reset"), list(product((False, True), repeat=2)))
def test_both_backends_are_the_loop_with_all_gradients(tokens: int, mask: bool, reset: bool) -> None:
    for initial in (True, False):
        arguments = make(tokens, mask=mask, reset_every=4 if reset else None, initial=initial)
        expected = with_gradients(loop(**arguments), arguments)
        for options in (
            {"backend": "reference"},
            {"backend": "chunked"},
            *({"backend": "chunked", "checkpoint_every": every} for every in (1, 2, 3)),
        ):
            ours = with_gradients(query_projection(**arguments, chunk_size=4, **options), arguments)
            assert_all_close(ours, expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 13, 64])
def test_the_chunk_size_and_a_cut_change_nothing(chunk_size: int) -> None:
    a = make(13, mask=True)
    y, carry = query_projection(**a, chunk_size=5)
    assert_all_close(list(query_projection(**a, chunk_size=chunk_size)), [y, carry])
    pieces, state = [], a["carry"]
    for part in (slice(0, 1), slice(1, 6), slice(6, 13)):
        tokens = {name: a[name][:, part] for name in ("q", "k", "write_mask")}
        piece, state = query_projection(**tokens, carry=state, chunk_size=chunk_size)
        pieces.append(piece)
    assert_all_close([torch.cat(pieces, dim=1), state], [y, carry])


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_no_output_depends_on_a_later_key(backend: str) -> None:
    a = make(7)
    y, _ = query_projection(**a, chunk_size=3, backend=backend)
    (gradient,) = torch.autograd.grad(y[:, 3].sum(), a["k"])
    assert gradient[:, 3].any()
    assert not gradient[:, 4:].any()


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-11, 1e-6])
def test_keys_of_nearly_zero_add_nothing_and_have_no_steep_gradient(
    backend: str, dtype: torch.dtype, length: float
) -> None:
    a = {name: x.detach().to(dtype).requires_grad_() for name, x in make(6).items()}
    k = a["k"].detach().clone()
    k[:, 2] = torch.nn.functional.normalize(k[:, 3], dim=-1) * length
    a["k"] = k.requires_grad_()
    y, _ = query_projection(**a, chunk_size=4, backend=backend)
    for gradient in torch.autograd.grad(y.square().sum(), list(a.values())):
        assert gradient.abs().max() < 1e5  # a bound of 1e-12 on the length, F.normalize's, gave 3e6 at 1e-6
    rest = torch.tensor([0, 1, 3, 4, 5])
    without, _ = query_projection(a["q"][:, rest], a["k"][:, rest], a["carry"], chunk_size=4, backend=backend)
    torch.testing.assert_close(y[:, rest], without, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", ["chunked", "reference"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_masked_key_may_be_no_number(backend: str, value: float) -> None:
    a = make(9, mask=True)
    expected = with_gradients(query_projection(**a, chunk_size=4, backend=backend), a)
    k = a["k"].detach().clone()
    k[~a["write_mask"]] = value
    broken = {**a, "k": k.requires_grad_()}
    ours = with_gradients(query_projection(**broken, chunk_size=4, backend=backend), broken)
    assert_all_close(ours, expected, 0.0)


def test_orthonormal_keys_project_and_the_last_of_them_gives_the_query_back() -> None:
    k = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64))[0].view(1, D, 1, D)
    q = torch.randn(1, 1, 1, D, dtype=torch.float64).expand(1, D, 1, D)
    y, carry = query_projection(q, 3 * k, torch.zeros(1, 1, D, D, dtype=torch.float64), chunk_size=3)
    lengths = y.norm(dim=-1).flatten()
    assert (lengths.diff() >= 0).all()
    torch.testing.assert_close(y[:, -1], q[:, -1])
    torch.testing.assert_close(carry[0, 0], torch.eye(D, dtype=torch.float64))
    again, _ = query_projection(y[:, 1:2], 0 * k[:, :1], (k[0, :2, 0].mT @ k[0, :2, 0])[None, None])
    torch.testing.assert_close(again, y[:, 1:2])


def test_many_keys_multiply_the_query_by_their_number_over_the_width() -> None:
    """papers.md 8.1: eigenvalues of 22 to 44 for 2048 random unit keys of width 64."""
    k = torch.randn(1, 2048, 1, 64, generator=torch.Generator().manual_seed(0))
    _, carry = query_projection(k, k, torch.zeros(1, 1, 64, 64), chunk_size=256)
    eigenvalues = torch.linalg.eigvalsh(carry[0, 0])
    assert abs(eigenvalues.mean() - 2048 / 64) < 0.01
    assert 20 < eigenvalues[0] < 24
    assert 42 < eigenvalues[-1] < 47


def test_gradcheck() -> None:
    arguments = make(5, mask=True, reset_every=2)
    arguments["k"] = (arguments["k"].detach() + 0.5).requires_grad_()  # none of zero, where there is no derivative
    names = [name for name, x in arguments.items() if x.is_floating_point()]
    rest = {name: x for name, x in arguments.items() if name not in names}

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return query_projection(**dict(zip(names, leaves, strict=True)), **rest, chunk_size=2)

    leaves = tuple(arguments[name] for name in names)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_narrow_inputs_keep_a_float32_carry(dtype: torch.dtype) -> None:
    a = {name: x.detach().to(dtype) for name, x in make(13).items()}
    exact = query_projection(**{name: x.double() for name, x in a.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, carry = query_projection(**a)
    assert (y.dtype, carry.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(carry.double(), exact[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y.double(), exact[0], atol=1e-5, rtol=0.01 if dtype == torch.bfloat16 else 1e-5)


def test_it_compiles_without_a_break_in_the_graph() -> None:
    a = {name: x.detach().float() for name, x in make(7).items()}
    compiled = torch.compile(query_projection, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(**a, chunk_size=3), query_projection(**a, chunk_size=3), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


T = 6
WRONG = {
    "q has shape [2, 6, 8]; it must be [B, T, H, D]": {"q": torch.zeros(B, T, H * D)},
    "k has shape [2, 6, 2, 3]; it must be [2, 6, 2, 4]": {"k": torch.zeros(B, T, H, 3)},
    "k has dtype torch.float32; it must be torch.float64 like q": {"k": torch.zeros(B, T, H, D)},
    "carry has shape [2, 2, 4, 5]; it must be [2, 2, 4, 4]": {"carry": torch.zeros(B, H, D, 5)},
    "carry has dtype torch.bool": {"carry": torch.zeros(B, H, D, D, dtype=torch.bool)},
    "chunk_size is 0": {"chunk_size": 0},
    "checkpoint_every is 0": {"checkpoint_every": 0},
    "write_mask has dtype torch.float32; it must be torch.bool": {"write_mask": torch.zeros(B, T)},
    "initial has shape [2, 4, 4]; it must be [2, 2, 4, 4]": {"initial": torch.zeros(B, D, D)},
    "reset has shape [2, 5]; it must be [2, 6]": {"reset": torch.zeros(B, T - 1, dtype=torch.bool)},
    "reset is True at row 0, token 1": {"reset": torch.arange(B * T).view(B, T) == 1},
    "backend is 'native', which cannot run here": {"backend": "native"},
}


@pytest.mark.parametrize("message", WRONG)
def test_the_message_names_the_argument(message: str) -> None:
    with pytest.raises(UserError) as error:
        query_projection(**{**make(T), **WRONG[message]})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
