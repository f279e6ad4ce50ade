"""The frozen losses still come out."""

import json
from pathlib import Path

import pytest

from tests.golden.losses import CONFIGS, FILE, measure

GOLDEN = json.loads(FILE.read_text())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_ten_losses(config: Path, tmp_path: Path) -> None:
    assert measure(config, tmp_path / "run") == pytest.approx(GOLDEN[config.stem], rel=1e-4), (
        "a loss has changed; if that is meant, run python -m tests.golden.losses and say why in the commit"
    )


def test_nothing_else_is_frozen() -> None:
    assert set(GOLDEN) == {config.stem for config in CONFIGS}
    assert all(len(losses) == 10 for losses in GOLDEN.values())
