"""A long reading that is stopped goes on within the prompt, and says what it would have said."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.evaluation.bookmark import Bookmark
from neuralmem.evaluation.cell import Cell
from neuralmem.evaluation.haystack import open_haystack
from neuralmem.evaluation.listener import Listener, Reply
from neuralmem.evaluation.losses import LossReader
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.protocols import ruler
from neuralmem.evaluation.reader import Answer, Reader
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.script import Question, Script, Writer
from neuralmem.models.causal_lm import CausalLM
from neuralmem.state import State
from neuralmem.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
CHUNK = 200  # tokens of a call


def small(pattern: str = "titans_mag", seed: int = 1) -> CausalLM:
    torch.manual_seed(seed)
    attention = AttentionConfig(heads=2, window=20, persistent_tokens=2, segment=24)
    memory = MemoryConfig(heads=1, chunk_size=16)
    return CausalLM(ModelConfig(257, 16, 1, [pattern], attention=attention, memory=memory)).eval()


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Prompts of different lengths."""
    cell = Cell(find_task("s-niah-w-words"), "ruler2025", 1200, open_haystack("grammar", 20_000), 0, BYTES.encode)
    build = ruler(cell)
    return [build(i, None, cell.random(i)) for i in range(3)]


class Stopped(Exception):
    pass


class Limited:
    """A model that is killed after so many calls, and counts them."""

    def __init__(self, model: Any, calls: float = float("inf")) -> None:
        self.model, self.left, self.calls = model, calls, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        if self.calls == self.left:
            raise Stopped
        self.calls += 1
        return self.model(*given, **options)


def said(model: Any, samples: list[Sample], folder: Path | None, told: list[int] | None = None) -> list[Answer]:
    kept = None if folder is None else Bookmark(folder, every=0, clock=lambda: 0.0)
    advance = (lambda tokens: None) if told is None else told.append
    reader = Reader(model, BYTES, CHUNK, advance, segment=24, bookmark=kept)
    return [answer for _, answers in reader.ask(samples, ["none", "reset", "off"], 4) for answer in answers]


def words(answers: list[Answer]) -> list[tuple[str, str, tuple[float, ...]]]:
    return [(answer.ablation, answer.text, answer.log_likelihoods) for answer in answers]


@pytest.mark.parametrize("pattern", ["titans_mag", "titans_mac", "titans_lmm"])
def test_a_stopped_reading_goes_on_bit_for_bit(pattern: str, samples: list[Sample], tmp_path: Path) -> None:
    model, whole, read, told = small(pattern), Limited(small(pattern)), [], []
    expected = words(said(whole, samples, None, read))
    with pytest.raises(Stopped):
        said(Limited(model, 3), samples, tmp_path / "unfinished")
    (file,) = (tmp_path / "unfinished").iterdir()
    assert file.name.split(".")[1] == str(3 * CHUNK)
    again = Limited(model)
    assert words(said(again, samples, tmp_path / "unfinished", told)) == expected
    assert again.calls == whole.calls - 3
    assert not list((tmp_path / "unfinished").iterdir()), "nothing is left of what is done"
    assert sum(told) == sum(read), "what was read before counts as read"


def test_another_model_or_other_prompts_begin_anew(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        said(Limited(small(), 3), samples, tmp_path)
    for model, some in ((small(seed=2), samples), (small(), samples[:2])):
        assert words(said(model, some, tmp_path)) == words(said(model, some, None))


def test_a_damaged_file_is_read_over(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        said(Limited(small(), 3), samples, tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert words(said(small(), samples, tmp_path)) == words(said(small(), samples, None))


def test_a_full_disk_is_said_once_and_costs_nothing(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: State, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(State, "save", full)
    with pytest.warns(UserWarning, match="cannot be written, a long reading is not kept: .*No space left") as caught:
        answers = said(small(), samples, tmp_path)
    assert len(caught) == 1
    assert words(answers) == words(said(small(), samples, None))


def test_what_other_batches_left_goes_when_everything_is_answered(samples: list[Sample], tmp_path: Path) -> None:
    folder = tmp_path / "unfinished"
    with pytest.raises(Stopped):
        said(Limited(small(), 3), samples, folder)
    (folder / ".saving-0123").touch()  # of a process that was killed while it saved
    said(small(), samples[:2], folder)
    assert len(list(folder.iterdir())) == 2
    Bookmark(folder).clear()
    assert not folder.exists()
    folder.mkdir()
    (folder / "mine.txt").touch()
    Bookmark(folder).clear()
    assert [file.name for file in folder.iterdir()] == ["mine.txt"]


def test_another_process_may_take_a_file_away(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        said(Limited(small(), 3), samples, tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    bookmark = Bookmark(tmp_path)
    monkeypatch.setattr(bookmark, "_files", lambda: [file])
    assert bookmark.begin(["any"], small()) == (0, None, b"")
    bookmark.end()


def test_the_time_of_a_reading_counts_what_was_read_before(tmp_path: Path) -> None:
    model, now = small(), [0.0]
    _, state = model(torch.zeros(1, 64, dtype=torch.long))
    first = Bookmark(tmp_path, clock=lambda: now[0])
    first.begin(["it"], model)
    now[0] = 70.0
    first.keep(64, state)
    now[0] = 500.0  # it was stopped for a while
    second = Bookmark(tmp_path, clock=lambda: now[0])
    assert second.begin(["it"], model)[0] == 64
    now[0] = 510.0
    assert second.seconds == 80.0
    second.begin(["another"], model)
    assert second.seconds == 0.0


def test_keeping_takes_a_small_part_of_the_time(tmp_path: Path) -> None:
    """A saving of 5 seconds is followed by none for the next 100, one of no time by none for a minute."""
    now = [0.0]

    class Slow(State):
        def save(self, path: str | Path) -> None:
            now[0] += took
            saved.append(now[0])
            Path(path).touch()

    for took, expected in ((5.0, [65.0, 170.0, 275.0]), (0.0, [60.0, 120.0, 180.0, 240.0, 300.0])):
        now[0], saved = 0.0, []
        bookmark = Bookmark(tmp_path, clock=lambda: now[0])
        bookmark.begin([str(took)], None)
        while now[0] < 300:
            bookmark.keep(1, Slow())
            now[0] += 1
        assert saved == expected[: len(saved)]
        assert len(saved) >= len(expected) - 1


def script(number: int) -> Script:
    """Two long texts, questions behind each, one that stays in the text, and a session's end."""
    text, writer = torch.arange(2000) * (number + 3) % 251, Writer()
    told = writer.read(text[: 700 + 40 * number])
    writer.ask(Question((1, 2), (3,), told, {"at": 1}), Question((2,), (4, 5)))
    writer.ask_and_keep(Question((7, 8), (9, 10), told, {"at": 2}))
    writer.drop()
    writer.read(text[700:1500])
    writer.ask(Question((1, 2), (3,), told, {"at": 3}))
    return writer.script(number)


def heard(model: Any, ablation: str, folder: Path | None, told: list[int]) -> tuple[list[list[Reply]], int]:
    kept = None if folder is None else Bookmark(folder, every=0, clock=lambda: 0.0)
    listener = Listener(model, BYTES, CHUNK, told.append, segment=24, bookmark=kept)
    return listener.listen([script(0), script(1)], ablation)


@pytest.mark.parametrize("pattern", ["titans_mag", "titans_mac"])
@pytest.mark.parametrize("ablation", ["none", "shuffled"])
@pytest.mark.parametrize("calls", [2, 4, 7, 9])  # in the first text, behind its end, in the second
def test_a_stopped_script_goes_on_with_what_was_answered(
    pattern: str, ablation: str, calls: int, tmp_path: Path
) -> None:
    whole, read, told = Limited(small(pattern)), [], []
    expected = heard(whole, ablation, None, read)
    with pytest.raises(Stopped):
        heard(Limited(small(pattern), calls), ablation, tmp_path, [])
    again = Limited(small(pattern))
    assert heard(again, ablation, tmp_path, told) == expected
    assert again.calls < whole.calls
    assert sum(told) == sum(read), "what was read before counts as read"
    if ablation == "none":  # another reading of the same texts has nothing to do with it
        assert heard(small(pattern), "shuffled", tmp_path, []) == heard(small(pattern), "shuffled", None, [])


@pytest.mark.parametrize("reading", ["on", "frozen", "window"])
def test_stopped_losses_go_on_with_those_before(reading: Any, tmp_path: Path) -> None:
    rows = [torch.arange(n) * 7 % 251 for n in (450, 1500)]

    def losses(model: Any, folder: Path | None, told: list[int]) -> list[torch.Tensor]:
        kept = None if folder is None else Bookmark(folder, every=0, clock=lambda: 0.0)
        return LossReader(model, CHUNK, 24, told.append, kept).read(rows, reading).rows

    whole, read, told = Limited(small()), [], []
    expected = losses(whole, None, read)
    with pytest.raises(Stopped):
        losses(Limited(small(), 4), tmp_path, [])
    again = Limited(small())
    found = losses(again, tmp_path, told)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert again.calls == whole.calls - 4 * (reading != "window"), "windows have no state to go on from"
    assert sum(told) == sum(read)


@pytest.mark.parametrize("lost", [False, True], ids=["damaged", "lost"])
def test_a_note_that_is_damaged_or_lost_is_read_over(lost: bool, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        heard(Limited(small(), 3), "none", tmp_path, [])
    (note,) = tmp_path.glob("*.note")
    if lost:
        note.unlink()
    else:
        content = bytearray(note.read_bytes())
        content[-5] ^= 1
        note.write_bytes(content)
    again = Limited(small())
    assert heard(again, "none", tmp_path, []) == heard(small(), "none", None, [])
    assert again.calls > 6, "from the beginning"


def test_the_end_of_a_reading_leaves_no_note_behind(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        heard(Limited(small(), 3), "none", tmp_path, [])
    for state in tmp_path.glob("*.safetensors"):
        state.unlink()  # as if it was killed between the two files
    bookmark = Bookmark(tmp_path)
    bookmark.begin(["none", str(CHUNK), script(0).sha256, script(1).sha256], small(), noted=True)
    bookmark.end()
    assert not list(tmp_path.iterdir())
