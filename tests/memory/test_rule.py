"""What all memory rules share: projections, unfinished chunks, reading without writing, what a config may ask for."""

import pytest
import torch
from torch.nn import functional as F

from neuralmem import registry
from neuralmem.config import MemoryConfig
from neuralmem.errors import UserError
from neuralmem.memory._chunks import Chunks
from neuralmem.memory._memory import Memory
from neuralmem.memory._rule import MemoryRule
from neuralmem.memory.delta import Delta
from neuralmem.memory.titans import Titans
from neuralmem.modules.stream import Rows
from neuralmem.ops import neural_memory

RULES = pytest.mark.parametrize("rule", registry.names("rule"))
PROJECTED = [
    rule
    for rule in registry.names("rule")
    if issubclass(registry.find("rule", rule, Memory, "memory.rule"), MemoryRule)
]


def build(rule: str, **settings: object) -> Memory:
    config = MemoryConfig(rule=rule, **{"heads": 2, "chunk_size": 4, **settings})
    return registry.find("rule", rule, Memory, "memory.rule")(8, config).double()


def draw(tokens: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, tokens, 8, dtype=torch.float64)


@pytest.mark.parametrize("rule", PROJECTED)
def test_queries_and_keys_have_unit_length_and_values_do_not(rule: str) -> None:
    module = build(rule)
    q, (k, v, *_), _ = module.project(draw(9), module.init_state(2).convolution, Rows())
    torch.testing.assert_close(q.norm(dim=-1), torch.ones(2, 9, 2, dtype=torch.float64))
    assert not k[:, 0].any(), "the first token follows nothing, and a key is what the token before asks with"
    torch.testing.assert_close(k[:, 1:].norm(dim=-1), torch.ones(2, 8, 2, dtype=torch.float64))
    assert v.norm(dim=-1).std() > 0.01


@pytest.mark.parametrize("rule", PROJECTED)
def test_a_key_starts_as_the_query_of_the_token_before(rule: str) -> None:
    module, x = build(rule), draw(9)
    q, (k, v, *_), _ = module.project(x, module.init_state(2).convolution, Rows())
    torch.testing.assert_close(k[:, 1:], q[:, :-1])
    torch.testing.assert_close(v, F.silu(module.value(x)).unflatten(-1, (2, 4)))
    module = build(rule, induction=False)
    q, (k, *_), _ = module.project(x, module.init_state(2).convolution, Rows())
    assert not torch.allclose(k[:, 1:], q[:, :-1])


@RULES
def test_the_weights_of_a_state_are_those_of_the_last_chunk_start(rule: str) -> None:
    module, x = build(rule), draw(7)
    _, four = module(x[:, :4])
    _, seven = module(x)
    for a, b in zip(four.weights, seven.weights, strict=True):
        torch.testing.assert_close(a, b)
    assert seven.filled.tolist() == [3, 3]
    assert all(p.shape[1] == 3 for p in seven.pending)
    assert not any(p[:, 2:].any() for p in module(x[:, :6])[1].pending)


@RULES
def test_closing_a_chunk_writes_what_was_pending(rule: str) -> None:
    module, x = build(rule), draw(7)
    _, state = module(x)
    closed = module.close(state)
    assert closed.filled.tolist() == [0, 0]
    assert not any(p.any() for p in closed.pending)
    assert any(not torch.equal(a, b) for a, b in zip(closed.weights, state.weights, strict=True))
    again = module.close(closed)
    for a, b in zip(again.weights, closed.weights, strict=True):
        torch.testing.assert_close(a, b)


@RULES
def test_a_token_that_does_not_end_its_chunk_is_only_read(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = build(rule), draw(9)
    whole, last = module(x)
    with monkeypatch.context() as patch:
        reads, updates = count(patch, module, "read_unfinished"), count(patch, module, "update")
        outputs, state = [], None
        for token in x.split(1, dim=1):
            y, state = module(token, state)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)
    for (_, a), (_, b) in zip(state.items(), last.items(), strict=True):
        torch.testing.assert_close(a, b)
    assert len(reads) == 6, "all but the first of the text, and the last of each of the two chunks of 4"
    by_default = type(module).read_unfinished is Chunks.read_unfinished  # reading is then an update that is dropped
    assert len(updates) == 3 + 6 * by_default


@RULES
def test_tokens_of_rows_at_different_places_are_read_at_once(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 0 has no token in the chunk before the call, row 1 two and row 2 one, but no new one."""
    module, x = build(rule), draw(7, batch=3)
    _, state = module(x[:, :6], mask=torch.arange(6) < torch.tensor([[4], [6], [5]]))
    new, real = x[:, [6] * 3], torch.tensor([[False, True, False], [True, False, False], [False] * 3])
    reads = count(monkeypatch, module, "read_unfinished")
    y, after = module(new, state, mask=real)
    assert len(reads) == 1
    assert after.filled.tolist() == [1, 3, 1]
    alone = [module(new[[row], :1], state.select([row])) for row in (0, 1)]
    torch.testing.assert_close(y[real], torch.cat([z[0] for z, _ in alone]))
    for row, (_, one) in enumerate(alone):
        for (_, a), (_, b) in zip(after.select([row]).items(), one.items(), strict=True):
            torch.testing.assert_close(a, b)
    same = zip(after.select([2]).items(), state.select([2]).items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in same)


@pytest.mark.parametrize("mask", [None, torch.tensor([[True], [False]])], ids=["all", "one"])
def test_a_token_that_is_only_read_asks_the_device_once(
    mask: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = build("titans"), draw(3)
    _, state = module(x[:, :2])
    asked, number = [], torch.Tensor.__int__
    for question in ("__int__", "__bool__", "item", "tolist"):
        original = getattr(torch.Tensor, question)
        monkeypatch.setattr(torch.Tensor, question, lambda x, ask=original: asked.append(ask) or ask(x))
    module(x[:, 2:], state, mask=mask)
    assert asked == [number]


def test_reading_an_unfinished_chunk_is_the_last_row_of_an_update() -> None:
    module, x = build("titans"), draw(3)
    q, written, _ = module.project(x, module.init_state(2).convolution, Rows())
    mask = torch.tensor([[True, True, True], [True, False, False]])
    arguments = q[:, -1:], written, module.fast(2), mask
    torch.testing.assert_close(
        module.read_unfinished(*arguments), Memory.read_unfinished(module, *arguments), atol=1e-12, rtol=0
    )


def count(patch: pytest.MonkeyPatch, module: Memory, method: str) -> list[str]:
    """A list that grows with every call of a method."""
    calls, run = [], getattr(module, method)
    patch.setattr(module, method, lambda *a: calls.append(method) or run(*a))
    return calls


@RULES
def test_without_convolution_retrieving_is_reading_at_the_weights_read_so_far(rule: str) -> None:
    module, x = build(rule, convolution=1, output_gate=False), draw(5)
    _, state = module(x)
    question = draw(1)
    q = F.normalize(F.silu(module.query(question)).unflatten(-1, (2, 4)), dim=-1)
    y = module.evaluate(q, module.close(state).weights)
    expected = module.output(module.read_norm(y).flatten(2))
    torch.testing.assert_close(module.retrieve(question, state), expected)


def test_a_whole_text_is_one_call_of_the_op() -> None:
    module, x = build("titans"), draw(11)
    q, (k, v, theta, alpha, eta), _ = module.project(x, module.init_state(2).convolution, Rows())
    weights, momentum = module.fast(2)
    norm = (module.norm_gain, module.norm_bias)
    y, *_ = neural_memory(q, k, v, theta, eta, alpha, weights, momentum, chunk_size=4, norm=norm)
    gated = module.read_norm(y).flatten(2) * F.silu(module.gate(x))
    torch.testing.assert_close(module(x)[0], module.output(gated))


@pytest.mark.parametrize("momentum", [True, False])
def test_gates_of_titans_stay_in_their_bounds(momentum: bool) -> None:
    module = build("titans", momentum=momentum, theta_max=1.6)
    theta, alpha, *eta = module.gates(100 * draw(50))
    assert len(eta) == momentum
    for gate in (alpha, *eta):
        assert 0 <= gate.min() <= gate.max() <= 1
    bound = 1.6 / 4 * (1 - eta[0] if eta else 1)
    assert (theta >= 0).all()
    assert (theta <= bound + 1e-12).all()


def test_gates_start_at_their_biases() -> None:
    module = build("titans", theta_bias=1.0, alpha_bias=-5.0, eta_bias=-2.0, theta_max=0.8)
    theta, alpha, eta = module.gates(torch.zeros(1, 1, 8, dtype=torch.float64))
    sigmoid = lambda bias: torch.tensor(bias, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(alpha, sigmoid(-5.0).expand(1, 1, 2))
    torch.testing.assert_close(eta, sigmoid(-2.0).expand(1, 1, 2))
    torch.testing.assert_close(theta, (0.8 / 4 * sigmoid(1.0) * (1 - sigmoid(-2.0))).expand(1, 1, 2))


def test_without_a_norm_a_large_learning_rate_is_cut_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"memory.theta_max 1.6 is cut to 0.5 because memory.norm is off"):
        module = build("titans", norm=False)
    assert module.theta_max == 0.5
    assert build("titans", norm=False, theta_max=0.4).theta_max == 0.4


def test_sizes_follow_the_config() -> None:
    module = build("titans", depth=3, expansion=1.5, head_width=6, heads=3)
    assert [tuple(w.shape) for w in module.initial()[0]] == [(3, 9, 6), (3, 9, 9), (3, 6, 9)]
    assert [tuple(w.shape) for w in build("delta", head_width=6).initial()[0]] == [(2, 6, 6)]
    assert build("titans", momentum=False).initial()[1] == ()
    assert isinstance(module, Titans)
    assert isinstance(build("delta"), Delta)


@RULES
def test_heads_must_divide_the_width_unless_their_width_is_given(rule: str) -> None:
    with pytest.raises(UserError, match=r"^memory.heads is 3; it must divide width 8, or set memory.head_width"):
        build(rule, heads=3)
    y, _ = build(rule, heads=3, head_width=5)(draw(5))
    assert y.shape == (2, 5, 8)


def test_the_chunk_size_of_the_delta_rule_changes_nothing() -> None:
    torch.manual_seed(1)
    one, x = build("delta", chunk_size=3), draw(17)
    other = build("delta", chunk_size=8)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(one(x)[0], other(x)[0])


def test_the_chunk_size_of_titans_is_part_of_the_function() -> None:
    torch.manual_seed(1)
    one, x = build("titans", chunk_size=3), draw(17)
    other = build("titans", chunk_size=8)
    other.load_state_dict(one.state_dict())
    assert (one(x)[0] - other(x)[0]).abs().max() > 1e-4
