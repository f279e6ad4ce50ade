"""One token at a time after a long text: does the time per token depend on how long it was?

The text is read by the fastest backend, once; every contender decodes from the states left at the same positions, a
whole chunk of tokens, the write at its end included. Its own states for titans-pytorch, which reads slower and stops
earlier. All positions and contenders race in turns.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from contenders import Contender, Shape, autocast, build_layer, tokens
from race import Ticker, race
from torch import nn

PIECE = 8192  # tokens read per call


def decode(
    shape: Shape,
    contenders: list[Contender],
    positions: tuple[int, ...],
    far: dict[str, int],
    ticker: Ticker,
    options: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Rows of seconds per token.

    Args:
        shape: of the layer; `total` does not matter
        contenders: who decodes, the one that reads first
        positions: multiples of the chunk size, rising
        far: the last position of some contenders, by name
        ticker: shows who runs
        options: of the race
    """
    ours = [contender for contender in contenders if contender.kind != "titans-pytorch"]
    runs: dict[tuple[str, int], Callable[[], Any]] = {}
    states: dict[int, Any] = {}
    for contender in contenders:
        ends = tuple(p for p in positions if p <= far.get(contender.name, p))
        module = build_layer(contender, shape)
        if contender == ours[0] or contender not in ours:
            ticker.say(f"{contender.name} reads {ends[-1]} tokens")
            states = read(module, shape, ends, contender.bf16)
        for position in ends:
            runs[contender.name, position] = one_by_one(module, shape, states[position], contender.bf16)
    times = race({f"{name} at {position}": run for (name, position), run in runs.items()}, ticker, **options)
    for name, position in runs:
        found = times[f"{name} at {position}"]
        per_token = {
            kind: {x: seconds / shape.chunk for x, seconds in found[kind].items()}
            for kind in ("cpu", "wall")
            if kind in found
        }
        row = {"section": "decode", "contender": name, "position": position, "threads": torch.get_num_threads()}
        yield row | asdict(shape) | found | per_token


@torch.no_grad()
def read(module: nn.Module, shape: Shape, positions: tuple[int, ...], bf16: bool) -> dict[int, Any]:
    """The states after so many tokens of one random text."""
    torch.manual_seed(1)
    states, state, at = {}, None, 0
    for position in positions:
        while at < position:
            count = min(PIECE, position - at)
            with autocast(bf16):
                _, state = module(tokens(replace(shape, total=count)), state=state)
            at += count
        states[position] = state
    return states


def one_by_one(module: nn.Module, shape: Shape, state: Any, bf16: bool) -> Callable[[], Any]:
    """Read a chunk of tokens, each in a call of its own, from the same state every time."""
    x = tokens(replace(shape, total=shape.chunk))

    @torch.no_grad()
    def run() -> None:
        at = state
        with autocast(bf16):
            for t in range(shape.chunk):
                _, at = module(x[:, t : t + 1], state=at)

    return run
