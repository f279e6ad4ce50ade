"""Generation against a model that recites: what it must say is known, and so is what it has read."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.generation.generate import choose, generate, generate_stream
from neuralmem.models.causal_lm import CausalLM
from neuralmem.tokenizer import ByteTokenizer, train_bpe

BYTES = ByteTokenizer()


@dataclass(frozen=True)
class Heard:
    """All tokens so far, one row."""

    ids: tuple[int, ...] = ()

    @property
    def position(self) -> Tensor:
        return torch.tensor([len(self.ids)])


class Reciter:
    """Says `script` after a prompt that ends with ":", then ends the document; with less certainty it says "x"."""

    reach = 1

    def __init__(self, script: list[int], vocab_size: int = 257, eos: int = 256, colon: int = ord(":")) -> None:
        self.script, self.vocab_size, self.eos, self.colon = script, vocab_size, eos, colon
        self.calls: list[int] = []

    def init_state(self, batch_size: int) -> Heard:
        assert batch_size == 1
        return Heard()

    def __call__(self, tokens, state=None, *, mask=None, reset=None, memory="on", select=None):
        self.calls.append(tokens.shape[1])
        ids = state.ids
        logits = torch.zeros(1, tokens.shape[1], self.vocab_size)
        for i, token in enumerate(tokens[0].tolist()):
            ids = (*ids, token)
            at = len(ids) - 1 - max((n for n, t in enumerate(ids) if t == self.colon), default=-1)
            logits[0, i, self.script[at] if at < len(self.script) else self.eos] = 9.0
            logits[0, i, ord("x")] += 8.0
        return logits if select is None else logits[select], Heard(ids)


def reciter(text: str) -> Reciter:
    return Reciter(list(text.encode()))


def test_greedy_says_the_likeliest_and_stops_at_the_separator() -> None:
    assert generate(reciter("hello"), BYTES, "say:") == "hello"


def test_max_tokens() -> None:
    assert generate(reciter("hello"), BYTES, "say:", max_tokens=3) == "hel"


def test_long_prompts_are_read_in_pieces() -> None:
    model = reciter("ok")
    assert generate(model, BYTES, "a" * 5000 + ":") == "ok"
    assert model.calls[:3] == [2048, 2048, 905]


@pytest.mark.parametrize("stop", ["wor", ("zzz", "wor"), ["o w", "wor"]])
def test_stop_strings_end_the_text_before_them(stop: object) -> None:
    expected = "hell" if stop == ["o w", "wor"] else "hello "
    assert generate(reciter("hello world"), BYTES, "say:", stop=stop) == expected


def test_what_might_be_a_stop_string_is_held_back_and_then_said() -> None:
    pieces = list(generate_stream(reciter("abcabd"), BYTES, "say:", stop="abd"))
    assert pieces == ["abc"] or "".join(pieces) == "abc"
    assert "".join(generate_stream(reciter("abab"), BYTES, "say:", stop="abc")) == "abab"


@pytest.mark.parametrize("text", ["héllo wörld", "日本語", "🙂🙃", "plain"])
def test_streaming_gives_whole_characters(text: str) -> None:
    pieces = list(generate_stream(reciter(text), BYTES, "say:"))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(text)


def test_streaming_with_merges_joins_to_the_same_text() -> None:
    tokenizer = train_bpe(["the cat sat on the mat: the café — naïve"] * 20, 300)
    text = " the café sat — on the mat"
    model = Reciter(tokenizer.encode(text), tokenizer.vocab_size, tokenizer.eos_id, tokenizer.encode(":")[0])
    assert "".join(generate_stream(model, tokenizer, ":")) == text


def test_bytes_that_are_no_text_come_out_as_the_tokenizer_shows_them() -> None:
    model = Reciter([0xFF, 0xFE, ord("a"), 0xE2, 0x82])
    assert generate(model, BYTES, "say:") == BYTES.decode([0xFF, 0xFE, ord("a"), 0xE2, 0x82])


def test_returned_state_has_read_prompt_and_text() -> None:
    _, state = generate(reciter("hello"), BYTES, "say:", return_state=True)
    assert bytes(state.ids) == b"say:hello"
    _, state = generate(reciter("hello"), BYTES, "say:", max_tokens=2, return_state=True)
    assert bytes(state.ids) == b"say:he"
    text, state = generate(reciter("hello"), BYTES, "say:", stop="l", return_state=True)
    assert (text, bytes(state.ids)) == ("he", b"say:hel")


def test_streams_return_the_state_too() -> None:
    stream = generate_stream(reciter("hi"), BYTES, "say:")
    assert [next(stream), next(stream)] == ["h", "i"]
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert bytes(end.value.value.ids) == b"say:hi"


def test_text_comes_before_the_next_token_is_computed() -> None:
    model = reciter("hello")
    stream = generate_stream(model, BYTES, "say:")
    assert model.calls == []
    assert next(stream) == "h"
    assert len(model.calls) == 1, "the first token needs the prompt only"


def test_seeds_temperature_and_top_p() -> None:
    def sample(seed: int | None, **options: float) -> str:
        return generate(reciter("hello hello hello"), BYTES, "say:", seed=seed, **options)

    hot = [sample(seed, temperature=2.0) for seed in range(4)]
    assert hot == [sample(seed, temperature=2.0) for seed in range(4)]
    assert len(set(hot)) > 1
    assert sample(1, temperature=2.0, top_p=1e-6) == "hello hello hello"


def test_top_p_keeps_the_smallest_set_that_is_enough() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(4000, 4)
    random = torch.Generator().manual_seed(0)
    for top_p, kept in ((0.5, {0}), (0.51, {0, 1}), (0.8, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        assert set(choose(logits, 1.0, top_p, random).tolist()) == kept, top_p
    shares = choose(logits, 1.0, 1.0, random).bincount(minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, r"top_p is 0\.0"),
        ({"top_p": 1.5}, r"top_p is 1\.5"),
        ({"stop": ""}, "stop is ''"),
        ({"stop": [1]}, r"stop is \[1\]"),
        ({"prompt": ""}, "prompt is empty"),
        ({"max_tokens": True}, "max_tokens is True"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    options = {"prompt": "say:"} | options
    for ask in (generate, generate_stream):
        with pytest.raises(UserError, match=message):
            ask(reciter("x"), BYTES, **options)


def test_logits_that_are_not_finite_are_an_error() -> None:
    class Broken(Reciter):
        def __call__(self, *arguments, **options):
            logits, state = super().__call__(*arguments, **options)
            return logits * float("nan"), state

    with pytest.raises(FloatingPointError, match="not finite at position 4"):
        generate(Broken([1]), BYTES, "say:")


@pytest.fixture(scope="module")
def model() -> CausalLM:
    torch.manual_seed(1)
    return CausalLM(
        ModelConfig(
            vocab_size=257,
            width=16,
            depth=1,
            attention=AttentionConfig(heads=1, window=4),
            memory=MemoryConfig(heads=1, chunk_size=4),
        )
    )


def test_real_model_streaming_equals_one_call_on_everything(model: CausalLM) -> None:
    """Greedy decoding from the state gives what re-reading the whole text for every token gives."""
    ids = BYTES.encode("The memory keeps learning")
    text = list(ids)
    with torch.no_grad():
        for _ in range(9):
            text.append(int(model(torch.tensor([text]))[0][0, -1].argmax()))
    stops = text[len(ids) :]
    expected = BYTES.decode(stops[: stops.index(256)] if 256 in stops else stops)
    assert generate(model, BYTES, BYTES.decode(ids), max_tokens=9) == expected


def test_state_is_not_changed_and_can_be_used_again(model: CausalLM) -> None:
    with torch.no_grad():
        _, state = model(torch.tensor([BYTES.encode("a long story about a bear")]))
    before = [(name, x.clone()) for name, x in state.items()]
    first = generate(model, BYTES, "Who?", state=state, max_tokens=8)
    assert generate(model, BYTES, "Who?", state=state, max_tokens=8) == first
    for (name, x), (_, y) in zip(before, state.items(), strict=True):
        assert torch.equal(x, y), name
    with torch.no_grad():
        whole = "a long story about a bear" + "Who?"
    assert generate(model, BYTES, whole, max_tokens=8) == first


def test_state_of_several_rows_is_refused(model: CausalLM) -> None:
    with pytest.raises(UserError, match=r"state holds 3 rows.*select"):
        generate(model, BYTES, "x", state=model.init_state(3))


def test_memory_learns_in_eval_mode_and_nothing_has_a_gradient(model: CausalLM) -> None:
    _, state = generate(model.eval(), BYTES, "learn this, please", max_tokens=2, return_state=True)
    fresh = dict(model.init_state(1).items())
    changed = [name for name, x in state.items() if x.shape == fresh[name].shape and not torch.equal(x, fresh[name])]
    assert any("weights" in name for name in changed), changed
    assert not any(x.requires_grad for _, x in state.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "a"}, "seed is 'a'; it must be an integer, or None"),
        ({"seed": True}, "seed is True; it must be an integer"),
        ({"stop": 5}, "stop is 5; it must hold strings"),
        ({"stop": ["x", 5]}, "stop is .'x', 5.; it must hold strings"),
        ({"tokenizer": None}, "tokenizer is None; it must be the model's tokenizer"),
        ({"prompt": 3}, "prompt is 3; it must be a text"),
        ({"temperature": "hot"}, "temperature is 'hot'; it must be 0"),
        ({"top_p": None}, "top_p is None; it must be above 0"),
    ],
)
def test_arguments_of_the_wrong_type(options: dict[str, object], message: str) -> None:
    given = {"tokenizer": BYTES, "prompt": "say:", **options}
    with pytest.raises(UserError, match=message):
        generate(reciter("hello"), **given)  # type: ignore[arg-type]
