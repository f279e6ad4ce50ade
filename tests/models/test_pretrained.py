"""The trained models in the package: whole, small, described, and they do find what a text told long ago."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import neuralmem as nm
from neuralmem.data.corpus import haystack_text
from neuralmem.evaluation.recall import read_training_data
from neuralmem.models.checkpoint import verify
from neuralmem.models.pretrained import FOLDER, is_shipped, locate, names

ROOT = Path(__file__).parent.parent.parent
shipped = pytest.mark.parametrize("name", names())


def test_there_are_some_and_they_are_small() -> None:
    sizes = {name: sum(file.stat().st_size for file in locate(name).iterdir()) for name in names()}
    assert sizes, "none is shipped"
    assert max(sizes.values()) <= 8e6
    assert sum(sizes.values()) <= 24e6


@shipped
def test_each_is_whole_and_says_how_it_was_made(name: str) -> None:
    folder = locate(name)
    assert {"config.json", "model.safetensors", "tokenizer.json", "data.json"} <= set(verify(folder))
    made = json.loads((folder / "made.json").read_text())
    assert made["name"] == name
    configs = [ROOT / file for file in re.findall(r"--config (\S+)", made["command"])]
    model_stem = name.removeprefix("neuralmem/").replace("-", "_")
    assert configs[-1].stem == model_stem  # it makes the model, those before it what it begins with
    for config in configs:
        kept = f"config{config.stem.removeprefix(model_stem).replace('_', '-')}.yaml"
        assert config.read_text() == (folder / kept).read_text()
    settings = yaml.safe_load(configs[-1].read_text())
    assert made["seed"] == settings["seed_everything"]
    data = settings["data"]["init_args"]
    assert read_training_data(name).length == data.get("sequence_length", data.get("stages", [{}])[-1].get("length"))
    assert {"training", "data", "trained", "scores", "parameters"} <= made.keys()
    model, tokenizer = nm.load(name)
    assert isinstance(tokenizer, nm.ByteTokenizer) is (data["tokenizer"] == "bytes")
    assert sum(p.numel() for p in model.parameters()) == made["parameters"]


@pytest.mark.parametrize(("key", "value"), [("harbour", "4711"), ("window", "0815"), ("string", "2718")])
@pytest.mark.parametrize("name", ["mag-tiny", "mac-tiny"])
def test_what_the_text_told_is_said_far_beyond_reach_and_only_with_the_memory(name: str, key: str, value: str) -> None:
    model, tokenizer = nm.load(f"neuralmem/{name}")
    assert tokenizer is not None
    read = torch.tensor([tokenizer.encode(f"@{key} {value}\n{haystack_text(8192)}")])
    assert read.shape[1] > 30 * model.reach
    with torch.no_grad():
        states = {memory: model(read, memory=memory)[1] for memory in ("on", "frozen")}
    said = {
        memory: nm.generate(model, tokenizer, f"@{key}", state=state, max_tokens=5) for memory, state in states.items()
    }
    assert said["on"] == f" {value}"
    assert said["frozen"] != f" {value}"


@pytest.mark.parametrize(("key", "value"), [("harbour", "4711"), ("window", "0815"), ("string", "2718")])
def test_the_control_has_learned_to_recall_and_only_what_its_window_shows(key: str, value: str) -> None:
    model, tokenizer = nm.load("neuralmem/window-tiny")
    assert tokenizer is not None
    said = {
        length: nm.generate(model, tokenizer, f"@{key} {value}\n{haystack_text(length)}\n@{key}", max_tokens=5)
        for length in (30, 4096)
    }
    assert said[30] == f" {value}"
    assert said[4096] != f" {value}"


def test_the_tables_are_made_from_the_shipped_scores(load: Any) -> None:
    tables = load("checkpoint_tables")
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    assert tables.compare(tables.ROWS) in (ROOT / "README.md").read_text()
    assert tables.about() in page
    assert f"start -->\n{tables.side_by_side()}\n<!--" in (ROOT / "docs" / "baselines.md").read_text()
    assert tables.compare(tables.ROWS | tables.CONTROL_ROWS | tables.MORE_ROWS) in page
    assert f"<!-- positions:start -->\n{tables.by_position()}\n<!--" in page


def test_a_wrong_name_is_answered_by_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(nm.UserError, match=r"neuralmem/mag-tinny does not exist; did you mean 'neuralmem/mag-tiny'\?"):
        nm.load("neuralmem/mag-tinny")
    assert is_shipped("neuralmem/mag-tiny")
    (tmp_path / "neuralmem" / "mag-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_shipped("neuralmem/mag-tiny")
    assert locate("neuralmem/mag-tiny") != FOLDER / "mag-tiny"
