"""The commands that measure on text, as a user calls them: files, a second call, one line per error."""

import csv
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.evaluation.bookmark import Bookmark
from neuralmem.evaluation.cli import main
from neuralmem.evaluation.curves import Curve, Curves, draw
from neuralmem.evaluation.losses import READINGS
from neuralmem.evaluation.reader import ABLATIONS
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import save
from neuralmem.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """Two checkpoints, "memory" and "plain", a Transformer with full attention."""
    folder = tmp_path_factory.mktemp("runs")
    memory = MemoryConfig(heads=1, chunk_size=16)
    data = {"sequence_length": 64, "source": str(text_file)}
    for name, pattern, window in (("memory", ["titans_mag"], 16), ("plain", ["transformer"], None)):
        torch.manual_seed(0)
        attention = AttentionConfig(heads=1, window=window)
        save(
            folder / name,
            CausalLM(ModelConfig(257, 16, 1, pattern, attention=attention, memory=memory)),
            ByteTokenizer(),
        )
        (folder / name / "data.json").write_text(json.dumps({"class_path": "TextData", "init_args": data}))
    return folder


CALLS = [  # command, its options, rows of the journal, lines of the CSV, pictures
    ("perplexity", ["--tokens", "600"], 4, 4, ["perplexity.png"]),
    ("positions", ["--lengths", "2x", "--samples", "3"], 12, 12, ["positions_128.png", "positions_gain_128.png"]),
    ("repeated-words", ["--words", "3,5", "--samples", "2"], 8, 4, ["repeated-words.png"]),
    (
        "babi",
        ["--tasks", "qa1,qa4", "--lengths", "0,1k", "--samples", "2", "--haystack", "grammar", "--ablate", "off"],
        16,
        8,
        ["babi_qa1.png", "babi_qa4.png"],
    ),
]


def test_positions_of_shuffled_lines(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["positions", "--checkpoint", str(runs / "memory"), "--lengths", "2x", "--samples", "3", "--ablate", "off"]
    hashes = []
    for options in ([], ["--shuffle-lines"], ["--shuffle-lines", "--seed", "7"]):
        out = tmp_path / str(len(hashes))
        assert main([*given, *options, "--out", str(out)]) == 0
        rows = [json.loads(line) for line in (out / "positions.jsonl").read_text().splitlines()]
        hashes.append({row["text_sha256"] for row in rows})
        assert (", lines shuffled: 3 texts" in capsys.readouterr().out) is bool(options)
    assert not hashes[0] & hashes[1]
    assert not hashes[1] & hashes[2]


@pytest.mark.parametrize("carried", [False, True])
def test_it_is_said_where_longer_texts_than_a_row_were_read_in_training(
    carried: bool, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs / "memory", tmp_path / "run")
    data = json.loads((folder / "data.json").read_text())
    data["init_args"]["carry"] = carried
    (folder / "data.json").write_text(json.dumps(data))
    given = ["--lengths", "2x", "--samples", "2", "--ablate", "off", "--out", str(tmp_path / "out")]
    assert main(["positions", "--checkpoint", str(folder), *given]) == 0
    assert ("no gradient went from row to row" in " ".join(capsys.readouterr().out.split())) is carried


@pytest.mark.parametrize(("command", "options", "rows", "lines", "pictures"), CALLS, ids=[call[0] for call in CALLS])
def test_files_are_written_and_a_second_call_adds_nothing(
    command: str,
    options: Sequence[str],
    rows: int,
    lines: int,
    pictures: list[str],
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [command, "--checkpoint", str(runs / "memory"), "--out", str(tmp_path), *options]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert "reach" in shown.out.lower()
    assert "null" in shown.out.lower() or command == "positions"
    journal = (tmp_path / f"{command}.jsonl").read_text()
    found = [json.loads(line) for line in journal.splitlines()]
    assert len(found) == rows
    manifest = json.loads((runs / "memory" / "manifest.json").read_text())
    assert {row["ckpt_sha256"] for row in found} == {manifest["files"]["model.safetensors"]["sha256"]}
    for name in ("dtype", "state_bytes", "wall_s", "reach", "chunk_size_eval", "tokenizer_sha256"):
        assert all(row[name] is not None for row in found), name
    table = (tmp_path / f"{command}.csv").read_text()
    assert len(list(csv.DictReader(table.splitlines()))) == lines
    assert sorted(path.name for path in tmp_path.glob("*.png")) == pictures
    assert not list(tmp_path.glob("*.partial"))
    assert main(given) == 0
    assert capsys.readouterr().out == shown.out
    assert (tmp_path / f"{command}.jsonl").read_text() == journal
    assert (tmp_path / f"{command}.csv").read_text() == table


@pytest.mark.parametrize("command", [["perplexity", "--tokens", "300"], ["positions", "--lengths", "1x"]])
def test_none_is_another_name_of_on(command: list[str], runs: Path, tmp_path: Path) -> None:
    for ablate in ("none,off", "off"):
        out = tmp_path / ablate
        given = [*command, "--checkpoint", str(runs / "memory"), "--ablate", ablate, "--out", str(out)]
        assert main(given) == 0
        rows = [json.loads(line) for line in (out / f"{command[0]}.jsonl").read_text().splitlines()]
        assert {row["memory"] for row in rows} == {"on", "off"}
    assert main([*command, "--checkpoint", str(runs / "plain"), "--ablate", "none", "--out", str(tmp_path / "x")]) == 0


def test_attribution_says_what_its_batch_is_of(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for command in ("attribution", "perplexity"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown[command] = " ".join(capsys.readouterr().out.split())
    assert "texts of one prompt, each without another part, read together (16)" in shown["attribution"]
    assert "prompts read together (16)" in shown["perplexity"]


def test_every_control_looks_the_same_whatever_stands_beside_it() -> None:
    def colours(names: Sequence[str]) -> dict[str, str]:
        curves = [Curve(name, [(1, 0.5, None, None), (2, 0.5, None, None)]) for name in names]
        lines = draw(Curves("", "", "", curves), "").axes[0].lines
        return {line.get_label(): line.get_color() for line in lines}

    names = ["memory on", *dict.fromkeys([*ABLATIONS[1:], *READINGS[1:]])]
    assert colours(names) == dict(reversed(colours(names[::-1]).items()))
    assert len(set(colours(names).values())) == len(names)


def test_a_model_without_memory_has_no_controls(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["perplexity", "--checkpoint", str(runs / "plain"), "--tokens", "300", "--out", str(tmp_path)]
    assert main(given) == 0
    assert "everything (full attention)" in " ".join(capsys.readouterr().out.split())
    assert {json.loads(line)["memory"] for line in (tmp_path / "perplexity.jsonl").read_text().splitlines()} == {"on"}
    assert main([*given, "--ablate", "frozen"]) == 2
    assert "--ablate holds 'frozen'; this model has no memory" in capsys.readouterr().err


@pytest.mark.parametrize("command", [call[0] for call in CALLS])
def test_a_file_in_the_place_of_results_is_refused_before_anything_is_asked(
    command: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "forward", lambda *_, **__: pytest.fail("the model was asked"))
    (tmp_path / "out").write_text("mine")
    assert main([command, "--checkpoint", str(runs / "memory"), "--out", str(tmp_path / "out" / "x")]) == 2
    assert capsys.readouterr().err.endswith(f"but {tmp_path / 'out'} is no folder; results need one\n")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_long_reading_of_babi_goes_on_where_it_was_stopped(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bookmark.__init__, "__defaults__", (0.0, *Bookmark.__init__.__defaults__[1:]))  # type: ignore[index]
    monkeypatch.setattr("neuralmem.evaluation.bookmark._COST", 0)
    read, forward = [], CausalLM.forward

    def counted(self: CausalLM, tokens: torch.Tensor, *given: object, **named: object) -> object:
        if len(read) == stops:
            raise KeyboardInterrupt
        read.append(tokens.shape[1])
        return forward(self, tokens, *given, **named)

    monkeypatch.setattr(CausalLM, "forward", counted)
    given = ["babi", "--checkpoint", str(runs / "memory"), "--tasks", "qa1", "--lengths", "1k", "--samples", "1"]
    given += ["--haystack", "grammar", "--ablate", "none", "--stream-chunk", "256"]
    stops = -1
    assert main([*given, "--out", str(tmp_path / "whole")]) == 0
    whole, stops = len(read), len(read) + 3
    assert main([*given, "--out", str(tmp_path / "parts")]) == 130
    assert list((tmp_path / "parts" / "unfinished").iterdir())
    stops = -1
    assert main([*given, "--out", str(tmp_path / "parts")]) == 0
    assert len(read) == whole + 3 + whole - 3  # nothing was read twice
    assert not (tmp_path / "parts" / "unfinished").exists()
    rows = [json.loads((tmp_path / name / "babi.jsonl").read_text()) for name in ("whole", "parts")]
    assert {**rows[0], "wall_s": 0} == {**rows[1], "wall_s": 0}


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("perplexity", ["--tokens", "many"], r"--tokens is 'many'; it must be a number of tokens: 4096, 4k or 1m"),
        ("perplexity", ["--tokens", "1"], r"--tokens is '1'; it must be at least 2"),
        ("perplexity", ["--ablate", "windw"], r"--ablate is 'windw'; .*; did you mean 'window'"),
        ("perplexity", ["--haystack", "bultin"], r"--haystack is 'bultin'; .*; did you mean 'builtin'"),
        ("perplexity", ["--haystack", "file:no.txt"], r"no\.txt"),
        ("positions", ["--samples", "0"], r"--samples is 0; it must be at least 1"),
        ("positions", ["--lengths", "1m"], r"--lengths holds 1048576; text.txt validation holds less text"),
        ("repeated-words", ["--words", "25,x"], r"--words holds 'x'; it must be a number of at least 2"),
        ("repeated-words", ["--pairs", "apple"], r"--pairs holds 'apple'; it must be two different words"),
        ("babi", ["--tasks", "qa1,q2"], r"--tasks is 'q2'; it must be one of qa1, .*; did you mean 'qa2'"),
        ("babi", ["--lengths", "10", "--haystack", "grammar"], r"--lengths holds 10, too short for the facts"),
    ],
)
def test_errors_are_one_line(
    command: str,
    options: list[str],
    message: str,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [command, "--checkpoint", str(runs / "memory"), "--out", str(tmp_path / "out"), *options]
    assert main(given) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert re.search(message, text), text
    assert not (tmp_path / "out").exists()
