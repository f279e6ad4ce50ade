"""kill -9 while a checkpoint is saved: what is on the disk is whole, and the last one reported or the one after it.
And of a whole run: it goes on to the same end."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def kill(folder: Path, *arguments: str, what: str = "saving") -> dict:
    command = [sys.executable, "-m", f"tests.reliability.{what}", str(folder), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("trials", "stride"),
    [
        pytest.param("10", "", id="any time"),
        pytest.param("21", "3", id="before every third call that changes the disk"),  # a save makes 60
        pytest.param("62", "1", id="before every call that changes the disk", marks=pytest.mark.soak),
        pytest.param("200", "", id="any time, long", marks=pytest.mark.soak),
    ],
)
def test_no_kill_leaves_an_unusable_folder(
    tmp_path: Path, trials: str, stride: str, record_property: Callable[[str, object], None]
) -> None:
    found = kill(tmp_path / "run", trials, "0", *([stride] if stride else []))
    record_property("found", found)
    assert found["unusable"] == []
    assert found["left"] == []
    assert found["kills"] == int(trials)
    assert found["generations"] > int(trials) // 4


@pytest.mark.parametrize("kills", ["1", pytest.param("20", marks=pytest.mark.soak)])
def test_a_run_killed_between_checkpoints_ends_as_one_left_alone(
    tmp_path: Path, kills: str, record_property: Callable[[str, object], None]
) -> None:
    found = kill(tmp_path, kills, "0", what="training")
    record_property("found", found)
    assert found["equal"]
    assert found["steps"] == sorted(set(found["steps"]))
