"""CausalLM: shapes, parameters, and what bad input gets."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralmem import AttentionConfig, CausalLM, MemoryConfig, ModelConfig, UserError

CONFIG = ModelConfig(
    vocab_size=11,
    width=8,
    depth=3,
    pattern=["titans_mag", "transformer"],
    attention=AttentionConfig(heads=2, window=5, segment=6),
    memory=MemoryConfig(heads=2, chunk_size=4),
)


@pytest.fixture
def model() -> CausalLM:
    return CausalLM(CONFIG)


def tokens(batch: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(11, (batch, length))


def test_the_pattern_is_cycled_over_the_depth(model: CausalLM) -> None:
    assert [type(layer).__name__ for layer in model.layers] == ["TitansMAG", "Transformer", "TitansMAG"]


def test_logits_have_a_row_per_token_and_a_column_per_id(model: CausalLM) -> None:
    logits, state = model(tokens())
    assert logits.shape == (2, 7, 11)
    assert state.position.tolist() == [7, 7]


@pytest.mark.parametrize("dtype", [torch.long, torch.int32])
def test_ids_may_be_of_any_integer_type_that_torch_looks_up(model: CausalLM, dtype: torch.dtype) -> None:
    x = tokens()
    torch.testing.assert_close(model(x.to(dtype))[0], model(x)[0])


def test_a_call_without_a_token_is_refused(model: CausalLM) -> None:
    with pytest.raises(UserError, match=r"tokens has shape \[2, 0\]; T must be at least 1"):
        model(tokens(length=0))


def test_a_call_of_pads_changes_nothing(model: CausalLM) -> None:
    _, state = model(tokens())
    logits, after = model(tokens(), state, mask=torch.zeros(2, 7, dtype=torch.bool))
    assert not logits.any()
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(after.items(), state.items(), strict=True))


def test_no_row_gives_no_row(model: CausalLM) -> None:
    logits, state = model(tokens(batch=0))
    assert logits.shape == (0, 7, 11)
    assert state.position.tolist() == []


def test_selected_logits_are_those_of_the_selected_tokens(model: CausalLM) -> None:
    x, select = tokens(), torch.rand(2, 7) > 0.5
    logits, state = model(x)
    some, same = model(x, select=select)
    torch.testing.assert_close(some, logits[select])
    assert torch.equal(state.position, same.position)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_one_parameter(tied: bool) -> None:
    model = CausalLM(replace(CONFIG, tie_embeddings=tied))
    assert (model.head.weight is model.embedding.weight) is tied
    names = [name for name, _ in model.named_parameters()]
    assert ("head.weight" in names) is not tied


@pytest.mark.parametrize(
    ("pattern", "expected"), [(["transformer"], False), (["titans_lmm"], True), (["transformer", "titans_mac"], True)]
)
def test_a_model_has_memory_if_a_layer_has(pattern: list[str], expected: bool) -> None:
    assert CausalLM(replace(CONFIG, pattern=pattern)).has_memory is expected


def test_full_attention_reaches_everything() -> None:
    attention = replace(CONFIG.attention, window=None)
    assert CausalLM(replace(CONFIG, attention=attention)).reach == sys.maxsize
    assert CausalLM(replace(CONFIG, attention=attention, pattern=["titans_lmm"])).reach == 3 * 3


def test_the_same_seed_gives_the_same_model() -> None:
    logits = []
    for _ in range(2):
        torch.manual_seed(5)
        logits.append(CausalLM(CONFIG)(torch.arange(11)[None])[0])
    assert torch.equal(*logits)


def test_the_first_logits_of_a_fresh_model_know_nothing(model: CausalLM) -> None:
    """Loss at the start is near log V, or the initialisation is wrong."""
    x = torch.randint(11, (8, 33))
    logits, _ = model(x)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    assert abs(loss.item() - torch.tensor(11.0).log().item()) < 0.5


def test_a_model_has_no_buffers_and_no_hidden_state(model: CausalLM) -> None:
    assert list(model.buffers()) == []


BAD: dict[str, dict[str, Any]] = {
    "tokens is torch.float32[2, 7]; it must be integers [B, T]": {"tokens": torch.zeros(2, 7)},
    "tokens is torch.int64[7]; it must be integers [B, T]": {"tokens": torch.zeros(7, dtype=torch.long)},
    "tokens is torch.bool[2, 7]; it must be integers [B, T]": {"tokens": torch.zeros(2, 7, dtype=torch.bool)},
    "tokens contain 11; ids go from 0 to vocab_size - 1 = 10": {"tokens": torch.tensor([[3, 11]])},
    "tokens contain -1; ids go from 0 to vocab_size - 1 = 10": {"tokens": torch.tensor([[3, -1]])},
    "mask has shape [2, 6]; it must be [2, 7]": {"mask": torch.ones(2, 6, dtype=torch.bool)},
    "mask has dtype torch.int64; it must be torch.bool": {"mask": torch.ones(2, 7, dtype=torch.long)},
    "reset has shape [2]; it must be [2, 7]": {"reset": torch.ones(2, dtype=torch.bool)},
    "memory is 'frosen'; it must be one of on, frozen, off": {"memory": "frosen"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_gets_one_line_that_names_it(model: CausalLM, message: str) -> None:
    with pytest.raises(UserError) as error:
        model(**{"tokens": tokens(), **BAD[message]})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_state_of_another_batch_size_is_refused(model: CausalLM) -> None:
    _, state = model(tokens(batch=3))
    message = "^batch size is 2, but the state has 3 rows; use state.select or a new state$"
    with pytest.raises(UserError, match=message):
        model(tokens(), state)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 16},
        {"depth": 2},
        {"pattern": ["titans_mal"]},
        {"pattern": ["titans_mac"]},
        {"memory": replace(CONFIG.memory, depth=3)},
        {"memory": replace(CONFIG.memory, chunk_size=8)},
        {"attention": replace(CONFIG.attention, window=9)},
    ],
    ids=str,
)
def test_a_state_of_another_model_is_refused(model: CausalLM, change: dict[str, Any]) -> None:
    other = CausalLM(replace(CONFIG, **change))
    _, state = other(tokens())
    with pytest.raises(UserError, match=r"^state is of another model: ") as error:
        model(tokens(), state)
    assert "\n" not in str(error.value)


def test_a_state_of_a_layer_is_refused(model: CausalLM) -> None:
    _, state = model(tokens())
    with pytest.raises(UserError, match=r"^state is a HybridState; it must be one that a CausalLM returned"):
        model(tokens(), state.layers[0])


def test_a_model_made_in_inference_mode_reads(model: CausalLM) -> None:
    with torch.inference_mode():
        logits, state = CausalLM(CONFIG)(tokens())
        CausalLM(CONFIG)(tokens(), state)
    assert logits.isfinite().all()


def test_a_state_read_by_weights_that_have_changed_since_cannot_be_saved(model: CausalLM, tmp_path: Path) -> None:
    _, state = model(tokens())
    state.save(tmp_path / "before")
    with torch.no_grad():
        model.norm.gain.mul_(2)
    with pytest.raises(UserError, match=r"^state belongs to earlier weights"):
        state.save(tmp_path / "after")
    assert [f.name for f in tmp_path.iterdir()] == ["before"]


def test_a_copy_of_the_model_goes_on_from_its_state(model: CausalLM) -> None:
    twin = CausalLM(CONFIG)
    twin.load_state_dict(model.state_dict())
    x = tokens()
    _, state = model(x)
    assert torch.equal(twin(x, state)[0], model(x, state)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": ["titans_max"]}, "model.pattern is 'titans_max'; it must be one of "),
        ({"pattern": ["_layer"]}, "model.pattern is '_layer'; it must be one of "),
        ({"pattern": ["../state"]}, "model.pattern is '../state'; it must be one of "),
        ({"memory": MemoryConfig(rule="delte")}, "memory.rule is 'delte'; it must be one of "),
        ({"attention": AttentionConfig(heads=3)}, "attention.heads is 3; it must divide width 8"),
        ({"memory": MemoryConfig(heads=3)}, "memory.heads is 3; it must divide width 8"),
    ],
)
def test_a_config_that_fits_nothing_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        CausalLM(replace(CONFIG, **change))
    assert str(error.value).startswith(message)


def test_a_training_step_compiles_without_a_break_in_the_graph() -> None:
    tokens = torch.arange(20)[None] % 11
    memory, attention = MemoryConfig(heads=2, chunk_size=8), AttentionConfig(heads=2, window=4)
    model = CausalLM(ModelConfig(11, width=8, depth=1, attention=attention, memory=memory))
    logits, _ = torch.compile(model, backend="eager", fullgraph=True)(tokens)
    torch.testing.assert_close(logits, model(tokens)[0])
