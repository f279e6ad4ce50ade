"""`self_modifying`: chunked is the token loop, to 1e-10 in float64; and what both must be in special cases."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem.errors import UserError
from neuralmem.ops import delta_descent, neural_memory
from neuralmem.ops.self_modifying import BOXES, make_boxes, self_modifying, split_boxes

B, H, D, M = 2, 2, 4, 6
STILL = 1e-300  # a gain with which a box adds nothing to what it reads


def make(tokens: int, *, depth: int = 2, norm: bool = True, mask: bool = False, reset_every: int = 0) -> dict[str, Any]:
    """Random arguments in float64."""
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()

    def matrices() -> tuple[Tensor, ...]:
        widths = [D, *[M] * (depth - 1), D]
        drawn = (0.5 * draw(B, 5 * H, out, into) for into, out in pairwise(widths))
        return tuple(x.detach().requires_grad_() for x in drawn)

    arguments: dict[str, Any] = {name: draw(B, tokens, H, D) for name in ("q", "key_input", "x")}
    arguments |= {"weights": matrices(), "gates": (draw(2, H, D), draw(2, H)), "theta_max": 0.3}
    if norm:
        arguments["norm"] = (draw(5 * H, D), draw(5 * H, D))
    if mask:
        arguments["write_mask"] = torch.rand(B, tokens, generator=random) > 0.3
    if reset_every:
        starts = torch.zeros(B, tokens, dtype=torch.bool)
        starts[0, ::reset_every] = True
        starts[1, reset_every :: 2 * reset_every] = True
        arguments |= {"reset": starts, "initial": matrices()}
    return arguments


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    flat = [x for value in arguments.values() for x in (value if isinstance(value, tuple) else [value])]
    return [x for x in flat if isinstance(x, Tensor) and x.is_floating_point()]


def outcome(arguments: dict[str, Any], **options: Any) -> list[Tensor]:
    """Outputs, state, and the gradient of every input."""
    y, weights = self_modifying(**arguments, **options)
    random = torch.Generator().manual_seed(0)
    loss = sum((x * torch.randn(x.shape, generator=random, dtype=x.dtype)).sum() for x in (y, *weights))
    return [y, *weights, *torch.autograd.grad(loss, leaves(arguments))]


def assert_same(some: list[Tensor], others: list[Tensor]) -> None:
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10 * max(1.0, float(b.detach().abs().max())), rtol=0)


@pytest.mark.parametrize("tokens", [1, 3, 4, 11])
@pytest.mark.parametrize("dgd", [True, False], ids=["dgd", "gradient"])
@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, {}),
        ({"mask": True}, {}),
        ({"reset_every": 4}, {}),
        ({"mask": True, "reset_every": 4}, {"checkpoint_every": 2}),
        ({"depth": 1}, {"residual": False}),
        ({"depth": 3}, {"activation": "gelu"}),
        ({"norm": False}, {"activation": "gelu_tanh"}),
    ],
    ids=["plain", "mask", "reset", "all", "one matrix", "three matrices", "no norm"],
)
def test_chunked_is_the_token_loop(tokens: int, dgd: bool, settings: dict, options: dict) -> None:
    arguments = make(tokens, **settings)
    options = {"chunk_size": 4, "dgd": dgd, **options}
    assert_same(
        outcome(arguments, backend="chunked", **options),
        outcome(arguments, backend="reference", **options),
    )


def one_head(arguments: dict[str, Any], chunk_size: int, b: int, h: int) -> tuple[Tensor, list[list[Tensor]]]:
    """The equations for one sample and head in plain torch: the package's files are not asked."""
    W = [[w[b, box * H + h] for w in arguments["weights"]] for box in range(5)]
    gain, bias = (x.view(5, H, D)[:, h] for x in arguments["norm"])

    def ask(box: int, matrices: list[Tensor], x: Tensor) -> Tensor:
        f = matrices[1] @ F.silu(matrices[0] @ x)
        return x + F.layer_norm(f, (D,), gain[box], bias[box], eps=1e-6)

    outputs, anchor = [], W
    for t in range(arguments["q"].shape[1]):
        anchor = W if t % chunk_size == 0 else anchor
        q, z, x = (arguments[name][b, t, h] for name in ("q", "key_input", "x"))
        k, v = F.normalize(ask(0, anchor[0], z), dim=0, eps=1e-2), ask(1, anchor[1], x)
        head, shift = (gate[:, h] for gate in arguments["gates"])
        theta = 0.3 * torch.sigmoid(head[0] @ ask(2, anchor[2], x) + shift[0])
        alpha = torch.sigmoid(head[1] @ ask(3, anchor[3], x) + shift[1])
        new = []
        for box in range(5):
            target = ask(box, anchor[box], v)
            moved = [w.detach().requires_grad_() for w in anchor[box]]
            loss = (ask(box, moved, k.detach()) - target.detach()).square().sum()
            entering = [k, F.silu(anchor[box][0] @ k)]
            steps = []
            for w, a, g, e in zip(W[box], anchor[box], torch.autograd.grad(loss, moved), entering, strict=True):
                assert a.shape == g.shape
                rate = theta / (1 + theta * (e @ e))
                steps.append(w @ ((1 - alpha) * torch.eye(len(e), dtype=e.dtype) - rate * torch.outer(e, e)) - rate * g)
            new.append(steps)
        W = new
        outputs.append(ask(4, W[4], q))
    return torch.stack(outputs), W


def test_both_are_the_equations_written_once_more() -> None:
    arguments = make(7)
    for backend in ("reference", "chunked"):
        y, weights = self_modifying(**arguments, chunk_size=3, backend=backend)
        for b in range(B):
            for h in range(H):
                expected, last = one_head(arguments, 3, b, h)
                state = [weights[layer][b, box * H + h] for box in range(5) for layer in range(2)]
                assert_same([y[b, :, h], *state], [expected, *(w for box in last for w in box)])


def made(arguments: dict[str, Any]) -> tuple[Any, Tensor]:
    """What the first weights make of the text: keys, values, gates, and the targets of every box [B, 5, H, T, D]."""
    boxes = make_boxes(arguments["gates"], 0.3, "silu", True, arguments.get("norm"), torch.float64)
    weights = split_boxes(arguments["weights"])
    result = boxes.make(arguments["key_input"].transpose(1, 2), arguments["x"].transpose(1, 2), weights)
    return result, boxes.target(result.v, weights)


def test_without_dgd_every_memory_is_a_neural_memory_of_what_was_made() -> None:
    arguments = make(5)
    y, weights = self_modifying(**arguments, dgd=False, chunk_size=8)
    given, targets = made(arguments)
    k, theta, alpha = (u.transpose(1, 2) for u in (given.k, given.theta, given.alpha))
    for box in range(5):
        heads = slice(box * H, (box + 1) * H)
        z, after, _ = neural_memory(
            arguments["q"],
            k,
            targets[:, box].transpose(1, 2),
            theta,
            None,
            alpha,
            tuple(w[:, heads] for w in arguments["weights"]),
            None,
            chunk_size=8,
            norm=tuple(x[heads] for x in arguments["norm"]),
        )
        for one, other in zip(weights, after, strict=True):
            torch.testing.assert_close(one[:, heads], other, atol=1e-10, rtol=0)
    torch.testing.assert_close(y, z, atol=1e-10, rtol=0)


def test_memories_of_one_matrix_are_delta_descent_towards_minus_their_gradients() -> None:
    """With what was made frozen: a chunk as long as the text."""
    arguments = make(6, depth=1, norm=False)
    y, (weights,) = self_modifying(**arguments, residual=False, chunk_size=6)
    boxes = make_boxes(arguments["gates"], 0.3, "silu", False, None, torch.float64)
    (matrix,) = split_boxes(arguments["weights"])
    given = boxes.make(arguments["key_input"].transpose(1, 2), arguments["x"].transpose(1, 2), (matrix,))
    gradient = 2 * (given.k[:, None] - given.v[:, None]) @ matrix.mT
    k, theta, alpha = (u.transpose(1, 2) for u in (given.k, given.theta, given.alpha))
    for box in range(5):
        first = matrix[:, box]
        v = -gradient[:, box].transpose(1, 2)
        z, after = delta_descent(arguments["q"], k, v, theta, alpha, first, proximal=True)
        torch.testing.assert_close(weights[:, box * H : (box + 1) * H], after, atol=1e-10, rtol=0)
    torch.testing.assert_close(y, z, atol=1e-10, rtol=0)


def test_with_makers_that_add_nothing_the_memory_is_delta_descent_of_given_keys_and_values() -> None:
    """Then k is the key input and v is x whatever was written, and only M_memory moves: chunk by chunk."""
    arguments = make(9, depth=1)
    gain, bias = (x.detach().clone() for x in arguments["norm"])
    gain[: 4 * H], bias[: 4 * H] = STILL, 0
    arguments["norm"] = gain, bias
    y, (weights,) = self_modifying(**arguments, chunk_size=3)
    k, x = F.normalize(arguments["key_input"], dim=-1), arguments["x"]
    (heads, shifts), memory = arguments["gates"], arguments["weights"][0][:, 4 * H :]
    theta = 0.3 * ((x * heads[0]).sum(-1) + shifts[0]).sigmoid()
    alpha = ((x * heads[1]).sum(-1) + shifts[1]).sigmoid()

    def finish(f: Tensor, u: Tensor) -> Tensor:
        return u + F.layer_norm(f, (D,), eps=1e-6) * gain[4 * H :] + bias[4 * H :]

    outputs = []
    for at in range(0, 9, 3):
        q, keys, values = (u[:, at : at + 3] for u in (arguments["q"], k, x))
        through = [torch.einsum("bhij,bthj->bthi", memory, u) for u in (keys, values)]
        error = finish(through[0], keys) - finish(through[1], values).detach()
        (gradient,) = torch.autograd.grad(error.square().sum(), through[0], retain_graph=True)
        gates = theta[:, at : at + 3], alpha[:, at : at + 3]
        z, memory = delta_descent(q, keys, -gradient, *gates, memory, proximal=True)
        outputs.append(finish(z, q))
    torch.testing.assert_close(y, torch.cat(outputs, dim=1), atol=1e-10, rtol=0)
    torch.testing.assert_close(weights[:, 4 * H :], memory, atol=1e-10, rtol=0)


def test_a_rate_of_zero_only_forgets() -> None:
    arguments = make(5)
    given, _ = made(arguments)
    arguments["theta_max"] = 0.0
    _, weights = self_modifying(**arguments, chunk_size=8)
    left = (1 - given.alpha).prod(-1).repeat(1, 5)[..., None, None]
    for w, first in zip(weights, arguments["weights"], strict=True):
        torch.testing.assert_close(w, left * first, atol=1e-12, rtol=0)


def test_keys_of_a_chunk_come_from_its_first_weights_and_later_ones_from_what_was_written() -> None:
    """The memories modify themselves: a token changes the key of another one a chunk later, and none in its own."""
    arguments = make(8)
    changed = {**arguments, "x": arguments["x"].detach().clone()}
    changed["x"][:, 0] += 1
    keys = []
    for call in (arguments, changed):
        _, four = self_modifying(**{n: u[:, :4] if n in ("q", "key_input", "x") else u for n, u in call.items()})
        keys.append(made({**call, "weights": four})[0].k[:, :, 4:])
    assert (keys[0] - keys[1]).abs().max() > 1e-3
    y, z = (self_modifying(**call, chunk_size=4)[0] for call in (arguments, changed))
    assert (y[:, 0] - z[:, 0]).abs().max() > 1e-6, "a token is read after it was written"


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_what_stands_at_a_masked_token_does_not_matter(backend: str) -> None:
    arguments = make(9, mask=True)
    y, weights = self_modifying(**arguments, chunk_size=4, backend=backend)
    broken = {
        name: torch.where(arguments["write_mask"][..., None, None], arguments[name], float("nan"))
        for name in ("key_input", "x")
    }
    z, same = self_modifying(**{**arguments, **broken}, chunk_size=4, backend=backend)
    assert torch.equal(y, z)
    assert all(torch.equal(a, b) for a, b in zip(weights, same, strict=True))
    arguments["write_mask"] = torch.zeros(B, 9, dtype=torch.bool)
    _, same = self_modifying(**arguments, chunk_size=4, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(arguments["weights"], same, strict=True))


@pytest.mark.parametrize("backend", ["chunked", "reference"])
def test_no_token(backend: str) -> None:
    arguments = make(0)
    y, weights = self_modifying(**arguments, backend=backend)
    assert y.shape == (B, 0, H, D)
    assert all(torch.equal(a, b) for a, b in zip(arguments["weights"], weights, strict=True))


def test_half_precision_has_a_wide_state() -> None:
    arguments = make(9)
    narrow = {n: u.detach().bfloat16() if n in ("q", "key_input", "x") else u for n, u in arguments.items()}
    y, weights = self_modifying(**narrow, chunk_size=4)
    assert y.dtype == torch.bfloat16
    assert {w.dtype for w in weights} == {torch.float32}
    exact, _ = self_modifying(**arguments, chunk_size=4)
    assert (y - exact).square().mean() < 0.01 * exact.square().mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(B, 5, H, D + 1).double()}, r"^x has shape \[2, 5, 2, 5\]; it must be \[2, 5, 2, 4\]"),
        ({"gates": (torch.zeros(2, D), torch.zeros(2, H))}, r"^gates\[0\] has shape"),
        ({"weights": (torch.zeros(B, 4 * H, D, D),)}, r"^weights\[0\] has shape .* it must be \[2, 10, 4, 4\]"),
        ({"weights": ()}, r"^weights must be a tuple"),
        ({"reset": torch.zeros(B, 5, dtype=torch.bool)}, r"^reset is given without initial"),
        ({"backend": "native"}, r"^backend is 'native', which cannot run here"),
        ({"chunk_size": 0}, r"^chunk_size is 0"),
        ({"norm": (torch.zeros(H, D), torch.zeros(H, D))}, r"^norm gain has shape \[2, 4\]; it must be \[10, 4\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        self_modifying(**{**make(5), **changes})


def test_boxes_end_with_the_memory_that_is_read() -> None:
    assert BOXES == ("key", "value", "theta", "alpha", "memory")
