"""Folders that are whole or not there: what reaches the disk before what, and what is left of writers that died."""

import contextlib
import os
from pathlib import Path

import pytest

from neuralmem import durable, flush
from neuralmem.durable import manifest, read_whole, remove, sweep, verify, whole_folder, write_file
from neuralmem.errors import UserError
from neuralmem.lock import alone


def write(folder: Path, **files: str) -> None:
    with whole_folder(folder, "test-1") as new:
        for name, text in files.items():
            (new / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    return read_whole(folder, "test-1", (), lambda files: {name: file.read_text() for name, file in files.items()})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every flush, by the file's name, and every rename, by both, in order."""
    seen: list[tuple[str, str]] = []
    fsync, move = os.fsync, os.replace

    def flushed(descriptor: int) -> None:
        seen.append(("flush", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def moved(a: Path, b: Path) -> None:
        seen.append((Path(a).name, Path(b).name))
        move(a, b)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "replace", moved)
    return seen


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc")
def test_everything_is_on_the_disk_before_the_rename_and_the_manifest_is_last(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    write(tmp_path / "run", a="one", b="two")
    temporary = calls[-2][0]
    assert calls == [
        *(("flush", "a"), ("flush", "b"), ("flush", "manifest.json"), ("flush", temporary)),
        *((temporary, "run"), ("flush", tmp_path.name)),
    ]
    calls.clear()
    write(tmp_path / "run", a="three", b="four")
    temporary = calls[4][0]
    assert calls == [
        *(("flush", "a"), ("flush", "b"), ("flush", "manifest.json"), ("flush", temporary)),
        *((temporary, ".committed"), ("flush", "run")),
        *(("a", "a"), ("b", "b"), ("manifest.json", "manifest.json"), ("flush", "run")),
    ]


def test_other_files_stay_and_old_ones_no_longer_belong(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, a="one", b="two")
    (run / "notes").write_text("mine")
    write(run, a="three")
    assert read(run) == {"a": "three"}
    assert (run / "notes").read_text() == "mine"


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for before in ({}, {"a": "one"}):
        if before:
            write(run, **before)
        with contextlib.suppress(ZeroDivisionError), whole_folder(run, "test-1") as new:
            (new / "a").write_text("two")
            raise ZeroDivisionError
        assert {file.name for file in tmp_path.rglob("*")} == ({"run", "a", "manifest.json"} if before else set())


@pytest.mark.parametrize("moves", range(4))
def test_a_move_that_was_cut_short_is_read_as_whole_and_finished_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    run, left, move = tmp_path / "run", iter(range(1 + moves)), os.replace
    write(run, a="one", b="two", c="three")

    def dies(a: Path, b: Path) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        move(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            write(run, a="1", b="2", c="3")
    assert read(run) == {"a": "1", "b": "2", "c": "3"}
    (run / "b" if moves > 1 else run / durable.COMMITTED / "b").write_text("damaged")
    with pytest.raises(UserError, match="is damaged"):
        verify(run, "test-1")
    write(run, a="4")
    assert read(run) == {"a": "4"}
    assert not (run / durable.COMMITTED).exists()


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, a="one")
    dead, living, beside = run / ".saving-1", run / ".saving-2", tmp_path / ".run.saving-3"
    for folder in (dead, living, beside):
        folder.mkdir()
        (folder / "a").write_text("half")
    with alone(living):
        write(run, a="two")
        assert (dead.exists(), living.exists(), beside.exists()) == (False, True, False)
    sweep(living)
    assert not living.exists()
    assert read(run) == {"a": "two"}


def test_a_single_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", "one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_file(tmp_path / "a", "two")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "one")]


def test_every_folder_that_is_made_is_flushed_into_the_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name is in the one above it, which a power cut may take back until that is flushed."""
    flushed = []
    monkeypatch.setattr(flush, "sync", flushed.append)
    flush.make_folder(tmp_path / "runs" / "a" / "checkpoints")
    assert flushed == [tmp_path, tmp_path / "runs", tmp_path / "runs" / "a"]
    flush.make_folder(tmp_path / "runs" / "a")
    assert len(flushed) == 3


def test_removing_takes_the_name_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run", a="one")
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path / "run")
    assert manifest(tmp_path / "run") is None
    sweep(*tmp_path.glob(".*"))
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_names_both_numbers(tmp_path: Path) -> None:
    durable.refuse_full(tmp_path / "not" / "yet", 1)
    with pytest.raises(OSError, match=r"1,000,000,000,000,000,000 bytes are needed, [\d,]+ are free"):
        durable.refuse_full(tmp_path / "not" / "yet", 10**18)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "run", a="one")
    with pytest.raises(UserError, match="has format 'test-1'; this version reads 'test-2'"):
        verify(tmp_path / "run", "test-2")
    with pytest.raises(UserError, match="does not list b"):
        verify(tmp_path / "run", "test-1", ["b"])
