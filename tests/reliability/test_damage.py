"""A byte flipped, cut off or added anywhere in a checkpoint: it is noticed, set aside and said, and the run goes on."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuralmem.errors import UserError
from neuralmem.training.resume import find_checkpoint
from tests.reliability.saving import Run

FILES = [
    *("config.json", "config.yaml", "data.json", "manifest.json", "model.safetensors", "tokenizer.json"),
    *("training.json", "training.safetensors"),
]


def flip(file: Path, at: int, bit: int = 1) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= bit
    file.write_bytes(content)


def truncate(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


HARMS: dict[str, Callable[[Path, int], None]] = {
    "first bit": lambda file, size: flip(file, 0),
    "first byte's sign": lambda file, size: flip(file, 0, 128),
    "in the header": lambda file, size: flip(file, min(20, size // 4)),
    "a bit in the middle": lambda file, size: flip(file, size // 2),
    "a sign in the middle": lambda file, size: flip(file, size // 2, 128),
    "last bit": lambda file, size: flip(file, size - 1),
    "last byte's sign": lambda file, size: flip(file, size - 1, 128),
    "empty": lambda file, size: truncate(file, 0),
    "half": lambda file, size: truncate(file, size // 2),
    "last byte gone": lambda file, size: truncate(file, size - 1),
    "one byte more": lambda file, size: lengthen(file),
    "missing": lambda file, size: file.unlink(),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of steps 1 and 2."""
    run = Run(tmp_path_factory.mktemp("made") / "run")
    run.save(1)
    run.save(2)
    assert sorted(file.name for file in (run.checkpoints / "step=2").iterdir()) == FILES
    return run.folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    shutil.copytree(made, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_broken_is_set_aside(run: Run, capsys: pytest.CaptureFixture, name: str, harm: str) -> None:
    file = run.checkpoints / "step=2" / name
    HARMS[harm](file, file.stat().st_size)
    with pytest.raises(UserError, match=r"^ckpt_path is '.*step=2', which is no whole checkpoint: .*$") as error:
        find_checkpoint(run.folder, str(file.parent))
    assert "\n" not in str(error.value)
    assert file.parent.is_dir()
    assert find_checkpoint(run.folder, "last") == run.checkpoints / "step=1"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith("set aside as step=2.broken\n")
    assert name in said
    assert {path.name for path in run.checkpoints.iterdir()} == {"step=1", "step=2.broken"}


def test_where_all_are_broken_a_run_does_not_begin_anew_by_itself(run: Run, capsys: pytest.CaptureFixture) -> None:
    assert find_checkpoint(run.folder / "new", "last") is None
    for step in (1, 2):
        flip(run.checkpoints / f"step={step}" / "model.safetensors", 500)
    for _ in range(2):  # also once they are set aside
        with pytest.raises(
            UserError, match=r"no whole checkpoint to go on from, only step=1.broken, step=2.broken; to "
        ):
            find_checkpoint(run.folder, "last")
        assert {path.name for path in run.checkpoints.iterdir()} == {"step=1.broken", "step=2.broken"}
    assert capsys.readouterr().err.count("\n") == 2
    assert find_checkpoint(run.folder, None) is None
    run.save(1)
    assert find_checkpoint(run.folder, "last") == run.checkpoints / "step=1"


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.EACCES], ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_what_the_disk_does_not_give_is_not_damage(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, number: int
) -> None:
    refused, plain = run.checkpoints / "step=2" / name, Path.open

    def refusing(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path == refused:
            raise OSError(number, os.strerror(number), str(path))
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(UserError, match=rf"step=2 may be whole, but .*{name} cannot be read: {os.strerror(number)}"):
        find_checkpoint(run.folder, "last")
    run.save(3)
    assert capsys.readouterr().err == ""
    assert {path.name for path in run.checkpoints.iterdir()} == {"step=1", "step=2", "step=3"}
    monkeypatch.undo()
    assert find_checkpoint(run.folder, "last") == run.checkpoints / "step=3"
    assert find_checkpoint(run.folder, str(refused.parent)) == refused.parent


def test_every_byte_of_the_manifest_counts(run: Run) -> None:
    file = run.checkpoints / "step=2" / "manifest.json"
    content = file.read_bytes()
    for at in range(0, len(content), 3):
        flip(file, at, 1 << at % 8)
        with pytest.raises(UserError):
            find_checkpoint(run.folder, str(file.parent))
        truncate(file, at)
        with pytest.raises(UserError):
            find_checkpoint(run.folder, str(file.parent))
        file.write_bytes(content)
    assert find_checkpoint(run.folder, str(file.parent)) == file.parent


def test_retention_counts_whole_checkpoints_only(run: Run, capsys: pytest.CaptureFixture) -> None:
    flip(run.checkpoints / "step=2" / "model.safetensors", 500)
    run.save(3)  # keeps two
    assert {path.name for path in run.checkpoints.iterdir()} == {"step=1", "step=2.broken", "step=3"}
    assert capsys.readouterr().err.count("\n") == 1
    flip(run.checkpoints / "step=3" / "training.safetensors", 500)  # saved and known to be whole, until it was touched
    run.save(4)
    assert {path.name for path in run.checkpoints.glob("step=?")} == {"step=1", "step=4"}
    run.save(5)
    assert {path.name for path in run.checkpoints.glob("step=?")} == {"step=4", "step=5"}


def test_a_model_is_no_checkpoint_to_go_on_from(run: Run) -> None:
    with pytest.raises(UserError, match=r"no whole checkpoint: .*manifest.json does not list training.json"):
        find_checkpoint(run.folder, str(run.folder))


def test_a_run_whose_newest_checkpoint_is_broken_is_still_the_same_run(
    train: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    whole = train("mag", "whole")
    shutil.copytree(whole, whole.with_name("part"))
    flip(whole.with_name("part") / "checkpoints" / "step=10" / "training.safetensors", 4000)
    part = train("mag", "part", "--resume", "auto")
    said = capsys.readouterr().err.splitlines()
    assert any(line.endswith("set aside as step=10.broken") for line in said)
    assert "going on from part/checkpoints/step=5" in said
    assert (part / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for name in ("step=5", "step=10"):
        assert find_checkpoint(part, str(part / "checkpoints" / name))
