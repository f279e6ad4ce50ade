"""lm-evaluation-harness without a network: RULER by its official names, and local tasks that measure bits per byte.

RULER's data are made by the harness's own code. Two things it would download lie in a folder instead: essays, for which
other text stands, and nltk's model of where sentences end, which here has learned nothing.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import neuralmem as nm
from neuralmem.data.corpus import haystack_text
from neuralmem.evaluation.scoring import official
from tests.hf.conftest import CONFIG

pytest.importorskip("transformers", reason="transformers is not installed: pip install neuralmem[hf]")
pytest.importorskip(
    "lm_eval.models.huggingface",
    reason="lm-eval is not installed: pip install neuralmem[eval]; then answers, RULER's scores and bits per byte are "
    "compared with those of the harness",
)
import lm_eval
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks.ruler.common_utils import process_results
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

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
# All of RULER but ruler_qa_squad and ruler_qa_hotpot, whose questions are nowhere but in a download.
RULER = [
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multivalue", "niah_multiquery", "ruler_vt", "ruler_cwe", "ruler_fwe"),
]
LENGTH = 2048  # in less, ruler_cwe asks for the words of an empty list
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"


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


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the harness would look before it downloads: nltk's path, and a folder of the data's name."""
    punkt = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    essays = tmp_path / "baber" / "paul_graham_essays"
    punkt.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (punkt / name).touch()
    essays.mkdir(parents=True)
    (essays / "train.jsonl").write_text(json.dumps({"text": haystack_text(20_000)}) + "\n")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nltk")])
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model that still computes the same after thousands of tokens, whatever the batch is (stirred ones
    grow a difference of rounding until texts differ), with a BPE: an example of ruler_vt that does not fit into 500
    tokens is tried for ever."""
    tokenizer = nm.train_bpe([haystack_text(20_000), NOISE * 50], vocab_size=600)
    attention = dataclasses.replace(CONFIG.attention, segment=64)
    memory = nm.MemoryConfig(heads=2, expansion=1.5, chunk_size=64)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, attention=attention, memory=memory)
    folder = tmp_path_factory.mktemp("reader")
    nm.save(folder, nm.CausalLM(config).double(), tokenizer)
    return folder


def ruler(run: Path, length: int) -> TaskManager:
    """The harness's own task files of RULER, which asks for the tokenizer; to read all its task files takes seconds."""
    files = Path(lm_eval.__file__).parent / "tasks" / "ruler"
    metadata = {"pretrained": str(run), "max_seq_lengths": [length]}
    return TaskManager(include_path=str(files), include_defaults=False, metadata=metadata)


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize("task", RULER)
def test_a_task_of_ruler_is_answered_as_we_answer_and_scored_as_we_score(task: str, reader: Path) -> None:
    model, tokenizer = nm.load(reader)
    assert tokenizer is not None
    hf = AutoModelForCausalLM.from_pretrained(reader)
    lm = HFLM(pretrained=hf, tokenizer=AutoTokenizer.from_pretrained(reader), batch_size=2, max_length=2 * LENGTH)
    settings: dict[str, Any] = {"limit": 2, "bootstrap_iters": 0, "gen_kwargs": {"max_gen_toks": 8}}
    found = simple_evaluate(lm, tasks=[task], task_manager=ruler(reader, LENGTH), **settings)
    scores = []
    for sample in found["samples"][task]:
        prompt, (answer,), truth = sample["arguments"][0][0], sample["resps"][0], sample["doc"]["outputs"]
        assert LENGTH / 3 < len(tokenizer.encode(prompt)) <= LENGTH
        assert answer == nm.generate(model, tokenizer, prompt, max_tokens=8)
        for said in (f" {', '.join(truth)}.\n", truth[0].upper(), truth[-1][:-1]):
            assert process_results(sample["doc"], [said])[str(LENGTH)] == official(said, truth)
        scores.append(official(answer, truth))
    assert found["results"][task][f"{LENGTH},none"] == sum(scores) / len(scores)


@pytest.mark.usefixtures("downloads")
def test_a_trained_model_finds_rulers_needle_by_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command line runs it: a folder for the hub, its code trusted, no settings but max_length."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    hub = tmp_path / "hub"
    neuralmem.hf.export("neuralmem/mag-tiny", hub)
    command: dict[str, Any] = {
        "model": "hf",
        "model_args": {"pretrained": str(hub), "trust_remote_code": True, "max_length": 8192},
        "tasks": ["niah_single_1"],
        "device": "cpu",
        "limit": 2,
        "bootstrap_iters": 0,
    }
    found = simple_evaluate(**command, metadata={"max_seq_lengths": [4096]})
    assert found["results"]["niah_single_1"]["4096,none"] == 1
    model, tokenizer = nm.load("neuralmem/mag-tiny")
    assert tokenizer is not None
    for sample in found["samples"]["niah_single_1"]:
        assert sample["resps"] == [[nm.generate(model, tokenizer, sample["arguments"][0][0], max_tokens=128)]]
    silent = simple_evaluate(**command, task_manager=ruler(hub, 4096), gen_kwargs={"memory": "off"})
    assert silent["results"]["niah_single_1"]["4096,none"] == 0
