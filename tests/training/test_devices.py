"""Two processes, replicated or sharded, and one process with all their rows: the same losses and the same weights."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import devices

STRATEGIES = ["ddp", "fsdp2"]
QUICK = ["ddp:carried memory", "fsdp2:NaN on one device", "fsdp2:probed"]
ALL = [f"{strategy}:{case}" for strategy in STRATEGIES for case in devices.CASES]
ROOT = Path(__file__).parents[2]


def run_two(folder: Path, runs: list[str], seconds: int = 300) -> dict[str, dict[str, torch.Tensor]]:
    """Train in two processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, devices.__file__, str(folder), *runs],
            env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=seconds)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
    return {run: torch.load(folder / f"{run}.pt", weights_only=True) for run in runs}


def compare(two: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
    for run, found in two.items():
        case = run.partition(":")[2]
        one = devices.train(case, "auto", devices=1, folder=folder)
        # A device rounds the sum over its own rows to eight bits: 0.16, where without the other's rows it is 1.05.
        if case == "bf16":
            assert (found["moved"] - one["moved"]).norm() < 0.4 * one["moved"].norm()
            assert torch.allclose(found["losses"], one["losses"], atol=1e-2)
            continue
        assert found.keys() == one.keys()
        for name, x in one.items():
            assert torch.allclose(found[name], x, rtol=1e-9, atol=1e-9), (run, name, found[name], x)


def test_two_processes_are_one(tmp_path: Path) -> None:
    two = run_two(tmp_path, QUICK)
    compare(two, tmp_path)
    steps = two["fsdp2:probed"]["probed"]
    assert len(steps) == devices.STEPS // 2
    assert not torch.allclose(steps[0], steps[1], atol=1e-4)  # of the weights as they were then
    for rank in "01":  # both refuse, and neither where there is nothing to refuse
        same, differ = (tmp_path / f"rank={rank}.txt").read_text().split("\n")
        assert same == ""
        assert re.match(r"the ranks go on from different .* \(rank 0: step=1 of .*, rank 1: step=2 of .*\); ", differ)


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore")  # the compiler has many to say
@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([run for run in ALL if run not in QUICK and not run.endswith(":compiled")], id="not compiled"),
        pytest.param(["ddp:compiled"], id="ddp, compiled"),
        pytest.param(["fsdp2:compiled"], id="fsdp2, compiled"),  # two processes and one compile every layer: minutes
    ],
)
def test_two_processes_are_one_in_every_case(tmp_path: Path, runs: list[str]) -> None:
    compare(run_two(tmp_path, runs, seconds=2400), tmp_path)
