"""Weights in several files with an index."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import neuralmem as nm
from neuralmem.models import weights
from neuralmem.models.checkpoint import load, verify

CONFIG = nm.ModelConfig(vocab_size=300, width=16, depth=2, pattern=["titans_lmm"], tie_embeddings=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(weights, "LARGEST", 8000)
    nm.save(tmp_path / "m", nm.CausalLM(CONFIG), nm.ByteTokenizer())
    return tmp_path / "m"


def test_a_large_model_is_several_files_and_the_same_model(tmp_path: Path, folder: Path) -> None:
    torch.manual_seed(0)
    model = nm.CausalLM(CONFIG)
    nm.save(folder, model)
    files = sorted(folder.glob("model-*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert not (folder / "model.safetensors").exists()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        assert name in load_file(folder / file)
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    again, _ = load(folder)
    assert all(torch.equal(again.state_dict()[name], x) for name, x in model.state_dict().items())


def test_every_file_is_verified(folder: Path) -> None:
    last = sorted(folder.glob("model-*.safetensors"))[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(nm.UserError, match=rf"{last.name} is damaged"):
        load(folder)
    last.unlink()
    with pytest.raises(nm.UserError, match=rf"{last.name} is missing"):
        verify(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{}", "is no index"),
        ('{"weight_map": {"norm.gain": "model-00009-of-00009.safetensors"}}', "does not list model-00009"),
    ],
)
def test_an_index_that_lies_is_refused(folder: Path, index: str, message: str) -> None:
    files = verify(folder)
    files[weights.INDEX].write_text(index)
    with pytest.raises(nm.UserError, match=message):
        weights.read_tensors(files)


def test_tensors_that_the_index_does_not_name_are_refused(folder: Path) -> None:
    files = verify(folder)
    content = json.loads(files[weights.INDEX].read_text())
    del content["weight_map"]["norm.gain"]
    files[weights.INDEX].write_text(json.dumps(content))
    with pytest.raises(nm.UserError, match=r"do not agree on tensor norm.gain"):
        weights.read_tensors(files)


def test_the_fingerprint_is_that_of_all_files(folder: Path) -> None:
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    first = weights.fingerprint(entries)
    changed = {**entries, sorted(entries)[-1]: {"sha256": "0"}}
    assert weights.fingerprint(entries | {"training.safetensors": {"sha256": "0"}}) == first
    name = next(name for name in entries if name.startswith("model-"))
    assert weights.fingerprint({**changed, name: {"sha256": "0"}}) != first
