"""eval.py verify on what is no needle run: results as they were written pass, and what was changed is found."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralmem.evaluation.cli import commands, main

CALLS = {
    "attribution": "--lengths 300 --samples 1 --parts 3",
    "babi": "--tasks qa1 --lengths 600 --samples 2 --ablate off --max-new-tokens 2",
    "capacity": "--pairs 2 --samples 2 --ablate none",
    "continual": "--tasks 2 --classes 2 --shown 1 --samples 2 --ablate none",
    "copy": "--gaps 16 --block 12 --samples 2 --ablate none",
    "half-life": "--longest 256 --shortest 64 --samples 2 --ablate none",
    "look": "--length 256",
    "overwrite": "--updates 0,1 --facts 2 --samples 2",
    "perplexity": "--tokens 600 --ablate off",
    "positions": "--lengths 512 --samples 2 --ablate off --shuffle-lines",
    "recall": "--facts 2 --samples 2 --ablate none",
    "repeated-words": "--words 3 --samples 2 --ablate none",
    "sessions": "--sessions 2 --facts 2 --samples 2 --ablate none",
}
OTHERS = {"niah", "baselines", "verify", "report", "compare-paper"}  # checked row by row, or no evaluations


def test_every_evaluation_is_here() -> None:
    assert {*CALLS, *OTHERS} == set(commands())


def call(command: str, checkpoint: Path, out: Path, text_file: Path) -> list[str]:
    haystack = [] if command in ("repeated-words", "look") else ["--haystack", f"file:{text_file}"]
    return [command, "--checkpoint", str(checkpoint), "--out", str(out), *haystack, *CALLS[command].split()]


def verify(out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    capsys.readouterr()
    return main(["verify", "--out", str(out), *options]), capsys.readouterr().out


@pytest.mark.parametrize("command", CALLS)
def test_results_as_they_were_written_pass(
    command: str, checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "with a space"
    assert main(call(command, checkpoint, out, text_file)) == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert verify(out, capsys) == (0, "prompts and tables are what they must be\n")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def edited(out: Path, change: Callable[[dict], object]) -> None:
    rows = [json.loads(line) for line in (out / "overwrite.jsonl").read_text().splitlines()]
    change(rows[0])
    (out / "overwrite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_was_changed_is_found(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(name: str) -> Path:
        assert main(call("overwrite", checkpoint, tmp_path / name, text_file)) == 0
        return tmp_path / name

    edited(made("prompt"), lambda row: row.update(script_sha256="0" * 64))
    code, said = verify(tmp_path / "prompt", capsys)
    assert code == 1
    assert said.startswith("overwrite: a prompt that the command makes is not among the rows of ")
    assert said.endswith("\n1 difference\n")

    edited(made("answer"), lambda row: row["answers"][0].update(exact=1 - row["answers"][0]["exact"]))
    code, said = verify(tmp_path / "answer", capsys)
    assert code == 1
    assert "overwrite.csv line 2 is " in said
    assert ", made again it is " in said

    (made("table") / "overwrite.csv").unlink()
    code, said = verify(tmp_path / "table", capsys)
    assert (code, said) == (1, f"{tmp_path / 'table' / 'overwrite.csv'}: missing\n1 difference\n")

    machine = made("command") / "machine.json"
    content = json.loads(machine.read_text())
    assert "--seed" not in shlex.split(content["command"])
    machine.write_text(json.dumps(content | {"command": content["command"] + " --seed 7"}))
    assert verify(tmp_path / "command", capsys)[0] == 1


def test_a_folder_that_does_not_say_its_command_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "machine.json").write_text("{}")
    assert main(["verify", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == f"error: --out is {str(tmp_path)!r}, whose machine.json does not say which command made it\n"
