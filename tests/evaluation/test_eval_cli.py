"""eval.py as a user calls it: files written, one line per error, exit code 2."""

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from neuralmem.evaluation.cli import commands, main, parse
from neuralmem.evaluation.commands.niah import make_settings
from neuralmem.evaluation.haystack import NAMES
from neuralmem.evaluation.recall import TrainingData, read_training_data
from neuralmem.models.causal_lm import CausalLM

ROOT = Path(__file__).parents[2]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "eval.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={"OMP_NUM_THREADS": "1"}, check=False)


def test_a_run_writes_its_files_and_prints_the_table(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    haystack = f"file:{text_file}"
    arguments = [
        "--checkpoint",
        str(checkpoint),
        "--tasks",
        "recall,s-niah-pk",
        "--lengths",
        "2x,600",
        "--samples",
        "5",
    ]
    arguments += [
        "--haystack",
        haystack,
        "--ablate",
        "none,reset",
        "--max-new-tokens",
        "3",
        "--out",
        str(tmp_path / "out"),
    ]
    result = call("niah", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for part in ("recall", "s-niah-pk", "512", "600", "beyond reach", "null", "reset", "file:text.txt"):
        assert part in result.stdout, part
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    others = ["machine.json", "report.html", "rows.jsonl", "settings.json", "table.csv"]
    assert [name for name in names if not name.endswith(".png")] == others
    assert [name.split("_")[1] for name in names if name.endswith(".png")] == ["recall", "s-niah-pk"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 2 * 5 * 2
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert {row["ckpt_sha256"] for row in rows} == {manifest["files"]["model.safetensors"]["sha256"]}
    assert {row["chunk_size_eval"] for row in rows} == {16}


def test_defaults_are_the_demo(checkpoint: Path) -> None:
    training = read_training_data(checkpoint)
    settings = make_settings(parse("niah", ["--checkpoint", str(checkpoint)]), training)
    assert settings.lengths == (256, 4096, 16384)
    assert [settings.count(length) for length in settings.lengths] == [250, 250, 65]
    assert [task.name for task in settings.tasks] == ["recall"]
    bare = make_settings(parse("niah", ["--checkpoint", str(checkpoint)]), TrainingData())
    assert (bare.lengths, bare.samples) == ((1024, 4096, 16384), (50,))
    mixed = make_settings(parse("niah", ["--checkpoint", "x", "--lengths", "4k,1k", "--samples", "9,3"]), training)
    assert [(n, mixed.count(n)) for n in mixed.lengths] == [(1024, 9), (4096, 3)]


def test_help_is_quick_and_has_an_example() -> None:
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    result = call("niah", "--help")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 6, "seconds of CPU; it takes two"
    assert result.returncode == 0
    assert "python eval.py niah --checkpoint runs/quickstart" in result.stdout
    assert ", ".join(NAMES) in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--tasks", "s-niah-kp"],
            "--tasks holds 's-niah-kp'; it must be one of s-niah-pk, .*; did you mean 's-niah-pk'",
        ),
        (["--lenghts", "1k"], "--lenghts is not an option; did you mean '--lengths'"),
        (["--length", "1k"], "--length is not an option; did you mean '--lengths'"),
        (["--checkpoint", "no/such/run"], "checkpoint no/such/run does not exist"),
        (
            ["--lengths", "64", "--haystack", "grammar", "--tasks", "s-niah-n"],
            "--lengths holds 64; it must be at least about",
        ),
        (["--lengths", "32"], "--lengths holds 32; it must be at least about"),
        (["--lengths", "many"], "--lengths holds 'many'; it must be"),
        (["--depths", "120"], "--depths holds '120'; it must be"),
        (["--samples", "0"], "--samples holds '0'; it must be"),
        (["--samples", "few"], "--samples holds 'few'; it must be"),
        (["--protocol", "ruler"], "--protocol is 'ruler'; it must be one of exact, ruler2024, .*did you mean 'ruler20"),
        (["--ablate", "none,froozen"], "--ablate is 'froozen'; it must be one of .*did you mean 'frozen'"),
        (["--haystack", "grammer"], "--haystack is 'grammer'; .*did you mean 'grammar'"),
        (["--haystack", "file:no.txt"], "--haystack is 'file:no.txt', which is no file"),
        (["--device", "gpu"], "--device is 'gpu', which is not here"),
        (["--dtype", "float8"], "--dtype: invalid choice: 'float8'"),
        (["--samples"], "--samples: expected one argument"),
        (["stray"], "stray is not an option"),
        (["--lengths", "300", "--out", __file__], "--out is .*, but .*test_eval_cli.py is no folder"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    arguments: Sequence[str],
    message: str,
    checkpoint: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    given = ["niah", "--checkpoint", str(checkpoint), "--haystack", f"file:{text_file}", "--out", str(tmp_path / "out")]
    assert main([*given, *arguments]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1, text
    assert re.search(message, text), text
    assert not (tmp_path / "out").exists()


def test_errors_from_the_program_itself() -> None:
    result = call("naih")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: 'naih' is not an evaluation; it must be one of ")
    assert result.stderr.endswith("; did you mean 'niah'?\n")
    assert result.stderr.count("\n") == 1


def test_a_damaged_checkpoint_is_one_line(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in checkpoint.glob("*.*"):
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = damaged / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert main(["niah", "--checkpoint", str(damaged)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "model.safetensors is damaged" in said


def test_debug_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["niah", "--checkpoint", "no/such/run", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_answers_of_another_length_are_not_mixed(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["niah", "--checkpoint", str(checkpoint), "--lengths", "256", "--samples", "1", "--out", str(tmp_path)]
    given += ["--haystack", f"file:{text_file}"]
    assert main([*given, "--max-new-tokens", "2"]) == 0
    assert main([*given, "--max-new-tokens", "3"]) == 2
    assert "--max-new-tokens is 3" in capsys.readouterr().err
    assert main([*given, "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"earlier": [3]}', '{"earlier": 3}', "\udcff"])
@pytest.mark.parametrize("command", ["niah", "baselines"])
def test_settings_that_are_none_are_one_line_before_anything_is_asked(
    command: str,
    content: str,
    checkpoint: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(CausalLM, "forward", lambda *_, **__: pytest.fail("the model was asked"))
    (tmp_path / "settings.json").write_text(content, errors="surrogateescape")
    given = [command, "--checkpoint", str(checkpoint), "--lengths", "256", "--samples", "1", "--out", str(tmp_path)]
    assert main([*given, "--haystack", f"file:{text_file}"]) == 2
    said = capsys.readouterr().err
    path = tmp_path / "settings.json"
    assert said.startswith(f"error: --out has {path}, which is no settings of eval.py niah: ")
    assert said.endswith("; give another folder\n")
    assert said.count("\n") == 1


def test_rows_that_cannot_be_written_are_one_line(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.jsonl").symlink_to(tmp_path / "no" / "such" / "folder" / "rows.jsonl")
    given = ["niah", "--checkpoint", str(checkpoint), "--lengths", "256", "--samples", "1", "--out", str(tmp_path)]
    assert main([*given, "--haystack", f"file:{text_file}", "--ablate", "none", "--max-new-tokens", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --out has {tmp_path / 'rows.jsonl'}, which cannot be written: No such file")
    assert said.count("\n") == 1


OTHERS = {  # short calls of two kinds: results as lines of a journal, and needles
    "recall": "--facts 2 --samples 1 --ablate none",
    "look": "--length 256",
    "niah": "--lengths 256 --samples 1 --ablate none --max-new-tokens 1",
    "baselines": "--lengths 256 --samples 1 --ablate none --max-new-tokens 1 --baselines window",
}


@pytest.mark.parametrize(
    ("first", "second"), [("recall", "look"), ("recall", "niah"), ("niah", "baselines"), ("baselines", "niah")]
)
def test_a_folder_with_results_of_another_evaluation_is_refused_before_anything_is_asked(
    first: str,
    second: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def given(command: str, *more: str) -> list[str]:
        return [command, "--checkpoint", str(checkpoint), "--out", str(tmp_path), *OTHERS[command].split(), *more]

    assert main(given(first)) == 0
    assert main(given(first, "--seed", "7")) == 0, "the same command with other options goes on"
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    capsys.readouterr()
    for what in ("reader.Reader.ask", "listener.Listener.listen", "commands.look.look"):
        monkeypatch.setattr(f"neuralmem.evaluation.{what}", lambda *_, **__: pytest.fail("the model was asked"))
    assert main(given(second)) == 2
    message = (
        f"error: --out is {str(tmp_path)!r}, which holds results of eval.py {first}; give {second} another folder\n"
    )
    assert capsys.readouterr().err == message
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands()[command], "the docstring's first line is the help"
    with pytest.raises(SystemExit) as left:
        parse(command, ["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "--out" in shown
