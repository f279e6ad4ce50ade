"""How far a long prompt has been read, kept on the disk, so that an evaluation that was killed goes on within it.

Special: what is kept is the state, which is all that a model knows of what it has read; a reading that goes on from it
gives the answers of one that was never stopped, bit for bit. At most a twentieth of the time goes into keeping it.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from neuralmem.errors import UserError
from neuralmem.state import State

EVERY = 60.0  # seconds between two savings, at least
_COST = 20  # times as long as a saving takes, the next one waits


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
        self._key, self._due = "", 0.0

    def begin(self, what: Sequence[str], model: Any) -> tuple[int, State | None]:
        """Begin to read, or go on.

        Args:
            what: what tells this reading from every other one of the model: hashes of its prompts, where they begin
            model: who reads

        Returns:
            Tokens of every prompt that have been read before, and the state after them; 0 and None at the beginning.
        """
        self._key, self._due = sha256("\n".join(what).encode()).hexdigest()[:16], self.clock() + self.every
        for file in self._files(self._key):
            try:
                return int(file.suffixes[0][1:]), State.load(file, model)
            except UserError:  # damaged, or of a model with other weights: read again
                file.unlink()
        return 0, None

    def keep(self, tokens: int, state: State) -> None:
        """Write down that so many tokens of every prompt are read, if it is time to."""
        if (began := self.clock()) < self._due:
            return
        try:
            state.save(self.folder / f"{self._key}.{tokens}.safetensors")
        except OSError as error:  # what is kept saves time, and is not worth an evaluation
            self.every = math.inf
            warnings.warn(f"{self.folder} cannot be written, a long reading is not kept: {error}", stacklevel=2)
        for file in self._files(self._key)[1:]:
            file.unlink()
        self._due = self.clock() + max(self.every, _COST * (self.clock() - began))

    def end(self) -> None:
        """The reading's answers are written down."""
        for file in self._files(self._key):
            file.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _files(self, key: str) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob(f"{key}.*.safetensors"), key=lambda file: -int(file.suffixes[0][1:]))
