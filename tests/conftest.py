"""What every test starts from: one thread, the same random numbers, torch's defaults as they were.

With NEURALMEM_REQUIRE_GPU=1, as `make test-gpu` sets it, a test of the GPU that a mark skips has failed: no CUDA
device, no library, no compiler. What a test itself finds missing while it runs (another package, compute-sanitizer)
stays a skip.
"""

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NEURALMEM_BACKEND", raising=False)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    required = os.environ.get("NEURALMEM_REQUIRE_GPU") == "1" and item.get_closest_marker("gpu")
    if required and report.when == "setup" and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"NEURALMEM_REQUIRE_GPU=1, but the test was to be skipped: {reason}"
    return report
