"""The Omega rule: every backend is the paper's loop with a window, over chunk boundaries, masks, resets and calls."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem import probe
from neuralmem.errors import UserError
from neuralmem.ops import History, Huber, Lp, decode_omega, evaluate_memory, neural_memory, omega_memory
from tests.ops.memory_cases import (
    B,
    Call,
    D,
    H,
    assert_all_close,
    check_against_the_papers_loop,
    flatten,
    make,
    outputs_and_gradients,
    relative_error,
)

in_torch = pytest.mark.parametrize("backend", ["reference", "chunked"])


@pytest.mark.parametrize(("window", "momentum", "norm"), list(product((1, 2, 5), (True, False), (True, False))))
def test_windows_momentum_and_norm(window: int, momentum: bool, norm: bool) -> None:
    check_against_the_papers_loop(make(window=window, momentum=momentum, norm=norm))


@pytest.mark.parametrize("layers", [1, 3])
def test_depth(layers: int) -> None:
    check_against_the_papers_loop(make(window=3, layers=layers))


@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 6, 11])
def test_ugly_lengths(tokens: int) -> None:
    check_against_the_papers_loop(make(tokens, window=4), recomputed=(1, 2, 3))


@pytest.mark.parametrize("chunk_size", [4, 12, 13, 64])
def test_chunk_sizes(chunk_size: int) -> None:
    check_against_the_papers_loop(make(window=4, chunk_size=chunk_size))


@pytest.mark.parametrize(("mask", "reset", "momentum"), list(product((True, False), repeat=3)))
def test_masks_anywhere_and_resets(mask: bool, reset: bool, momentum: bool) -> None:
    call = make(17, window=4, mask=mask, reset=reset, momentum=momentum, chunk_size=4)
    check_against_the_papers_loop(call, recomputed=(2,))


@pytest.mark.parametrize("bias", [Lp(3.0, 0.1), Huber])
@pytest.mark.parametrize("mask", [True, False])
def test_other_losses(bias: Any, mask: bool) -> None:
    check_against_the_papers_loop(make(11, window=3, bias=bias, mask=mask, reset=mask))


def test_without_a_history() -> None:
    call = make(11, window=4)
    call.tensors["history"] = None
    check_against_the_papers_loop(call)


@in_torch
@pytest.mark.parametrize("momentum", [True, False])
def test_a_window_of_one_is_neural_memory(backend: str, momentum: bool) -> None:
    call = make(13, momentum=momentum, mask=True, reset=True)
    expected = outputs_and_gradients(call.run(backend=backend), call)
    omega = torch.ones(B, 13, H, 1, dtype=torch.float64)
    ours = outputs_and_gradients(omega_memory(**call.tensors, omega=omega, **call.options, backend=backend)[:3], call)
    assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]], 1e-12)


@in_torch
def test_a_window_of_everything_is_momentum_that_does_not_decay(backend: str) -> None:
    """In one chunk, with one theta: theta sum_(s <= t) g_s = S_t of eta = 1 and S_0 = 0."""
    call = make(9, chunk_size=9)
    tensors = {**call.tensors, "momentum": tuple(map(torch.zeros_like, call.tensors["momentum"]))}
    tensors |= {"eta": torch.ones_like(tensors["eta"]), "theta": torch.full_like(tensors["theta"], 0.01)}
    y, weights, _ = neural_memory(**tensors, **call.options, backend="chunked")
    tensors |= {"eta": None, "momentum": None, "omega": torch.ones(B, 9, H, 9, dtype=torch.float64)}
    z, same, _, _ = omega_memory(**tensors, **call.options, backend=backend)
    assert_all_close([z, *same], [y, *weights])


@in_torch
def test_weights_of_zero_are_a_shorter_window(backend: str) -> None:
    call = make(13, window=4, mask=True)
    omega, (k, v, valid, _) = call.tensors["omega"].detach().clone(), call.tensors["history"]
    omega[..., 2:] = 0
    long = omega_memory(**{**call.tensors, "omega": omega}, **call.options, backend=backend)
    newest = valid.long().argsort(dim=1, stable=True)[:, -1:]  # every row of the test's history has one
    rows = torch.arange(B)[:, None]
    history = History(k[rows, newest], v[rows, newest], valid[rows, newest])
    tensors = {**call.tensors, "omega": omega[..., :2], "history": history}
    short = omega_memory(**tensors, **call.options, backend=backend)
    assert_all_close(flatten(long[:3]), flatten(short[:3]))
    assert_all_close([long[3].k[:, -1:], long[3].v[:, -1:]], [short[3].k, short[3].v], 0.0)


def cut(call: Call, part: slice) -> Call:
    """Some of a call's tokens."""
    both = (
        {name: x[:, part] if isinstance(x, Tensor) else x for name, x in some.items()}
        for some in (call.tensors, call.options)
    )
    return Call(*both)


@in_torch
@pytest.mark.parametrize(("momentum", "reset"), list(product((True, False), repeat=2)))
def test_calls_cut_at_chunk_boundaries_are_one(backend: str, momentum: bool, reset: bool) -> None:
    """Outputs, state, history and gradients; masks, so that windows reach over more than one chunk."""
    call = make(13, window=4, chunk_size=4, momentum=momentum, reset=reset, mask=True)
    whole = outputs_and_gradients(call.run(backend=backend), call)
    outputs, state = [], {}
    for part in (slice(0, 4), slice(4, 12), slice(12, 13)):
        some = cut(call, part)
        some.tensors |= state
        y, *after = some.run(backend=backend)
        outputs.append(y)
        state = dict(zip(("weights", "momentum", "history"), after, strict=True))
    ours = outputs_and_gradients((torch.cat(outputs, dim=1), *after), call)
    assert_all_close([*ours[0], *ours[1]], [*whole[0], *whole[1]])


@in_torch
def test_masked_chunks_and_ends_leave_the_history_as_it_was(backend: str) -> None:
    call = make(10, window=4)
    _, weights, momentum, history = cut(call, slice(0, 7)).run(backend=backend)
    call.options["write_mask"] = (torch.arange(10) < 7).expand(B, 10)
    padded = call.run(backend=backend)
    assert_all_close(flatten(padded)[1:], flatten((padded[0], weights, momentum, history))[1:], 1e-12)
    call.options["write_mask"] = torch.zeros(B, 10, dtype=torch.bool)
    call.tensors["history"] = history
    _, weights, momentum, after = call.run(backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(after[:3], history[:3], strict=True))
    assert_all_close([*weights, *momentum], [*call.tensors["weights"], *call.tensors["momentum"]], 0.0)


@in_torch
def test_a_reset_empties_the_windows(backend: str) -> None:
    call = make(5, window=4)
    starts = torch.zeros(B, 5, dtype=torch.bool)
    starts[:, 0] = True
    initial = call.tensors["weights"], call.tensors["momentum"]
    again = call.run(backend=backend, reset=starts, initial=initial)
    call.tensors["history"] = None
    assert_all_close(flatten(again), flatten(call.run(backend=backend)), 0.0)


@in_torch
def test_what_does_not_count_may_hold_anything(backend: str) -> None:
    """Masked tokens and places of the history that are not valid."""
    call = make(9, window=4, mask=True, bias=Huber)
    mask, (k, v, valid, delta) = call.options["write_mask"], call.tensors["history"]
    expected = outputs_and_gradients(call.run(backend=backend), call)

    def spoiled(x: Tensor, real: Tensor) -> Tensor:
        return torch.where(real.view(*real.shape, *[1] * (x.ndim - 2)), x.detach(), torch.nan).requires_grad_()

    tensors = {**call.tensors, **{name: spoiled(call.tensors[name], mask) for name in ("k", "v", "omega")}}
    tensors["history"] = History(spoiled(k, valid), spoiled(v, valid), valid, spoiled(delta, valid))
    other = Call(tensors, {**call.options, "bias": Huber(spoiled(call.options["bias"].delta, mask), 0.1)})
    ours = outputs_and_gradients(other.run(backend=backend), other)
    assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]], 0.0)


def decoded(call: Call, **options: Any) -> Tensor:
    arguments = {**call.tensors, **call.options, "q": call.tensors["q"][:, -1:], **options}
    del arguments["chunk_size"]
    return decode_omega(**arguments)


@in_torch
@pytest.mark.parametrize(("tokens", "window"), [(1, 1), (1, 4), (3, 4), (6, 4)])
@pytest.mark.parametrize(("mask", "bias"), [(False, None), (True, None), (True, Huber)])
def test_decoding_is_the_last_row_of_a_chunk(backend: str, tokens: int, window: int, mask: bool, bias: Any) -> None:
    call = make(tokens, window=window, mask=mask, bias=bias, chunk_size=7)
    y = call.run(backend="chunked")[0][:, -1:]
    ours = decoded(call, backend=backend)
    assert_all_close([ours], [y])
    gradients = (torch.autograd.grad(x.square().sum(), call.leaves(), materialize_grads=True) for x in (ours, y))
    assert_all_close(*map(list, gradients))


@in_torch
def test_decoding_without_a_token_reads_the_first_weights(backend: str) -> None:
    call, query = make(0, window=3), torch.randn(B, 1, H, D, dtype=torch.float64)
    y = decode_omega(**{**call.tensors, "q": query}, norm=call.options["norm"], backend=backend)
    assert_all_close([y], [evaluate_memory(query, call.tensors["weights"], norm=call.options["norm"])])


def test_the_surprise_is_of_the_tokens_of_the_call() -> None:
    call, network = make(5, window=4), torch.nn.Linear(1, 1)
    error = evaluate_memory(call.tensors["k"], call.tensors["weights"], norm=call.options["norm"]) - call.tensors["v"]
    with probe.recording(network) as record, probe.inside(network):
        call.run()
    assert record.means()["/surprise"] == pytest.approx(error.square().sum(-1).mean().item())


def test_gradcheck_twice() -> None:
    call = make(5, chunk_size=2, hidden=3, window=2, mask=True, reset=True)

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        rest = iter(leaves)
        return tuple(flatten(call.map(lambda _: next(rest)).run(backend="chunked")))

    leaves = tuple(call.leaves())
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, atol=1e-4)


def test_narrow_dtypes() -> None:
    """Over one chunk: at the inner rates of these calls what rounding does grows from chunk to chunk."""
    call = make(5, window=3).map(Tensor.detach)
    exact = flatten(call.run())
    assert relative_error(flatten(call.map(Tensor.float).run())[:-1], exact[:-1]) < 1e-5
    with torch.autocast("cpu", torch.bfloat16):
        y, weights, _, history = call.map(Tensor.float).run()
    assert {x.dtype for x in (y, history.k, history.v)} == {torch.bfloat16}
    assert {w.dtype for w in weights} == {torch.float32}
    assert relative_error(list(weights), exact[1:3]) < 0.02


def test_it_compiles_without_a_break_in_the_graph() -> None:
    call = make(8, chunk_size=3, window=3, mask=True, reset=True)
    compiled = torch.compile(omega_memory, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(call.run(), call)
    ours = outputs_and_gradients(compiled(**call.tensors, **call.options), call)
    assert_all_close([*ours[0], *ours[1]], [*expected[0], *expected[1]])
    torch._dynamo.reset()


def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


TWO, NONE = zeros(B, 2, H, D), zeros(B, 2, dtype=torch.bool)
CASES = {
    "omega has shape [2, 6, 2]; it must be [2, 6, 2, 'c'] with c at least 1": {"omega": zeros(B, 6, H)},
    "omega has shape [2, 5, 2, 3]; it must be [2, 6, 2, 'c'] with c at least 1": {"omega": zeros(B, 5, H, 3)},
    "omega has shape [2, 6, 2, 0]; it must be [2, 6, 2, 'c'] with c at least 1": {"omega": zeros(B, 6, H, 0)},
    "omega has a window of 6 tokens; it must be at most chunk_size=5": {"omega": zeros(B, 6, H, 6)},
    "omega has dtype torch.int64; it must be a floating-point tensor": {"omega": zeros(B, 6, H, 3, dtype=torch.long)},
    "omega is on meta; it must be on cpu like q": {"omega": zeros(B, 6, H, 3).to("meta")},
    "history k has shape [2, 3, 2, 4]; it must be [2, 2, 2, 4]": {"history": History(zeros(B, 3, H, D), TWO, NONE)},
    "history v has shape [2, 2, 4]; it must be [2, 2, 2, 4]": {"history": History(TWO, zeros(B, 2, D), NONE)},
    "history v has dtype torch.int64; it must be a floating-point tensor": {"history": History(TWO, TWO.long(), NONE)},
    "history valid has shape [2, 3]; it must be [2, 2]": {"history": History(TWO, TWO, zeros(B, 3).bool())},
    "history valid has dtype torch.float64; it must be torch.bool": {"history": History(TWO, TWO, zeros(B, 2))},
    "history valid is on meta; it must be on cpu like q": {"history": History(TWO, TWO, NONE.to("meta"))},
    "history delta is given; it belongs to the bias Huber": {"history": History(TWO, TWO, NONE, zeros(B, 2, H))},
    "history delta is missing; it belongs to the bias Huber": {"bias": Huber(zeros(B, 6, H))},
    "history delta has shape [2, 2]; it must be [2, 2, 2]": {
        "bias": Huber(zeros(B, 6, H)),
        "history": History(TWO, TWO, NONE, zeros(B, 2)),
    },
    "backend is 'native', which cannot run here: the kernels know steps of one gradient only, not those of omega": {
        "backend": "native"
    },
}


@pytest.mark.parametrize("message", CASES)
def test_what_does_not_fit_is_refused(message: str) -> None:
    call = make(6, window=3)
    with pytest.raises(UserError) as error:
        omega_memory(**{**call.tensors, **call.options, **CASES[message]})
    assert str(error.value) == message


def test_decoding_refuses_the_same() -> None:
    with pytest.raises(UserError, match=r"cannot run here: .* not those of omega"):
        decoded(make(3, window=2), backend="native")
    with pytest.raises(UserError, match=r"^history valid has shape"):
        decoded(make(3, window=3), history=History(*make(3, window=2).tensors["history"]))
