"""What was wrong with documents, counted over readers and resumptions and said at the end."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from neuralmem.data.batch import Batch
from neuralmem.training.logs import read_metrics
from neuralmem.training.module import LanguageModel


@pytest.mark.filterwarnings("ignore:.*is not UTF-8")  # said once per file as well
@pytest.mark.parametrize("workers", ["0", "2"])
def test_counts_are_of_the_whole_run_and_all_readers(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture, workers: str
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(20):  # 31 tokens and a separator: a document per row, for U+FFFD has three
        (tmp_path / "texts" / f"{number}.txt").write_bytes(b"\xff" + b"a" * 28)
    options = ["--data.source", "texts", "--data.sequence_length", "32", "--data.batch_size", "3"]
    options += ["--data.num_workers", workers, "--trainer.val_check_interval", "100"]
    train("transformer", "a", *options, "--trainer.max_steps", "2")
    assert "training data: 6 of 6 documents were not UTF-8 (replaced by U+FFFD; first: " in capsys.readouterr().err
    run = train("transformer", "a", *options, "--trainer.max_steps", "4", "--resume", "auto")
    assert "training data: 12 of 12 documents were not UTF-8 (replaced by U+FFFD; first: " in capsys.readouterr().err
    assert read_metrics(run / "metrics.csv")[-1]["not_utf8_documents"] == 12


@pytest.mark.filterwarnings("ignore:.*is not UTF-8")
def test_a_run_that_is_stopped_says_what_was_wrong_too(
    train: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number}.txt").write_bytes(b"\xff" + b"a" * 28)
    step = LanguageModel.training_step

    def stopped(self: LanguageModel, batch: Batch, index: int) -> object:
        if index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, index)

    monkeypatch.setattr(LanguageModel, "training_step", stopped)
    options = ["--data.source", "texts", "--data.sequence_length", "32", "--data.batch_size", "3"]
    with pytest.raises(SystemExit):
        train("transformer", "a", *options, "--trainer.val_check_interval", "100")
    assert "training data: 6 of 6 documents were not UTF-8 (replaced by U+FFFD; first: " in capsys.readouterr().err


def test_nothing_is_said_where_nothing_is_wrong(train: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    run = train("transformer", "a", "--trainer.max_steps", "1")
    assert "training data" not in capsys.readouterr().err
    assert not any("documents" in name for row in read_metrics(run / "metrics.csv") for name in row)
