"""`delta_descent`: both backends are the loop, to 1e-10 in float64; and what it must agree with in special cases."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops import delta_descent, neural_memory

B, H, D = 2, 2, 4


def make(
    tokens: int, *, d_out: int = D, unit: bool = True, mask: bool = False, reset_every: int | None = None
) -> dict[str, Any]:
    """Random arguments in float64, with unit keys unless told otherwise."""
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    q, k, v = (draw(B, tokens, H, width) for width in (D, D, d_out))
    k = torch.nn.functional.normalize(k, dim=-1) if unit else k
    theta, alpha = (torch.rand(B, tokens, H, generator=random, dtype=torch.float64) for _ in range(2))
    tensors = {"q": q, "k": k, "v": v, "theta": theta, "alpha": 0.3 * alpha, "weights": draw(B, H, d_out, D)}
    arguments: dict[str, Any] = {name: x.requires_grad_() for name, x in tensors.items()}
    if mask:
        arguments["write_mask"] = torch.rand(B, tokens, generator=random) > 0.3
    if reset_every:
        starts = torch.zeros(B, tokens, dtype=torch.bool)
        starts[0, ::reset_every] = True
        starts[1, reset_every :: 2 * reset_every] = True
        arguments |= {"reset": starts, "initial": draw(B, H, d_out, D).requires_grad_()}
    return arguments


def loop(
    q, k, v, theta, alpha, weights, write_mask=None, reset=None, initial=None, proximal=False, read="after"
) -> tuple[Tensor, Tensor]:
    """The recurrence for one sample and head at a time, in plain torch."""
    outputs, final = torch.empty(0), []
    rows = []
    for b, h in product(range(B), range(H)):
        matrix, ys = weights[b, h], []
        for t in range(q.shape[1]):
            if reset is not None and reset[b, t]:
                matrix = initial[b, h]
            if read == "before":
                ys.append(matrix @ q[b, t, h])
            if write_mask is None or write_mask[b, t]:
                key, rate = k[b, t, h], theta[b, t, h]
                rate = rate / (1 + rate * (key @ key)) if proximal else rate
                matrix = (1 - alpha[b, t, h]) * matrix - rate * torch.outer(matrix @ key - v[b, t, h], key)
            if read == "after":
                ys.append(matrix @ q[b, t, h])
        rows.append(torch.stack(ys) if ys else v[b, :, h])
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


@pytest.mark.parametrize("tokens", [0, 1, 4, 5, 13])
@pytest.mark.parametrize(("d_out", "proximal", "read"), list(product((3, 6), (False, True), ("after", "before"))))
def test_a_rectangular_memory_with_proximal_steps_and_either_read(
    tokens: int, d_out: int, proximal: bool, read: str
) -> None:
    arguments = make(tokens, d_out=d_out, unit=False, mask=True, reset_every=4)
    form: dict[str, Any] = {"proximal": proximal, "read": read}
    expected = with_gradients(loop(**arguments, **form), arguments)
    for options in ({"backend": "reference"}, {"backend": "chunked"}, {"backend": "chunked", "checkpoint_every": 2}):
        ours = with_gradients(delta_descent(**arguments, **form, **options, chunk_size=4), arguments)
        assert_all_close(ours, expected)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 13, 64])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    arguments = make(13, d_out=3, mask=True)
    for read in ("after", "before"):
        one, other = (delta_descent(**arguments, chunk_size=size, read=read) for size in (chunk_size, 5))
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


@pytest.mark.parametrize("theta", [0.3, 1.0, 50.0])
def test_a_proximal_step_is_the_nearest_matrix_that_fits(theta: float) -> None:
    """Least theta |W k - v|^2 + |W - M|^2, by its normal equations: W (I + theta k k^T) = M + theta v k^T."""
    a = make(1, d_out=3, unit=False)
    assert (a["k"].norm(dim=-1) - 1).abs().min() > 0.1
    rate = torch.full_like(a["theta"], theta)
    _, ours = delta_descent(**{**a, "theta": rate, "alpha": 0 * a["alpha"]}, proximal=True)
    k, v = a["k"][:, 0], a["v"][:, 0]
    system = torch.eye(D) + theta * k[..., :, None] * k[..., None, :]
    right = a["weights"] + theta * v[..., :, None] * k[..., None, :]
    assert_all_close([ours], [torch.linalg.solve(system, right, left=False)])


def test_proximal_steps_stay_bounded_where_plain_ones_diverge() -> None:
    a = make(64, unit=False)
    a |= {"theta": torch.full_like(a["theta"], 30.0), "alpha": 0 * a["alpha"]}
    assert delta_descent(**a)[1].norm() > 1e30
    _, after = delta_descent(**a, proximal=True)
    assert after.norm() < 10 * a["weights"].norm()
    last = torch.einsum("bhij,bhj->bhi", after, a["k"][:, -1])
    assert (last - a["v"][:, -1]).norm() < 0.1 * a["v"][:, -1].norm()


def test_the_memory_is_multiplied_on_the_right_at_its_own_error_and_at_an_anchors() -> None:
    """M ((1 - alpha) I - theta k k^T) - theta delta k^T: of v by delta = -v, of any other gradient by v = -delta."""
    a = make(9, d_out=3)
    delta = torch.einsum("bhij,bthj->bthi", a["weights"], a["k"]) - a["v"]  # at the chunk's first weights
    for v in (a["v"], -delta):
        memory = a["weights"]
        for t in range(9):
            k, theta, alpha = a["k"][:, t], a["theta"][:, t, :, None, None], a["alpha"][:, t, :, None, None]
            transition = (1 - alpha) * torch.eye(D) - theta * k[..., :, None] * k[..., None, :]
            memory = memory @ transition + theta * v[:, t][..., :, None] * k[..., None, :]
        assert_all_close([delta_descent(**{**a, "v": v}, chunk_size=4)[1]], [memory])


def test_a_read_before_the_write_does_not_know_its_token() -> None:
    a = make(7, d_out=3)
    expected, _ = delta_descent(**a, chunk_size=3, read="before")
    for name in ("k", "v", "theta", "alpha"):
        changed = a[name].detach().clone()
        changed[:, 4] = 0.7
        y, _ = delta_descent(**{**a, name: changed}, chunk_size=3, read="before")
        assert_all_close([y[:, :5]], [expected[:, :5]])
        assert not torch.allclose(y[:, 5:], expected[:, 5:])


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


@pytest.mark.parametrize(("proximal", "read"), [(False, "after"), (True, "before")])
def test_gradcheck(proximal: bool, read: str) -> None:
    arguments = make(5, d_out=3, unit=False, mask=True, reset_every=2)
    names = [name for name, x in arguments.items() if x.is_floating_point()]
    rest = {name: x for name, x in arguments.items() if name not in names}

    def run(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return delta_descent(
            **dict(zip(names, leaves, strict=True)), **rest, chunk_size=2, proximal=proximal, read=read
        )

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
    "v has shape [2, 6, 2, 3]; it must be [2, 6, 2, 4]": {"v": torch.zeros(B, T, H, 3)},
    "v has dtype torch.float32; it must be torch.float64 like q": {"v": torch.zeros(B, T, H, D)},
    "theta has shape [2, 6]; it must be [2, 6, 2]": {"theta": torch.zeros(B, T)},
    "alpha has dtype torch.bool": {"alpha": torch.zeros(B, T, H, dtype=torch.bool)},
    "weights has shape [2, 2, 4, 5]; it must be [2, 2, 4, 4]": {"weights": torch.zeros(B, H, D, 5)},
    "weights has shape [2, 4, 4]; it must be [2, 2, D_out, 4]": {"weights": torch.zeros(B, D, D)},
    "v has shape [2, 6, 2, 4]; it must be [2, 6, 2, 3]": {"weights": torch.zeros(B, H, 3, D)},
    "read is 'befor'; it must be one of after, before; did you mean 'before'?": {"read": "befor"},
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
