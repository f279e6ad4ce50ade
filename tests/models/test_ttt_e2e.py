"""TTT-E2E against its equations, token by token; its gradient against differences; where it updates and where not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import neuralmem as nm
from neuralmem import probe
from neuralmem.models.ttt_e2e import EndToEnd
from tests.conformance.subjects import assert_close, assert_identical, assert_same_state, read
from tests.models.ttt_e2e_cases import CONFIG, Reference, T, b, build, next_token_loss, text

WAYS: dict[str, dict[str, Any]] = {
    "one": {"periods": [b]},
    "two": {"periods": [b, 2 * b]},
    "three": {"periods": [b, 2 * b, None]},
    "the first of two is off": {"periods": [b, 2 * b], "learn": [False, True]},
    "the feed-forward": {"learns": "feed_forward"},
    "its units, dealt to three": {"learns": "feed_forward", "periods": [b, 2 * b, None]},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("clip", [0.05, 100.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("cuts", [[T], [3, 1, 8, 7]], ids=["one call", "cut"])
def test_it_is_the_equations(way: dict[str, Any], clip: float, cuts: list[int]) -> None:
    model, tokens = build(clip=clip, **way), text()
    logits, state = read(model, tokens, cuts)
    references = [Reference(model, row) for row in tokens]
    expected = torch.stack([reference.run() for reference in references])
    assert_close(logits, expected)
    for row, reference in enumerate(references):
        intervals = model.config.end_to_end.intervals
        for mine, theirs, interval in zip(state.fast.weights, reference.weights, intervals, strict=True):
            learnt = [w for layer in theirs for w in layer] if interval is not None else []
            for one, other in zip(mine, learnt, strict=True):
                assert_close(one[row], other)
    parameters = dict(model.named_parameters())
    gradients = (torch.autograd.grad(next_token_loss(y, tokens), list(parameters.values())) for y in (logits, expected))
    for name, one, other in zip(parameters, *gradients, strict=True):
        assert one.any(), name
        assert_close(one, other, atol=1e-10 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("clip", [0.05, 100.0], ids=["clipped", "not clipped"])
def test_the_outer_gradient_is_that_of_finite_differences(clip: float) -> None:
    """Through every inner update: the gradient of a step that is itself a gradient."""
    model, tokens, step = build(periods=[b, 2 * b], clip=clip, depth=4), text(), 1e-5
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(next_token_loss(model(tokens)[0], tokens), list(parameters.values()))
    for (name, x), gradient in zip(parameters.items(), gradients, strict=True):
        direction = torch.randn_like(x)
        losses = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                x.add_(sign * step * direction)
                losses.append(float(next_token_loss(model(tokens)[0], tokens)))
        slope = (losses[0] - losses[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8), name


def test_the_outer_gradient_goes_through_the_updates() -> None:
    model, tokens = build(), text()
    prime = list(model.prime.parameters())
    _, before = model(tokens[:, :9])
    through, apart = (
        torch.autograd.grad(model(tokens[:, 9:], state)[0].square().mean(), prime, allow_unused=True)
        for state in (before, before.detach())
    )
    assert any(a is None or (a - b).abs().max() > 1e-4 for a, b in zip(apart, through, strict=True))


def change(state: Any, first: Any) -> Tensor:
    """How far each sequence's weights of the first level are from where they began, [B]."""
    pairs = zip(state.fast.weights[0], first.fast.weights[0], strict=True)
    return sum((a - b).square().sum((1, 2)) for a, b in pairs).sqrt()


@torch.no_grad()
def test_clipping_is_per_sequence_and_part_of_the_model() -> None:
    model, tokens = build(clip=100.0, theta=0.5), text(rows=3, tokens=b + 1)
    norms = change(model(tokens)[1], model.init_state(3)) / 0.5
    limit = float(norms.sort().values[1])
    clipped = build(clip=limit, theta=0.5)
    moved = change(clipped(tokens)[1], clipped.init_state(3))
    assert_close(moved, 0.5 * norms.clamp(max=limit))
    assert (norms > limit * 1.001).sum() == 1
    assert (norms < limit * 0.999).sum() == 1


@torch.no_grad()
def test_an_update_waits_for_the_token_after_the_mini_batch() -> None:
    model, tokens = build(), text(rows=1)
    first = state = model.init_state(1)
    for t in range(T):
        _, state = model(tokens[:, t : t + 1], state)
        assert int(state.fast.updates) == t // b
        assert int(state.unfinished.filled) == t % b + 1
        assert bool(change(state, first)) == (t >= b)


@torch.no_grad()
def test_a_slow_level_updates_after_its_period() -> None:
    model, tokens = build(periods=[b, 2 * b, None]), text(rows=1)
    first = model.init_state(1).fast.weights
    for length, moved in ((b, [False] * 2), (b + 1, [True, False]), (2 * b + 1, [True, True])):
        weights = model(tokens[:, :length])[1].fast.weights
        assert [not torch.equal(a[0], c[0]) for a, c in zip(weights[:2], first, strict=False)] == moved
        assert weights[2] == ()


@pytest.mark.parametrize(
    ("learns", "units"),  # that are held, of 21: of a level that learns, and once more for the sums of one that waits
    [("prime", (21, 63, 21, 63)), ("feed_forward", (21, 11 + 2 * 10, 11, 7 + 2 * 7))],
)
def test_a_level_that_never_learns_is_not_in_the_state(learns: str, units: tuple[int, ...]) -> None:
    for periods, held in zip(([b], [b, 2 * b], [b, None], [b, 2 * b, None]), units, strict=True):
        fast = build(learns=learns, periods=periods, depth=4).init_state(1).fast  # one layer learns, of width 8
        assert sum(w.numel() for level in (*fast.weights, *fast.gradients) for w in level) == 3 * 8 * held


@torch.no_grad()
def test_theta_zero_is_the_frozen_model() -> None:
    model, tokens = build(), text()
    still = build(theta=0.0)
    logits, state = still(tokens)
    assert not still.has_memory
    assert torch.equal(logits, model(tokens, memory="frozen")[0])
    assert_identical(state.fast, still.init_state(2).fast)
    assert_close(build(theta=1e-13)(tokens)[0], logits, atol=1e-11)


@torch.no_grad()
def test_off_is_the_transformer_of_the_same_weights() -> None:
    model, tokens = build(), text()
    plain = nm.CausalLM(replace(model.config, model="causal_lm")).double()
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("prime.")})
    assert_close(model(tokens, memory="off")[0], plain(tokens)[0])


@torch.no_grad()
def test_a_mini_batch_that_frozen_reading_interrupts_is_dropped_however_it_is_cut() -> None:
    model, tokens = build(), text()
    outcomes = []
    for cuts in ([6, 3, 10], [1, 4, 1, 2, 1, 7, 1, 2]):
        state, start = None, 0
        for length in cuts:
            mode = "frozen" if 6 <= start < 9 else "on"
            logits, state = model(tokens[:, start : start + length], state, memory=mode)
            start += length
        outcomes.append((logits[:, -1], state))
    (one, state), (other, same) = outcomes
    assert_close(one, other)
    assert_same_state(state, same)
    assert state.fast.updates.tolist() == [3, 3]  # after 4 tokens, then after 4 and 8 of the last 10


def test_recomputing_in_backward_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, plain = [], EndToEnd._loss
    monkeypatch.setattr(EndToEnd, "_loss", lambda self, *x: calls.append(1) or plain(self, *x))
    counts, gradients = [], []
    for checkpoint in (False, True):
        model, tokens = build(checkpoint=checkpoint), text()
        calls.clear()
        loss = next_token_loss(model(tokens)[0], tokens)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
        counts.append(len(calls))
    assert counts[0] == 4
    assert counts[1] >= 8  # torch recomputes for the inner gradient too, which it cannot tell from backward
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-12, rtol=1e-10)


@torch.no_grad()
def test_a_repeated_mini_batch_is_predicted_better_each_time() -> None:
    model = build(moved=False, theta=0.5)
    tokens = text(rows=3, tokens=b).repeat(1, 8)
    losses = F.cross_entropy(model(tokens)[0].transpose(1, 2)[..., :-1], tokens[:, 1:], reduction="none")
    frozen = F.cross_entropy(
        model(tokens, memory="frozen")[0].transpose(1, 2)[..., :-1], tokens[:, 1:], reduction="none"
    )
    per_batch = losses[:, : 7 * b].unflatten(1, (7, b)).mean((0, 2))
    assert (per_batch[2:] < per_batch[1:-1]).all()
    assert per_batch[-1] < 0.95 * frozen[:, 6 * b : 7 * b].mean()


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
def test_what_is_observed_is_the_inner_loss_and_the_length_of_what_learns(checkpoint: bool) -> None:
    model, tokens = build(checkpoint=checkpoint, theta=0.5), text(tokens=2 * b + 1)
    with probe.recording(model) as record:
        logits, state = model(tokens)
        next_token_loss(logits, tokens).backward()
    norms = [w.detach().flatten(1).norm(dim=1).mean() for level in state.fast.weights for w in level]
    loss = float(next_token_loss(logits, tokens).detach())
    assert record.means()["layers.7/surprise"] == pytest.approx(loss, rel=1e-6)
    assert len(record.values["layers.7/state_norm"]) == 3  # the third mini-batch is unfinished
    assert float(record.values["layers.7/state_norm"][-1]) == pytest.approx(float(sum(norms) / len(norms)), rel=1e-6)


class Letters:
    """Letters a to k; nothing ends a document."""

    vocab_size, eos_id = 11, -1

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("a") + i) for i in ids)


@torch.no_grad()
def test_generation_goes_on_in_the_middle_of_a_mini_batch() -> None:
    model, letters = build(), Letters()
    prompt = "abcdefg"
    made, state = nm.generate(model, letters, prompt, max_tokens=12, return_state=True)
    ids = letters.encode(prompt)
    for _ in range(12):
        ids.append(int(model(torch.tensor([ids]))[0][0, -1].argmax()))
    assert letters.encode(prompt + made) == ids
    assert_same_state(state, model(torch.tensor([ids]))[1])
    for cut in (1, 4, 5, 6):
        _, read_before = model(torch.tensor([ids[:cut]]))
        assert nm.generate(model, letters, prompt[cut:], state=read_before, max_tokens=12) == made


def test_rows_of_different_lengths_update_each_in_its_time() -> None:
    model, tokens = build(), text(rows=4)
    lengths = torch.tensor([T, 2 * b, 2 * b + 1, 3])
    mask = torch.arange(T) < lengths[:, None]
    logits, state = model(tokens, mask=mask)
    assert state.fast.updates.tolist() == [4, 1, 2, 0]
    for row, length in enumerate(lengths.tolist()):
        alone, own = model(tokens[row : row + 1, :length])
        assert_close(logits[row, :length], alone[0])
        assert_same_state(state.select([row]), own)


def test_a_model_made_in_inference_mode_learns() -> None:
    with torch.inference_mode():
        model = build()
        logits, state = model(text())
    assert torch.equal(logits, build()(text())[0])
    assert bool(change(state, model.init_state(2)).all())


@pytest.mark.parametrize("backend", ["auto", "flash_attn", "flex", "banded"])
def test_layers_that_learn_never_use_attention_that_is_differentiable_once(backend: str) -> None:
    model = EndToEnd(replace(CONFIG, attention=replace(CONFIG.attention, backend=backend)))
    assert [layer.attention.config.backend for layer in model.layers] == [backend] * 6 + ["dense"] * 2


def test_training_outside_makes_learning_inside_worth_more() -> None:
    """Every text has three letters of its own. What is gained by learning them while reading grows in training."""
    model, random = build(torch.float32, moved=False, depth=4), torch.Generator().manual_seed(5)
    optimizer, gains = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(40):
        letters = torch.rand(8, 11, generator=random).argsort(1)[:, :3]
        tokens = letters.gather(1, torch.randint(3, (8, 32), generator=random))
        loss = next_token_loss(model(tokens)[0], tokens)
        with torch.no_grad():
            gains.append(float(next_token_loss(model(tokens, memory="frozen")[0], tokens) - loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(gains[-5:]) / 5 > 2 * max(sum(gains[:5]) / 5, 0) + 0.02
