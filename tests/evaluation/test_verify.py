"""eval.py verify: a folder that is as it was written passes; every way of spoiling it is found, with exit code 1."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.durable import manifest
from neuralmem.evaluation.asked import NeedleRun, Respondent, read_runs, write_runs
from neuralmem.evaluation.cli import main
from neuralmem.evaluation.niah import Settings, run
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.recall import read_training_data
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.summary import by_depth
from neuralmem.evaluation.tables import to_csv
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import save
from neuralmem.models.weights import fingerprint
from neuralmem.tokenizer import ByteTokenizer, train_bpe
from tests.evaluation.fake import Oracle

Rows = list[dict[str, Any]]


def write_settings(out: Path, settings: Settings, subject: Subject) -> None:
    """What eval.py niah says of itself before it asks."""
    whom = Respondent("tiny", "tiny", subject, settings.ablations)
    write_runs(out, NeedleRun(settings, (whom,), "table.csv"), None)


def ask(written: Path, out: Path, oracle: Oracle, runs: Sequence[tuple[Settings, Subject]]) -> list[str]:
    """Several runs into a folder, one after another. -> the command that verifies them."""
    for settings, subject in runs:
        write_settings(out, settings, subject)
        found = run(settings, Reader(oracle, oracle.tokenizer), subject, out, read_training_data(written))
    (out / "table.csv").write_text(to_csv(by_depth(found, settings.grid)))
    return ["verify", "--out", str(out), "--checkpoint", str(written)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with results of an oracle in its folder niah."""
    torch.manual_seed(0)
    config = ModelConfig(257, 16, 1, attention=AttentionConfig(heads=1, window=301), memory=MemoryConfig(heads=1))
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save(folder, CausalLM(config), ByteTokenizer())
    weights = fingerprint(json.loads(manifest(folder) or b"{}")["files"])
    oracle, tasks = Oracle(300), tuple(map(find_task, ("s-niah-n", "mq-niah", "fwe")))
    subject = Subject(300, oracle.tokenizer.fingerprint, weights, 64, 64, "float32", "cpu")
    settings = Settings(tasks, (1500,), samples=(3,), haystacks=("grammar",), ablations=("none", "off", "shuffled"))
    rows = run(settings, Reader(oracle, oracle.tokenizer), subject, folder / "niah", read_training_data(folder))
    (folder / "niah" / "table.csv").write_text(to_csv(by_depth(rows, settings.grid)))
    write_settings(folder / "niah", settings, subject)
    return folder


def spoilt(written: Path, tmp_path: Path, spoil: Callable[[Rows], object]) -> list[str]:
    """Arguments of eval.py verify for a copy of the results after something was done to them."""
    rows = [json.loads(line) for line in (written / "niah" / "rows.jsonl").read_text().splitlines()]
    spoil(rows)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("settings.json", "table.csv"):
        (tmp_path / name).write_bytes((written / "niah" / name).read_bytes())
    return ["verify", "--out", str(tmp_path), "--checkpoint", str(written)]


def test_results_as_they_were_written_pass(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--out", str(written / "niah")]) == 0
    assert capsys.readouterr().out == "27 rows: prompts, counts and scores are what they must be\n"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda rows: rows[4].update(prompt_sha256="0" * 64), "prompt_sha256 is '000"),
        (lambda rows: rows[0].update(official=0.0), "official is 0.0, computed again it is 1.0"),
        (lambda rows: rows[0].update(strict=0), "strict is 0, computed again it is 1"),
        (lambda rows: rows[0].update(pred="no"), "official is 1.0, computed again it is 0.0"),
        (lambda rows: rows[9].update(prompt_tokens=1499), "prompt_tokens is 1499, computed again it is 1500"),
        (lambda rows: rows[9].update(needle_spans=[[1, 2]]), "needle_spans is ((1, 2),), computed again"),
        (lambda rows: rows[0].update(beyond_window=not rows[0]["beyond_window"]), "beyond_window is"),
        (lambda rows: rows[26].update(null=0.99), "null is 0.99"),
        (lambda rows: rows[7].update(reach=rows[7]["reach"] - 1), "reach: 1 of 27 rows have reach"),
        (lambda rows: rows.pop(13), ": missing"),
        (lambda rows: rows[5].update(ckpt_sha256="f" * 64), "checkpoint: 1 of 27 rows have ckpt_sha256 ffff"),
        (lambda rows: rows[5].update(nominal_len=1024), "not of settings.json, as 1 rows in all"),
    ],
)
def test_what_was_changed_is_named(
    spoil: Callable[[Rows], object],
    expected: str,
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(spoilt(written, tmp_path, spoil)) == 1
    *every, last = capsys.readouterr().out.splitlines()
    lines = [line for line in every if "table.csv" not in line]
    assert any(expected in line for line in lines), lines
    assert len(lines) <= 2, "a changed prediction changes two scores, a row that is elsewhere is missing as well"
    assert last.endswith(f" {len(every)} difference{'s' * (len(every) != 1)}")


def test_a_changed_hash_leaves_the_table_as_it_is(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(spoilt(written, tmp_path, lambda rows: rows[4].update(prompt_sha256="0" * 64))) == 1
    (line, last) = capsys.readouterr().out.splitlines()
    assert "prompt_sha256 is '000" in line
    assert last.endswith(" 1 difference")


def test_two_runs_into_one_folder_are_both_checked(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same task at other depths and with fewer samples, then at another length: no row is a stranger."""
    oracle, out = Oracle(300), tmp_path / "niah"
    weights = fingerprint(json.loads(manifest(written) or b"{}")["files"])
    subject = Subject(300, oracle.tokenizer.fingerprint, weights, 64, 64, "float32", "cpu")
    first = Settings((find_task("s-niah-n"),), (1200,), samples=(3,), haystacks=("grammar",), depths=(0.0, 50.0))
    again = replace(first, depths=None, samples=(2,)), replace(first, lengths=(1500,))
    arguments = ask(written, out, oracle, [(settings, subject) for settings in (first, *again)])
    assert main(arguments) == 0
    assert capsys.readouterr().out == "8 rows: prompts, counts and scores are what they must be\n"
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    assert len(read_runs(out)) == 3
    (out / "rows.jsonl").write_text("".join(lines[1:]))  # an earlier run may have been stopped
    assert main(arguments) == 0
    (out / "rows.jsonl").write_text("".join(lines[:-1]))
    assert main(arguments) == 1
    assert "length 1500 seed 42 sample 2 none: missing" in capsys.readouterr().out
    changed = json.loads(lines[0]) | {"prompt_sha256": "0" * 64}
    (out / "rows.jsonl").write_text("".join([json.dumps(changed) + "\n", *lines[1:]]))
    assert main(arguments) == 1
    assert "prompt_sha256 is '000" in capsys.readouterr().out


def test_a_later_run_with_fewer_controls_has_a_table_of_its_own(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oracle, out = Oracle(300), tmp_path / "niah"
    weights = fingerprint(json.loads(manifest(written) or b"{}")["files"])
    subject = Subject(300, oracle.tokenizer.fingerprint, weights, 64, 64, "float32", "cpu")
    first = Settings((find_task("s-niah-n"),), (1200,), samples=(2,), haystacks=("grammar",), ablations=("none", "off"))
    for settings in (first, replace(first, ablations=("none",))):
        write_settings(out, settings, subject)
        found = run(settings, Reader(oracle, oracle.tokenizer), subject, out, read_training_data(written))
    (out / "table.csv").write_text(to_csv(by_depth(found, settings.grid)))
    arguments = ["verify", "--out", str(out), "--checkpoint", str(written)]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "4 rows: prompts, counts and scores are what they must be\n"
    *others, last = (out / "rows.jsonl").read_text().splitlines()
    (out / "rows.jsonl").write_text("\n".join([*others, json.dumps(json.loads(last) | {"ablation": "reset"})]) + "\n")
    assert main(arguments) == 1
    assert "reset: not of settings.json, as 1 rows in all" in capsys.readouterr().out


def test_another_dtype_is_another_respondent(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rows of one do not stand in for those of the other, nor get into its table; nor does a control of another
    task."""
    oracle, out = Oracle(300), tmp_path / "niah"
    weights = fingerprint(json.loads(manifest(written) or b"{}")["files"])
    single = Subject(300, oracle.tokenizer.fingerprint, weights, 64, 64, "float32", "cpu")
    plain = Settings((find_task("s-niah-n"),), (1200,), samples=(2,), haystacks=("grammar",))
    other = replace(plain, tasks=(find_task("fwe"),), ablations=("none", "off"))
    half = replace(single, dtype="bfloat16")
    arguments = ask(written, out, oracle, [(other, single), (plain, single), (plain, half)])
    assert main(arguments) == 0
    assert capsys.readouterr().out == "8 rows: prompts, counts and scores are what they must be\n"
    *others, last = (out / "rows.jsonl").read_text().splitlines()
    (out / "rows.jsonl").write_text("\n".join(others) + "\n")
    assert main(arguments) == 1
    assert "sample 1 none: missing" in capsys.readouterr().out
    (out / "rows.jsonl").write_text(
        "\n".join([*others, last, json.dumps(json.loads(last) | {"ablation": "off"})]) + "\n"
    )
    assert main(arguments) == 1
    assert "off: not of settings.json, as 1 rows in all" in capsys.readouterr().out


def test_settings_that_come_again_stand_once(tmp_path: Path) -> None:
    first = Settings((find_task("s-niah-n"),), (1200,), samples=(3,))
    subject = Subject(300, "t", "c", 64, 64, "float32", "cpu")
    for settings in (first, first, replace(first, samples=(5,)), first):
        write_settings(tmp_path, settings, subject)
    assert [one.settings.samples for one in read_runs(tmp_path)] == [(3,), (5,)]
    write_settings(tmp_path, first, replace(subject, baseline="bm25"))
    assert [(one.settings.samples, one.asked[0].subject.baseline) for one in read_runs(tmp_path)] == [
        ((3,), "bm25"),
        ((5,), ""),
        ((3,), ""),
    ]


def test_another_tokenizer_is_found(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "run"
    config = ModelConfig(300, 16, 1, pattern=["titans_lmm"])
    save(other, CausalLM(config), train_bpe(["the cat sat on the mat " * 50], 300))
    assert main(["verify", "--out", str(written / "niah"), "--checkpoint", str(other)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("tokenizer: 27 of 27 rows have tokenizer_sha256 ") for line in lines) == 1
    assert not [line for line in lines if "prompt_sha256" in line], "said once, not for every row"


@pytest.mark.parametrize(
    ("haystack", "expected"),
    [
        (
            "builtin",
            r"builtin-held-out:(\w{8}), this Python gives builtin-held-out:(?!\1)\w{8} \(text of the Python lib",
        ),
        ("file:story.txt", r"file:story.txt:(\w{8}), its text is now file:story.txt:(?!\1)\w{8}; verify with the text"),
    ],
)
def test_a_haystack_with_another_text_is_one_line(
    haystack: str,
    expected: str,
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the library of another Python is: not every row a stranger, and every one missing."""
    monkeypatch.chdir(tmp_path)

    def tell(what: str) -> None:
        text = "".join(f"It was night {i}, {what}.\n" for i in range(999))
        (tmp_path / "story.txt").write_text(text)
        monkeypatch.setattr("neuralmem.evaluation.haystack._held_out", lambda *_: text)

    oracle, out = Oracle(300), tmp_path / "niah"
    weights = fingerprint(json.loads(manifest(written) or b"{}")["files"])
    subject = Subject(300, oracle.tokenizer.fingerprint, weights, 64, 64, "float32", "cpu")
    tell("and the wind blew")
    settings = Settings((find_task("s-niah-n"),), (1200,), samples=(3,), haystacks=(haystack,))
    arguments = ask(written, out, oracle, [(settings, subject)])
    assert main(arguments) == 0
    tell("and all was still")
    capsys.readouterr()
    assert main(arguments) == 1
    line, last = capsys.readouterr().out.splitlines()
    assert re.match(f"haystack: 3 of 3 rows have {expected}", line), line
    assert last.endswith(" 1 difference")
    rows = [json.loads(row) for row in (out / "rows.jsonl").read_text().splitlines()]
    (out / "rows.jsonl").write_text("".join(json.dumps(row | {"official": 0.5}) + "\n" for row in rows[1:]))
    assert main(arguments) == 1
    said = capsys.readouterr().out
    assert said.count("official is 0.5, computed again it is 1.0") == 2, "scores are checked all the same"
    assert "sample 0 none: missing" in said


def test_the_checkpoint_is_the_one_that_the_command_named(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results elsewhere than in the checkpoint's folder, as those of models in the package always are."""
    *arguments, _, _ = spoilt(written, tmp_path, lambda rows: None)
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith("which does not say what was asked; give --checkpoint RUN\n")
    (tmp_path / "machine.json").write_text(json.dumps({"command": f"eval.py niah --checkpoint {written}"}))
    assert main(arguments) == 0
    assert "are what they must be" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "settings.json").unlink(), "which has no settings.json"),
        (lambda folder: (folder / "settings.json").write_text("{"), "which is no settings of eval.py niah"),
        (lambda folder: (folder / "settings.json").write_text('{"asked": 3}'), "which is no settings of eval.py niah"),
        (
            lambda folder: (folder / "settings.json").write_text('{"tasks": []}'),
            "settings.json, which does not say who was asked",
        ),
        (lambda folder: (folder / "rows.jsonl").write_text('{"a": 1}\n'), "whose line 1 is not a result row"),
        (lambda folder: (folder / "rows.jsonl").unlink(), "which has no rows.jsonl"),
    ],
)
def test_folders_of_something_else_are_refused(
    spoil: Callable[[Path], object],
    message: str,
    written: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = spoilt(written, tmp_path, lambda rows: None)
    spoil(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("--out") == 1
    assert error.count("\n") == 1


def test_rows_of_a_baseline_do_not_stand_in_for_those_of_the_memory(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def as_baseline(rows: Rows) -> None:
        next(row for row in rows if row["ablation"] == "none")["baseline"] = "bm25"

    assert main(spoilt(written, tmp_path, as_baseline)) == 1
    missing, stranger, *_ = capsys.readouterr().out.splitlines()
    assert missing.endswith("none: missing")
    assert "not of settings.json, as 1 rows in all" in stranger
