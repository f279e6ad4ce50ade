"""TNT against its equations, one token at a time, and against the memories that it is made of."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from neuralmem.config import MemoryConfig, ModelConfig, TNTConfig
from neuralmem.errors import UserError
from neuralmem.memory import tnt as module
from neuralmem.memory.tnt import TNT
from neuralmem.models.causal_lm import CausalLM
from neuralmem.modules.stream import Rows
from neuralmem.ops import evaluate_memory, neural_memory
from neuralmem.ops.unit import unit
from neuralmem.typing import Tensors

CASES = {
    "defaults": TNTConfig(),
    "three local": TNTConfig([1, 2, 6], global_chunk=12, shard=18),
    "shard shorter than the global chunk": TNTConfig([4, 2], global_chunk=12, shard=4),
    "every chunk": TNTConfig([3], global_chunk=3, shard=3),
}


def build(tnt: TNTConfig | None = None, **settings: object) -> TNT:
    torch.manual_seed(0)
    config = MemoryConfig(rule="tnt", heads=2, chunk_size=4, theta_bias=1.0, tnt=tnt or TNTConfig())
    rule = TNT(8, replace(config, **settings)).double()
    with torch.no_grad():
        for x in rule.parameters():
            x.add_(0.1 * torch.randn_like(x))
    return rule


def gradient(weights: Tensors, k: Tensor, v: Tensor, form: dict) -> Tensors:
    """grad |f(k) - v|^2 by autograd. k, v: [B, H, D]."""

    def answer(*weights: Tensor) -> Tensor:
        return (evaluate_memory(k[:, None], weights, **form)[:, 0] - v).square().sum()

    return torch.autograd.grad(answer(*weights), weights, create_graph=True)


def loop(rule: TNT, x: Tensor) -> tuple[Tensor, list[Tensors], Tensor, Tensors]:
    """The equations: outputs, every memory's weights, Pi, and what the global chunk has gathered."""
    q, (k, v, *thetas), _ = rule.project(x, rule.init_state(len(x)).convolution, Rows())
    first = rule._members(rule.fast(len(x))[0])
    forms = [form for _, (_, form) in first]
    now = [weights for _, (weights, _) in first]
    gathered, outputs = tuple(map(torch.zeros_like, now[0])), []
    projection = x.new_zeros(len(x), rule.heads, rule.head_width, rule.head_width)
    anchors = list(now)
    for t in range(x.shape[1]):
        if t and t % rule.global_chunk == 0:
            now[0] = tuple(w - g for w, g in zip(now[0], gathered, strict=True))
            gathered = tuple(map(torch.zeros_like, gathered))
        if t % rule.shard == 0:
            now[1:] = [weights for _, (weights, _) in first[1:]]
            projection = torch.zeros_like(projection)
        token, value = k[:, t], v[:, t]
        length = token.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        projection = projection + (token / length)[..., :, None] * (token / length)[..., None, :]
        theta = thetas[0][:, t, :, None, None]
        steps = gradient(now[0], token, value, forms[0])
        gathered = tuple(g + theta * s for g, s in zip(gathered, steps, strict=True))
        asked = unit(torch.einsum("bhij,bhj->bhi", projection, q[:, t]))[:, None]
        y = evaluate_memory(q[:, t, None], now[0], **forms[0])
        for i, chunk in enumerate(rule.local_chunks, start=1):
            if t % chunk == 0:
                anchors[i] = now[i]
            theta = thetas[i][:, t, :, None, None]
            steps = gradient(anchors[i], token, value, forms[i])
            now[i] = tuple(w - theta * s for w, s in zip(now[i], steps, strict=True))
            y = y + evaluate_memory(asked, now[i], **forms[i])
        outputs.append(y)
    return rule.leave(torch.cat(outputs, 1), x), now, projection, gathered


@pytest.mark.parametrize("tnt", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("cuts", [[24], [1, 6, 4, 13]], ids=["one call", "cut"])
def test_it_is_its_equations(tnt: TNTConfig, cuts: list[int]) -> None:
    rule = build(tnt)
    x = torch.randn(2, 24, 8, dtype=torch.float64, requires_grad=True)
    expected, weights, projection, gathered = loop(rule, x)
    if 24 % rule.global_chunk == 0:  # the loop updates at the next chunk's first token
        weights[0] = tuple(w - g for w, g in zip(weights[0], gathered, strict=True))
        gathered = tuple(map(torch.zeros_like, gathered))
    state, outputs = None, []
    for part in x.split(cuts, dim=1):
        y, state = rule(part, state)
        outputs.append(y)
    assert not state.filled.any()
    ours = torch.cat(outputs, 1), *state.weights, *state.momentum[:-1]
    theirs = expected, *(w for member in weights for w in member), projection, *gathered
    parts = [x, *rule.parameters()]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    gradients = [torch.autograd.grad(sum(a.square().sum() for a in side), parts) for side in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10 * max(1.0, float(b.abs().max())), rtol=0)


def test_rows_that_started_at_different_places_are_each_alone() -> None:
    """Ragged rows cut the global memory's products elsewhere than a fresh call does."""
    rule, x = build(CASES["three local"]), torch.randn(3, 60, 8, dtype=torch.float64)
    mask = torch.arange(60) >= torch.tensor([0, 7, 30])[:, None]
    reset = torch.zeros_like(mask)
    reset[0, 17] = True
    with torch.no_grad():
        y, state = rule(x, mask=mask, reset=reset)
        for row, start in ((0, 17), (1, 7), (2, 30)):
            alone, own = rule(x[row, start:][None])
            torch.testing.assert_close(y[row, start:], alone[0], atol=1e-10, rtol=0)
            for (name, a), (_, b) in zip(state.select([row]).items(), own.items(), strict=True):
                torch.testing.assert_close(a, b, atol=1e-10, rtol=0, msg=name)


def silence(rule: TNT, member: int) -> None:
    """Make one memory answer zero for ever: no last weights and no step."""
    with torch.no_grad():
        last = rule.weights[-1] if member == 0 else rule.local_weights[member * len(rule.weights) - 1]
        last.zero_()
        rule.gate_map.weight[member * rule.heads : (member + 1) * rule.heads] = 0
        rule.gate_map.bias[member * rule.heads : (member + 1) * rule.heads] = -1e4


PLAIN = {"norm": False, "residual": False, "theta_max": 0.5}


def test_one_local_memory_alone_is_the_memory_of_titans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "query_projection", lambda q, k, carry, **_: (q, carry))
    rule, x = build(TNTConfig([4], 24, 24), **PLAIN), torch.randn(2, 24, 8, dtype=torch.float64)
    silence(rule, 0)
    q, (k, v, _, theta), _ = rule.project(x, rule.init_state(2).convolution, Rows())
    weights = tuple(w.expand(2, *w.shape) for w in rule.local_weights)
    y, after, _ = neural_memory(
        unit(q), k, v, theta, None, 0 * theta, weights, None, chunk_size=4, residual=False, backend="reference"
    )
    z, state = rule(x)
    torch.testing.assert_close(z, rule.leave(y, x), atol=1e-12, rtol=0)
    for a, b in zip(state.weights[2:4], after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_global_memory_alone_is_read_where_its_chunk_began() -> None:
    rule, x = build(TNTConfig([4], 4, 12), **PLAIN), torch.randn(2, 24, 8, dtype=torch.float64)
    silence(rule, 1)
    q, (k, v, theta, _), _ = rule.project(x, rule.init_state(2).convolution, Rows())
    weights, reads = tuple(w.expand(2, *w.shape) for w in rule.weights), []
    for start, stop in pairwise(range(0, 25, 4)):
        reads.append(evaluate_memory(q[:, start:stop], weights, residual=False))
        part = [a[:, start:stop] for a in (k, k, v, theta)]
        _, weights, _ = neural_memory(*part, None, 0 * part[3], weights, None, chunk_size=4, residual=False)
    z, state = rule(x)
    torch.testing.assert_close(z, rule.leave(torch.cat(reads, 1), x), atol=1e-12, rtol=0)
    for a, b in zip(state.weights[:2], weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_a_chunk_that_is_closed_early_counts_as_one() -> None:
    rule, x = build(TNTConfig([2, 4], 8, 8)), torch.randn(1, 3, 8, dtype=torch.float64)
    _, state = rule(x)
    closed = rule.close(state)
    assert closed.momentum[-1].item() == 1
    assert rule.close(closed).momentum[-1].item() == 1  # nothing is left to close
    _, state = rule.segment(x, closed)
    assert state.momentum[-1].item() == 0  # 2 chunks: a global chunk and a shard, counted anew
    assert not any(gathered.any() for gathered in state.momentum[:-1])
    assert not torch.equal(state.weights[0], closed.weights[0])


def test_recomputing_in_backward_changes_nothing() -> None:
    x, results = torch.randn(2, 29, 8, dtype=torch.float64), []
    for every in (None, 1, 3):
        rule = build(checkpoint_every=every)
        y, _ = rule(x)
        results.append([y, *torch.autograd.grad(y.square().sum(), list(rule.parameters()))])
    for one, two, three in zip(*results, strict=True):
        torch.testing.assert_close(two, one, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(three, one, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("tnt", "named"),
    [
        ({"local_chunks": [3, 4]}, "memory.tnt.local_chunks"),
        ({"local_chunks": []}, "memory.tnt.local_chunks"),
        ({"local_chunks": [0]}, "memory.tnt.local_chunks"),
        ({"local_chunks": [8], "shard": 12}, "memory.tnt.shard is 12"),
        ({"local_chunks": [8], "global_chunk": 4}, "memory.tnt.global_chunk is 4"),
        ({"shards": 12}, "model.memory.tnt has no field 'shards'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tnt: dict, named: str) -> None:
    values = {"vocab_size": 5, "memory": {"rule": "tnt", "tnt": tnt}}
    with pytest.raises(UserError, match=named):
        TNT(8, ModelConfig.from_dict(values).memory)


def test_stage_two_takes_the_weights_of_stage_one() -> None:
    """A config with smaller local chunks has the same parameters; the global memory's part is the same function."""
    memory = {"rule": "tnt", "chunk_size": 7, "tnt": {"local_chunks": [4, 8], "global_chunk": 16, "shard": 16}}
    config = ModelConfig.from_dict(
        {"vocab_size": 5, "width": 8, "depth": 1, "pattern": ["titans_lmm"]} | {"memory": memory}
    )
    finer = replace(config, memory=replace(config.memory, tnt=TNTConfig([1, 2], 16, 16)))
    assert ModelConfig.from_dict(finer.to_dict()) == finer
    assert finer.memory.chunk_size == 7  # the config stays as it was given
    first, second = CausalLM(config), CausalLM(finer)
    second.load_state_dict(first.state_dict())
    tokens = torch.randint(5, (1, 20))
    with torch.no_grad():
        y, z = first(tokens)[0], second(tokens)[0]
        again = functional_call(second, dict(first.named_parameters()), (tokens,))[0]
    assert torch.equal(z, again)
    assert (y - z).abs().max() > 1e-6
