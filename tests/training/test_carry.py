"""Documents longer than a row, read in steps with the memory carried along: exactly one long reading, cut gradient."""

from types import SimpleNamespace

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig
from neuralmem.data.batch import NO_LOSS, Batch
from neuralmem.data.packing import PackedText
from neuralmem.data.sources import Texts
from neuralmem.tokenizer import ByteTokenizer
from neuralmem.training.module import LanguageModel

CHUNK, LENGTH, STEPS = 4, 16, 6
TEXTS = ["Of all that was read, one long text. " * 2, "short", "A third is longer than a row.", "end"]


def batches(count: int) -> list[Batch]:
    """Two rows that go on from batch to batch, with documents that start and places without a token."""
    packed = PackedText(
        Texts(list(zip("abcd", TEXTS, strict=True))),
        ByteTokenizer(),
        length=LENGTH,
        batch_size=2,
        align=CHUNK,
        carry=True,
    )
    return [batch for batch, _ in zip(packed, range(count), strict=False)]


def joined(parts: list[Batch]) -> Batch:
    """The same rows in one batch."""
    masks = [torch.ones_like(x.tokens, dtype=torch.bool) if x.mask is None else x.mask for x in parts]
    resets = [torch.zeros_like(x.tokens, dtype=torch.bool) if x.reset is None else x.reset for x in parts]
    tokens, targets = (torch.cat([getattr(x, name) for x in parts], 1) for name in ("tokens", "targets"))
    return Batch(tokens, targets, mask=torch.cat(masks, 1), reset=torch.cat(resets, 1))


def module(pattern: str) -> LanguageModel:
    torch.manual_seed(0)
    attention = AttentionConfig(heads=2, window=6, persistent_tokens=2, segment=8)
    memory = MemoryConfig(rule="titans", heads=2, chunk_size=CHUNK)
    made = LanguageModel(vocab_size=257, width=16, depth=2, pattern=[pattern], attention=attention, memory=memory)
    made.trainer = SimpleNamespace(datamodule=SimpleNamespace(carry_memory=True), world_size=1)
    made.log = lambda *_, **__: None
    return made.double()


@pytest.mark.parametrize("pattern", ["titans_lmm", "titans_mac", "titans_mag", "titans_mal", "transformer"])
def test_steps_with_carried_memory_are_one_long_reading(pattern: str) -> None:
    short = batches(STEPS)
    long = joined(short)
    assert not long.mask.all()
    assert long.reset[:, 1:].any()
    carried, whole = module(pattern), module(pattern)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i, batch in enumerate(short):
        targets = int((batch.targets != NO_LOSS).sum())
        total, count = total + carried.training_step(batch, i)["loss"].detach() * targets, count + targets
    expected = whole.training_step(long, 0)["loss"].detach()
    torch.testing.assert_close(total / count, expected, rtol=1e-10, atol=0)
    for (name, x), (_, y) in zip(carried.carried.items(), whole.carried.items(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9, msg=name)


def test_gradients_end_where_the_step_begins() -> None:
    first, second = batches(2)
    carried = module("titans_mag")
    carried.training_step(first, 0)
    before = carried.carried
    carried.training_step(second, 1)["loss"].backward()
    alone = module("titans_mag")
    alone.carried = before.clone()
    alone.training_step(second, 0)["loss"].backward()
    for (name, p), q in zip(carried.named_parameters(), alone.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad), name


def test_what_was_read_before_changes_the_loss() -> None:
    first, second = batches(2)
    carried, fresh = module("titans_lmm"), module("titans_lmm")
    carried.training_step(first, 0)
    assert carried.training_step(second, 1)["loss"] != fresh.training_step(second, 0)["loss"]
