"""train.py as a user starts it: another process, its exit code, its output."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch
import pytest
import torch
import yaml
from safetensors.torch import load_file

from neuralmem.data.handover import positions
from neuralmem.data.module import Files, TextData, Validation
from neuralmem.training.cli import main
from neuralmem.training.folder_io import read_checkpoint
from neuralmem.training.help import HELP
from neuralmem.training.logs import read_metrics
from tests.reliability.equal import same

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs" / "tiny" / "mag.yaml")
COMMAND = [sys.executable, str(ROOT / "train.py")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *options], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def test_five_steps(tmp_path: Path) -> None:
    done = run(tmp_path, "--config", TINY, "--trainer.max_steps", "5", "--model.depth", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    said = done.stderr.strip().splitlines()
    assert len(said) == 3, said  # what it trains, one line of progress, what came of it: no noise of the libraries
    assert re.fullmatch(r"[\d,]+ parameters on 1 x cpu, into runs/mag", said[0])
    assert re.fullmatch(r"step 5/5  .*100%  loss \d\.\d{3}  .* tok/s  grad .*  MFU .*  gates stuck 0%", said[1])
    assert re.fullmatch(r"5 steps, \S+ tokens in \d+:\d\d, peak memory .* GiB, saved in runs/mag", said[2])
    assert (tmp_path / "runs" / "mag" / "manifest.json").is_file()


def test_a_wrong_option_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", TINY, "--trainer.max_step", "5"]) == 2
    said = capsys.readouterr().err
    assert said == "error: --trainer.max_step is not an option; did you mean '--trainer.max_steps'?\n"
    assert not list(tmp_path.iterdir())


def test_help_is_short_and_quick(tmp_path: Path) -> None:
    """And does not import lightning: Python lists what is imported."""
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    listing = {**ENVIRONMENT, "PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run([*COMMAND, "--help"], cwd=tmp_path, env=listing, capture_output=True, text=True)
    assert done.stdout.strip() == HELP.strip()
    assert done.returncode == 0
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 5  # seconds, however busy the machine
    assert len(HELP.splitlines()) < 60
    assert "neuralmem.training.cli" in done.stderr
    assert "lightning" not in done.stderr


def printed(capsys: pytest.CaptureFixture, *options: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(options)
    return capsys.readouterr().out


def test_every_option_that_the_help_names_exists(capsys: pytest.CaptureFixture) -> None:
    everything = printed(capsys, "--help", "all")
    named = set(re.findall(r"--[a-z_]+(?:\.[a-z_]+)*", HELP)) - {"--debug"}
    assert not {option for option in named if option not in everything}


def test_print_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = printed(capsys, "--config", TINY, "--model.depth", "1", "--print_config")
    (tmp_path / "again.yaml").write_text(first)
    assert printed(capsys, "--config", str(tmp_path / "again.yaml"), "--print_config") == first
    assert "depth: 1" in first


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupted_run_saves_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    options = ["--config", TINY, "--trainer.max_steps", "100000", "--model.depth", "1"]
    process = subprocess.Popen([*COMMAND, *options], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    table = tmp_path / "runs" / "mag" / "metrics.csv"
    while process.poll() is None and not (table.exists() and table.read_text().count("\n") > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    last = max(int(f.name.split("=")[1]) for f in (tmp_path / "runs" / "mag" / "checkpoints").iterdir())
    options[3] = str(last + 1)
    monkeypatch.chdir(tmp_path)
    assert main([*options, "--ckpt_path", "last"]) == 0
    assert f"{last + 1:,} steps" in capsys.readouterr().err


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("options", [[], ["--data.carry", "true"]], ids=["fresh rows", "carried memory"])
def test_two_processes_resume_exactly(tmp_path: Path, options: list[str], strategy: str) -> None:
    """The random numbers of both, too, of which something draws: a rank that began anew with its seed would show."""
    tiny = str(ROOT / "configs" / "tiny" / "lmm.yaml")
    two = ["--config", tiny, "--trainer.devices", "2", "--trainer.strategy", strategy, *options]
    two += ["--trainer.callbacks", "[tests.reliability.callbacks.Draws]"]
    for name, more in (("whole", []), ("half", ["--ckpt_path", "whole/checkpoints/step=5"])):
        done = run(tmp_path, *two, "--run", name, *more)
        assert done.returncode == 0, done.stderr
    whole, half = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "half"))
    assert half == whole
    before, after = (read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "half"))
    assert [(row["step"], row["loss"]) for row in after] == [(row["step"], row["loss"]) for row in before[5:]]
    same(*(tmp_path / name / "checkpoints" / "step=10" for name in ("half", "whole")))
    first, second = read_checkpoint(tmp_path / "half" / "checkpoints" / "step=10")["random_state"]
    assert not torch.equal(first["torch"], second["torch"])


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_stop_and_keep_both_their_batches(tmp_path: Path, strategy: str) -> None:
    """The last rank's gradients are not finite from the third step on."""
    tiny = str(ROOT / "configs" / "tiny" / "lmm.yaml")
    two = ["--config", tiny, "--trainer.devices", "2", "--trainer.strategy", strategy, "--run", "run"]
    broken = "[{class_path: tests.reliability.callbacks.Broken, init_args: {step: 2}}]"
    done = run(tmp_path, *two, "--trainer.callbacks", broken, "--faults.patience", "3")
    assert done.returncode == 2, done.stderr
    assert "error: stopped at step 5: the gradient is not finite, 3 steps in a row" in done.stderr
    kept = sorted((tmp_path / "run" / "faults").iterdir())
    assert [path.name for path in kept] == ["step=5-rank=0.safetensors", "step=5-rank=1.safetensors"]
    one, other = (load_file(path)["0.tokens"] for path in kept)
    assert one.shape == other.shape
    assert not torch.equal(one, other)
    done = run(tmp_path, *two, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert read_metrics(tmp_path / "run" / "metrics.csv")[-1]["skipped_steps"] == 3


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_nodes_of_torchrun_are_one_with_two_devices(tmp_path: Path, strategy: str) -> None:
    """Two agents on this machine, each with a process; a run, and one that goes on from its middle."""
    two = ["--config", str(ROOT / "configs" / "tiny" / "lmm.yaml"), "--data.carry", "true"]
    two += ["--trainer.strategy", strategy, "--trainer.devices"]
    done = run(tmp_path, *two, "2", "--run", "one")
    assert done.returncode == 0, done.stderr
    for name, more in (("two", []), ("half", ["--ckpt_path", "two/checkpoints/step=5"])):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        agent += ["--master-addr", "127.0.0.1", "--master-port", port, "--node-rank"]
        trained = [*two, "1", "--trainer.num_nodes", "2", "--run", name, *more]
        nodes = [
            subprocess.Popen(
                [*agent, rank, "--", *COMMAND[1:], *trained],
                cwd=tmp_path,
                env=ENVIRONMENT,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in ("0", "1")
        ]
        for node in nodes:
            _, said = node.communicate(timeout=180)
            assert node.returncode == 0, said
    one, *others = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "half"))
    assert others == [one, one]


@pytest.mark.soak
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_devices_goes_on(tmp_path: Path, before: int, after: int) -> None:
    """The places after the change are those of readers that took over and drew as many batches; and both strategies
    take the same steps, so the optimizer's state has found its parameters."""
    common = ["--config", str(ROOT / "configs" / "tiny" / "lmm.yaml"), "--data.carry", "true"]
    last = {}
    for strategy in ("ddp", "fsdp2"):
        places = []
        for devices, steps, more in ((before, 2, []), (after, 4, ["--resume", "auto"])):
            how = ["--trainer.devices", str(devices), "--trainer.strategy", strategy if devices > 1 else "auto"]
            done = run(tmp_path, *common, "--run", strategy, *how, *more, "--trainer.max_steps", str(steps))
            assert done.returncode == 0, done.stderr
            last[strategy] = read_checkpoint(tmp_path / strategy / "checkpoints" / f"step={steps}")
            places.append(positions(last[strategy]["loader_state"]))
        assert "no document is skipped or repeated" in done.stderr
        settings = yaml.safe_load((tmp_path / strategy / "config.yaml").read_text())["data"]["init_args"]
        nested = {"validation": Validation(**settings["validation"]), "files": Files(**settings["files"])}
        data = TextData(**settings | nested)
        for index in range(after):
            reader = data.build("train", (index, after))
            reader.take_over(places[0])
            assert sum(1 for _ in zip(range(2), reader, strict=False)) == 2
            assert places[1][index] == reader.state_dict()
    one, other = (last[strategy]["optimizer_states"][0] for strategy in ("ddp", "fsdp2"))
    assert one["state"].keys() == other["state"].keys()
    for number, state in one["state"].items():
        assert torch.allclose(state["exp_avg"], other["state"][number]["exp_avg"], rtol=1e-3, atol=1e-5), number


def test_an_interrupt_while_it_saves_still_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = lightning.pytorch.Trainer.save_checkpoint
    calls = []

    def interrupted_once(trainer, path, *rest) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        saved(trainer, path, *rest)

    monkeypatch.setattr(lightning.pytorch.Trainer, "save_checkpoint", interrupted_once)
    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        main(["--config", TINY, "--run", str(tmp_path), "--model.depth", "1"])
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == ["step=5"]
