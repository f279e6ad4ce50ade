"""Folders: what is pushed to the hub loads there and here, damage is noticed, and tokenizers agree to the id."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import neuralmem as nm

pytest.importorskip("transformers", reason="transformers is not installed: pip install neuralmem[hf]")
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, dynamic_module_utils

from neuralmem.hf import NeuralMemConfig, NeuralMemForCausalLM, export
from neuralmem.hf.__main__ import main
from neuralmem.hf.tokenizer import hf_tokenizer

TEXTS = ["", " a  b\n\n", "né 日本 🙂", "<|endoftext|> is text", "x = y1 + 2\r\n\tend ", "\ufffd\x00\x7f"]
HUB = [
    *("README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors"),
    *("modeling_neuralmem.py", "tokenizer.json", "tokenizer_config.json"),
]


def bpe() -> nm.Tokenizer:
    return nm.train_bpe(["low lower lowest slow né 日本"] * 9, vocab_size=290)


def with_prefix() -> nm.Tokenizer:
    """One that would put a token in front of every text, as those of other people do."""
    definition = json.loads(bpe().definition)
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    identity = max(definition["model"]["vocab"].values()) + 1
    definition["added_tokens"].append({"id": identity, "content": "<s>", **special})
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [identity], "tokens": ["<s>"]}},
    }
    return nm.Tokenizer(json.dumps(definition))


@pytest.fixture
def hub(run: Path, tmp_path: Path) -> Path:
    export(run, tmp_path / "hub")
    return tmp_path / "hub"


@pytest.mark.parametrize("make", [nm.ByteTokenizer, bpe, with_prefix], ids=["bytes", "bpe", "prefix"])
def test_tokenizers_agree_to_the_id_and_back(make: Callable[[], nm.Tokenizer], tmp_path: Path) -> None:
    ours = make()
    config = nm.ModelConfig(vocab_size=ours.vocab_size, width=8, depth=1, pattern=["titans_lmm"])
    nm.save(tmp_path / "run", nm.CausalLM(config), ours)
    export(tmp_path / "run", tmp_path / "hub")
    AutoTokenizer.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "saved")
    for folder in ("run", "hub", "saved"):
        theirs = AutoTokenizer.from_pretrained(tmp_path / folder)
        assert theirs.eos_token_id == theirs.pad_token_id == ours.eos_id
        for text in TEXTS:
            ids = ours.encode(text)
            assert theirs(text).input_ids == ids, (folder, text)
            assert theirs.decode(ids) == ours.decode(ids) == text
            assert theirs.decode([*ids, ours.eos_id], skip_special_tokens=True) == text
        torn = [i for i in ours.encode("日本🙂") if i % 3]  # characters with bytes missing
        assert theirs.decode(torn) == ours.decode(torn)
    again = nm.load(tmp_path / "hub")[1]
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_the_hubs_folder_is_complete_and_still_a_checkpoint(hub: Path, model: nm.CausalLM) -> None:
    assert sorted(f.name for f in hub.iterdir()) == sorted(HUB)
    loaded, tokenizer = nm.load(hub)
    assert loaded.config == model.config
    assert tokenizer == nm.ByteTokenizer()
    hf = AutoModelForCausalLM.from_pretrained(hub)
    assert all(torch.equal(x, hf.state_dict()[name]) for name, x in model.state_dict().items())
    assert GenerationConfig.from_pretrained(hub).eos_token_id == hf.generation_config.eos_token_id == 256


def test_the_card_says_what_is_true(hub: Path, model: nm.CausalLM) -> None:
    card = (hub / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "license" not in card  # nobody said which
    assert "| layers | titans_mac, titans_mag |" in card
    parameters = sum(x.numel() for x in load_file(hub / "model.safetensors").values())
    assert f"| parameters | {parameters:,}, float64 |" in card
    assert f"| memory of one sequence before it reads | {model.init_state(1).nbytes:,} bytes |" in card


def test_exporting_again_replaces_the_model_and_keeps_the_card(run: Path, hub: Path) -> None:
    (hub / "README.md").write_text("mine")
    nm.save(run, nm.CausalLM(nm.ModelConfig(257, width=4, depth=1, pattern=["titans_lmm"])), nm.ByteTokenizer())
    export(run, hub)
    assert (hub / "README.md").read_text() == "mine"
    assert AutoModelForCausalLM.from_pretrained(hub).config.hidden_size == 4


def test_the_folders_code_leads_to_the_package(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What trust_remote_code=True does where neuralmem.hf was not imported."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    auto_map = json.loads((hub / "config.json").read_text())["auto_map"]
    found = [dynamic_module_utils.get_class_from_dynamic_module(auto_map[name], str(hub)) for name in sorted(auto_map)]
    assert found == [NeuralMemConfig, NeuralMemForCausalLM]


def test_what_is_saved_from_a_hubs_folder_needs_no_code(hub: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(hub, trust_remote_code=True).save_pretrained(tmp_path / "saved")
    assert sorted(f.name for f in (tmp_path / "saved").iterdir()) == [
        *("config.json", "generation_config.json", "model.safetensors")
    ]
    assert not {"auto_map", "format"} & json.loads((tmp_path / "saved" / "config.json").read_text()).keys()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_checkpoint_is_refused(run: Path, name: str) -> None:
    content = bytearray((run / name).read_bytes())
    content[-9] ^= 1
    (run / name).write_bytes(content)
    with pytest.raises(nm.UserError, match=f"{name} is damaged: its size or sha256 is not that of manifest.json"):
        NeuralMemForCausalLM.from_pretrained(run, config=NeuralMemConfig())


def test_an_interrupted_save_is_not_mixed_with_the_old_one(run: Path) -> None:
    (run / ".committed").mkdir()
    os.replace(run / "manifest.json", run / ".committed" / "manifest.json")
    with pytest.raises(nm.UserError, match="holds a save that was interrupted"):
        AutoModelForCausalLM.from_pretrained(run)


def test_weights_in_several_files_are_loaded_and_older_ones_are_not(
    run: Path, model: nm.CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neuralmem.models.weights.LARGEST", 20_000)
    nm.save(run, model, nm.ByteTokenizer())
    assert len([*run.glob("model-*-of-*.safetensors")]) > 1
    with pytest.raises(nm.UserError, match=r"model\.safetensors is left from an older checkpoint; remove it"):
        AutoModelForCausalLM.from_pretrained(run)
    (run / "model.safetensors").unlink()
    hf = AutoModelForCausalLM.from_pretrained(run)
    assert all(torch.equal(x, hf.state_dict()[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.gain"), "missing weight norm.gain"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected weight extra"),
        (lambda t: t.update({"norm.gain": torch.ones(9)}), r"mismatched weight \('norm.gain', .*\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_are_refused(
    run: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    AutoModelForCausalLM.from_pretrained(run).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(nm.UserError, match=f"saved: {message}; it must fit config.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")


def test_what_transformers_trained_goes_back(run: Path, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(run)
    with pytest.raises(nm.UserError, match="a checkpoint of neuralmem; it must be another folder"):
        hf.save_pretrained(run)
    with torch.no_grad():
        hf.norm.gain.mul_(2)
    nm.save(tmp_path / "back", hf.causal_lm, nm.ByteTokenizer())
    loaded, _ = nm.load(tmp_path / "back")
    tokens = torch.randint(257, (1, 20))
    torch.testing.assert_close(loaded(tokens)[0], hf(input_ids=tokens).logits, atol=1e-10, rtol=0)


def test_the_config_of_a_checkpoint_names_its_separator(run: Path, model: nm.CausalLM, tmp_path: Path) -> None:
    assert AutoConfig.from_pretrained(run).eos_token_id == 256
    nm.save(tmp_path / "bare", model)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "bare").generation_config.eos_token_id is None
    assert hf_tokenizer(nm.ByteTokenizer()).padding_side == "left"


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), str(tmp_path / "out")]) == 0
    assert NeuralMemForCausalLM.from_pretrained(tmp_path / "out").causal_lm.config == nm.load(run)[0].config
    capsys.readouterr()
    assert main([str(run), str(run)]) == 2
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    nm.save(tmp_path / "bare", nm.load(run)[0])
    assert main([str(tmp_path / "bare"), str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["error:"] * 3
    assert "the checkpoint itself" in lines[0]
    assert "does not exist" in lines[1]
    assert "has no tokenizer.json" in lines[2]
