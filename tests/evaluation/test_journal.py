"""Results that are appended: what is there is not measured again, and a killed run leaves nothing that misleads."""

from pathlib import Path

import pytest

from neuralmem.errors import UserError
from neuralmem.evaluation.journal import Journal, read_lines


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
