"""Losses of a model whose losses are known in closed form, however its text is cut, under every control."""

import sys
from itertools import pairwise

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.evaluation.losses import READINGS, LossReader, bucket_ends, bucket_means
from neuralmem.models.causal_lm import CausalLM
from tests.evaluation.fake import Learner


def letters(size: int, start: int = 0, capitals_from: int | None = None) -> torch.Tensor:
    """The alphabet over and over, in capitals from a place on."""
    text = [97 + (start + i) % 26 for i in range(size)]
    return torch.tensor([c if capitals_from is None or i < capitals_from else c - 32 for i, c in enumerate(text)])


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_losses_are_those_of_each_token_after_all_before_it(chunk: int) -> None:
    model, rows = Learner(reach=10), [letters(50), letters(3, 5), letters(121, 20)]
    for reading in ("on", "frozen", "off"):
        found = LossReader(model, chunk).read(rows, reading)
        assert [len(row) for row in found.rows] == [49, 2, 120]
        for row, losses in zip(rows, found.rows, strict=True):
            expected = [model.loss(int(token), i + 1, reading) for i, token in enumerate(row[:-1])]
            assert losses.tolist() == pytest.approx(expected, abs=1e-4)
        assert found.state_bytes == 500


@pytest.mark.parametrize("segment", [1, 16])
def test_window_cuts_the_history(segment: int) -> None:
    model, row = Learner(reach=40), letters(200)
    reader = LossReader(model, 64, segment)
    losses = reader.read([row, row[:9]], "window").rows
    assert [len(some) for some in losses] == [199, 8]
    known = []  # how much it must have known, from its loss
    for i, nats in enumerate(losses[0].tolist()):
        longest = model.loss(int(row[i]), 1)
        known.append(round(2 ** ((longest - nats) / 0.15)))
    assert known[:41] == list(range(1, 42)), "all of it while it is no longer than the reach"
    assert all(41 <= k <= 41 + 31 + segment for k in known[40:]), "the reach, and a stride and a segment at most"
    assert max(known) > 41
    before = model.tokens
    reader.read([row], "window")
    assert model.tokens - before == reader.cost(200, "window")


def test_window_of_a_real_model_is_reading_the_last_tokens_alone() -> None:
    torch.manual_seed(0)
    attention, memory = AttentionConfig(heads=1, window=8), MemoryConfig(heads=1, chunk_size=8)
    model = CausalLM(ModelConfig(257, 16, 1, ["titans_mag"], attention=attention, memory=memory)).double().eval()
    row = torch.randint(257, (150,))
    reader = LossReader(model, 16)
    (losses,) = reader.read([row], "window").rows
    for begin, start, stop in reader._places(150):
        with torch.no_grad():
            logits, _ = model(row[None, begin : stop - 1])
        alone = torch.nn.functional.cross_entropy(logits[0].float(), row[begin + 1 : stop], reduction="none")
        assert torch.allclose(losses[start - 1 : stop - 1], alone[start - 1 - begin :], atol=1e-5)
    on, frozen = (reader.read([row], name).rows[0] for name in ("on", "frozen"))
    assert torch.allclose(losses[: model.reach], on[: model.reach], atol=1e-5)
    assert not torch.allclose(on, frozen, atol=1e-4)


def test_what_a_model_can_be_read_under() -> None:
    model = Learner()
    assert LossReader(model).readings() == READINGS
    model.reach = sys.maxsize
    assert LossReader(model).readings() == ("on", "frozen", "off")
    model.has_memory = False
    assert LossReader(model).readings() == ("on",)


@pytest.mark.parametrize(("length", "anchor"), [(1, 32), (32, 32), (33, 32), (4096, 256), (5000, 384), (100, 4096)])
def test_buckets_double_and_end_at_the_anchor(length: int, anchor: int) -> None:
    ends = bucket_ends(length, anchor)
    assert ends[-1] == length
    assert anchor in ends or length < anchor
    assert all(b == 2 * a for a, b in pairwise(ends[:-1]))
    assert ends[0] >= min(32, length)


def test_bucket_means() -> None:
    assert bucket_means(torch.tensor([1.0, 3.0, 5.0]), [2, 3]) == [2, 5]
