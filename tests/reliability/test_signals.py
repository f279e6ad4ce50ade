"""Being told to stop, at every moment: the step is finished and saved, and what goes on from it loses nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch
import pytest

from neuralmem.models.checkpoint import load
from neuralmem.training.cli import main
from neuralmem.training.module import LanguageModel
from neuralmem.training.signals import Signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

ROOT = Path(__file__).parents[2]
TINY = ["--config", str(ROOT / "configs" / "tiny" / "lmm.yaml"), "--model.depth", "1"]
VALIDATION = ["--trainer.val_check_interval", "3", "--data.validation.batches", "3"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def train(run: Path, *options: str) -> int:
    return main([*TINY, "--run", str(run), "--report.at_end", "false", *options])


def signalled(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, number: int, at: int) -> None:
    """Send a signal to this process in a call of a method, counted from 0."""
    original: Callable = getattr(owner, method)
    calls = iter(range(10**6))

    def call(*given: object, **named: object) -> object:
        if next(calls) == at:
            os.kill(os.getpid(), number)
        return original(*given, **named)

    monkeypatch.setattr(owner, method, call)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole")
    assert train(run, *VALIDATION) == 0
    return run


IN_A_STEP = (LanguageModel, "training_step", 2, 3)
IN_VALIDATION = (LanguageModel, "validation_step", 1, 3)
WHILE_IT_SAVES = (lightning.pytorch.Trainer, "save_checkpoint", 0, 5)


@pytest.mark.parametrize(  # every place and every signal; what a signal is called does not hang on the place
    ("number", "owner", "method", "at", "step"),
    [
        pytest.param(signal.SIGTERM, *IN_A_STEP, id="SIGTERM in a step"),
        pytest.param(signal.SIGINT, *IN_A_STEP, id="SIGINT in a step"),
        pytest.param(signal.SIGUSR1, *IN_A_STEP, id="SIGUSR1 in a step"),
        pytest.param(signal.SIGTERM, *IN_VALIDATION, id="SIGTERM in validation"),
        pytest.param(signal.SIGINT, *WHILE_IT_SAVES, id="SIGINT while it saves"),
    ],
)
def test_it_saves_exits_and_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    whole: Path,
    number: signal.Signals,
    owner: type,
    method: str,
    at: int,
    step: int,
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        signalled(patch, owner, method, number, at)
        with pytest.raises(SystemExit) as stop:
            train(tmp_path, *VALIDATION)
    assert stop.value.code == 128 + number
    assert f"{number.name}: step {step} is saved in {tmp_path}" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
    load(tmp_path)
    assert train(tmp_path, *VALIDATION, "--ckpt_path", "last") == 0
    assert weights(tmp_path) == weights(whole)


def test_accumulation_is_finished_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Within the second of a step's three batches; what goes on from it ends as a run that nobody stopped."""
    options = ["--tokens_per_step", "576", "--trainer.max_steps", "3", "--data.carry", "true"]
    with monkeypatch.context() as patch:
        signalled(patch, LanguageModel, "training_step", signal.SIGTERM, at=4)
        with pytest.raises(SystemExit):
            train(tmp_path / "stopped", *options)
    assert "SIGTERM: step 2 is saved" in capsys.readouterr().err
    for name in ("stopped", "whole"):
        assert train(tmp_path / name, *options, "--resume", "auto") == 0
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_slurm_is_answered_by_us_not_by_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    job = {
        "NTASKS": "1",
        "NNODES": "1",
        "JOB_ID": "7",
        "JOB_NAME": "train",
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
    }
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    asked: list[object] = []
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.signal_connector.call", asked.append)
    signalled(monkeypatch, LanguageModel, "training_step", signal.SIGUSR1, at=2)
    with pytest.raises(SystemExit) as stop:
        train(tmp_path)
    assert stop.value.code == 128 + signal.SIGUSR1
    assert "SIGUSR1: step 3 is saved" in capsys.readouterr().err
    assert not asked
    assert not list(tmp_path.rglob("hpc_ckpt*"))


def started(run: Path, *options: str, slow: str = "") -> subprocess.Popen:
    """train.py in a process group of its own, when it has taken a few steps; `slow` is run before it."""
    script = run.with_name("slow_train.py")
    script.write_text(f"import sys\n{slow}\nfrom neuralmem.training.cli import main\nsys.exit(main())\n")
    command = [sys.executable, str(script), *TINY, "--run", str(run), "--trainer.max_steps", "100000", *options]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    table = run / "metrics.csv"
    while process.poll() is None and not (table.exists() and table.read_text().count("\n") > 2):
        time.sleep(0.05)
    assert process.returncode is None, process.communicate()
    return process


STUCK = """
import pathlib, torch
from neuralmem.training.module import LanguageModel
step = LanguageModel.training_step
def training_step(self, batch, index):
    if index == 5:
        pathlib.Path(__file__).with_suffix(".stuck").touch()
        torch.linalg.svd(torch.randn(6000, 6000))  # minutes in which no handler runs
    return step(self, batch, index)
LanguageModel.training_step = training_step
"""


def test_only_a_signal_of_its_own_is_a_second_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    codes: list[int] = []
    clock = iter([0.0, 0.5, 2.0])
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    source, wakes = os.pipe()
    os.write(wakes, bytes([signal.SIGINT, signal.SIGCHLD, signal.SIGTERM, signal.SIGTERM]))
    os.close(wakes)
    Signals()._watch(source, None)
    assert codes == [143]
    assert "second signal" in capsys.readouterr().err


@pytest.mark.soak
def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    process = started(tmp_path / "run", slow=STUCK)
    while process.poll() is None and not (tmp_path / "slow_train.stuck").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # the same event twice, as launchers deliver it
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "second signal" in said
    assert "Traceback" not in said


def test_the_whole_group_is_told_and_loader_processes_stay_to_the_end(tmp_path: Path) -> None:
    process = started(tmp_path / "run", "--data.num_workers", "2")
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "SIGTERM: step" in said
    assert "Traceback" not in said
    load(tmp_path / "run")


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("everyone", [False, True], ids=["one rank", "every rank"])
def test_two_processes_stop_at_the_same_step(tmp_path: Path, everyone: bool, strategy: str) -> None:
    process = started(tmp_path / "run", "--trainer.devices", "2", "--trainer.strategy", strategy)
    (os.killpg if everyone else os.kill)(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert said.count("SIGTERM: step") == 1
    load(tmp_path / "run")


IN_THE_THIRD_VALIDATION = """
import os, signal
from neuralmem.training.module import LanguageModel
step, seen = LanguageModel.validation_step, []
def validation_step(self, batch, index):
    seen.append(self.trainer.global_step)
    if index == 0 and seen[-1] == 9 and self.trainer.global_rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, batch, index)
LanguageModel.validation_step = validation_step
"""


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_stop_after_the_validation_in_which_one_is_told(tmp_path: Path, strategy: str) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", strategy, *VALIDATION]
    process = started(tmp_path / "run", *two, slow=IN_THE_THIRD_VALIDATION)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert said.count("SIGTERM: step 9 is saved") == 1
    assert "Traceback" not in said
    load(tmp_path / "run")
