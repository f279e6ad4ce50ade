"""What every test starts from: one thread, the same random numbers, torch's defaults as they were.

With NEURALMEM_REQUIRE_GPU=1, as `make test-gpu` sets it, a test of the GPU that a mark skips has failed: no CUDA
device, no library, no compiler. What a test itself finds missing while it runs (another package, compute-sanitizer)
stays a skip.
"""

import importlib
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.doctest import DoctestModule

torch.set_num_threads(1)

TINY = Path(__file__).parents[1] / "configs" / "tiny"


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NEURALMEM_BACKEND", raising=False)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a file of benchmarks/ by name, as a script there would."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    return importlib.import_module


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """train.py in this process, in a folder of its own: call with the name of a tiny config, a run's name and options;
    returns the run's folder."""
    from neuralmem.training.cli import main  # lightning, which the machine with the GPU has not

    monkeypatch.chdir(tmp_path)

    def run(config: str, name: str, *options: str) -> Path:
        arguments = ["--config", str(TINY / f"{config}.yaml"), "--run", name, "--report.at_end", "false"]
        assert main([*arguments, *options]) == 0
        return tmp_path / name

    return run


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """No examples are looked for in files of tests: what such a file fails to import would be passed over there, and it
    would then count as imported, with the tests above the failure or none."""
    found = yield
    return [one for one in found if not (file_path.name.startswith("test_") and isinstance(one, DoctestModule))]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    required = os.environ.get("NEURALMEM_REQUIRE_GPU") == "1" and item.get_closest_marker("gpu")
    if required and report.when == "setup" and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"NEURALMEM_REQUIRE_GPU=1, but the test was to be skipped: {reason}"
    return report
