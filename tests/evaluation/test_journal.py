"""Results that are appended: what is there is not measured again, and a killed run leaves nothing that misleads."""

import json
from pathlib import Path

import pytest

from neuralmem.errors import UserError
from neuralmem.evaluation.journal import Journal, checking, differences, made_by, read_lines


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.jsonl"
    Journal(path, ("length", "seed")).add({"length": 1, "seed": 0, "loss": 2.0}, {"length": 2, "seed": 0, "loss": 1.0})
    with path.open("a") as file:
        file.write('{"length": 3, "se')  # killed here
    journal = Journal(path, ("length", "seed"))
    assert journal.find(length=2, seed=0) == {"length": 2, "seed": 0, "loss": 1.0}
    assert journal.find(length=3, seed=0) is None
    journal.add({"length": 3, "seed": 0, "loss": 0.5})
    assert len(path.read_text().splitlines()) == 3
    assert Journal(path, ("length", "seed")).find(length=3, seed=0) is not None


def test_who_only_reads_leaves_the_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"length": 1}\n{"length": 2')  # being written
    assert list(read_lines(path)) == [{"length": 1}]
    assert path.read_text().endswith('{"length": 2')
    assert list(read_lines(path, repair=True)) == [{"length": 1}]
    assert path.read_text() == '{"length": 1}\n'


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"length": 1}'])
def test_files_of_others_are_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"x\.jsonl, whose .*; give another folder"):
        Journal(tmp_path / "x.jsonl", ("length", "seed"))


def test_a_folder_is_of_one_evaluation(tmp_path: Path) -> None:
    assert made_by(tmp_path) == []
    for content in ("", "[]", '{"began": "a training run"}', '{"command": 3}'):
        (tmp_path / "machine.json").write_text(content)
        assert made_by(tmp_path) == []
        Journal(tmp_path / "copy.jsonl", ("length",))
    (tmp_path / "machine.json").write_text(json.dumps({"command": "eval.py half-life --out 'a b'"}))
    assert made_by(tmp_path) == ["half-life", "--out", "a b"]
    Journal(tmp_path / "half_life.jsonl", ("length",))
    with pytest.raises(UserError, match=r"^--out is '.*', which holds results of eval.py half-life; give copy another"):
        Journal(tmp_path / "copy.jsonl", ("length",))


def test_rows_are_compared_only_while_they_are_checked(tmp_path: Path) -> None:
    Journal(tmp_path / "x.jsonl", ("length",)).add({"length": 1, "said": []}, {"length": 2, "exact": 1, "span": [3, 4]})
    journal = Journal(tmp_path / "x.jsonl", ("length",))
    row = journal.find(length=2)
    assert row is not None
    journal.confirm(row, lambda: pytest.fail("computed for nothing"))
    with checking() as found:
        journal.confirm(row, lambda: {"exact": 1, "span": (3, 4)})
        assert found == []
        journal.confirm(row, lambda: {"exact": 0, "span": (3, 5), "nll": 1.5})
    assert found == [
        "x.jsonl line 2: exact is 1, computed again it is 0",
        "x.jsonl line 2: span[1] is 4, computed again it is 5",
        "x.jsonl line 2: nll is None, computed again it is 1.5",
    ]
    journal.confirm(row, lambda: pytest.fail("computed for nothing"))


def test_long_values_are_cut() -> None:
    (line,) = differences([1] * 999, [1] * 998, "answers")
    assert len(line) < 450
