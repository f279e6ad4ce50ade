"""How far a long prompt has been read, kept on the disk, so that an evaluation that was killed goes on within it.

Special: what is kept is the state, which is all that a model knows of what it has read. Read on in pieces of the same
size on the same device, it gives the answers of a reading that was never stopped, bit for bit. At most a twentieth of
the time goes into keeping it.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from neuralmem.durable import TEMPORARY, write_file
from neuralmem.errors import UserError
from neuralmem.state import State

EVERY = 60.0  # seconds between two savings, at least
_COST = 20  # times as long as a saving takes, the next one waits
UNFINISHED = "unfinished"  # folder, in that of the results
NOTE = ".note"  # what a file's note is called, in the place of .safetensors


class Kept(NamedTuple):
    """What is known of a reading that was stopped.

    Args:
        tokens: of every prompt that have been read
        state: after them; None where nothing is kept
        note: what the reader had found out until then
    """

    tokens: int = 0
    state: State | None = None
    note: bytes = b""


class Bookmark:
    """One reading at a time, in a file of a folder, and its note in another.

    Args:
        folder: where the file lies; made when the first is written
        every: seconds of reading between two savings, at least
        clock: tells seconds

    Example:
        >>> from tempfile import mkdtemp
        >>> import torch, neuralmem as nm
        >>> model, _ = nm.load("neuralmem/mag-tiny")
        >>> _, state = model(torch.zeros(1, 64, dtype=torch.long))
        >>> bookmark = Bookmark(Path(mkdtemp()), every=0)
        >>> bookmark.begin(["a prompt's hash"], model).tokens, bookmark.keep(64, state)
        (0, None)
        >>> bookmark.begin(["a prompt's hash"], model).tokens, bookmark.begin(["another"], model).tokens
        (64, 0)
    """

    def __init__(self, folder: Path, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.every, self.clock = folder, every, clock
        self._key, self._due, self._began = "", 0.0, 0.0

    @property
    def seconds(self) -> float:
        """How long this reading has taken, what was kept of it included."""
        return self.clock() - self._began

    def begin(self, what: Sequence[str], model: Any, noted: bool = False) -> Kept:
        """Begin to read, or go on.

        Args:
            what: what tells this reading from every other one of the model: hashes of its prompts, where they begin
            model: who reads
            noted: whether a state is of no use without its note
        """
        self._key, self._began = sha256("\n".join(what).encode()).hexdigest()[:16], self.clock()
        self._due = self._began + self.every
        for file in self._files():
            try:
                kept, milliseconds = self._open(file, model, noted)
            except (OSError, UserError):  # damaged, of a model with other weights, or gone: read again
                self._remove(file)
                continue
            self._began -= milliseconds / 1000
            return kept
        return Kept()

    def keep(self, tokens: int, state: State, note: Callable[[], bytes] = bytes) -> None:
        """Write down that so many tokens of every prompt are read, and what `note` gives, if it is time to."""
        if (began := self.clock()) < self._due:
            return
        file = self.folder / f"{self._key}.{tokens}.{1000 * self.seconds:.0f}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if content := note():
                write_file(file.with_suffix(NOTE), sha256(content).digest() + content)
            state.save(file)
        except OSError as error:  # what is kept saves time, and is not worth an evaluation
            self.every = math.inf
            warnings.warn(f"{self.folder} cannot be written, a long reading is not kept: {error}", stacklevel=2)
        for old in self._files()[1:]:
            self._remove(old)
        self._due = self.clock() + max(self.every, _COST * (self.clock() - began))

    def end(self) -> None:
        """The reading's answers are written down."""
        for file in (*self._files(), *self.folder.glob(f"{self._key}.*{NOTE}")):
            self._remove(file)

    def clear(self) -> None:
        """Everything is answered: remove what is left of readings that were stopped and then asked in other batches."""
        for file in (
            path for kind in ("*.safetensors", f"*{NOTE}", f"{TEMPORARY}*") for path in self.folder.glob(kind)
        ):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or not empty
            self.folder.rmdir()

    def _open(self, file: Path, model: Any, noted: bool) -> tuple[Kept, int]:
        """What a file holds with its note, and the milliseconds that it took."""
        state, note = State.load(file, model), b""
        tokens, milliseconds = _place(file)
        if (beside := file.with_suffix(NOTE)).exists() or noted:
            digest, note = (content := beside.read_bytes())[:32], content[32:]
            if sha256(note).digest() != digest:
                raise UserError(f"{beside} is damaged")
        return Kept(tokens, state, note), milliseconds

    @staticmethod
    def _remove(file: Path) -> None:
        for one in (file, file.with_suffix(NOTE)):
            one.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """Of this reading, the newest first."""
        return sorted(self.folder.glob(f"{self._key}.*.safetensors"), key=_place, reverse=True)


def _place(file: Path) -> tuple[int, int]:
    """Tokens that were read, and milliseconds that they took."""
    _, tokens, milliseconds, _ = file.name.split(".")
    return int(tokens), int(milliseconds)
