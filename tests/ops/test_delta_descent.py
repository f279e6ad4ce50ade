"""`delta_descent`: both backends are the loop, to 1e-10 in float64; and what it must agree with in special cases."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops import delta_descent, neural_memory

B, H, D = 2, 2, 4


def make(tokens: int, *, mask: bool = False, reset_every: int | None = None) -> dict[str, Any]:
    """Random arguments in float64, with unit keys."""
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    q, k, v = (draw(B, tokens, H, D) for _ in range(3))
    k = torch.nn.functional.normalize(k, dim=-1)
    theta, alpha = (torch.rand(B, tokens, H, generator=random, dtype=torch.float64) for _ in range(2))
    tensors = {"q": q, "k": k, "v": v, "theta": theta, "alpha": 0.3 * alpha, "weights": draw(B, H, D, D)}
    arguments: dict[str, Any] = {name: x.requires_grad_() for name, x in tensors.items()}
    if mask:
        arguments["write_mask"] = torch.rand(B, tokens, generator=random) > 0.3
    if reset_every:
        starts = torch.zeros(B, tokens, dtype=torch.bool)
        starts[0, ::reset_every] = True
        starts[1, reset_every :: 2 * reset_every] = True
        arguments |= {"reset": starts, "initial": draw(B, H, D, D).requires_grad_()}
    return arguments


def loop(q, k, v, theta, alpha, weights, write_mask=None, reset=None, initial=None) -> tuple[Tensor, Tensor]:
    """The recurrence for one sample and head at a time, in plain torch."""
    outputs, final = torch.empty(0), []
    rows = []
    for b, h in product(range(B), range(H)):
        matrix, ys = weights[b, h], []
        for t in range(q.shape[1]):
            if reset is not None and reset[b, t]:
                matrix = initial[b, h]
            if write_mask is None or write_mask[b, t]:
                error = matrix @ k[b, t, h] - v[b, t, h]
                matrix = (1 - alpha[b, t, h]) * matrix - theta[b, t, h] * torch.outer(error, k[b, t, h])
            ys.append(matrix @ q[b, t, h])
        rows.append(torch.stack(ys) if ys else q[b, :, h])
        final.append(matrix)
    outputs = torch.stack(rows).unflatten(0, (B, H)).transpose(1, 2)
    return outputs, torch.stack(final).unflatten(0, (B, H))


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
    arguments = make(tokens, mask=mask, reset_every=4 if reset else None)
    expected = with_gradients(loop(**arguments), arguments)
    for options in (
        {"backend": "reference"},
        {"backend": "chunked"},
        *({"backend": "chunked", "checkpoint_every": every} for every in (1, 2, 3)),
    ):
        ours = with_gradients(delta_descent(**arguments, chunk_size=4, **options), arguments)
        assert_all_close(ours, expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 13, 64])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    arguments = make(13, mask=True)
    one, other = (delta_descent(**arguments, chunk_size=size) for size in (chunk_size, 5))
    assert_all_close(with_gradients(one, arguments), with_gradients(other, arguments))


@pytest.mark.parametrize(("gate", "value"), [("theta", 0.0), ("theta", 1.0), ("alpha", 0.0), ("alpha", 1.0)])
def test_gates_of_exactly_zero_and_one(gate: str, value: float) -> None:
    arguments = make(9)
    arguments[gate] = torch.full_like(arguments[gate], value).requires_grad_()
    assert_all_close(
        with_gradients(delta_descent(**arguments, chunk_size=4), arguments),
        with_gradients(loop(**arguments), arguments),
    )


def test_one_token_chunks_of_neural_memory_are_the_delta_rule_with_twice_its_theta() -> None:
    """The titans loss has no factor one half (papers.md 19 d)."""
    a = make(11)
    y, (weights,), _ = neural_memory(
        a["q"], a["k"], a["v"], a["theta"], None, a["alpha"], (a["weights"],), None, chunk_size=1, residual=False
    )
    assert_all_close([y, weights], list(delta_descent(**{**a, "theta": 2 * a["theta"]})))


def test_with_nothing_read_before_one_chunk_is_the_dual_form_of_ttt() -> None:
    """eta = alpha = 0, one anchor: W_t q_t = W_0 q_t - sum over s up to t of 2 theta_s (W_0 k_s - v_s)(k_s . q_t)."""
    a = make(9)
    q, k, v, theta, start = (a[name] for name in ("q", "k", "v", "theta", "weights"))
    y, _, _ = neural_memory(
        q, k, v, theta, None, 0 * a["alpha"], (start,), None, chunk_size=9, residual=False, activation="identity"
    )
    error = torch.einsum("bhij,bshj->bshi", start, k) - v
    scores = torch.einsum("bthd,bshd->bhts", q, k).tril() * 2 * theta.transpose(1, 2)[:, :, None]
    expected = torch.einsum("bhij,bthj->bthi", start, q) - torch.einsum("bhts,bshi->bthi", scores, error)
    assert_all_close([y], [expected])


def test_a_unit_key_at_full_rate_replaces_what_was_stored() -> None:
    k = torch.eye(D).view(1, D, 1, D).repeat(1, 2, 1, 1)  # every key twice
    v = torch.randn(1, 2 * D, 1, D)
    one = torch.ones(1, 2 * D, 1)
    _, memory = delta_descent(k, k, v, one, 0 * one, torch.randn(1, 1, D, D), chunk_size=3)
    torch.testing.assert_close(memory[0, 0], v[0, D:, 0].T)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_narrow_inputs_keep_a_float32_state(dtype: torch.dtype) -> None:
    arguments = {name: x.detach().to(dtype) for name, x in make(13).items()}
    exact = delta_descent(**{name: x.double() for name, x in arguments.items()})
    y, weights = delta_descent(**arguments)
    assert (y.dtype, weights.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(weights.double(), exact[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(y.double(), exact[0], atol=0.05 if dtype == torch.bfloat16 else 1e-4, rtol=0.02)


def test_gradcheck() -> None:
    arguments = make(5, mask=True, reset_every=2)
    names = [name for name, x in arguments.items() if x.is_floating_point()]
    rest = {name: x for name, x in arguments.items() if name not in names}

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return delta_descent(**dict(zip(names, leaves, strict=True)), **rest, chunk_size=2)

    leaves = tuple(arguments[name] for name in names)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, atol=1e-4)


def test_it_compiles_without_a_break_in_the_graph() -> None:
    arguments = {name: x.detach().float() for name, x in make(7).items()}
    compiled = torch.compile(delta_descent, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(**arguments, chunk_size=3), delta_descent(**arguments, chunk_size=3), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


T = 6
WRONG = {
    "q has shape [2, 6, 8]; it must be [B, T, H, D]": {"q": torch.zeros(B, T, H * D)},
    "q has dtype torch.int64": {"q": torch.zeros(B, T, H, D, dtype=torch.long)},
    "k has shape [2, 5, 2, 4]; it must be [2, 6, 2, 4]": {"k": torch.zeros(B, T - 1, H, D)},
    "k has dtype torch.float32; it must be torch.float64 like q": {"k": torch.zeros(B, T, H, D)},
    "v has shape [2, 6, 2, 3]": {"v": torch.zeros(B, T, H, 3)},
    "theta has shape [2, 6]; it must be [2, 6, 2]": {"theta": torch.zeros(B, T)},
    "alpha has dtype torch.bool": {"alpha": torch.zeros(B, T, H, dtype=torch.bool)},
    "weights has shape [2, 2, 4, 5]; it must be [2, 2, 4, 4]": {"weights": torch.zeros(B, H, D, 5)},
    "chunk_size is 0": {"chunk_size": 0},
    "checkpoint_every is 0": {"checkpoint_every": 0},
    "write_mask has dtype torch.float32; it must be torch.bool": {"write_mask": torch.zeros(B, T)},
    "reset is given without initial": {"reset": torch.zeros(B, T, dtype=torch.bool)},
    "initial has shape [2, 4, 4]; it must be [2, 2, 4, 4]": {"initial": torch.zeros(B, D, D)},
    "reset is True at row 0, token 1": {
        "reset": torch.arange(B * T).view(B, T) == 1,
        "initial": torch.zeros(B, H, D, D),
    },
    "backend is 'reverence'; it must be one of": {"backend": "reverence"},
    "backend is 'native', which cannot run here": {"backend": "native"},
}


@pytest.mark.parametrize("message", WRONG)
def test_the_message_names_the_argument(message: str) -> None:
    with pytest.raises(UserError) as error:
        delta_descent(**{**make(T), **WRONG[message]})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
