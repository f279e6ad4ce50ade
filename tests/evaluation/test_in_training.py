"""The probes of a training run: what they ask, of a model whose answers are known."""

import math
from pathlib import Path

import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.evaluation.in_training import Needles, PerplexityByPosition
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.fake import Oracle, Place


@pytest.fixture
def data(text_file: Path) -> dict:
    arguments = {"source": str(text_file), "sequence_length": 128, "form": {"key_tokens": 0}}
    return {"class_path": "TextData", "init_args": {**arguments, "validation": {"share": 0.2}}}


def test_needles_are_found_by_a_model_that_remembers(oracle: Oracle, data: dict) -> None:
    reading = Needles(lengths=[512, 256], samples=6, batch_size=4)(oracle, oracle.tokenizer, data)
    assert reading.values == {f"{name}_{n}": 1.0 for name in ("found", "likeliest") for n in (256, 512)}
    assert reading.curves["answered exactly"] == [(256, 1), (512, 1)]


def test_needles_are_not_found_by_one_that_does_not(data: dict) -> None:
    oracle = Oracle(broken=True)
    values = Needles(samples=6)(oracle, oracle.tokenizer, data).values
    assert set(values.values()) == {0.0}
    assert values.keys() == {"found_128", "found_512", "likeliest_128", "likeliest_512"}


def test_the_same_prompts_are_asked_every_time(oracle: Oracle, data: dict) -> None:
    probe = Needles(lengths=[256], samples=3)
    probe(oracle, oracle.tokenizer, data)
    first = [sample.rope.sha256() for sample in probe.prompts[256]]
    again = Needles(lengths=[256], samples=3)
    again(oracle, oracle.tokenizer, data)
    assert [sample.rope.sha256() for sample in again.prompts[256]] == first


class Counting:
    """Knows the next token where it stands at an odd position, and with memory at an even one too; else it guesses."""

    has_memory = True

    def __init__(self, text: torch.Tensor) -> None:
        self.text = text

    def init_state(self, batch_size: int) -> Place:
        return Place(torch.zeros(batch_size, dtype=torch.long))

    def __call__(self, tokens, state, *, memory="on", **_):
        logits = torch.zeros(*tokens.shape, 257)
        start = int(state.position[0])
        for i in range(tokens.shape[1]):
            if memory == "on" or (start + i) % 2:
                target = self.text[:, start + i + 1, None]
                logits[:, i] = torch.zeros(len(tokens), 257).scatter(1, target, 1e4)
        return logits, Place(state.position + tokens.shape[1])


def test_perplexity_is_the_loss_of_each_stretch_of_held_out_text(data: dict) -> None:
    probe = PerplexityByPosition(length=200, rows=3, stream_chunk=48)
    probe(Oracle(), ByteTokenizer(), data)
    assert probe.text is not None
    assert probe.text.shape == (3, 201)
    reading = probe(Counting(probe.text), ByteTokenizer(), data)
    assert [x for x, _ in reading.curves["memory on"]] == [32, 64, 128, 200]
    assert [y for _, y in reading.curves["memory on"]] == [0, 0, 0, 0]
    assert [y for _, y in reading.curves["memory frozen"]] == pytest.approx([math.log(257) / 2] * 4, abs=1e-5)
    assert reading.values["loss_to_200"] == 0


def test_short_documents_are_joined_and_too_little_text_is_said(data: dict, tmp_path: Path) -> None:
    file = tmp_path / "short.jsonl"
    file.write_text("".join(f'{{"text": "line {i} of a short text"}}\n' for i in range(200)))
    data["init_args"]["source"] = str(file)
    probe = PerplexityByPosition(length=64, rows=2)
    probe(Oracle(), ByteTokenizer(), data)
    with pytest.raises(UserError, match=r"^probe perplexity has rows 99 of length 640; the held-out text is enough"):
        PerplexityByPosition(length=640, rows=99)(Oracle(), ByteTokenizer(), data)


@pytest.mark.parametrize("probe", [Needles(), PerplexityByPosition()], ids=["needle", "perplexity"])
def test_without_a_tokenizer_there_is_no_text(probe: Needles, data: dict) -> None:
    with pytest.raises(UserError, match=f"^probe {probe.name} needs a tokenizer"):
        probe(Oracle(), None, data)
