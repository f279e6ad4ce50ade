"""The controls read less of a prompt than there is, and say the same; only the logits that are used are computed."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.evaluation.cell import Cell
from neuralmem.evaluation.haystack import open_haystack
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.protocols import ruler
from neuralmem.evaluation.reader import Answer, Reader
from neuralmem.evaluation.sample import Sample
from neuralmem.models.causal_lm import CausalLM
from neuralmem.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
PATTERNS = (
    ["transformer", "titans_mal"],
    ["titans_mag"],
    ["titans_mac"],
    ["titans_mac", "transformer"],
    ["titans_lmm"],
)


def small(pattern: list[str], window: int | None = 20) -> CausalLM:
    torch.manual_seed(1)
    attention = AttentionConfig(heads=2, window=window, persistent_tokens=2, segment=24)
    memory = MemoryConfig(heads=1, chunk_size=16)
    model = CausalLM(ModelConfig(257, 16, len(pattern), pattern, attention=attention, memory=memory))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))  # so that every path matters
    return model.eval()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Prompts of different lengths."""
    cell = Cell(find_task("s-niah-w-words"), "ruler2025", 1200, open_haystack("grammar", 20_000), 0, BYTES.encode)
    build = ruler(cell)
    found = [build(i, None, cell.random(i)) for i in range(4)]
    assert len({len(sample.rope) for sample in found}) > 1
    return found


class Counted:
    """A model, and how much it was asked."""

    def __init__(self, model: Any) -> None:
        self.model, self.tokens, self.logits = model, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, tokens: Any, *rest: Any, **options: Any) -> Any:
        logits, state = self.model(tokens, *rest, **options)
        self.tokens += tokens.shape[1]
        self.logits += logits.numel() // logits.shape[-1]
        return logits, state


def asked(model: Any, samples: list[Sample], ablations: list[str], whole: bool = False) -> Iterator[tuple[str, Answer]]:
    reader = Reader(model, BYTES, 200, segment=24)
    if whole:
        reader._first = lambda sample, mode: 0  # type: ignore[method-assign]
    for name, answers in reader.ask(samples, ablations, 6):
        yield from ((name, answer) for answer in answers)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_controls_that_write_nothing_answer_from_the_end_of_the_haystack(
    pattern: list[str], samples: list[Sample]
) -> None:
    model = small(pattern).double()  # so that the order of additions does not show
    counted = Counted(model)
    short = list(asked(counted, samples, ["frozen", "off"]))
    assert counted.tokens < 1200, "less than one prompt"
    full = list(asked(model, samples, ["frozen", "off"], whole=True))
    assert [name for name, _ in short] == [name for name, _ in full] == ["frozen"] * 4 + ["off"] * 4
    for (_, a), (_, b) in zip(short, full, strict=True):
        assert a.text == b.text
        assert a.log_likelihoods == pytest.approx(b.log_likelihoods, abs=1e-5), "the last logits are kept in fp32"
        assert a.state_bytes == b.state_bytes


def test_reading_begins_where_the_question_can_see(samples: list[Sample]) -> None:
    model = small(["transformer"], window=400).double()
    assert model.reach == 399
    reader = Reader(model, BYTES)
    for sample in samples:
        first = reader._first(sample, "off")
        assert first == max(0, sample.question - 1 - model.reach)


def test_full_attention_reads_everything(samples: list[Sample]) -> None:
    model = small(["transformer", "titans_mal"], window=None)
    assert {Reader(model, BYTES)._first(sample, mode) for sample in samples for mode in ("on", "frozen", "off")} == {0}


def test_memory_that_is_on_reads_everything(samples: list[Sample]) -> None:
    model = small(["titans_mag"])
    assert {Reader(model, BYTES)._first(sample, "on") for sample in samples} == {0}


def test_logits_are_computed_where_they_are_used(samples: list[Sample]) -> None:
    counted = Counted(small(["titans_mag"]))
    list(asked(counted, samples, ["none"]))
    used = 4 * 2 + sum(len(ids) - 1 for sample in samples for ids in sample.candidates) + 4 * 5
    assert counted.logits <= used


def test_progress_adds_up_to_the_prompts(samples: list[Sample]) -> None:
    told: list[int] = []
    list(Reader(small(["titans_mag"]), BYTES, 200, told.append).ask(samples, ["none", "frozen", "off"], 1))
    assert sum(told) == 3 * sum(len(sample.rope) for sample in samples)
