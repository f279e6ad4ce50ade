"""eval.py verify on what is no needle run: results as they were written pass, and what was changed is found.

A forger who is thorough changes rows and then makes the table anew of them, so table and rows agree.
"""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralmem.evaluation.cli import commands, main

CALLS = {
    "attribution": "--lengths 600 --samples 1 --parts 6",
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


def edited(out: Path, change: Callable[[dict], object], name: str = "overwrite.jsonl") -> None:
    rows = [json.loads(line) for line in (out / name).read_text().splitlines()]
    change(rows[0])
    (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def flip(name: str) -> Callable[[dict], object]:
    return lambda row: row.update({name: int(not row[name])})


def flip_answer(name: str) -> Callable[[dict], object]:
    return lambda row: row["answers"][-1].update({name: int(not row["answers"][-1][name])})


STREAMS = ("capacity", "continual", "copy", "half-life", "overwrite", "recall", "sessions")
FORGERIES = [  # command, change, what is said of the row
    ("attribution", flip("hit"), "hit is"),
    ("attribution", lambda row: row.update(rank=4 - row["rank"] % 3), "rank is"),
    (
        "attribution",
        lambda row: row.update(needle_parts=[0, 1, 2], chance=1.0),
        "chance is 1.0, computed again it is 0.",
    ),
    ("attribution", lambda row: row.update(drops=row["drops"][:2]), "drops is"),
    ("babi", lambda row: row.update(correct=1, rank=1), "correct is 1, computed again it is 0"),
    ("babi", lambda row: row.update(pred=row["answer"]), "correct is 0, computed again it is 1"),
    ("babi", lambda row: row.update(pred="garden", answer="garden", correct=1), "answer is 'garden', computed again"),
    ("babi", lambda row: row.update(rank=0), "rank is 0, computed again it is 1"),
    ("babi", flip("beyond_window"), "beyond_window is"),
    ("repeated-words", lambda row: row.update(similarity=1.0, exact=1), "similarity is 1.0, computed again it is 0"),
    (
        "repeated-words",
        lambda row: row.update(odd_in_place=1, odd_present=1),
        "odd_in_place is 1, computed again it is 0",
    ),
    *((command, flip_answer("exact"), "].exact is") for command in STREAMS),
    *((command, flip_answer("seen"), "].seen is") for command in STREAMS),
    ("overwrite", lambda row: row["answers"].pop(), "answers is"),
    ("perplexity", lambda row: row.update(tokens=row["tokens"] + 50), "tokens is"),
    ("perplexity", lambda row: row.update(tokens_beyond=7), "tokens_beyond is 7, computed again it is"),
    ("perplexity", lambda row: row.update(reach=0), "reach is 0, computed again it is"),
    ("perplexity", lambda row: row.update(nll_beyond=row["nll"] + 1), "nll_beyond is"),
    ("perplexity", lambda row: row.update(nll_beyond=-1.0), "nll_beyond is -1.0, computed again it is 0.0"),
    ("perplexity", lambda row: row.update(nll=-1.0), "nll is -1.0, computed again it is 0.0"),
    ("positions", lambda row: row.update(tokens=5), "tokens is 5, computed again it is 512"),
    ("positions", lambda row: row["bucket_nll"].__setitem__(-1, 0.0), "bucket_nll is"),
    ("positions", lambda row: row["curve_nll"].__setitem__(-1, 0.0), "bucket_nll is"),
    ("positions", lambda row: row["curve_nll"].pop(), "curve_nll is"),
    ("positions", lambda row: row.update(reach=0), "reach is 0, computed again it is"),
]


@pytest.mark.parametrize(("command", "change", "expected"), FORGERIES)
def test_scores_that_are_forged_in_rows_and_table_are_found(
    command: str,
    change: Callable[[dict], object],
    expected: str,
    checkpoint: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, lines = call(command, checkpoint, tmp_path, text_file), f"{command.replace('-', '_')}.jsonl"
    lines = lines if command != "repeated-words" else "repeated-words.jsonl"
    assert main(given) == 0
    edited(tmp_path, change, lines)
    assert main(given) == 0
    code, said = verify(tmp_path, capsys)
    assert code == 1
    assert f"{lines} line 1: " in said
    assert expected in said
    assert ".csv" not in said, "the table is that of the rows"


def test_a_row_with_too_many_buckets_is_refused(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = call("positions", checkpoint, tmp_path, text_file)
    assert main(given) == 0
    edited(tmp_path, lambda row: row["bucket_nll"].append(0.0), "positions.jsonl")
    assert main(given) == 2
    assert "which has a row whose bucket_nll is of other positions" in capsys.readouterr().err
    assert main(["verify", "--out", str(tmp_path)]) == 2


def _nothing(row: dict) -> None:
    for name, value in row.items():
        if "nll" in name:
            row[name] = [math.nan] * len(value) if isinstance(value, list) else math.nan


@pytest.mark.parametrize("command", ["perplexity", "positions"])
def test_losses_that_are_nan_are_what_the_model_said(
    command: str, checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = call(command, checkpoint, tmp_path, text_file)
    assert main(given) == 0
    edited(tmp_path, _nothing, f"{command}.jsonl")
    assert main(given) == 0
    assert verify(tmp_path, capsys) == (0, "prompts and tables are what they must be\n")


def test_a_row_of_another_seed_is_found(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = call("babi", checkpoint, tmp_path, text_file)
    assert main(given) == 0
    edited(tmp_path, lambda row: row.update(seed=7), "babi.jsonl")
    assert verify(tmp_path, capsys) == (1, "babi.jsonl line 1: seed is 7, computed again it is 42\n1 difference\n")


def test_results_of_a_gpu_are_checked_without_one(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*call("overwrite", checkpoint, tmp_path, text_file), "--dtype", "bfloat16"]) == 0
    machine = json.loads((tmp_path / "machine.json").read_text())
    (tmp_path / "machine.json").write_text(json.dumps(machine | {"command": machine["command"] + " --device cuda:7"}))
    assert verify(tmp_path, capsys) == (0, "prompts and tables are what they must be\n")


def test_the_library_of_another_python_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["overwrite", "--checkpoint", str(checkpoint), "--haystack", "builtin", "--out", str(tmp_path)]
    monkeypatch.setattr("neuralmem.evaluation.haystack._held_out", lambda *_: "It was night.\n" * 99)
    assert main([*given, *CALLS["overwrite"].split()]) == 0
    monkeypatch.setattr("neuralmem.evaluation.haystack._held_out", lambda *_: "It is day.\n" * 99)
    code, said = verify(tmp_path, capsys)
    assert code == 1
    line, last = said.splitlines()
    assert last == "1 difference"
    assert line.startswith("haystack: the rows have builtin-held-out:")
    assert ", this Python gives builtin-held-out:" in line
    assert line.endswith(
        " (text of the Python library differs between versions); verify with the Python that machine.json names"
    )


def test_a_prompt_that_is_not_there_may_be_of_another_python(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that name no haystack cannot say it themselves."""
    assert main(call("perplexity", checkpoint, tmp_path, text_file)) == 0
    edited(tmp_path, lambda row: row.update(text_sha256="0" * 64), "perplexity.jsonl")
    assert "Python" not in verify(tmp_path, capsys)[1]
    machine = json.loads((tmp_path / "machine.json").read_text())
    (tmp_path / "machine.json").write_text(json.dumps(machine | {"Python": "3.9.1"}))
    code, said = verify(tmp_path, capsys)
    assert code == 1
    assert " (Python 3.9.1 made it, this is " in said
    assert said.count("\n") == 2


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
