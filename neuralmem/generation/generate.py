"""Generate text: the prompt is read into the state in pieces, then tokens are sampled one by one.

Special: the memory learns from the prompt and from every sampled token, so there is no context limit; a state that is
passed in is never changed, so one state can answer many questions; text is yielded as soon as it is certain, which
means that a character whose bytes are not all there, or the possible beginning of a stop string, waits.
Nucleus sampling: Holtzman et al. 2020 (1904.09751).
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.generation.protocol import LanguageModel, StateLike, TokenizerLike, device_of

READ_PIECE = 2048  # tokens of a prompt per call: bounds the activations held at once, changes nothing else


def generate(
    model: LanguageModel,
    tokenizer: TokenizerLike,
    prompt: str,
    *,
    state: StateLike | None = None,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    return_state: bool = False,
) -> Any:
    """The model's continuation of a prompt.

    Args:
        model: a causal language model; its memory keeps learning from the prompt and from what is generated
        tokenizer: the model's tokenizer
        prompt: text to continue, at least one token
        state: what the model has read before, of one row; it is not changed. None: nothing
        max_tokens: at most so many new tokens
        temperature: 0 takes the likeliest token; higher is more random
        top_p: sample among the likeliest tokens that together have this probability, in (0, 1]
        stop: strings that end the text; the text is cut before them. The document separator always ends it
        seed: same seed, same text; None draws from torch's global generator
        return_state: also return the state after the prompt and every new token, the document separator excepted

    Returns:
        The new text, or `(text, state)` with `return_state`.

    Raises:
        UserError: an argument of the wrong type or out of range, an empty prompt, a state of more than one row.

    Example:
        >>> from neuralmem.generation.generate import generate
        >>> text = generate(model, tokenizer, "Who was Pierre's father?", state=state)      # doctest: +SKIP
    """
    pieces = generate_stream(
        model,
        tokenizer,
        prompt,
        state=state,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        stop=stop,
        seed=seed,
    )
    text, after = _drain(pieces)
    return (text, after) if return_state else text


def generate_stream(
    model: LanguageModel,
    tokenizer: TokenizerLike,
    prompt: str,
    *,
    state: StateLike | None = None,
    max_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
) -> Generator[str, None, Any]:
    """Like `generate`, but yields the text piece by piece; joined, the pieces are what `generate` returns.

    Arguments are checked at the call, before the first piece is asked for. The generator's return value
    (`StopIteration.value`, or `state = yield from ...`) is the state after everything generated.
    """
    stops = _check(max_tokens, temperature, top_p, stop, state)
    if not isinstance(tokenizer, TokenizerLike):
        raise UserError(f"tokenizer is {tokenizer!r}; it must be the model's tokenizer, as load returns it")
    if not isinstance(prompt, str):
        raise UserError(f"prompt is {prompt!r:.60}; it must be a text")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise UserError(f"seed is {seed!r}; it must be an integer, or None")
    ids = tokenizer.encode(prompt)
    if not ids:
        raise UserError("prompt is empty; it must hold at least one token")
    device = device_of(model)
    random = None if seed is None else torch.Generator(device=device).manual_seed(seed)
    sampled = _sample(model, torch.tensor(ids, device=device), state, max_tokens, temperature, top_p, random)
    return _text(sampled, tokenizer, stops)


generate.stream = generate_stream  # type: ignore[attr-defined]


def choose(logits: Tensor, temperature: float, top_p: float, random: torch.Generator | None) -> Tensor:
    """One token per row. logits Float[B, V] -> Int[B]; temperature 0 takes the likeliest.

    Example:
        >>> choose(torch.tensor([[0.0, 2.0, 1.0]]), 0.0, 1.0, None)
        tensor([1])
    """
    if temperature == 0:
        return logits.argmax(-1)
    probability, order = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
    # A token is kept when those before it do not reach top_p yet, so at least one always is.
    before = probability.cumsum(-1) - probability
    kept = probability.masked_fill(before >= top_p, 0.0)
    return order.gather(-1, torch.multinomial(kept, 1, generator=random)).squeeze(-1)


@torch.no_grad()
def _sample(
    model: LanguageModel,
    ids: Tensor,
    state: Any,
    max_tokens: int,
    temperature: float,
    top_p: float,
    random: torch.Generator | None,
) -> Generator[int, None, Any]:
    """Yields token ids; returns the state after the prompt and every token that was asked for after."""
    state = model.init_state(1) if state is None else state
    for piece in ids.split(READ_PIECE):
        last, state = _read(model, piece[None], state)
    for _ in range(max_tokens):
        if not last.isfinite().all():
            raise FloatingPointError(f"logits are not finite at position {int(state.position[0])}")
        token = choose(last, temperature, top_p, random)
        if (yield int(token)) is False:  # the consumer says that this token is not part of the text
            break
        last, state = _read(model, token[:, None], state)
    return state


def _read(model: LanguageModel, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
    """tokens Int[1, T] -> logits Float[1, V] after the last one, and the state."""
    last = torch.zeros_like(tokens, dtype=torch.bool)
    last[:, -1] = True
    return model(tokens, state, select=last)


def _text(sampled: Generator[int, Any, Any], tokenizer: TokenizerLike, stops: list[str]) -> Generator[str, None, Any]:
    """Tokens to text: holds back unfinished characters and what may be the beginning of a stop string."""
    ids: list[int] = []
    shown = held = 0  # ids before `shown` are out; decoding starts at `held`, whose text the next piece may depend on
    pending = ""
    verdict: bool | None = None
    while True:
        try:
            token = sampled.send(verdict)
        except StopIteration as end:
            tail = _decode_from(tokenizer, ids, held, shown)
            at = _first_stop(pending + tail, stops)
            yield from _nonempty((pending + tail)[:at])
            return end.value
        verdict = token != tokenizer.eos_id
        if not verdict:
            continue
        ids.append(token)
        piece = _decode_from(tokenizer, ids, held, shown)
        if piece.endswith("\ufffd") and len(ids) - shown < 8:  # bytes of a character are missing
            continue
        held, shown, pending = shown, len(ids), pending + piece
        at = _first_stop(pending, stops)
        if at is not None:
            yield from _nonempty(pending[:at])
            return _finish(sampled)
        ready = len(pending) - _possible_stop(pending, stops)
        yield from _nonempty(pending[:ready])
        pending = pending[ready:]


def _finish(sampled: Generator[int, Any, Any]) -> Any:
    """Let the sampler read the token that completed a stop string, and take its state."""
    try:
        sampled.send(True)
        sampled.send(False)
    except StopIteration as end:
        return end.value
    raise AssertionError("the sampler goes on after it was told to end")


def _drain(pieces: Generator[str, None, Any]) -> tuple[str, Any]:
    text = []
    while True:
        try:
            text.append(next(pieces))
        except StopIteration as end:
            return "".join(text), end.value


def _decode_from(tokenizer: TokenizerLike, ids: list[int], held: int, shown: int) -> str:
    """Text of ids[shown:], decoded after a little of what precedes it, on which some tokenizers' spaces depend."""
    return tokenizer.decode(ids[held:])[len(tokenizer.decode(ids[held:shown])) :]


def _first_stop(text: str, stops: list[str]) -> int | None:
    found = [at for at in (text.find(s) for s in stops) if at >= 0]
    return min(found, default=None)


def _possible_stop(text: str, stops: list[str]) -> int:
    """Characters at the end of text that could begin a stop string."""
    longest = min(len(text), max((len(s) for s in stops), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0)


def _nonempty(text: str) -> Iterator[str]:
    if text:
        yield text


def _check(
    max_tokens: int, temperature: float, top_p: float, stop: str | Sequence[str], state: StateLike | None
) -> list[str]:
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens!r}; it must be an integer of at least 1")
    if not isinstance(temperature, int | float) or not 0 <= temperature < float("inf"):
        raise UserError(f"temperature is {temperature!r}; it must be 0 (the likeliest token) or a positive number")
    if not isinstance(top_p, int | float) or not 0 < top_p <= 1:
        raise UserError(f"top_p is {top_p!r}; it must be above 0 and at most 1")
    stops = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, Iterable) else [stop]
    if not all(isinstance(s, str) and s for s in stops):
        raise UserError(f"stop is {stop!r}; it must hold strings of at least one character")
    if state is not None and len(state.position) != 1:
        raise UserError(
            f"state holds {len(state.position)} rows; generate continues one: take it with state.select([i])"
        )
    return stops
