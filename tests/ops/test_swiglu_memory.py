"""`swiglu_memory`: both backends are the loop, to 1e-10 in float64; the gradients by hand; what the paper promises."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem import probe
from neuralmem.errors import UserError
from neuralmem.ops import evaluate_swiglu, swiglu_memory
from neuralmem.ops.newton_schulz import newton_schulz
from neuralmem.ops.swiglu_memory.chunked import gradients

B, H, D, HIDDEN = 2, 2, 4, 5
SHAPES = (HIDDEN, D), (D, HIDDEN), (HIDDEN, D)


def make(
    tokens: int, *, momentum: bool = True, mask: bool = False, reset_every: int | None = None, initial: bool = True
) -> dict[str, Any]:
    """Random arguments in float64, with unit keys, and weights that are not the initial ones."""
    random = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()

    def matrices() -> tuple[Tensor, ...]:
        return tuple(draw(B, H, *shape) for shape in SHAPES)

    q, k, v = (draw(B, tokens, H, D) for _ in range(3))
    theta = torch.rand(B, tokens, H, 3, generator=random, dtype=torch.float64).requires_grad_()
    eta = torch.rand(B, tokens, H, generator=random, dtype=torch.float64).requires_grad_()
    arguments: dict[str, Any] = {"q": q, "k": F.normalize(k.detach(), dim=-1).requires_grad_(), "v": v, "theta": theta}
    arguments |= {"eta": eta, "weights": matrices(), "momentum": matrices()}
    if not momentum:
        arguments |= {"eta": None, "momentum": None}
    if initial or reset_every:
        arguments["initial"] = matrices()
    if mask:
        arguments["write_mask"] = torch.rand(B, tokens, generator=random) > 0.3
        arguments["write_mask"][0, 4:8] = False  # a chunk of nothing but padding
    if reset_every:
        starts = torch.zeros(B, tokens, dtype=torch.bool)
        starts[0, ::reset_every] = True
        starts[1, reset_every :: 2 * reset_every] = True
        arguments["reset"] = starts
    return arguments


def convert(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """New leaves of another dtype."""
    leaf = lambda x: x.detach().to(dtype).requires_grad_() if x.is_floating_point() else x
    return {name: tuple(map(leaf, x)) if isinstance(x, tuple) else leaf(x) for name, x in arguments.items()}


def leaves_of(arguments: dict[str, Any]) -> list[Tensor]:
    parts = (x if isinstance(x, tuple) else (x,) for x in arguments.values())
    return [x for part in parts for x in part if isinstance(x, Tensor) and x.is_floating_point()]


def network(weights: Any, x: Tensor) -> Tensor:
    """f_W(x) for one head. x: [n, D]."""
    first, second, third = weights
    return (F.silu(x @ first.T) * (x @ third.T)) @ second.T


def loop(
    q, k, v, theta, eta, weights, momentum, initial=None, write_mask=None, reset=None, muon=True, chunk_size=4
) -> tuple[Tensor, ...]:
    """One sample and head at a time, chunk by chunk, real tokens only, gradients by autograd."""
    initial = initial or weights
    rows, final = [], []
    for b, h in product(range(B), range(H)):
        now, pushed = [w[b, h] for w in weights], [u[b, h] for u in momentum or ()]
        lengths, ys = [w[b, h].norm(dim=1, keepdim=True) for w in initial], [q.new_zeros(0, D)]
        for start in range(0, q.shape[1], chunk_size):
            if reset is not None and reset[b, start]:
                now, pushed = [w[b, h] for w in initial], [torch.zeros_like(u) for u in pushed]
            chunk = slice(start, start + chunk_size)
            ys.append(network(now, q[b, chunk, h]))
            key, value, rate = k[b, chunk, h], v[b, chunk, h], theta[b, chunk, h]
            real = torch.ones(len(key), dtype=torch.bool) if write_mask is None else write_mask[b, chunk]
            if not real.any():
                continue
            losses = -(network(now, key[real]) * value[real]).sum(1)
            change = [torch.autograd.grad(rate[real, i] @ losses, now[i], create_graph=True)[0] for i in range(3)]
            if momentum is not None:
                decay = eta[b, chunk, h][real].mean()
                change = pushed = [decay * u + g for u, g in zip(pushed, change, strict=True)]
            if muon:
                change = [newton_schulz(g, coefficients="five") for g in change]
            new = [w - g for w, g in zip(now, change, strict=True)]
            now = [w / w.norm(dim=1, keepdim=True) * n for w, n in zip(new, lengths, strict=True)]
        rows.append(torch.cat(ys))
        final.append([*now, *pushed])
    states = [torch.stack(part).unflatten(0, (B, H)) for part in zip(*final, strict=True)]
    return torch.stack(rows).unflatten(0, (B, H)).transpose(1, 2), *states


def run(arguments: dict[str, Any], **options: Any) -> tuple[Tensor, ...]:
    y, weights, momentum = swiglu_memory(**{"chunk_size": 4, **arguments, **options})
    return y, *weights, *(momentum or ())


def with_gradients(result: tuple[Tensor, ...], arguments: dict[str, Any]) -> list[Tensor]:
    total = sum((x * torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in result)
    return [*result, *torch.autograd.grad(total, leaves_of(arguments), allow_unused=True, materialize_grads=True)]


def assert_all_close(ours: Any, theirs: Any, atol: float = 1e-10) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-10)


@pytest.mark.parametrize("tokens", [0, 1, 4, 13])
@pytest.mark.parametrize(("muon", "momentum"), list(product((False, True), repeat=2)))
@pytest.mark.parametrize(("mask", "reset"), list(product((False, True), repeat=2)))
def test_both_backends_are_the_loop_with_all_gradients(
    tokens: int, muon: bool, momentum: bool, mask: bool, reset: bool
) -> None:
    arguments = make(tokens, momentum=momentum, mask=mask, reset_every=4 if reset else None, initial=mask)
    expected = with_gradients(loop(**arguments, muon=muon), arguments)
    for options in (
        {"backend": "reference"},
        {"backend": "chunked"},
        *({"backend": "chunked", "checkpoint_every": every} for every in (1, 2, 3)),
    ):
        assert_all_close(with_gradients(run(arguments, muon=muon, **options), arguments), expected)


def test_the_gradients_by_hand_are_those_of_autograd() -> None:
    a = make(7)
    k, v, theta = (a[name].transpose(1, 2) for name in ("k", "v", "theta"))
    found = gradients(k, v, theta, a["weights"])
    losses = -(evaluate_swiglu(a["k"], a["weights"]) * a["v"]).sum(-1)  # [B, T, H]
    for i, weight in enumerate(a["weights"]):
        (expected,) = torch.autograd.grad((a["theta"][..., i] * losses).sum(), weight, retain_graph=True)
        torch.testing.assert_close(found[i], expected, atol=1e-13, rtol=0)


def test_a_token_is_read_at_the_weights_that_its_chunk_starts_with() -> None:
    a = make(8)
    y, *_ = run(a)
    torch.testing.assert_close(y[:, :4], evaluate_swiglu(a["q"][:, :4], a["weights"]), atol=1e-14, rtol=0)
    for name in ("k", "v", "theta", "eta"):
        (gradient,) = torch.autograd.grad(y.square().sum(), a[name], retain_graph=True)
        assert gradient[:, :4].any(), "the first chunk is written"
        assert not gradient[:, 4:].any(), "the second is not read"


@pytest.mark.parametrize("muon", [False, True])
def test_rows_keep_the_length_that_they_have_in_the_initial_weights(muon: bool) -> None:
    a = make(11)
    _, *state = run(a, muon=muon)
    for after, first, before in zip(state[:3], a["initial"], a["weights"], strict=True):
        torch.testing.assert_close(after.norm(dim=-1), first.norm(dim=-1), atol=1e-14, rtol=0)
        assert (before.norm(dim=-1) - first.norm(dim=-1)).abs().max() > 0.1


def test_the_order_of_tokens_in_a_chunk_does_not_matter_to_what_is_written() -> None:
    a, order = make(4), [2, 0, 3, 1]
    moved = {name: a[name][:, order] for name in ("k", "v", "theta", "eta")}
    assert_all_close(run(a)[1:], run({**a, **moved})[1:], atol=1e-12)


def test_no_share_of_the_momentum_kept_is_no_momentum() -> None:
    a = make(11)
    zero = run({**a, "eta": torch.zeros_like(a["eta"])})
    assert_all_close(zero[:4], run({**a, "eta": None, "momentum": None}), atol=1e-12)


def test_a_rate_of_zero_changes_no_weight() -> None:
    a = make(11, momentum=False, initial=False)
    zero = torch.zeros_like(a["theta"])
    for muon in (False, True):
        assert_all_close(run({**a, "theta": zero}, muon=muon)[1:], a["weights"], atol=1e-14)


def test_muon_forgets_the_scale_of_theta_and_without_it_the_scale_matters() -> None:
    a = make(11, momentum=False)
    double = {**a, "theta": 2 * a["theta"]}
    assert_all_close(run(double), run(a), atol=1e-9)
    assert (run(double, muon=False)[1] - run(a, muon=False)[1]).abs().max() > 0.01


@pytest.mark.parametrize("muon", [False, True])
def test_a_chunk_without_a_real_token_leaves_the_state_to_the_bit(muon: bool) -> None:
    a = make(4)
    mask = torch.tensor([[False] * 4, [False, True, True, False]])
    a |= {name: a[name].detach().masked_fill(~mask[..., None, None], torch.nan) for name in ("k", "v", "theta")}
    y, *state = run(a, muon=muon, write_mask=mask)
    before = [*a["weights"], *a["momentum"]]
    assert all(torch.equal(x[0], old[0]) for x, old in zip(state, before, strict=True))
    assert all((x[1] - old[1]).abs().max() > 1e-3 for x, old in zip(state, before, strict=True))
    assert all(x.isfinite().all() for x in (y, *state))


def test_writing_a_chunk_raises_the_dot_product_that_it_is_for() -> None:
    a = make(16, momentum=False, initial=False)
    before = (evaluate_swiglu(a["k"], a["weights"]) * a["v"]).sum(-1).mean()
    for options in ({"muon": True}, {"muon": False}):
        _, *after = run({**a, "theta": torch.full_like(a["theta"], 0.02)}, **options, chunk_size=16)
        assert (evaluate_swiglu(a["k"], tuple(after)) * a["v"]).sum(-1).mean() > before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("zero", ["k", "v", "theta", "weights"])
def test_zeros_have_finite_results_and_gradients(zero: str, muon: bool, dtype: torch.dtype) -> None:
    a = convert(make(9, initial=False), dtype)
    zeros = lambda x: torch.zeros_like(x).requires_grad_()
    a[zero] = tuple(map(zeros, a[zero])) if isinstance(a[zero], tuple) else zeros(a[zero])
    a["momentum"] = tuple(map(zeros, a["momentum"]))
    assert all(x.isfinite().all() for x in with_gradients(run(a, muon=muon), a))


def test_the_surprise_is_how_far_from_the_value_it_points() -> None:
    a, module = make(8, mask=True), torch.nn.Linear(1, 1)
    for every, attached in ((None, False), (1, False), (1, True)):
        with probe.recording(module, attached=attached) as record, probe.inside(module):
            y, *_ = run(a, chunk_size=8, checkpoint_every=every)
        cosine = F.cosine_similarity(evaluate_swiglu(a["k"], a["weights"]), a["v"], dim=-1)
        expected = (1 - cosine)[a["write_mask"]].mean()
        assert record.means()["/surprise"] == pytest.approx(expected.item(), abs=1e-6)
        y.sum().backward(retain_graph=True)
        if attached:
            (seen,) = record.values["/surprise"]
            found = torch.autograd.grad(seen, a["k"])[0]
            torch.testing.assert_close(found, torch.autograd.grad(expected, a["k"])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_narrow_inputs_keep_a_float32_state(dtype: torch.dtype, backend: str) -> None:
    arguments = convert(make(13), dtype)
    exact = run(convert(arguments, torch.float64), muon=False)
    ours = run(arguments, muon=False, backend=backend)
    assert [x.dtype for x in ours] == [dtype] + [torch.float32] * 6
    error = max(((x.double() - z).norm() / z.norm()).item() for x, z in zip(ours, exact, strict=True))
    assert error < (0.03 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("muon", [False, True])
def test_gradcheck(muon: bool) -> None:
    arguments = make(5, mask=True, reset_every=2)
    states, rest = ("weights", "momentum", "initial"), ("write_mask", "reset")

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        left = iter(leaves)
        take = lambda name: tuple(next(left) for _ in range(3)) if name in states else next(left)
        return run({name: x if name in rest else take(name) for name, x in arguments.items()}, chunk_size=2, muon=muon)

    leaves = tuple(leaves_of(arguments))
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, atol=1e-5)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True, atol=1e-3)


def test_it_compiles_without_a_break_in_the_graph() -> None:
    arguments, compiled = convert(make(5), torch.float32), torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for one, other in zip(compiled(arguments, chunk_size=3), run(arguments, chunk_size=3), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    torch._dynamo.reset()


T = 6
WRONG = {
    "q has shape [2, 6, 8]; it must be [B, T, H, D]": {"q": torch.zeros(B, T, H * D)},
    "k has shape [2, 5, 2, 4]; it must be [2, 6, 2, 4]": {"k": torch.zeros(B, T - 1, H, D)},
    "theta has shape [2, 6, 2]; it must be [2, 6, 2, 3]": {"theta": torch.zeros(B, T, H)},
    "eta has shape [2, 6]; it must be [2, 6, 2]": {"eta": torch.zeros(B, T)},
    "eta and momentum belong together": {"eta": None},
    "weights has 2 tensors; it must have 3": {"weights": (torch.zeros(B, H, 5, D), torch.zeros(B, H, D, 5))},
    "weights[0] has shape [2, 5, 4]; it must be [2, 2, D_h, 4]": {"weights": (torch.zeros(B, 5, D),) * 3},
    "weights[1] has shape [2, 2, 5, 4]; it must be [2, 2, 4, 5]": {"weights": (torch.zeros(B, H, 5, D),) * 3},
    "momentum[0] has shape [2, 2, 4, 4]; it must be [2, 2, 5, 4]": {"momentum": (torch.zeros(B, H, D, D),) * 3},
    "initial has 1 tensors; it must have 3": {"initial": (torch.zeros(B, H, 5, D),)},
    "chunk_size is 0": {"chunk_size": 0},
    "write_mask has dtype torch.float32; it must be torch.bool": {"write_mask": torch.zeros(B, T)},
    "reset is given without initial": {"reset": torch.zeros(B, T, dtype=torch.bool), "initial": None},
    "reset is True at row 0, token 1": {"reset": torch.arange(B * T).view(B, T) == 1},
    "backend is 'native', which cannot run here": {"backend": "native"},
}


@pytest.mark.parametrize("message", WRONG)
def test_the_message_names_the_argument(message: str) -> None:
    with pytest.raises(UserError) as error:
        swiglu_memory(**{**make(T), **WRONG[message]})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("shape", "message"), [((2, 3, 8), "x has shape"), ((2, 3, H, 8), r"weights\[0\] has shape")])
def test_evaluating_refuses_what_does_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_swiglu(torch.zeros(shape, dtype=torch.float64), make(1)["weights"])
