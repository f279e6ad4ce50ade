"""One batch of token rows: the only thing that a data source hands to training and evaluation.

A NamedTuple, so that Lightning and data loaders move and pin it as they move a tuple; fields that are None stay None.
"""

from typing import NamedTuple

import torch
from torch import Tensor

NO_LOSS = -100  # target that has no loss, as torch.nn.functional.cross_entropy ignores it


class Batch(NamedTuple):
    """Rows of tokens and what to predict from them.

    Attributes:
        tokens: Int[B, T] the input
        targets: Int[B, T] the next token of the same document; -100 where there is none
        weights: Float[B, T] loss weight of every target; None: all 1
        mask: Bool[B, T] True on real tokens; None: all are real
        reset: Bool[B, T] True on a document's first token; None: no document starts in this batch, or only where a row
            starts from a fresh state anyway
        answers: Bool[B, T] True where the target is part of an answer; None: there are no questions
        groups: Int[B, T] which of its row's answers a target belongs to, 0, 1, ...; -1 elsewhere; None as `answers`
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor | None = None
    mask: Tensor | None = None
    reset: Tensor | None = None
    answers: Tensor | None = None
    groups: Tensor | None = None


def exact_answers(batch: Batch, predicted: Tensor) -> Tensor:
    """Which answers are right in every token.

    Args:
        batch: a batch with answers
        predicted: Int[B, T] predicted targets, for example `logits.argmax(-1)`

    Returns:
        Bool[N] one element per answer of the batch, row by row in order of the group numbers; N = 0 without answers.

    Example:
        >>> answers, groups = torch.tensor([[False, True, True, True]]), torch.tensor([[-1, 0, 0, 1]])
        >>> batch = Batch(torch.zeros(1, 4), torch.tensor([[-100, 7, 8, 9]]), answers=answers, groups=groups)
        >>> exact_answers(batch, torch.tensor([[0, 7, 8, 8]])).tolist()
        [True, False]
    """
    if batch.answers is None or batch.groups is None or not bool(batch.answers.any()):
        return torch.zeros(0, dtype=torch.bool, device=batch.tokens.device)
    count = int(batch.groups.max()) + 1
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)[:, None]
    slots = (rows * count + batch.groups)[batch.answers]  # one slot per (row, group)
    wrong = (predicted != batch.targets)[batch.answers].long()
    size = len(batch.tokens) * count
    present = torch.bincount(slots, minlength=size) > 0
    return (torch.zeros(size, dtype=torch.long, device=slots.device).index_add(0, slots, wrong) == 0)[present]
