"""A disk that takes no more: the last checkpoint stays, one line says so, the run goes on, and its end is an error."""

import contextlib
import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuralmem.training.cli import main
from neuralmem.training.logs import read_metrics
from neuralmem.training.resume import newest
from tests.conftest import TINY
from tests.reliability.saving import Run

Train = Callable[..., Path]
ROOT = Path(__file__).parents[2]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse every byte of a file beyond `size`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 5_000, 20_000])
def test_what_the_system_refuses_is_an_oserror_and_leaves_everything_as_it_was(tmp_path: Path, size: int) -> None:
    run = Run(tmp_path / "run")
    run.save(1)
    before = content(run.folder)
    with largest_file(size), pytest.raises(OSError, match="File too large"):
        run.save(2)
    assert content(run.folder) == before
    run.save(2)
    assert run.check(2, 1) is None


@pytest.mark.parametrize("number", range(0, 70, 3))
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_any_call_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    run, left, real = Run(tmp_path / "run"), iter(range(number)), getattr(os, call)
    run.save(1)

    def fail(*arguments: Any, **more: Any) -> Any:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with contextlib.suppress(OSError):
            run.save(2)
    assert run.check(1, 1) is None
    run.save(3)
    assert newest(run.checkpoints) == run.checkpoints / "step=3"
    assert not list(run.folder.rglob(".*"))


def test_free_space_is_looked_at_first(train: Train, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The second of three checkpoints does not fit, the run goes on and saves the third."""
    free = iter([10**12, 1234, 10**12])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=next(free)))
    run = train("transformer", "a", "--checkpoint.every", "4")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(said) == 1
    assert re.match(r"warning: step 8 was not saved: [\d,]+ bytes are needed, 1,234 are free \(.*\); earlier", said[0])
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=4", "step=10"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount")
    if done.returncode:
        pytest.skip(f"mount: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def at_steps(**commands: str) -> list[str]:
    """Options that run commands after steps: `at_steps(s7="...")`."""
    listed = ", ".join(
        f"{{class_path: tests.reliability.callbacks.AtStep, init_args: {{step: {step[1:]}, command: '{command}'}}}}"
        for step, command in commands.items()
    )
    return ["--trainer.callbacks", f"[{listed}]"]


FILL = "head -c 9m /dev/zero > {0}/fill; true"
FAULTS = {
    "full": (FILL, "rm {0}/fill"),
    "read-only": ("mount --bind {0}/run {0}/run && mount -o remount,bind,ro {0}/run", "umount -l {0}/run"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_survives_a_disk_that_fails_for_a_while(small_disk: Path, capsys: Any, fault: str) -> None:
    wrong, right = (command.format(small_disk) for command in FAULTS[fault])
    run = small_disk / "run"
    options = ["--config", str(TINY / "transformer.yaml"), "--run", str(run), "--checkpoint.every", "3"]
    assert main([*options, *at_steps(s5=wrong, s8=right)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert [line.partition(":")[0] for line in said] == ["warning"] * len(said)
    assert len([line for line in said if "step 6 was not saved" in line]) == 1
    assert len(said) <= 2  # and one about rows of metrics.csv
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=9", "step=10"}
    rows = [row["step"] for row in read_metrics(run / "metrics.csv")]
    assert rows[-1] == 10
    assert rows == sorted(set(rows))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_cannot_save_its_end_fails(small_disk: Path, capsys: Any, fault: str) -> None:
    wrong, right = (command.format(small_disk) for command in FAULTS[fault])
    run = small_disk / "run"
    options = ["--config", str(TINY / "transformer.yaml"), "--run", str(run), "--checkpoint.every", "4"]
    assert main([*options, *at_steps(s7=wrong)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"error: the run has ended, but its last state, step 10, was not saved: .*; the newest checkpoint is of step 4",
        said[-1],
    )
    subprocess.run(right, shell=True, check=True)
    assert newest(run / "checkpoints") == run / "checkpoints" / "step=4"
    assert main([*options, "--resume", "auto"]) == 0
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step=8", "step=10"}


def test_a_folder_that_cannot_be_written_is_refused_at_once(small_disk: Path, capsys: Any) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main(["--config", str(TINY / "transformer.yaml"), "--run", str(small_disk / "run")]) == 2
    assert capsys.readouterr().err.endswith("which cannot be written: Read-only file system\n")


@pytest.mark.soak
def test_every_rank_hears_of_a_full_disk(small_disk: Path) -> None:
    wrong, right = (command.format(small_disk) for command in FAULTS["full"])
    options = ["--config", str(TINY / "transformer.yaml"), "--run", str(small_disk / "run"), "--checkpoint.every", "3"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", *at_steps(s5=wrong, s8=f"{right} -f")]
    command = [sys.executable, str(ROOT / "train.py"), *options, *two]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=small_disk, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 6 was not saved") == 1
    assert newest(small_disk / "run" / "checkpoints") == small_disk / "run" / "checkpoints" / "step=10"
