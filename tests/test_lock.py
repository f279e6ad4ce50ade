"""Locks end with their holder: released, killed, or with a child that lives on."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from neuralmem.errors import UserError
from neuralmem.lock import alone, run_lock, try_alone

HOLD = """
import os, sys, time
from pathlib import Path
from neuralmem.lock import run_lock
with run_lock(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_one_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    with run_lock(run):
        with pytest.raises(UserError, match=rf"where process {os.getpid()} on \S+ is training"), run_lock(run):
            pass
        assert [file.name for file in run.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
    run.mkdir(parents=True)
    (run / "mine").touch()
    with run_lock(run):
        pass
    assert [file.name for file in run.iterdir()] == ["mine"]


def test_a_killed_holder_does_not_block_though_its_child_lives(tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"where process {holder.pid} on"), run_lock(run):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # alive
        with run_lock(run):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_a_folder_is_held_while_the_block_lasts(tmp_path: Path) -> None:
    with alone(tmp_path), try_alone(tmp_path) as mine:
        assert mine is False
    with try_alone(tmp_path) as mine:
        assert mine is True


def test_a_place_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with run_lock(tmp_path / "run"):
        pass
    assert (
        "run lies where files cannot be locked, so a second run in it would not be refused" in capsys.readouterr().err
    )


def test_what_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match=r"^run is '.*', which cannot be written: Not a directory$")
    with refused, run_lock(tmp_path / "file" / "run"):
        pass
