"""generate() of transformers: greedy, sampling, beams and batches read and write the memory as they should."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import neuralmem as nm

pytest.importorskip("transformers", reason="transformers is not installed: pip install neuralmem[hf]")
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from neuralmem.hf import MemoryCache, NeuralMemForCausalLM

NEW = 12
TEXT = "Call me Ishmael. Some years ago, never mind how long précisely"


@pytest.fixture
def hf(run: Path) -> NeuralMemForCausalLM:
    return AutoModelForCausalLM.from_pretrained(run)


@pytest.fixture
def tokenizer(run: Path) -> Any:
    return AutoTokenizer.from_pretrained(run)


@pytest.fixture
def tokens() -> Tensor:
    return torch.tensor([nm.ByteTokenizer().encode(TEXT)])


def greedy(model: nm.CausalLM, tokens: Tensor, steps: int = NEW, state: Any = None, **options: Any) -> list[int]:
    """What one row alone says, token by token."""
    said: list[int] = []
    for _ in range(steps):
        logits, state = model(tokens, state, **options)
        said.append(int(logits[0, -1].argmax()))
        tokens = torch.tensor([said[-1:]])
    return said


def test_greedy_is_what_neuralmem_says(hf: NeuralMemForCausalLM, model: nm.CausalLM, tokenizer: Any) -> None:
    given = tokenizer(TEXT, return_tensors="pt")
    said = hf.generate(**given, max_new_tokens=NEW, do_sample=False)[0, given.input_ids.shape[1] :]
    assert tokenizer.decode(said) == nm.generate(model, nm.ByteTokenizer(), TEXT, max_tokens=NEW)
    assert len(set(said.tolist())) > 3  # not one token over and over, which anything would say


def test_rows_of_any_length_say_what_each_says_alone(
    hf: NeuralMemForCausalLM, model: nm.CausalLM, tokenizer: Any
) -> None:
    texts = [TEXT, TEXT[:9], "x", TEXT[20:]]
    given = tokenizer(texts, return_tensors="pt", padding=True)
    assert not given.attention_mask[2, :-1].any()
    said = hf.generate(**given, max_new_tokens=NEW, do_sample=False, eos_token_id=None)[:, given.input_ids.shape[1] :]
    for row, text in zip(said.tolist(), texts, strict=True):
        assert row == greedy(model, torch.tensor([nm.ByteTokenizer().encode(text)]))


def test_padding_behind_a_row_is_refused(hf: NeuralMemForCausalLM, tokens: Tensor) -> None:
    """What comes next would be predicted from a place that was not read, which says the same for every text."""
    mask = torch.ones_like(tokens).repeat(2, 1)
    mask[1, -2:] = 0
    with pytest.raises(nm.UserError, match=r"attention_mask ends with padding in row 1; .*padding_side='left'"):
        hf.generate(tokens.repeat(2, 1), attention_mask=mask, max_new_tokens=NEW)


def test_an_empty_prompt_is_called_that(hf: NeuralMemForCausalLM, tokenizer: Any) -> None:
    given = tokenizer(["abc", ""], return_tensors="pt", padding=True)
    with pytest.raises(nm.UserError, match="input_ids row 1 is an empty prompt; it must have at least one token"):
        hf.generate(**given, max_new_tokens=NEW)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}, {"prefill_chunk_size": 4}], ids=str)
def test_a_mask_that_is_too_short_is_refused(hf: NeuralMemForCausalLM, tokens: Tensor, options: dict) -> None:
    with pytest.raises(nm.UserError, match="attention_mask has 6 columns; it must have at least the 10 of input_ids"):
        hf.generate(tokens[:, :10], attention_mask=torch.ones(1, 6), max_new_tokens=NEW, **options)


@pytest.mark.parametrize("memory", ["frozen", "off"])
def test_the_memory_can_be_switched(hf: NeuralMemForCausalLM, model: nm.CausalLM, tokens: Tensor, memory: str) -> None:
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    said = hf.generate(tokens, **options, memory=memory)[0, tokens.shape[1] :].tolist()
    assert said == greedy(model, tokens, memory=memory)
    assert said != hf.generate(tokens, **options)[0, tokens.shape[1] :].tolist()


@pytest.mark.parametrize(
    "options",
    [{"do_sample": True}, {"do_sample": False, "num_beams": 4, "num_return_sequences": 3}],
    ids=["sampling", "beams"],
)
def test_a_cache_says_what_reading_all_anew_says(hf: NeuralMemForCausalLM, tokens: Tensor, options: dict) -> None:
    """Without a cache every step reads the whole text of every beam, so nothing has to be reordered."""
    padded = torch.cat([torch.full((1, 7), 256), tokens[:, 11:-9]], dim=1)
    both = torch.cat([tokens[:, : padded.shape[1]], padded])
    given = {"attention_mask": (both != 256).long(), "max_new_tokens": NEW, "eos_token_id": None} | options
    answers = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        answers.append(hf.generate(both, **given, use_cache=use_cache))
    assert torch.equal(*answers)
    assert len({tuple(row) for row in answers[0].tolist()}) == len(answers[0])


def test_a_document_is_read_in_pieces_and_asked_many_times(
    hf: NeuralMemForCausalLM, model: nm.CausalLM, tokens: Tensor
) -> None:
    cache = None
    for piece in tokens.split(17, dim=1):
        cache = hf(input_ids=piece, past_key_values=cache).past_key_values
    before = cache.state.clone()
    for question in ("Who", "What was it?", "Who"):
        ids = torch.tensor([nm.ByteTokenizer().encode(question)])
        said = hf.generate(ids, cache=cache, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
        assert said[0, ids.shape[1] :].tolist() == greedy(model, torch.cat([tokens, ids], dim=1))
        assert said.shape[1] == ids.shape[1] + NEW
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(cache.state.items(), before.items(), strict=True))


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}], ids=str)
def test_a_cache_of_several_rows_is_continued(hf: NeuralMemForCausalLM, tokens: Tensor, options: dict) -> None:
    """Questions of unequal length to rows that have read unequally much, against rows that read all at once."""
    documents = torch.cat([tokens[:, :20], tokens[:, 20:40]])
    read = torch.ones_like(documents)
    read[1, :6] = 0
    questions = tokens[:, 40:52].view(2, 6)
    asked = torch.ones_like(questions)
    asked[0, :3] = 0
    given = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **options}
    at_once = hf.generate(torch.cat([documents, questions], 1), attention_mask=torch.cat([read, asked], 1), **given)
    cache = hf(input_ids=documents, attention_mask=read).past_key_values
    said = hf.generate(questions, attention_mask=asked, cache=cache, **given)
    assert torch.equal(said[:, 6:], at_once[:, 26:])
    assert cache.batch_size == 2


def test_what_generate_returns_can_be_gone_on_from(
    hf: NeuralMemForCausalLM, model: nm.CausalLM, tokens: Tensor
) -> None:
    given = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    output = hf.generate(tokens, **given, max_new_tokens=5)
    assert output.past_key_values.state.position.tolist() == [tokens.shape[1] + 4]  # the last token is not read yet
    more = hf.generate(output.sequences[:, -1:], **given, max_new_tokens=7, cache=output.past_key_values)
    assert [*output.sequences[0, -5:].tolist(), *more.sequences[0, 1:].tolist()] == greedy(model, tokens)


def test_a_row_that_ends_does_not_disturb_the_other(hf: NeuralMemForCausalLM, tokens: Tensor) -> None:
    both = tokens[:, :40].view(2, 20)
    given = {"max_new_tokens": NEW, "do_sample": False}
    free = hf.generate(both, **given, eos_token_id=None)[:, 20:]
    end = next(t for t in free[0].tolist() if t not in free[1].tolist())
    said = hf.generate(both, **given, eos_token_id=end, pad_token_id=256)[:, 20:]
    at = free[0].tolist().index(end) + 1
    assert said[0].tolist() == free[0, :at].tolist() + [256] * (NEW - at)
    assert torch.equal(said[1], free[1])


def test_a_batch_in_another_order_is_the_same(hf: NeuralMemForCausalLM) -> None:
    random.seed(0)
    rows = [[random.randrange(256) for _ in range(9)] for _ in range(3)]
    given = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "eos_token_id": None}
    one, other = (hf.generate(torch.tensor(x), **given) for x in (rows, rows[::-1]))
    assert torch.equal(one, other.flip(0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt_lookup_num_tokens": 3}, ValueError, "assisted generation is not supported with stateful models"),
        ({"cache_implementation": "static"}, nm.UserError, "cache_implementation is 'static'; leave it out"),
        ({"cache": DynamicCache()}, nm.UserError, "is a DynamicCache; it must be a MemoryCache"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused(
    hf: NeuralMemForCausalLM, tokens: Tensor, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as found:
        hf.generate(tokens, max_new_tokens=3, **options)
    assert "\n" not in str(found.value)


def test_a_memory_is_no_assistant(hf: NeuralMemForCausalLM, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        hf.generate(tokens, max_new_tokens=3, assistant_model=hf)
    with pytest.raises(nm.UserError, match="cannot be rolled back"):
        MemoryCache().crop(1)
