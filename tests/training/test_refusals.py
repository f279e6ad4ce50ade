"""Bad input at the command line: exit code 2, one line that names the field, nothing written."""

import multiprocessing
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from neuralmem.training.cli import main
from neuralmem.training.command_line import data_classes, end_readers

TINY = str(Path(__file__).parents[2] / "configs" / "tiny" / "mag.yaml")
MISSPELT = "model: {widht: 64}\n"
BROKEN = "model: {width: [1\n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model.depht", "4"], "--model.depht is not an option; did you mean '--model.depth'?"),
        (["--trainer.max_step", "3"], "--trainer.max_step is not an option; did you mean '--trainer.max_steps'?"),
        (["--data.sequence_lenght", "8"], "data has no field 'sequence_lenght'; did you mean 'sequence_length'?"),
        (["--model.depth", "four"], "model.depth is 'four'; it must be an integer"),
        (["--model.depth", "0"], "model.depth is 0; it must be positive"),
        (["--model.depth"], "--model.depth needs a value"),
        (["--model.attention.window", "x"], "model.attention.window is 'x'; it must be an integer or null"),
        (["--model.attention.backend", "flash_atn"], "did you mean 'flash_attn'?"),
        (["--model.pattern", "[titans_mc]"], "did you mean 'titans_mac'?"),
        (["--model.memory.rule", "titan"], "did you mean 'titans'?"),
        (["--model.vocab_size", "9"], "model.vocab_size cannot be set, it follows from data"),
        (["--optimizer.lr", "-1"], "optimizer.lr is -1.0; it must be a positive number"),
        (["--optimizer.schedule", "cosin"], "did you mean 'cosine'?"),
        (["--checkpoint.every", "0"], "checkpoint.every is 0; it must be a positive integer"),
        (["--tokens_per_step", "200"], "tokens_per_step is 200; it must be a multiple of 192"),
        (["--data", "TextDta"], "did you mean 'TextData'?"),
        (["--data", "DataModule"], "data is 'DataModule'; it must be one of TextData, RecallData, NeedleData"),
        (["--data", "lightning.pytorch.LightningDataModule"], "it must be one of TextData, RecallData, NeedleData"),
        (["--trainer.max_steps", "0"], "trainer.max_steps is 0; it must be a positive integer"),
        (["--run", "list.yaml"], "run is 'list.yaml', but list.yaml is a file; it must be a folder, or new"),
        (["--run", "list.yaml/a"], "run is 'list.yaml/a', but list.yaml is a file"),
        (["--data.tokenizer", "byts"], "did you mean 'bytes'?"),
        (["--data.source", "no/such/folder"], "no/such/folder"),
        (["--ckpt_path", "nothing"], "ckpt_path is 'nothing', which is no folder"),
        (["--config", "nothing.yaml"], "config is 'nothing.yaml', which is no file"),
        (["--config", "misspelt.yaml"], "model has no field 'widht'; did you mean 'width'?"),
        (["--config", "broken.yaml"], "config broken.yaml: line 2: no YAML"),
        (["--config", "list.yaml"], "config list.yaml holds a list; it must be a mapping"),
        (["--trainer.accelerator", "cuda", "--trainer.devices", "99"], "error:"),
        (["--trainer.max_time", "10"], "DD:HH:MM:SS"),
        (["stray"], "'stray' is not an option"),
    ],
)
def test_one_line_and_nothing_written(
    options: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"misspelt.yaml": MISSPELT, "broken.yaml": BROKEN, "list.yaml": "[a]\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert main(["--config", TINY, *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("error: ")
    assert line in said.err
    assert {file.name for file in tmp_path.iterdir()} == set(files)


def test_the_abstract_data_module_is_not_offered(capsys: pytest.CaptureFixture) -> None:
    assert list(data_classes()) == ["TextData", "RecallData", "NeedleData"]
    with pytest.raises(SystemExit, match="0"):
        main(["--help", "all"])
    said = capsys.readouterr().out
    assert "neuralmem.data.module.TextData" in said
    assert "neuralmem.data.module.DataModule" not in said


def test_no_data_is_a_missing_config(capsys: pytest.CaptureFixture) -> None:
    assert main(["--model.depth", "2"]) == 2
    assert "error: data is missing; give it in a --config file" in capsys.readouterr().err


def test_debug_shows_where_it_came_from(capsys: pytest.CaptureFixture) -> None:
    assert main(["--config", TINY, "--model.depth", "0", "--debug"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.strip().splitlines()[-1] == "error: model.depth is 0; it must be positive"


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
@pytest.mark.parametrize("name", ["WandbLogger", "lightning.pytorch.loggers.WandbLogger"])
def test_a_logger_without_its_package_says_what_to_install(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--config", TINY, "--run", str(tmp_path / "a"), "--trainer.logger", name]) == 2
    line = capsys.readouterr().err
    assert line == "error: WandbLogger needs the package wandb, which is not installed: pip install 'wandb>=0.12.10'\n"
    assert not (tmp_path / "a").exists()


def test_readers_that_are_ended_say_nothing() -> None:
    """torch has a handler that hears of it, and would raise its error where the user's is being said."""
    batches = iter(DataLoader(range(10**6), num_workers=2))  # type: ignore[arg-type]
    next(batches)
    end_readers()
    for _ in range(100):
        time.sleep(0.001)  # where a handler runs
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(batches)
