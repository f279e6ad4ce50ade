"""The scripts that make the models of the package: what is shipped is what was made, and what it said."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import neuralmem as nm
from neuralmem.data.corpus import haystack_text
from tests.scripts import run


def test_a_trained_model_is_shipped_as_what_made_it_and_with_its_own_answers(load: Any, tmp_path: Path) -> None:
    checkpoints = load("checkpoints")
    config = {"seed_everything": 1, "data": {"class_path": "NeedleData", "init_args": {"decoys": 4.0}}}
    resolved = {"seed_everything": 1, "data": {"class_path": "a.b.NeedleData", "init_args": {"decoys": 4.0, "seed": 0}}}
    assert checkpoints.unlike(config, resolved) == []
    resolved["data"]["init_args"]["decoys"] = 0.0  # type: ignore[index]
    assert checkpoints.unlike(config, resolved) == ["data.init_args.decoys is 4.0, the run had 0.0"]
    torch.manual_seed(0)
    nm.save(tmp_path, nm.CausalLM(nm.ModelConfig(vocab_size=257, width=16, depth=1)), nm.ByteTokenizer())
    question, folder = checkpoints.QUESTIONS[0], tmp_path / checkpoints.QUESTIONS[0].name
    folder.mkdir()
    (folder / "machine.json").write_text('{"commit": "c", "ended": "e"}')
    (folder / "rows.jsonl").write_text(json.dumps({"ckpt_sha256": checkpoints.weights_of(tmp_path)}) + "\n")
    weights = checkpoints.weights_of(tmp_path)
    assert checkpoints.answered(tmp_path, question, weights).items() >= {"commit": "c", "rows": 1}.items()
    (folder / "rows.jsonl").write_text('{"ckpt_sha256": "another"}\n')
    with pytest.raises(SystemExit, match="has answers of other weights than"):
        checkpoints.answered(tmp_path, question, weights)


@pytest.fixture
def checkpoints(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/checkpoints.py with runs and a package, of mag-tiny alone, in the test's folder."""
    module: ModuleType = load("checkpoints")
    shutil.copytree(module.FOLDER / "mag-tiny", tmp_path / "package" / "mag-tiny")
    monkeypatch.setattr(module, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "package")
    return module


def test_a_shipped_model_whose_run_is_gone_keeps_its_scores_and_gets_new_ones(
    checkpoints: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkpoints.FOLDER / "mag-tiny"
    before = json.loads((package / "made.json").read_text())
    question = next(q for q in checkpoints.QUESTIONS if q.name == "overwrite")
    del before["scores"]["overwrite"]
    (package / "made.json").write_text(json.dumps(before))
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(checkpoints, "call", lambda *words: asked.append(words))
    monkeypatch.setattr(
        checkpoints, "QUESTIONS", [q for q in checkpoints.QUESTIONS if q.name in ("overwrite", "needle_16k")]
    )
    checkpoints.ask("mag-tiny")
    assert [words[1] for words in asked] == ["overwrite"]
    out = tmp_path / "runs" / "mag-tiny" / "overwrite"
    out.mkdir(parents=True)
    (out / "machine.json").write_text('{"commit": "c", "ended": "e"}')
    (out / "overwrite.jsonl").write_text(json.dumps({"ckpt_sha256": before["weights_sha256"]}) + "\n")
    (out / question.table).write_text("updates,accuracy\n0,1.0\n")
    checkpoints.ship("mag-tiny")
    after = json.loads((package / "made.json").read_text())
    assert after["scores"].pop("overwrite")["lines"] == [{"updates": "0", "accuracy": "1.0"}]
    assert after["scores"] == {"needle_16k": before["scores"]["needle_16k"]}
    assert {**after, "scores": 0} == {**before, "scores": 0}
    again = out.with_name("needle_16k")
    shutil.copytree(out, again)
    (again / "table.csv").write_text("depth_pct,accuracy\nall,0.5\n")
    checkpoints.ship("mag-tiny")
    after = json.loads((package / "made.json").read_text())
    assert after["scores"]["needle_16k"]["lines"] == [{"depth_pct": "all", "accuracy": "0.5"}]


def test_a_run_of_the_shipped_weights_keeps_what_they_said(
    checkpoints: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = checkpoints.FOLDER / "mag-tiny"
    monkeypatch.setattr(checkpoints, "unlike", lambda config, resolved: [])
    monkeypatch.setattr(checkpoints, "options_of", lambda part: ("--run", part))
    before = json.loads((package / "made.json").read_text())
    for part in checkpoints.parts("mag-tiny"):
        run = shutil.copytree(package, tmp_path / "runs" / part)
        (run / "config.yaml").write_text("{}")
        (run / "machine.json").write_text(json.dumps(before["trained"]))
        (run / "metrics.csv").write_text("step,tokens,stage,answers,loss\n1,2,3,4,5\n")
    checkpoints.ship("mag-tiny")
    made = json.loads((package / "made.json").read_text())
    assert made["scores"] == before["scores"]
    read = [part["training"] for part in (*made["before"], made)]
    assert [(part["step"], part["tokens"]) for part in read] == [(i, 2 * i) for i in range(1, len(read) + 1)]


def test_a_shipped_model_is_trained_on(
    checkpoints: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says of the runs that made it is kept, whether it is shipped for the first time or again."""
    package, parts = checkpoints.FOLDER / "mag-tiny", checkpoints.parts("mag-tiny")
    monkeypatch.setattr(checkpoints, "unlike", lambda config, resolved: [])
    monkeypatch.setattr(checkpoints, "options_of", lambda part: ("--run", part))
    before = json.loads((package / "made.json").read_text())
    assert checkpoints.gone("mag-tiny") == []  # nothing is there: all of it is to be trained
    shutil.copytree(package, tmp_path / "runs" / parts[-2])
    called: list[tuple[str, ...]] = []
    monkeypatch.setattr(checkpoints, "call", lambda *words: called.append(words))
    checkpoints.train("mag-tiny")
    assert called == [checkpoints.conversion("mag-tiny"), ("train.py", "--run", "mag-tiny")]
    run = tmp_path / "runs" / "mag-tiny"
    nm.save(run, nm.CausalLM(nm.ModelConfig(vocab_size=257, width=16, depth=1)), nm.ByteTokenizer())
    shutil.copy(package / "data.json", run)
    (run / "config.yaml").write_text("{}")
    (run / "machine.json").write_text(json.dumps(before["trained"]))
    (run / "metrics.csv").write_text("step,tokens,stage,answers,loss\n1,2,3,4,5\n")
    for _ in range(2):
        checkpoints.ship("mag-tiny")
        made = json.loads((package / "made.json").read_text())
        assert made["training"]["step"] == before["training"]["step"] + 1
        assert made["training"]["tokens"] == before["training"]["tokens"] + 2
        hashes = [part["weights_sha256"] for part in made["before"]]
        assert hashes == [part["weights_sha256"] for part in (*before["before"], before)]
        assert made["scores"] == {}
    shutil.rmtree(tmp_path / "runs" / parts[-2])
    copy = shutil.copytree(run, tmp_path / "runs" / parts[-2], ignore=shutil.ignore_patterns("machine.json"))
    for made_json in (copy / "made.json", package / "made.json"):
        made_json.write_text(json.dumps(before))
    with pytest.raises(SystemExit, match=r"has weights that .* says nothing of"):
        checkpoints.ship("mag-tiny")


def test_a_model_that_is_nowhere_is_passed_over(
    checkpoints: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["checkpoints.py", "hope-tiny", "--step", "ask", "--step", "ship"])
    checkpoints.main()
    assert capsys.readouterr().out == "hope-tiny: neither trained nor shipped\n"
    run = tmp_path / "runs" / "hope-tiny"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}")
    checkpoints.main()
    assert capsys.readouterr().out == "hope-tiny: its run has no model yet; go on with --step train\n"


def test_a_models_beginning_is_written_down(load: Any) -> None:
    checkpoints = load("checkpoints")
    assert checkpoints.origin("mag-tiny") is None
    assert checkpoints.conversion("window-tiny") == ()
    made = ("benchmarks/mac_from_mag.py", "neuralmem/mag-tiny", "runs/checkpoints/mac-tiny-start")
    assert checkpoints.conversion("mac-tiny") == made
    made = ("benchmarks/larger_memory.py", "--heads", "4", "runs/checkpoints/mag-tiny-fourth")
    assert checkpoints.conversion("mag-tiny") == (*made, "runs/checkpoints/mag-tiny-wider")
    mag = json.loads((checkpoints.FOLDER / "mag-tiny" / "made.json").read_text())
    known = [part["weights_sha256"] for part in (*mag["before"], mag)]
    third = known[checkpoints.parts("mag-tiny").index("mag-tiny-third")]
    for name, wanted in (("mac-tiny", known[-1]), ("window-tiny", third)):
        assert checkpoints.origin(name)["weights_sha256"] == wanted
    for name in ("mac-tiny", "hope-tiny", "window-tiny"):
        made = json.loads((checkpoints.FOLDER / name / "made.json").read_text())
        assert made["origin"]["name"] == "neuralmem/mag-tiny"
        assert made["origin"]["weights_sha256"] in known, f"{name} began with a mag-tiny that nobody knows"


def test_a_mac_made_of_a_mag_remembers_at_once(load: Any, tmp_path: Path) -> None:
    script = str(tmp_path / "mac")
    done = run("mac_from_mag.py", "neuralmem/mag-tiny", script)
    assert done.returncode == 0, done.stderr
    model, tokenizer = nm.load(script)
    assert tokenizer is not None
    assert model.config.attention.segment == 32
    assert load("mac_from_mag").convert(nm.load("neuralmem/mag-tiny")[0], 16).config.attention.segment == 16
    said = nm.generate(model, tokenizer, f"@harbour 4711\n{haystack_text(2048)}@harbour", max_tokens=5)
    assert said.strip() == "4711"
    none = run("mac_from_mag.py", script, str(tmp_path / "again"))
    assert none.returncode == 2
    assert "one must be titans_mag" in none.stderr


@pytest.fixture
def small_mag() -> nm.CausalLM:
    torch.manual_seed(0)
    memory = nm.MemoryConfig(chunk_size=8, output_gate=False)
    return nm.CausalLM(nm.ModelConfig(vocab_size=257, width=32, depth=1, pattern=["titans_mag"], memory=memory))


def test_a_longer_convolution_begins_as_induction_does(
    load: Any, small_mag: nm.CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger, text = load("larger_memory"), torch.tensor([list(b"@harbour 4711 and 12 other things\n" * 3)])
    found = larger.convert(small_mag, 7, 2)
    query, key, value = (convolution.weight for convolution in found.layers[0].memory.convolutions)
    assert found.config.memory.convolution == len(query) == 7
    assert torch.equal(key[5:], query[4:6])  # one byte later
    assert (query[4:6] != 0).all()
    assert (query[6] == 0).all()
    assert (value[4:] == 0).all()
    assert not torch.equal(found(text)[0], small_mag(text)[0])
    monkeypatch.setattr(larger, "SCALE", 0.0)
    torch.testing.assert_close(larger.convert(small_mag, 7, 2)(text)[0], small_mag(text)[0], atol=0, rtol=0)


def test_more_heads_read_as_the_trained_ones_do(
    load: Any, small_mag: nm.CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger, text = load("larger_memory"), torch.tensor([list(b"@harbour 4711 and 12 other things\n" * 3)])
    found = larger.convert(small_mag, 4, 6)
    memory, trained = found.layers[0].memory, small_mag.layers[0].memory
    assert found.config.memory.heads == len(memory.weights[0]) == 6
    assert torch.equal(memory.query.weight[:32], trained.query.weight)
    new = memory.query.weight[32:]
    assert torch.equal(new / trained.query.weight.std(), memory.key.weight[32:] / trained.key.weight.std())
    assert (new[:32] != new[32:]).all()
    for gate, same in zip(memory.gates(torch.ones(1, 1, 32)), trained.gates(torch.ones(1, 1, 32)), strict=True):
        assert torch.equal(gate, same.repeat(1, 1, 3))
    monkeypatch.setattr(larger, "SHARE", 0.0)  # of what the new heads read nothing counts
    torch.testing.assert_close(larger.convert(small_mag, 4, 6)(text)[0], small_mag(text)[0])


def test_a_larger_memory_is_made_from_the_command_line(small_mag: nm.CausalLM, tmp_path: Path) -> None:
    nm.save(tmp_path / "model", small_mag, nm.ByteTokenizer())
    words = (str(tmp_path / "model"), str(tmp_path / "larger"))
    done = run("larger_memory.py", *words, "--taps", "6", "--heads", "4")
    assert done.returncode == 0, done.stderr
    memory = nm.load(tmp_path / "larger")[0].config.memory
    assert (memory.convolution, memory.heads) == (6, 4)
    for option, value, said in (("--taps", "3", "it must be at least that"), ("--heads", "3", "a multiple of that")):
        few = run("larger_memory.py", *words, option, value)
        assert few.returncode == 2
        assert f"{option} is {value}; the model has " in few.stderr
        assert said in few.stderr
    none = run("larger_memory.py", "neuralmem/window-tiny", str(tmp_path / "none"))
    assert none.returncode == 2
    assert "model is 'neuralmem/window-tiny', which has no memory of rule titans" in none.stderr
