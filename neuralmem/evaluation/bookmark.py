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
from typing import Any

from neuralmem.durable import TEMPORARY
from neuralmem.errors import UserError
from neuralmem.state import State

EVERY = 60.0  # seconds between two savings, at least
_COST = 20  # times as long as a saving takes, the next one waits
UNFINISHED = "unfinished"  # folder, in that of the results


class Bookmark:
    """One reading at a time, in one file of a folder.

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
        >>> bookmark.begin(["a prompt's hash"], model)[0], bookmark.keep(64, state)
        (0, None)
        >>> bookmark.begin(["a prompt's hash"], model)[0], bookmark.begin(["another"], model)[0]
        (64, 0)
    """

    def __init__(self, folder: Path, every: float = EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.every, self.clock = folder, every, clock
        self._key, self._due, self._began = "", 0.0, 0.0

    @property
    def seconds(self) -> float:
        """How long this reading has taken, what was kept of it included."""
        return self.clock() - self._began

    def begin(self, what: Sequence[str], model: Any) -> tuple[int, State | None]:
        """Begin to read, or go on.

        Args:
            what: what tells this reading from every other one of the model: hashes of its prompts, where they begin
            model: who reads

        Returns:
            Tokens of every prompt that have been read before, and the state after them; 0 and None at the beginning.
        """
        self._key, self._began = sha256("\n".join(what).encode()).hexdigest()[:16], self.clock()
        self._due = self._began + self.every
        for file in self._files():
            try:
                state = State.load(file, model)
            except UserError:  # damaged, of a model with other weights, or gone: read again
                file.unlink(missing_ok=True)
                continue
            tokens, milliseconds = _place(file)
            self._began -= milliseconds / 1000
            return tokens, state
        return 0, None

    def keep(self, tokens: int, state: State) -> None:
        """Write down that so many tokens of every prompt are read, if it is time to."""
        if (began := self.clock()) < self._due:
            return
        try:
            state.save(self.folder / f"{self._key}.{tokens}.{1000 * self.seconds:.0f}.safetensors")
        except OSError as error:  # what is kept saves time, and is not worth an evaluation
            self.every = math.inf
            warnings.warn(f"{self.folder} cannot be written, a long reading is not kept: {error}", stacklevel=2)
        for file in self._files()[1:]:
            file.unlink(missing_ok=True)
        self._due = self.clock() + max(self.every, _COST * (self.clock() - began))

    def end(self) -> None:
        """The reading's answers are written down."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Everything is answered: remove what is left of readings that were stopped and then asked in other batches."""
        for file in (*self.folder.glob("*.safetensors"), *self.folder.glob(f"{TEMPORARY}*")):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not there, or not empty
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        """Of this reading, the newest first."""
        return sorted(self.folder.glob(f"{self._key}.*.safetensors"), key=_place, reverse=True)


def _place(file: Path) -> tuple[int, int]:
    """Tokens that were read, and milliseconds that they took."""
    _, tokens, milliseconds, _ = file.name.split(".")
    return int(tokens), int(milliseconds)
