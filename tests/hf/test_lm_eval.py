"""lm-evaluation-harness on local tasks, without a network: it generates, and it measures bits per byte."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import neuralmem as nm
from tests.hf.conftest import CONFIG

pytest.importorskip("transformers", reason="transformers is not installed: pip install neuralmem[hf]")
pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval[hf] is not installed: pip install neuralmem[eval]")
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuralmem.hf

# Texts of unequal length, the first longer than max_length, so that batches are padded and windows roll.
TEXTS = ["The magic number is 4711. " * 9, "Né à Paris, the magic number is 12.", "x"]
MAX_LENGTH, NEW = 128, 6
NEEDLE = """
task: local_needle
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
BITS = """
task: local_bits
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: bits_per_byte}
  - {metric: word_perplexity}
"""
DATA = """
dataset_path: json
dataset_kwargs:
  data_files: {test: FILE}
test_split: test
metadata: {version: 1.0}
"""


@pytest.fixture
def tasks(tmp_path: Path, model: nm.CausalLM) -> Path:
    """Task files, whose answers are what the model says to each text alone, but for the last, which is wrong."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    answers = [nm.generate(model, nm.ByteTokenizer(), text[-MAX_LENGTH + NEW :], max_tokens=NEW) for text in TEXTS]
    answers[-1] += "!"
    rows = [{"text": text, "answer": answer} for text, answer in zip(TEXTS, answers, strict=True)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, task in (("needle", NEEDLE), ("bits", BITS)):
        (folder / f"{name}.yaml").write_text(task + DATA.replace("FILE", str(folder / "test.jsonl")))
    return folder


def evaluate(model: Any, run: Path, tasks: Path, names: list[str]) -> dict[str, Any]:
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(run), batch_size=3, max_length=MAX_LENGTH)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return simple_evaluate(lm, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]


def bits_per_byte(model: nm.CausalLM) -> float:
    """Windows of at most MAX_LENGTH predictions each, as the harness rolls them; each is read by a fresh memory."""
    total = 0.0
    for text in TEXTS:
        ids = [256, *nm.ByteTokenizer().encode(text)]
        at = 0
        while at < len(ids) - 1:
            end = min(at + MAX_LENGTH, len(ids) - 1)
            begin = max(0, end - MAX_LENGTH) if at else 0  # later windows are filled up with what was scored before
            logits = model(torch.tensor([ids[begin:end]]))[0][0, at - begin :]
            total += float(F.cross_entropy(logits, torch.tensor(ids[at + 1 : end + 1]), reduction="sum"))
            at = end
    return total / math.log(2) / sum(len(text.encode()) for text in TEXTS)


@torch.no_grad()
def test_the_harness_measures_what_we_measure(run: Path, model: nm.CausalLM, tasks: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(run)
    results = evaluate(hf, run, tasks, ["local_needle", "local_bits"])
    assert results["local_needle"]["exact_match,none"] == pytest.approx(2 / 3)
    assert results["local_bits"]["bits_per_byte,none"] == pytest.approx(bits_per_byte(model), rel=1e-6)


def test_a_model_that_knows_nothing_needs_log_of_the_vocabulary(tmp_path: Path, run: Path, tasks: Path) -> None:
    silent = nm.CausalLM(CONFIG)
    torch.nn.init.zeros_(silent.head.weight)
    nm.save(tmp_path / "silent", silent, nm.ByteTokenizer())
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "silent")
    bits = evaluate(hf, run, tasks, ["local_bits"])["local_bits"]["bits_per_byte,none"]
    assert bits == pytest.approx(math.log2(257), rel=1e-6)
