"""Checkpoints: what is saved comes back to the bit, what is damaged is refused, and nothing is ever half written."""

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralmem as nm
from neuralmem import registry
from neuralmem.models.checkpoint import verify

CONFIG = nm.ModelConfig(
    vocab_size=257,
    width=8,
    depth=2,
    pattern=["titans_mac", "titans_mag"],
    attention=nm.AttentionConfig(heads=2, window=5, segment=6),
    memory=nm.MemoryConfig(heads=2, chunk_size=4),
)
NO_CONFIG = [("{", "is no JSON: "), ("[1]", "holds a list; it must be"), ("3", "holds a int"), ("\ud800", "is no JSON")]
FILES = ["config.json", "manifest.json", "model.safetensors", "tokenizer.json"]


def test_files_may_be_read_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    model, before = nm.CausalLM(CONFIG), os.umask(0o027)
    try:
        nm.save(tmp_path / "run", model, nm.ByteTokenizer())
        model.init_state(1).save(tmp_path / "run" / "state.safetensors")
    finally:
        os.umask(before)
    assert {f"{file.stat().st_mode & 0o777:o}" for file in (tmp_path / "run").iterdir()} == {"640"}


@pytest.fixture
def model() -> nm.CausalLM:
    return nm.CausalLM(CONFIG)


@pytest.fixture
def folder(model: nm.CausalLM, tmp_path: Path) -> Path:
    nm.save(tmp_path / "run", model, nm.ByteTokenizer())
    return tmp_path / "run"


def same_weights(a: nm.CausalLM, b: nm.CausalLM) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(x, theirs[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("layer", registry.names("layer"))
@pytest.mark.parametrize("tied", [False, True])
def test_what_is_loaded_computes_the_same_bit_for_bit(layer: str, tied: bool, tmp_path: Path) -> None:
    model = nm.CausalLM(replace(CONFIG, pattern=[layer], tie_embeddings=tied))
    nm.save(tmp_path / "run", model, nm.ByteTokenizer())
    loaded, tokenizer = nm.load(tmp_path / "run")
    assert loaded.config == model.config
    assert tokenizer == nm.ByteTokenizer()
    assert same_weights(model, loaded)
    assert all(p.requires_grad for p in loaded.parameters())
    assert (loaded.head.weight is loaded.embedding.weight) is tied
    x = torch.randint(257, (2, 19))
    assert torch.equal(model(x)[0], loaded(x)[0])


def test_a_checkpoint_is_four_plain_files(folder: Path) -> None:
    assert sorted(f.name for f in folder.iterdir()) == FILES
    assert [f.name for f in folder.parent.iterdir()] == ["run"]
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_what_a_model_was_trained_on_is_one_of_its_files(model: nm.CausalLM, folder: Path) -> None:
    nm.save(folder, model, nm.ByteTokenizer(), data={"class_path": "TextData", "init_args": {"share": 0.1}})
    assert set(verify(folder)) == {*FILES, "data.json"} - {"manifest.json"}
    assert json.loads((folder / "data.json").read_text())["init_args"] == {"share": 0.1}
    (folder / "data.json").write_text('{"share": 0.2}')
    with pytest.raises(nm.UserError, match=r"data.json is damaged"):
        nm.load(folder)


@pytest.mark.parametrize("below", ["", "deeper/run"])
def test_a_file_is_no_place_for_a_checkpoint(model: nm.CausalLM, tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(nm.UserError, match=r"^folder is '.*', but .*file is a file; it must be a folder, or new$"):
        nm.save(tmp_path / "file" / below, model)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("text", "message"), NO_CONFIG)
def test_a_config_that_is_no_mapping_is_refused(folder: Path, text: str, message: str) -> None:
    rewrite(folder, "config.json", lambda f: f.write_bytes(text.encode("utf-8", "surrogatepass")))
    with pytest.raises(nm.UserError) as error:
        nm.load(folder)
    assert f"config.json {message}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_is_one_line(folder: Path, device: str) -> None:
    with pytest.raises(nm.UserError, match=rf"^device is '{device}', which this machine cannot use; it must be .*$"):
        nm.load(folder, device=device)


def test_a_model_without_a_tokenizer(model: nm.CausalLM, tmp_path: Path) -> None:
    nm.save(tmp_path / "run", model)
    loaded, tokenizer = nm.load(tmp_path / "run")
    assert tokenizer is None
    assert same_weights(model, loaded)


def test_dtypes_survive(model: nm.CausalLM, tmp_path: Path) -> None:
    nm.save(tmp_path / "run", model.bfloat16())
    loaded, _ = nm.load(tmp_path / "run")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert same_weights(model, loaded)


def test_saving_again_replaces_the_checkpoint_and_keeps_other_files(model: nm.CausalLM, folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    other = nm.CausalLM(replace(CONFIG, depth=1))
    nm.save(folder, other, nm.ByteTokenizer())
    loaded, _ = nm.load(folder)
    assert loaded.config.depth == 1
    assert same_weights(other, loaded)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [f.name for f in folder.parent.iterdir()] == ["run"]


def test_the_tokenizer_of_an_older_checkpoint_is_not_taken_for_the_new_ones(model: nm.CausalLM, folder: Path) -> None:
    nm.save(folder, model)
    assert nm.load(folder)[1] is None


def flip(file: Path, at: int, bit: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= bit
    file.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("bit", [1, 128])
def test_a_flipped_bit_anywhere_is_noticed(folder: Path, name: str, place: float, bit: int) -> None:
    file = folder / name
    flip(file, int(place * (file.stat().st_size - 1)), bit)
    with pytest.raises(nm.UserError) as error:
        nm.load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_whole_manifest_matters(folder: Path) -> None:
    file = folder / "manifest.json"
    content = file.read_bytes()
    for at in range(0, len(content), 3):
        flip(file, at)
        with pytest.raises(nm.UserError):
            nm.load(folder)
        file.write_bytes(content)
    nm.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "longer"])
def test_a_file_that_is_not_whole_is_refused(folder: Path, name: str, harm: str) -> None:
    file = folder / name
    content = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": content[:-2], "longer": content + b" x"}[harm])
    with pytest.raises(nm.UserError) as error:
        nm.load(folder)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(nm.UserError, match=r"nowhere does not exist$"):
        nm.load(tmp_path / "nowhere")
    with pytest.raises(nm.UserError, match=r"has no manifest.json"):
        nm.load(tmp_path)


def rewrite(folder: Path, name: str, change: Callable[[Path], None]) -> None:
    """Change a file and its entry in the manifest, as someone does who means it."""
    change(folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def run(file: Path) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.gain"), "lacks tensor norm.gain"),
        (lambda t: t.update(extra=torch.zeros(1)), "has tensor extra, which the model of config.json does not"),
        (
            lambda t: t.update({"norm.gain": torch.ones(9)}),
            r"norm.gain has shape \[9\]; the model of config.json has \[8\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_named(folder: Path, change: Callable, message: str) -> None:
    rewrite(folder, "model.safetensors", change_tensors(change))
    with pytest.raises(nm.UserError, match=message):
        nm.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 8}, "model has no field 'widht'; did you mean 'width'?"),
        ({"width": "8"}, "model.width is '8'; it must be an integer"),
        ({"pattern": ["os"]}, "model.pattern is 'os'; it must be one of"),
    ],
)
def test_a_config_that_is_wrong_is_refused(folder: Path, change: dict, message: str) -> None:
    rewrite(folder, "config.json", lambda f: f.write_text(json.dumps({**json.loads(f.read_text()), **change})))
    with pytest.raises(nm.UserError) as error:
        nm.load(folder)
    assert message in str(error.value)


def test_nothing_is_unpickled(folder: Path) -> None:
    rewrite(folder, "model.safetensors", lambda f: f.write_bytes(pickle.dumps({"norm.gain": 1})))
    with pytest.raises(nm.UserError, match=r"model.safetensors cannot be read"):
        nm.load(folder)


def test_a_manifest_may_not_name_files_elsewhere(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"sha256": "", "bytes": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(nm.UserError, match="secret"):
        nm.load(folder)


def test_a_save_that_fails_leaves_no_trace(model: nm.CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        nm.save(tmp_path / "run", model, nm.ByteTokenizer())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calls", range(6))
def test_a_save_that_fails_midway_leaves_the_old_model_or_the_new_one(
    model: nm.CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Over an older checkpoint: whole, whichever it is, although the new one's files are on their way."""
    before, left, replace_file = nm.load(folder)[0], iter(range(calls)), os.replace
    after = nm.CausalLM(replace(CONFIG, depth=1))

    def fail(*paths: object) -> None:
        if next(left, None) is None:
            raise OSError("disk full")
        replace_file(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with contextlib.suppress(OSError) if calls == 5 else pytest.raises(OSError, match="disk full"):
            nm.save(folder, after, nm.ByteTokenizer())
    assert [f.name for f in folder.parent.iterdir()] == ["run"]
    loaded, tokenizer = nm.load(folder)
    assert same_weights(after if calls else before, loaded)
    assert tokenizer == nm.ByteTokenizer()
    nm.save(folder, model, nm.ByteTokenizer())
    assert same_weights(model, nm.load(folder)[0])
    assert sorted(f.name for f in folder.iterdir()) == FILES


@pytest.mark.parametrize("full", ["save_file", "write"])
def test_an_older_checkpoint_survives_a_full_disk(
    model: nm.CausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        if full == "save_file":
            patch.setattr("neuralmem.models.weights.save_file", fail)
        else:
            patch.setattr(Path, "write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            nm.save(folder, nm.CausalLM(CONFIG), nm.ByteTokenizer())
    assert [f.name for f in folder.parent.iterdir()] == ["run"]
    assert same_weights(model, nm.load(folder)[0])
