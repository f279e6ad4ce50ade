"""The transformers model computes what the model in it computes, and its folders come back to the bit."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import neuralmem as nm
from neuralmem.data.batch import NO_LOSS
from neuralmem.training.loss import token_loss
from tests.conformance.subjects import MODELS, Subject, each
from tests.hf.conftest import CONFIG

pytest.importorskip("transformers", reason="transformers is not installed: pip install neuralmem[hf]")
from transformers import AutoConfig, AutoModelForCausalLM

from neuralmem.hf import MemoryCache, NeuralMemConfig, NeuralMemForCausalLM

T = 23


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    theirs = b.state_dict()
    assert list(a.state_dict()) == list(theirs)
    for name, x in a.state_dict().items():
        assert torch.equal(x, theirs[name]), name
        assert x.dtype == theirs[name].dtype, name


@pytest.fixture
def hf(run: Path) -> NeuralMemForCausalLM:
    return AutoModelForCausalLM.from_pretrained(run)


@each(MODELS)
@pytest.mark.filterwarnings("ignore:rule .* does not use")
def test_every_model_loads_from_both_libraries_folders(subject: Subject, tmp_path: Path) -> None:
    model = subject.build()
    nm.save(tmp_path / "run", model)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert_same_weights(model, ours)
    tokens = subject.draw(2)
    close(ours(input_ids=tokens).logits, model(tokens)[0])
    ours.save_pretrained(tmp_path / "hub", max_shard_size="10KB")
    assert len([*(tmp_path / "hub").glob("model-*.safetensors")]) > 1
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    assert_same_weights(model, theirs)
    assert theirs.causal_lm.config == model.config
    assert isinstance(theirs.causal_lm, type(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_weights_are_saved_once_and_stay_tied(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nm.CausalLM(replace(CONFIG, tie_embeddings=True)).to(dtype)
    nm.save(tmp_path / "run", model)
    for folder in ("run", "again"):
        hf = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert hf.head.weight is hf.embedding.weight is hf.causal_lm.head.weight
        assert_same_weights(model, hf)
        hf.save_pretrained(tmp_path / "again")
    assert AutoConfig.from_pretrained(tmp_path / "again").tie_word_embeddings


def test_a_model_from_a_config_is_initialised_as_ours() -> None:
    torch.manual_seed(3)
    hf = AutoModelForCausalLM.from_config(NeuralMemConfig.of(CONFIG))
    torch.manual_seed(3)
    assert_same_weights(nm.CausalLM(CONFIG), hf)


def test_one_token_at_a_time_is_one_call_and_no_cache_is_changed(hf: NeuralMemForCausalLM) -> None:
    tokens = torch.randint(257, (2, T))
    whole = hf(input_ids=tokens).logits
    cache, caches = None, []
    for t in range(T):
        output = hf(input_ids=tokens[:, t : t + 1], past_key_values=cache)
        close(output.logits, whole[:, t : t + 1])
        cache = output.past_key_values
        caches.append(cache)
    assert [c.state.position.tolist() for c in caches] == [[t + 1] * 2 for t in range(T)]
    early = hf(input_ids=tokens[:, 7:], past_key_values=caches[6])  # from the middle, after all others
    close(early.logits, whole[:, 7:])


def test_padding_anywhere_is_as_if_it_were_not_there(hf: NeuralMemForCausalLM) -> None:
    rows = [torch.randint(257, (n,)) for n in (5, 14, 1)]
    places = [list(range(9, 14)), list(range(14)), [6]]
    tokens, mask = torch.full((3, 14), 256), torch.zeros(3, 14, dtype=torch.long)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        tokens[i, place], mask[i, place] = row, 1
    output = hf(input_ids=tokens, attention_mask=mask)
    longer = torch.cat([mask, torch.ones(3, 3).long()], dim=1)  # as generate() goes on: what was read, and what is new
    more = hf(input_ids=tokens[:, :3], attention_mask=longer, cache=output.past_key_values)
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        alone = hf(input_ids=row[None])
        close(output.logits[i, place], alone.logits[0])
        close(more.logits[i], hf(input_ids=tokens[i : i + 1, :3], cache=alone.past_key_values).logits[0])
    assert output.past_key_values.state.position.tolist() == [5, 14, 1]
    assert not output.logits[0, :9].any()


@pytest.mark.parametrize("memory", ["on", "frozen", "off"])
def test_some_logits_are_those_of_all(hf: NeuralMemForCausalLM, model: nm.CausalLM, memory: str) -> None:
    tokens, mask = torch.randint(257, (2, T)), torch.ones(2, T).long()
    mask[0, :4] = 0
    whole = hf(input_ids=tokens, attention_mask=mask, memory=memory).logits
    close(whole, model(tokens, mask=mask.bool(), memory=memory)[0])
    close(hf(input_ids=tokens, attention_mask=mask, memory=memory, logits_to_keep=1).logits, whole[:, -1:])
    close(hf(input_ids=tokens, attention_mask=mask, memory=memory, logits_to_keep=20).logits, whole[:, -20:])
    places = torch.tensor([3, 0])
    close(hf(input_ids=tokens, attention_mask=mask, memory=memory, logits_to_keep=places).logits, whole[:, places])


def test_the_loss_of_labels_is_the_loss_of_training() -> None:
    model = NeuralMemForCausalLM(NeuralMemConfig.of(CONFIG)).train()
    tokens = torch.randint(257, (2, T))
    labels = tokens.clone()
    labels[0, 5:9] = NO_LOSS
    output = model(input_ids=tokens, labels=labels)
    torch.testing.assert_close(output.loss, token_loss(output.logits[:, :-1], labels[:, 1:]))
    assert output.past_key_values is None  # no history of a step is kept
    output.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_outputs_can_be_a_tuple(hf: NeuralMemForCausalLM) -> None:
    logits, cache = hf(input_ids=torch.randint(257, (1, 4)), return_dict=False)
    assert logits.shape == (1, 4, 257)
    assert cache.state.position.tolist() == [4]


def test_a_larger_vocabulary_reads_its_new_tokens(hf: NeuralMemForCausalLM) -> None:
    tokens = torch.randint(257, (1, T))
    before = hf(input_ids=tokens).logits
    hf.resize_token_embeddings(260, mean_resizing=False)
    close(hf(input_ids=tokens).logits[..., :257], before)
    assert hf(input_ids=torch.tensor([[259]])).logits.shape == (1, 1, 260)
    assert hf.causal_lm.config.vocab_size == hf.config.vocab_size == 260


def test_what_replaces_a_module_counts_in_copies_too(hf: NeuralMemForCausalLM) -> None:
    """As adapters do: the wrapper and the model in it must not come apart."""
    tokens = torch.randint(257, (1, T))
    copied = copy.deepcopy(hf)
    copied.head = torch.nn.Linear(8, 257).double()
    close(copied(input_ids=tokens).logits, copied.causal_lm(tokens)[0])
    assert copied.causal_lm.head is copied.head
    assert hf.causal_lm.head is hf.head is not copied.head
    assert not torch.allclose(copied(input_ids=tokens).logits, hf(input_ids=tokens).logits)


def test_a_state_goes_through_a_file_into_a_cache(hf: NeuralMemForCausalLM, tmp_path: Path) -> None:
    tokens = torch.randint(257, (1, T))
    hf(input_ids=tokens[:, :9]).past_key_values.state.save(tmp_path / "read.safetensors")
    read = MemoryCache(nm.State.load(tmp_path / "read.safetensors", hf.causal_lm))
    close(hf(input_ids=tokens[:, 9:], cache=read).logits, hf(input_ids=tokens).logits[:, 9:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position_ids": torch.arange(3)[None]}, "position_ids is not supported: every row's tokens are counted"),
        ({"inputs_embeds": torch.zeros(1, 3, 8)}, "inputs_embeds is not supported: tokens are read"),
        ({"output_attentions": True}, "output_attentions is not supported"),
        ({"attention_mask": torch.ones(1, 1, 3, 3)}, r"attention_mask has shape \[1, 1, 3, 3\]; it must be \[B, T\]"),
        (
            {"attention_mask": torch.ones(1, 2)},
            "attention_mask has 2 columns; it must have at least the 3 of input_ids",
        ),
        ({"past_key_values": ((1, 2),)}, "is a tuple; it must be a MemoryCache"),
        ({"input_ids": None}, "input_ids is None"),
        ({"memory": "of"}, "memory is 'of'; it must be one of on, frozen, off"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_one_line(hf: NeuralMemForCausalLM, options: dict, message: str) -> None:
    with pytest.raises(nm.UserError, match=message):
        hf(**{"input_ids": torch.tensor([[1, 2, 3]]), **options})


def test_configs_say_what_is_wrong() -> None:
    with pytest.raises(nm.UserError, match=r"memroy is no field of the model's config; did you mean 'memory'\?"):
        NeuralMemConfig(memroy={"heads": 2})
    with pytest.raises(nm.UserError, match="titan"):
        NeuralMemForCausalLM(NeuralMemConfig(pattern=["titan_mac"]))
    assert NeuralMemConfig(hidden_size=16, num_hidden_layers=1).model_config == nm.ModelConfig(257, width=16, depth=1)
