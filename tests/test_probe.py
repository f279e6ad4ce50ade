"""Probes: numbers from inside a model while it runs, without changing it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from neuralmem import CausalLM, MemoryConfig, ModelConfig, registry
from neuralmem.probe import active, inside, observe, recording

CONFIG = ModelConfig(
    vocab_size=11, width=8, depth=2, pattern=["titans_mag"], memory=MemoryConfig(heads=2, chunk_size=4)
)


def model(**memory: object) -> CausalLM:
    torch.manual_seed(1)
    return CausalLM(ModelConfig(**{**CONFIG.__dict__, "memory": MemoryConfig(heads=2, chunk_size=4, **memory)}))


def tokens() -> torch.Tensor:
    return torch.arange(22).view(2, 11) % 11


@pytest.mark.parametrize("rule", ["titans", "delta"])
@pytest.mark.parametrize("pattern", ["titans_lmm", "titans_mac", "titans_mag", "titans_mal"])
def test_every_memory_shows_its_surprise_its_gates_and_its_size(rule: str, pattern: str) -> None:
    config = ModelConfig(**{**CONFIG.__dict__, "pattern": [pattern], "memory": MemoryConfig(rule=rule, heads=2)})
    network = CausalLM(config)
    with recording(network) as record:
        network(torch.arange(100)[None] % 11)
    gates = {"theta", "alpha"} | ({"eta"} if rule == "titans" else set())
    shown = {"surprise", "state_norm"} | gates | {f"{gate}_saturated" for gate in gates}
    means = record.means()
    assert set(means) >= {f"layers.{i}.memory/{name}" for i in (0, 1) for name in shown}
    assert {name.split("/")[0] for name in means} == {"layers.0.memory", "layers.1.memory"}
    assert all(0 < value < float("inf") for name, value in means.items() if not name.endswith("_saturated"))


@pytest.mark.parametrize("rule", registry.names("rule"))
def test_gates_that_are_shut_or_wide_open_count_as_saturated(rule: str) -> None:
    """Of the sigmoid, whatever the rule makes of it."""
    shares = []
    for bias in (0.0, 20.0, -20.0):
        biases = {f"{gate}_bias": bias for gate in ("theta", "eta", "alpha")}
        network = CausalLM(replace(CONFIG, memory=MemoryConfig(rule=rule, heads=2, **biases)))
        with recording(network) as record:
            network(tokens())
        shares.append({name: value for name, value in record.means().items() if name.endswith("_saturated")})
    assert {f"layers.{i}.memory/theta_saturated" for i in (0, 1)} <= shares[0].keys()
    assert [set(share.values()) for share in shares] == [{0.0}, {1.0}, {1.0}]


def test_looking_changes_nothing() -> None:
    network = model()
    logits, state = network(tokens())
    with recording(network):
        watched, same = network(tokens())
    assert torch.equal(logits, watched)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(state.items(), same.items(), strict=True))


@pytest.mark.parametrize("rule", registry.names("rule"))
@pytest.mark.parametrize("pattern", [["titans_mag"], ["titans_mac"], ["hope"]])
def test_values_of_tokens_cost_nothing_and_their_mean_is_the_mean(rule: str, pattern: list[str]) -> None:
    torch.manual_seed(1)
    network = CausalLM(replace(CONFIG, pattern=pattern, memory=MemoryConfig(rule=rule, heads=2, chunk_size=4)))
    text = torch.arange(2 * 75).view(2, 75) % 11  # a segment of 64 and one that is not whole
    logits, state = network(text)
    with recording(network, per_token=True) as record:
        watched, same = network(text)
    assert torch.equal(logits, watched)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(state.items(), same.items(), strict=True))
    tokens, means = record.tokens(), record.means()
    assert {name for name in means if name.endswith("/surprise")} <= tokens.keys()
    for name, values in tokens.items():
        assert values.shape[0] == 2
        assert values.shape[1] % 75 == 0, name
        if pattern == ["titans_mag"] and "/surprise" not in name and rule != "self_modifying":  # observed at once
            assert values.mean().item() == pytest.approx(means[name], rel=1e-5)
    assert {name.split("/")[1] for name in tokens} >= {"surprise", "theta"}


def test_a_token_has_the_values_of_its_own_place() -> None:
    """Text that is changed at one token and read by one layer: nothing before it looks different."""
    network = model()
    seen = []
    for last in (3, 4):
        text = tokens()[:1].clone()
        text[0, 7] = last
        with recording(network, per_token=True) as record:
            network(text)
        seen.append(record.tokens())
    for name, before in seen[0].items():
        assert torch.equal(before[:, :7], seen[1][name][:, :7]), name
        assert not torch.equal(before[:, 7], seen[1][name][:, 7]), name


def test_values_of_tokens_are_means_over_heads_and_come_in_order() -> None:
    layer = nn.Linear(1, 1)
    with recording(layer, per_token=True) as record, inside(layer):
        observe("x", torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), tokens=2)  # [B, H, T]
        observe("x", torch.tensor([[[5.0], [7.0]]]), tokens=2)
        observe("y", torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), tokens=1)  # [B, T, H]
        observe("z", torch.ones(3))
    assert {name: value.tolist() for name, value in record.tokens().items()} == {
        "/x": [[2.0, 3.0, 6.0]],
        "/y": [[1.5, 3.5]],
    }


def test_recomputing_in_backward_invents_no_names() -> None:
    names = []
    for checkpoint_every in (None, 1):
        network = model(checkpoint_every=checkpoint_every)
        with recording(network) as record:
            network(tokens())[0].sum().backward()
        names.append(sorted(record.means()))
    assert names[0] == names[1]


def test_outside_a_recording_nothing_is_kept() -> None:
    assert not active()
    observe("x", torch.ones(1))
    with recording(nn.Linear(1, 1)) as record:
        assert active()
    assert not active()
    assert record.means() == {}


def test_a_recording_ends_when_an_error_passes() -> None:
    with pytest.raises(RuntimeError, match="stop"), recording(nn.Linear(1, 1)):
        raise RuntimeError("stop")
    assert not active()


def test_means_are_over_everything_observed_under_a_name() -> None:
    layer = nn.Linear(1, 1)
    outer = nn.Sequential(layer)
    with recording(outer) as record, inside(outer):
        observe("x", torch.tensor([1.0, 3.0]))
        with inside(layer):
            observe("x", torch.tensor([5]))
        observe("x", torch.tensor([4.0], requires_grad=True))
        observe("nothing", torch.ones(0))
    assert record.means() == {"/x": 3.0, "0/x": 5.0}
    assert record.total("x") == 8
    assert record.total("y") is None


def test_what_is_observed_outside_every_module_is_not_kept() -> None:
    with recording(nn.Linear(1, 1)) as record:
        observe("x", torch.ones(1))
    assert record.means() == {}


@pytest.mark.parametrize("attached", [False, True])
def test_an_attached_recording_can_be_part_of_a_loss(attached: bool) -> None:
    network = model()
    with recording(network, attached=attached) as record:
        network(tokens())
    surprise = record.total("surprise")
    assert surprise is not None
    assert surprise.requires_grad is attached
    if attached:
        surprise.backward()
        assert network.layers[0].memory.value.weight.grad.any()


def test_a_recording_of_one_name_spares_the_others() -> None:
    layer = nn.Linear(1, 1)
    with recording(layer, attached=True, only="x") as record, inside(layer):
        assert active()
        assert active("x", attached=True)
        assert not active("y")
        observe("x", torch.ones(1))
        observe("y", torch.ones(1))
    assert record.means() == {"/x": 1.0}


def test_recordings_nest() -> None:
    layer = nn.Linear(1, 1)
    with recording(layer) as outer, inside(layer):
        with recording(layer) as inner, inside(layer):
            observe("x", torch.ones(1))
        observe("y", torch.ones(1))
    assert (list(inner.means()), list(outer.means())) == (["/x"], ["/x", "/y"])


@pytest.mark.parametrize("rule", registry.names("rule"))
def test_a_price_of_writing_has_the_same_gradient_where_chunks_are_computed_again(rule: str) -> None:
    gradients = []
    for checkpoint_every in (None, 2):
        torch.manual_seed(1)
        memory = MemoryConfig(rule=rule, heads=2, chunk_size=4, checkpoint_every=checkpoint_every)
        network = CausalLM(replace(CONFIG, pattern=["titans_lmm"], memory=memory))
        with recording(network, attached=True, only="write", seen_as=lambda gates: torch.log1p(100 * gates)) as record:
            logits, _ = network(torch.arange(66).view(2, 33) % 11)
        cost = record.total("write")
        assert cost is not None
        loss = logits.square().mean() + cost
        loss.backward(retain_graph=True)
        network.zero_grad()
        loss.backward()  # computed a third time
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
