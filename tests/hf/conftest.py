"""What the tests of neuralmem/hf share: no network, a small model in float64, and its folder."""

import socket
from pathlib import Path

import pytest
import torch

import neuralmem as nm

CONFIG = nm.ModelConfig(
    vocab_size=257,
    width=8,
    depth=2,
    pattern=["titans_mac", "titans_mag"],
    attention=nm.AttentionConfig(heads=2, window=5, persistent_tokens=2, segment=6),
    memory=nm.MemoryConfig(heads=2, expansion=1.5, chunk_size=4, theta_bias=2.0, alpha_bias=-3.0),
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: socket.socket, address: object) -> None:
        raise AssertionError(f"a test of local folders wants to connect to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def stirred(model: nm.CausalLM) -> nm.CausalLM:
    """In float64, with weights large enough that a model says something else after every text."""
    with torch.no_grad():
        for x in model.double().parameters():
            x.add_(0.3 * torch.randn_like(x))
    return model


@pytest.fixture
def model() -> nm.CausalLM:
    return stirred(nm.CausalLM(CONFIG))


@pytest.fixture
def run(model: nm.CausalLM, tmp_path: Path) -> Path:
    nm.save(tmp_path / "run", model, nm.ByteTokenizer())
    return tmp_path / "run"
