"""The trained models in the package: whole, small, described, and they do find what a text told long ago."""

import json
from pathlib import Path

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
    config = ROOT / made["command"].split()[-1]
    assert config.read_text() == (folder / "config.yaml").read_text()
    settings = yaml.safe_load(config.read_text())
    assert made["seed"] == settings["seed_everything"]
    assert read_training_data(name).length == settings["data"]["init_args"]["stages"][-1]["length"]
    assert {"training", "data", "machine", "scores", "parameters"} <= made.keys()
    model, tokenizer = nm.load(name)
    assert isinstance(tokenizer, nm.ByteTokenizer)
    assert sum(p.numel() for p in model.parameters()) == made["parameters"]


def test_the_first_one_remembers_what_the_text_told_and_only_with_its_memory() -> None:
    model, tokenizer = nm.load("neuralmem/mag-tiny")
    assert tokenizer is not None
    facts = {"window": "4711", "value": "0815", "string": "2718"}
    text = haystack_text(4096)
    told = text[: text.index("\n", 500) + 1] + "".join(f"@{key} {value}\n" for key, value in facts.items())
    told += text[len(told) : text.rindex("\n") + 1]
    ids = torch.tensor([tokenizer.encode(told)])
    assert ids.shape[1] - told.index("@") > 10 * model.reach
    with torch.no_grad():
        found = {
            memory: [
                nm.generate(model, tokenizer, f"@{key}", state=model(ids, memory=memory)[1], max_tokens=5).strip()
                for key in facts
            ]
            for memory in ("on", "frozen")
        }
    assert found["on"] == list(facts.values())
    assert not set(found["frozen"]) & set(facts.values())


def test_a_wrong_name_is_answered_by_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(nm.UserError, match=r"neuralmem/mag-tinny does not exist; did you mean 'neuralmem/mag-tiny'\?"):
        nm.load("neuralmem/mag-tinny")
    assert is_shipped("neuralmem/mag-tiny")
    (tmp_path / "neuralmem" / "mag-tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_shipped("neuralmem/mag-tiny")
    assert locate("neuralmem/mag-tiny") != FOLDER / "mag-tiny"
