"""States as values and as files: cloned, moved, selected, saved whole or not at all, refused when they do not fit."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import neuralmem as nm
from neuralmem.state import choose

CONFIG = nm.ModelConfig(
    vocab_size=11,
    width=8,
    depth=2,
    pattern=["titans_mac", "titans_mag"],
    attention=nm.AttentionConfig(heads=2, window=5, segment=6),
    memory=nm.MemoryConfig(heads=2, chunk_size=4),
)


@pytest.fixture
def model() -> nm.CausalLM:
    return nm.CausalLM(CONFIG).eval()


@pytest.fixture
def state(model: nm.CausalLM) -> nm.State:
    with torch.no_grad():
        return model(torch.randint(11, (3, 9)))[1]


def same(a: nm.State, b: nm.State) -> bool:
    pairs = zip(a.items(), b.items(), strict=True)
    return all(n == m and x.dtype == y.dtype and torch.equal(x, y) for (n, x), (m, y) in pairs)


def test_every_tensor_has_a_name_and_the_batch_in_front(state: nm.State) -> None:
    names = [name for name, _ in state.items()]
    assert len(set(names)) == len(names)
    assert names[0] == "position"
    assert "layers.0.memory.weights.0" in names
    assert {len(x) for _, x in state.items()} == {3}
    assert state.nbytes == sum(x.nbytes for _, x in state.items())


def test_a_state_cannot_be_changed_by_assignment(state: nm.State) -> None:
    with pytest.raises(AttributeError):
        state.position = torch.zeros(3)  # type: ignore[misc]


def test_selecting_rows(state: nm.State) -> None:
    rows = state.select([2, 0, 2, 2])
    assert rows.position.tolist() == [9] * 4
    assert same(rows.select([1]), state.select([0]))
    assert same(state.select(torch.tensor([0, 1, 2])), state)


def test_choosing_rows_of_two_states(model: nm.CausalLM, state: nm.State) -> None:
    fresh = model.init_state(3)
    mixed = choose(torch.tensor([True, False, True]), state, fresh)
    assert same(mixed.select([0, 2]), state.select([0, 2]))
    assert same(mixed.select([1]), fresh.select([1]))


def test_clone_detach_and_to_keep_the_values(model: nm.CausalLM) -> None:
    _, state = model(torch.randint(11, (2, 9)))
    assert any(x.requires_grad for _, x in state.items())
    assert same(state.clone(), state)
    assert same(state.to("cpu"), state)
    assert same(state.detach(), state)
    assert not any(x.requires_grad for _, x in state.detach().items())
    assert state.to("meta").nbytes == state.nbytes


def test_two_readers_of_one_state_do_not_meet(model: nm.CausalLM, state: nm.State) -> None:
    a, b = torch.randint(11, (2, 3, 9))
    with torch.no_grad():
        first, _ = model(a, state)
        model(b, state)
        again, _ = model(a, state)
        forked, _ = model(a, state.clone())
    assert torch.equal(first, again)
    assert torch.equal(first, forked)


def test_another_process_reads_what_was_saved(model: nm.CausalLM, state: nm.State, tmp_path: Path) -> None:
    nm.save(tmp_path / "model", model)
    state.save(tmp_path / "read.safetensors")
    program = (
        "import sys, torch, neuralmem as nm; folder = sys.argv[1]\n"
        "model, _ = nm.load(f'{folder}/model')\n"
        "state = nm.State.load(f'{folder}/read.safetensors', model)\n"
        "with torch.no_grad(): logits, _ = model(torch.arange(9).view(3, 3), state)\n"
        "print(logits.double().sum().item().hex())"
    )
    command, environment = [sys.executable, "-c", program, str(tmp_path)], {**os.environ, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    with torch.no_grad():
        logits, _ = model(torch.arange(9).view(3, 3), state)
    assert float.fromhex(answer.stdout) == pytest.approx(logits.double().sum().item(), abs=1e-6)


def test_a_file_is_plain_safetensors(state: nm.State, tmp_path: Path) -> None:
    state.save(tmp_path / "deep" / "folder" / "read.safetensors")
    tensors = load_file(tmp_path / "deep" / "folder" / "read.safetensors")
    assert tensors["position"].tolist() == [9, 9, 9]
    assert [f.name for f in (tmp_path / "deep" / "folder").iterdir()] == ["read.safetensors"]


REGIONS = ["length", "metadata", "names", "config", "weights hash", "sha256", "tensors", "end"]


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("bit", [1, 4, 64])
def test_a_flipped_bit_anywhere_is_noticed(
    model: nm.CausalLM, state: nm.State, tmp_path: Path, region: str, bit: int
) -> None:
    file = tmp_path / "read.safetensors"
    state.save(file)
    content = bytearray(file.read_bytes())
    header = int.from_bytes(content[:8], "little")
    starts = {
        "length": 0,
        "metadata": content.find(b"__metadata__"),
        "names": content.find(b"layers.0"),
        "config": content.find(b"chunk_size"),
        "weights hash": content.find(b'"weights"') + 12,
        "sha256": content.find(b'"sha256"') + 12,
        "tensors": 8 + header + (len(content) - header) // 2,
        "end": len(content) - 8,
    }
    for at in range(starts[region], starts[region] + 8):
        content[at] ^= bit
        file.write_bytes(content)
        with pytest.raises(nm.UserError) as error:
            nm.State.load(file, model)
        assert str(file) in str(error.value)
        assert "\n" not in str(error.value)
        content[at] ^= bit


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_that_is_cut_short_is_refused(model: nm.CausalLM, state: nm.State, tmp_path: Path, keep: int) -> None:
    file = tmp_path / "read.safetensors"
    state.save(file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(nm.UserError, match=r"cannot be read as safetensors"):
        nm.State.load(file, model)


def test_a_file_of_something_else_is_refused(model: nm.CausalLM, tmp_path: Path) -> None:
    with pytest.raises(nm.UserError, match=r"does not exist$"):
        nm.State.load(tmp_path / "nowhere", model)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(nm.UserError, match=r"is not a neuralmem state: format is None"):
        nm.State.load(tmp_path / "x.safetensors", model)


def reseal(file: Path, change) -> None:
    """Change the tensors and write the right hash again, as someone does who means it."""
    from neuralmem.state import _digest

    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    change(tensors)
    identity = {k: v for k, v in metadata.items() if k not in ("format", "sha256")}
    save_file(tensors, file, metadata={**metadata, "sha256": _digest(tensors, identity)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.1.attention.keys"), "tensor 'layers.1.attention.keys' is missing"),
        (lambda t: t.pop("position"), "tensor 'position' is missing"),
        (lambda t: t.update(extra=torch.zeros(3)), "tensor 'extra' is unknown"),
        (
            lambda t: t.update({"layers.0.filled": torch.zeros(3)}),
            "layers.0.filled is torch.float32[3]; the model has torch.int64[3]",
        ),
        (
            lambda t: t.update({"layers.0.filled": torch.zeros(2, dtype=torch.long)}),
            "layers.0.filled is torch.int64[2]; the model has torch.int64[3]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    model: nm.CausalLM, state: nm.State, tmp_path: Path, change, message: str
) -> None:
    file = tmp_path / "read.safetensors"
    state.save(file)
    reseal(file, change)
    with pytest.raises(nm.UserError) as error:
        nm.State.load(file, model)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"width": 16}, "width 8 instead of 16"),
        ({"depth": 3}, "depth 2 instead of 3"),
        ({"pattern": ["titans_mal"]}, "pattern ['titans_mac', 'titans_mag'] instead of ['titans_mal']"),
        ({"memory": replace(CONFIG.memory, chunk_size=8)}, "memory.chunk_size 4 instead of 8"),
        ({"attention": replace(CONFIG.attention, window=None)}, "attention.window 5 instead of None"),
        ({}, "same config, other weights"),
    ],
    ids=str,
)
def test_the_state_of_another_model_says_what_differs(
    model: nm.CausalLM, state: nm.State, tmp_path: Path, change: dict, difference: str
) -> None:
    state.save(tmp_path / "read.safetensors")
    with pytest.raises(nm.UserError, match=r"is of another model: ") as error:
        nm.State.load(tmp_path / "read.safetensors", nm.CausalLM(replace(CONFIG, **change)))
    assert str(error.value).endswith(difference)


def test_the_state_of_a_layer_cannot_be_saved(state: nm.State, tmp_path: Path) -> None:
    with pytest.raises(nm.UserError, match=r"^state has no model to be saved with"):
        state.layers[0].save(tmp_path / "x")


def test_the_state_of_a_model_that_is_gone_cannot_be_saved(tmp_path: Path) -> None:
    state = nm.CausalLM(CONFIG).init_state(1)
    with pytest.raises(nm.UserError, match=r"^state has no model to be saved with"):
        state.save(tmp_path / "x")


def test_a_save_that_fails_keeps_the_older_file(
    model: nm.CausalLM, state: nm.State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "read.safetensors"
    state.save(file)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match=r"disk full"):
            model.init_state(3).save(file)
    assert [f.name for f in tmp_path.iterdir()] == ["read.safetensors"]
    assert same(nm.State.load(file, model), state)


def test_the_header_names_the_model(model: nm.CausalLM, state: nm.State, tmp_path: Path) -> None:
    state.save(tmp_path / "read.safetensors")
    with safe_open(tmp_path / "read.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["config"]) == CONFIG.to_dict()
    assert metadata["weights"] == model.identity()["weights"]


@pytest.mark.parametrize("layer", ["titans_lmm", "titans_mac", "titans_mag", "titans_mal", "transformer"])
def test_a_state_keeps_nothing_of_what_was_read_alive(layer: str) -> None:
    memory, attention = nm.MemoryConfig(heads=2, chunk_size=4), nm.AttentionConfig(heads=2, window=4, segment=6)
    model = nm.CausalLM(nm.ModelConfig(11, width=8, depth=1, pattern=[layer], attention=attention, memory=memory))
    with torch.no_grad():
        _, state = model(torch.arange(501)[None] % 11)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for _, x in state.items() if x.numel()}
    assert sum(storages.values()) <= state.nbytes
