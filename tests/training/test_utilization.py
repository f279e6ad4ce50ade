"""Peak rate, utilisation, memory and time left: what the log says of a run's resources."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from neuralmem.config import MemoryConfig, ModelConfig
from neuralmem.data.batch import NO_LOSS, Batch
from neuralmem.training.flops import count_flops
from neuralmem.training.logs import read_metrics
from neuralmem.training.peak import _measured, known_peak, peak_of
from neuralmem.training.utilization import Utilization, peak_memory, seconds_left

Train = Callable[..., Path]
CPU = torch.device("cpu")
CONFIG = ModelConfig(vocab_size=20, width=16, depth=1, pattern=["titans_mag"], memory=MemoryConfig(chunk_size=8))


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_known_gpu_has_the_figure_of_its_data_sheet(name: str, teraflops: float) -> None:
    peak = known_peak(name)
    assert peak is not None
    assert peak.flops == 1e12 * teraflops
    assert name in str(peak)


def test_an_unknown_device_is_measured_once_and_draws_nothing() -> None:
    _measured.cache_clear()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = peak_of(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert 1e8 < first.flops < 1e14
    assert "cpu, 1 thread, measured" in str(first)
    assert peak_of(CPU) is first


def test_operations_are_those_of_real_tokens_and_targets() -> None:
    use, count = Utilization(CONFIG, CPU), count_flops(CONFIG, 24)
    targets = torch.full((2, 24), NO_LOSS)
    targets[:, :5] = 1
    batch = Batch(torch.zeros(2, 24, dtype=torch.long), targets)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    operations = use.of_batch(batch, torch.tensor(36))  # a quarter of 48 is padding
    assert torch.equal(torch.get_rng_state(), state)
    assert operations is not None
    assert operations.item() == pytest.approx(3 * (1.5 * count.body + 10 * count.head))
    share = use.share(operations.item(), seconds=0.1, devices=2)
    assert share == pytest.approx(operations.item() / 0.2 / use.peak.flops)


def test_a_rule_that_nobody_has_counted_has_no_utilisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuralmem.training.flops_memory._FORMULAS", {})
    tokens = torch.zeros(1, 8, dtype=torch.long)
    assert Utilization(CONFIG, CPU).of_batch(Batch(tokens, tokens), torch.tensor(8)) is None


def test_time_left_is_that_of_the_speed_since_the_run_began() -> None:
    trainer = SimpleNamespace(global_step=30)
    module = SimpleNamespace(progress=lambda step: step / 100)
    assert seconds_left(trainer, module, seconds=10, before=0.1) == pytest.approx(35)
    assert seconds_left(trainer, module, seconds=10, before=0.3) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say it in this place")
def test_peak_memory_is_what_the_system_says() -> None:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    assert peak_memory(CPU) == pytest.approx(1024 * int(lines["VmHWM"].split()[0]), rel=0.02)


def test_a_run_logs_its_resources(train: Train, capsys: pytest.CaptureFixture) -> None:
    rows = read_metrics(train("mag", "a", "--data.carry", "true") / "metrics.csv")
    assert all(0 < row["mfu"] < 1 for row in rows)
    assert all(row["peak_memory_gib"] > 0.05 for row in rows)
    assert rows[0]["seconds_left"] > 0
    assert rows[-1]["seconds_left"] == 0
    assert {f"layers.1.memory/{gate}_saturated" for gate in ("theta", "eta", "alpha")} <= rows[0].keys()
    last = capsys.readouterr().err.splitlines()[-2]
    for word in ("tok/s", "grad ", "MFU ", " GiB", "state ", "surprise ", "gates stuck 0%"):
        assert word in last
