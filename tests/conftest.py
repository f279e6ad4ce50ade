"""What every test starts from: one thread, the same random numbers, torch's defaults as they were."""

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_start(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NEURALMEM_BACKEND", raising=False)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)
