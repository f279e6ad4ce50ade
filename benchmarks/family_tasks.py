"""The texts of the family benchmark: pairs to recall, pairs that are changed, and prose, in one vocabulary.

Symbols are the 256 bytes, then keys, values and fillers. A row of recall is facts `key value` between fillers, a gap
wider than attention reaches, and every key asked once; a row of overwriting states half of the keys twice and asks for
the latest value. Which value goes with which key is drawn anew for each row, so nothing but memory can know it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuralmem.data.corpus import documents

BYTES, KEYS, VALUES, FILLERS = 256, 256, 64, 16
VOCABULARY = BYTES + KEYS + VALUES + FILLERS
FIRST_KEY, FIRST_VALUE, FIRST_FILLER = BYTES, BYTES + KEYS, BYTES + KEYS + VALUES
IGNORE = -100


@dataclass(frozen=True)
class Rows:
    """Tokens, their targets, and for every target what an outdated fact would have said.

    Args:
        tokens: Int [B, T]
        targets: Int [B, T], the next token where it counts, else -100
        stale: Int [B, T], the value that the key had before, -100 where it had none
    """

    tokens: Tensor
    targets: Tensor
    stale: Tensor


def text(side: str) -> Tensor:
    """The built-in prose as bytes, Int [N]; `side` is "train" or "validation"."""
    joined = "\n\n".join(document.text for document in documents("builtin", side))  # type: ignore[arg-type]
    return torch.tensor(list(joined.encode()), dtype=torch.long)


def prose(rng: np.random.Generator, source: Tensor, rows: int, length: int) -> Rows:
    """Pieces of prose of which every byte counts."""
    starts = torch.from_numpy(rng.integers(0, len(source) - length - 1, rows))
    pieces = source[starts[:, None] + torch.arange(length + 1)]
    tokens, targets = pieces[:, :-1], pieces[:, 1:]
    return Rows(tokens, targets, torch.full_like(targets, IGNORE))


def pairs(
    rng: np.random.Generator, rows: int, *, facts: int, gap: int, keys: int = KEYS, changed: int = 0, spread: int = 4
) -> Rows:
    """Facts, a gap of fillers, then every key asked once in another order.

    Args:
        rng: what draws
        rows: how many
        facts: different keys of a row
        gap: fillers between the last fact and the first question
        keys: how many of the keys are in use
        changed: so many of the keys are stated again, later, with another value
        spread: fillers among the facts, per fact, at random places
    """
    names = np.argsort(rng.random((rows, keys)), 1)[:, :facts]
    first = rng.integers(0, VALUES, (rows, facts))
    second = (first[:, :changed] + rng.integers(1, VALUES, (rows, changed))) % VALUES
    stated = np.concatenate([names, names[:, :changed]], 1), np.concatenate([first, second], 1)
    latest = np.concatenate([second, first[:, changed:]], 1)
    count = facts + changed
    head, length = count * (2 + spread), count * (2 + spread) + gap + 2 * facts
    tokens = rng.integers(FIRST_FILLER, VOCABULARY, (rows, length + 1))
    places = np.sort(rng.integers(0, spread * count + 1, (rows, count)), 1) + 2 * np.arange(count)
    row = np.arange(rows)[:, None]
    tokens[row, places], tokens[row, places + 1] = stated[0] + FIRST_KEY, stated[1] + FIRST_VALUE
    order = np.argsort(rng.random((rows, facts)), 1)
    asked = head + gap + 2 * np.arange(facts)
    tokens[:, asked] = np.take_along_axis(names, order, 1) + FIRST_KEY
    tokens[:, asked + 1] = np.take_along_axis(latest, order, 1) + FIRST_VALUE
    targets, stale = np.full((2, rows, length), IGNORE)
    targets[:, asked] = tokens[:, asked + 1]
    before = np.where(np.arange(facts) < changed, first + FIRST_VALUE, IGNORE)
    stale[:, asked] = np.take_along_axis(before, order, 1)
    return Rows(*(torch.from_numpy(x) for x in (tokens[:, :length], targets, stale)))


def mixture(rng: np.random.Generator, source: Tensor, tokens: int, length: int, keys: int) -> Rows:
    """A training batch, the same for every member: recall, overwriting and prose, a third of the rows each.

    Args:
        rng: what draws; one per step
        source: prose to cut from
        tokens: of the batch, about
        length: of a row
        keys: how many of the keys are in use, the curriculum
    """
    rows = max(1, tokens // length // 3)
    facts = 8
    recall_gap = length - 8 * facts  # facts with their spread, and questions, take eight places each
    overwrite_gap = length - 8 * facts - 6 * (facts // 2)
    parts = (
        pairs(rng, rows, facts=facts, gap=recall_gap, keys=keys),
        pairs(rng, rows, facts=facts, gap=overwrite_gap, keys=keys, changed=facts // 2),
        prose(rng, source, rows, length),
    )
    return Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "targets", "stale")))
