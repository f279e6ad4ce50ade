"""Continuum memory: the op against its token loop, its gradient against autograd, who updates when, what it equals."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from neuralmem.config import ContinuumConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.memory._continuum import ContinuumFeedForward
from neuralmem.memory.continuum import Continuum
from neuralmem.modules.feed_forward import FeedForward
from neuralmem.modules.norm import RMSNorm
from neuralmem.modules.stream import Rows
from neuralmem.ops.continuum import continuum_memory, evaluate_continuum
from neuralmem.ops.continuum.levels import Form, step

B, H, D, HIDDEN = 2, 2, 4, 3
VARIANTS = ["sequential", "nested", "independent"]


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def make(variant: str, periods: tuple[int | None, ...], tokens: int, residual: bool = True, size: int = 3) -> dict:
    """Random arguments of the op, every floating one with a gradient; the state is one after some reading."""
    torch.manual_seed(len(periods) + tokens)
    leaves: list[Tensor] = []

    def leaf(*shape: int) -> Tensor:
        leaves.append(draw(*shape).requires_grad_())
        return leaves[-1]

    def pair(batch: int) -> tuple[Tensor, Tensor]:
        return leaf(batch, H, 2 * HIDDEN, D), leaf(batch, H, D, HIDDEN)

    count = sum(period is not None for period in periods)
    first = [pair(1)] * len(periods) if variant == "nested" else [pair(1) for _ in periods]
    mix = leaf(len(periods)) if variant == "independent" else None
    gains = tuple(leaf(D) for _ in periods)
    form = Form(periods, tuple(first), gains, mix, variant == "nested", residual, 0.8, 1e-6, torch.float64)
    late = [pair(B) for _ in form.late(size)]
    tallies = [torch.tensor([size, 0.2, 3.0, 2.0]).double().expand(B, H, 1, 4) for _ in late]
    return {
        "leaves": leaves,
        "tokens": [leaf(B, tokens, H, D) for _ in range(3)] + [leaf(B, tokens, H, count).sigmoid() for _ in range(2)],
        "weights": tuple(w for _ in range(count) for w in pair(B)),
        "sums": tuple(x for group, tally in zip(late, tallies, strict=True) for x in (*group, tally)),
        "form": form,
    }


def run(made: dict, **options: Any) -> list[Tensor]:
    y, weights, sums = continuum_memory(*made["tokens"], made["weights"], made["sums"], made["form"], **options)
    return [y, *weights, *sums]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("periods", [(3,), (3, 6), (3, 9, None), (6, None)], ids=str)
@pytest.mark.parametrize("tokens", [1, 6, 11])
def test_chunked_is_the_token_loop(variant: str, periods: tuple[int | None, ...], tokens: int) -> None:
    made = make(variant, periods, tokens, residual=tokens != 6)
    one, other = (run(made, chunk_size=3, backend=name) for name in ("chunked", "reference"))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    gradients = [
        torch.autograd.grad(
            sum(x.square().sum() for x in results), made["leaves"], allow_unused=True, retain_graph=True
        )
        for results in (one, other)
    ]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_chunked_is_the_token_loop_with_masks_and_resets(variant: str) -> None:
    made = make(variant, (3, 6, None), 14)
    mask = torch.rand(B, 14) > 0.4
    mask[0, 3:6] = False
    reset = torch.zeros(B, 14, dtype=torch.bool)
    reset[1, 6] = reset[0, 12] = True
    form = made["form"]
    first = tuple(x.expand(B, -1, -1, -1) for pair in form.first[:2] for x in pair)
    sums = tuple(torch.zeros_like(x) for x in made["sums"])
    options = {"chunk_size": 3, "write_mask": mask, "reset": reset, "initial": (first, sums)}
    one, other = (run(made, **options, backend=name) for name in ("chunked", "reference"))
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("clip", [0.5, 1e6], ids=["clipped", "not clipped"])
def test_the_gradient_by_hand_is_autograds(clip: float) -> None:
    form = replace(make("sequential", (3,), 1)["form"], clip=clip)
    pair = tuple(x.detach().expand(B, -1, -1, -1).clone().requires_grad_() for x in form.first[0])
    k, v, theta = draw(B, H, 5, D), draw(B, H, 5, D), torch.rand(B, H, 5, dtype=torch.float64)
    (passed,) = form.passes(k, [(pair[0], pair[1])])
    error = k + passed.added - v
    length, limit = error.norm(dim=-1), clip * D**0.5
    huber = torch.where(length > limit, 2 * limit * length - limit**2, length**2)
    expected = torch.autograd.grad((theta * huber).sum(), pair)
    up, down, _ = form.gradient(passed, form.clipped(error), theta)
    for a, b in zip((up, down), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("alike", [False, True], ids=["different keys", "one key"])
def test_the_bound_of_the_curvature_is_one(alike: bool) -> None:
    """Of the squared error of a period, linearised: its largest eigenvalue, found by autograd."""
    form = make("sequential", (3,), 1)["form"]
    pair = tuple(x.detach().expand(B, -1, -1, -1).clone() for x in form.first[0])
    k, theta = draw(B, H, 5, D), torch.rand(B, H, 5, dtype=torch.float64)
    k = k[:, :, :1].expand_as(k) if alike else k
    (passed,) = form.passes(k, [(pair[0], pair[1])])
    *_, bounds = form.gradient(passed, form.clipped(k), theta)
    for b in range(B):
        for h in range(H):

            def added(up: Tensor, down: Tensor, b: int = b, h: int = h) -> Tensor:
                (one,) = form.passes(k[b : b + 1, h : h + 1], [(up[None, None], down[None, None])])
                return one.added[0, 0]

            parts = torch.autograd.functional.jacobian(added, (pair[0][b, h], pair[1][b, h]))
            for part, bound in zip(parts, bounds[b, h], strict=True):
                jacobian = part.flatten(2)  # [T, D, weights]
                curvature = 2 * torch.einsum("t,tdi,tdj->ij", theta[b, h], jacobian, jacobian)
                largest = torch.linalg.eigvalsh(curvature)[-1]
                assert largest <= bound * (1 + 1e-12) <= 20 * largest  # and of its size, or it would mean nothing


def test_a_step_is_bounded_by_the_loss() -> None:
    """|step|^2 <= L with L = sum of theta |error|^2, however large keys, values and rates are."""
    form = make("sequential", (3,), 1)["form"]
    nothing = torch.zeros(B, H, 1, 1, dtype=torch.float64)
    for size in (1e-3, 1.0, 1e3, 1e6):
        pair = size * draw(B, H, *form.first[0][0].shape[2:]), size * draw(B, H, *form.first[0][1].shape[2:])
        k, v, theta = draw(B, H, 5, D), size * draw(B, H, 5, D), size * torch.rand(B, H, 5, dtype=torch.float64)
        (passed,) = form.passes(k, [pair])
        error = form.clipped(k + passed.added - v)
        *gradient, curvature = form.gradient(passed, error, theta)
        after = step(pair, pair, (gradient[0], gradient[1]), nothing, curvature[..., None, :])
        length = sum((w - new).square().sum((-2, -1)) for w, new in zip(pair, after, strict=True))
        assert (length <= (theta * error.square().sum(-1)).sum(-1) * (1 + 1e-6)).all()
    still = step(pair, pair, (0 * pair[0], 0 * pair[1]), nothing + 0.3, nothing.expand(-1, -1, -1, 2))
    for w, new in zip(pair, still, strict=True):
        assert torch.equal(w, new)  # nothing read, or the first weights: nothing changes, to the bit


def test_the_outer_gradient_stays_bounded_while_it_trains() -> None:
    """Tokens that are half alike, as those of prose: with steps measured along the gradient alone the norm of the outer
    gradient, here at most what it was at first, grew 20,000 times."""
    torch.manual_seed(0)
    memory, target = feed_forward([16, None], width=32), torch.nn.Linear(32, 32).double()
    optimizer, norms = torch.optim.Adam(memory.parameters(), lr=1e-2), []
    table = 0.5**0.5 * (torch.randn(64, 32, dtype=torch.float64) + torch.randn(1, 32, dtype=torch.float64))
    for _ in range(30):
        x = table[torch.randint(64, (2, 512))]
        loss = (x + memory(x)[0] - target(x).detach().roll(1, 1)).square().mean()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(memory.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) < 10 * norms[0], norms


def feed_forward(periods: list[int | None], width: int = 8, **options: Any) -> ContinuumFeedForward:
    torch.manual_seed(5)
    config = MemoryConfig(continuum=ContinuumConfig(periods=periods, **options))
    return ContinuumFeedForward(width, config, 24).double()


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_level_and_an_infinite_period_is_a_plain_feed_forward(variant: str) -> None:
    levels, plain, norm = feed_forward([None], variant=variant), FeedForward(8, 24).double(), RMSNorm(8).double()
    with torch.no_grad():
        levels.levels.up[0][0], levels.levels.down[0][0] = plain.up.weight, plain.down.weight
        levels.levels.norms[0].gain.copy_(norm.gain.normal_())
    x = draw(2, 13, 8)
    y, state = levels(x)
    assert torch.equal(y, plain(norm(x)))
    assert not levels.has_memory
    assert [name for name, _ in state.items()] == ["filled"]


def weights_over_time(memory: Any, x: Tensor) -> list[tuple[Tensor, ...]]:
    """The state's weights before the first token and after every one."""
    state = memory.init_state(len(x))
    seen = [state.weights]
    with torch.no_grad():
        for t in range(x.shape[1]):
            _, state = memory(x[:, t : t + 1], state)
            seen.append(state.weights)
    return seen


@pytest.mark.parametrize("variant", ["sequential", "independent"])
def test_a_level_changes_at_its_periods_ends_and_at_no_other_token(variant: str) -> None:
    memory = feed_forward([2, 6, None], variant=variant)
    seen = weights_over_time(memory, draw(1, 13, 8))
    for level, period in enumerate((2, 6)):
        for t in range(13):
            same = all(torch.equal(seen[t][2 * level + i], seen[t + 1][2 * level + i]) for i in range(2))
            assert same == ((t + 1) % period != 0), (level, t)


def test_nested_levels_start_anew_from_the_next_slower_one() -> None:
    memory = feed_forward([2, 4, 8], variant="nested")
    seen = weights_over_time(memory, draw(1, 9, 8))

    def same(t: int, level: int, other: int) -> bool:
        return all(torch.equal(seen[t][2 * level + i], seen[t][2 * other + i]) for i in range(2))

    assert same(0, 0, 1)
    assert same(0, 1, 2)
    assert [t for t in range(1, 10) if same(t, 0, 1)] == [1, 4, 5, 8, 9]
    assert [t for t in range(1, 10) if same(t, 1, 2)] == [1, 2, 3, 8, 9]
    assert not torch.equal(seen[8][4], seen[7][4])
    assert len(memory.levels.up) == 1


def test_levels_side_by_side_do_not_know_of_each_other() -> None:
    memory, x = feed_forward([2, 6], variant="independent"), draw(1, 12, 8)
    with torch.no_grad():
        _, one = memory(x)
        memory.levels.down[0].normal_()
        _, other = memory(x)
    assert not torch.equal(one.weights[1], other.weights[1])
    for a, b in zip(one.weights[2:], other.weights[2:], strict=True):
        assert torch.equal(a, b)


def test_a_level_that_is_switched_off_stays_and_has_no_state() -> None:
    memory = feed_forward([2, 6], learn=[True, False])
    x = draw(1, 12, 8)
    _, state = memory(x)
    assert len(state.weights) == 2
    assert state.momentum == ()  # the fastest level's sum is empty at every chunk's end
    memory.levels.down[1].data.zero_()
    silent, _ = memory(x)
    memory.levels.down[1].data.normal_()
    assert not torch.allclose(silent, memory(x)[0])


@pytest.mark.parametrize("learn", [[True, False, True], [False, True, True], [False, False, True]], ids=str)
def test_levels_of_a_trained_memory_are_switched_off_and_on(learn: list[bool]) -> None:
    """Same parameters whatever learns; a level that is off is one that forgets all and learns nothing, exactly."""
    trained, x = feed_forward([2, 6, None]), draw(2, 13, 8)
    switched = feed_forward([2, 6, None], learn=learn)
    switched.load_state_dict(trained.state_dict())
    again = feed_forward([2, 6, None])
    again.load_state_dict(switched.state_dict())
    assert torch.equal(again(x)[0], trained(x)[0])
    assert len(switched.init_state(1).weights) == 2 * sum(learn[:2])
    if learn == [False, True, True]:
        return  # its chunks are longer, and the bound of a step is taken a chunk at a time
    with torch.no_grad():
        for gate in (0, 2):  # theta of the two levels with a period, then alpha of both
            for level in (0, 1):
                if not learn[level]:
                    trained.gate_map.weight[gate + level].zero_()
                    trained.gate_map.bias[gate + level] = -1e4
    torch.testing.assert_close(switched(x)[0], trained(x)[0], atol=1e-12, rtol=0)


def test_a_slow_levels_gradient_is_the_sum_over_its_period() -> None:
    """On a grid of 2 as on one of 6: within a period its weights stand still. Only the bound of curvature adds up."""
    made = make("sequential", (24,), 12, size=6)
    tallies = torch.zeros(B, H, 1, 4, dtype=torch.float64)
    made["sums"] = (*(torch.zeros_like(w) for w in made["weights"]), tallies)
    one, other = (list(run(made, chunk_size=size)) for size in (2, 6))
    one[-1], other[-1] = one[-1][..., :2], other[-1][..., :2]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_a_rate_of_zero_reads_the_first_weights_for_ever() -> None:
    memory, x = feed_forward([2, 4], theta_max=0.0), draw(2, 11, 8)
    with torch.no_grad():
        y, state = memory(x)
        assert torch.equal(memory(x, memory="frozen")[0], y) or (memory(x, memory="frozen")[0] - y).abs().max() < 1e-14
    for a, b in zip(state.weights, memory.fast(2)[0], strict=True):
        assert torch.equal(a, b)


def test_what_is_asked_again_is_answered_with_what_came_next() -> None:
    """In the feed-forward position keys start as the stream a token before, values as a tenth of the normed token."""
    memory = feed_forward([16], width=32, theta_max=16.0)
    x = draw(1, 16, 32)
    state = memory.init_state(1)
    with torch.no_grad():
        _, (k, v, *_), _ = memory.project(x, state.convolution, Rows())
        torch.testing.assert_close(k[:, 1:, 0], x[:, :-1])
        for _ in range(30):
            _, state = memory(x, state)
        answer = memory.retrieve(x[:, :-1], state)
        similarity = F.normalize(answer, dim=-1)[0] @ F.normalize(v[:, :, 0], dim=-1)[0].T
    assert similarity.argmax(-1).tolist() == list(range(1, 16))


def test_the_rule_reads_before_it_writes() -> None:
    torch.manual_seed(0)
    rule = Continuum(8, MemoryConfig(rule="continuum", chunk_size=4)).double()
    x = draw(1, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(rule(x)[0], rule(x, memory="frozen")[0], atol=1e-14, rtol=0)
        _, state = rule(x)
        assert (rule(x, state)[0] - rule(x, state, memory="frozen")[0]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"periods": [4, 6]}, "memory.continuum.periods is [4, 6]; every period must be a positive multiple"),
        ({"periods": [8, 4]}, "memory.continuum.periods is [8, 4]; it must be positive numbers of tokens, fastest"),
        ({"periods": [None, 4]}, "memory.continuum.periods is [None, 4]; it must be positive numbers"),
        ({"periods": []}, "memory.continuum.periods is []; it must be"),
        ({"periods": [0]}, "memory.continuum.periods is [0]; every period"),
        ({"learn": [True]}, "memory.continuum.learn is [True]; it must have 2 values, one per level"),
        ({"theta_max": -1.0}, "memory.continuum.theta_max is -1.0; it must not be negative"),
        ({"clip": 0.0}, "memory.continuum.clip is 0.0; it must be positive"),
        ({"loss": "next_token"}, "memory.continuum.loss is 'next_token'; for that loss set model.model to ttt_e2e"),
        ({"variant": "nest"}, "memory.continuum.variant is 'nest'; it must be one of sequential, nested"),
        ({"period": [4]}, "model.memory.continuum has no field 'period'"),
    ],
)
def test_wrong_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        ModelConfig.from_dict({"vocab_size": 5, "memory": {"continuum": values}})
    assert str(error.value).startswith(message)


def test_a_rule_of_which_nothing_learns_is_refused() -> None:
    with pytest.raises(UserError, match=r"^memory.continuum has no level that learns"):
        Continuum(8, MemoryConfig(continuum=ContinuumConfig(periods=[None])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 4}, "form.periods has 6; it must be a multiple of chunk_size=4"),
        ({"reset": torch.zeros(B, 6, dtype=torch.bool)}, "reset is given without initial"),
        ({"backend": "native"}, "backend is 'native', which cannot run here"),
    ],
)
def test_the_op_refuses_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    made = make("sequential", (6,), 6, size=6)
    with pytest.raises(UserError) as error:
        run(made, **{"chunk_size": 6, **change})
    assert str(error.value).startswith(message)


def test_evaluate_reads_what_the_op_reads() -> None:
    made = make("independent", (3, None), 3)
    y = run(made, chunk_size=3)[0]
    torch.testing.assert_close(evaluate_continuum(made["tokens"][0], made["weights"], made["form"]), y)
