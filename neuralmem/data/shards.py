"""Documents that were turned into tokens before, memory-mapped: what long runs train on.

What is special: any document is fetched alone and shuffling takes no memory, so a set may be larger than both memory
and patience for an index; a document is on the side where its text would be; the tokenizer it was made with is checked,
and so are the files: their sizes and the index always, the tokens with `?verify=1`.

`shards:FOLDER` or `shards:FOLDER?verify=1`; `python -m neuralmem.data.prepare` makes the folder.
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralmem.data.document import Numbered, Side, Tokenized, check_share, described
from neuralmem.data.permutation import Permutation
from neuralmem.data.shard_files import MANIFEST, damage, read_manifest
from neuralmem.errors import UserError
from neuralmem.tokenizer import Tokenizer

PREFIX = "shards:"


def open_shards(spec: str, *, side: Side = "all", share: float = 0.0) -> "Shards":
    """Open `shards:FOLDER`, with `?verify=1` to compare every file with its sha256 first.

    Raises:
        UserError: another option, or as `Shards`.
    """
    folder, _, option = spec.removeprefix(PREFIX).partition("?")
    if option not in ("", "verify=0", "verify=1"):
        raise UserError(f"source is {spec!r}; the one option of shards is verify=1")
    return Shards(folder, side=side, share=share, verify=option == "verify=1")


class Shards(Numbered):
    """A folder of shards: map-style, `shards[i]` is document i of its side.

    Args:
        folder: made by `python -m neuralmem.data.prepare`
        side: "train", "validation" or "all"
        share: part of the documents that is validation; as `Indexed` does it, to the document
        verify: compare all tokens with their sha256, which reads everything once

    Raises:
        UserError: no shards there, not finished, damaged, or without a document.
    """

    def __init__(self, folder: str | Path, *, side: Side = "all", share: float = 0.0, verify: bool = False) -> None:
        self.folder, self.name = Path(folder), f"{PREFIX}{folder}"
        check_share(self.name, side, share)
        self.manifest = read_manifest(self.folder)
        self._check(verify)
        self._names = [shard["name"] for shard in self.manifest["shards"]]
        self._sizes = [shard["documents"] for shard in self.manifest["shards"]]
        self._ends = list(accumulate(self._sizes))
        self._dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self._maps: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._side, self._share, self._cut = side, share, "all"
        total = self._ends[-1] if self._ends else 0
        if not total:
            raise UserError(f"source {self.name!r} is empty; it must hold at least one document")
        self._numbers = None if side == "all" or not share else self._on_side(side, share)
        if self._numbers is not None and len(self._numbers) in (0, total):
            self._numbers, self._cut = None, side  # one side would have nothing: every document is cut
        self.count = total if self._numbers is None else len(self._numbers)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        """-> Int[N] tokens of a document, its separator last."""
        if not -self.count <= number < self.count:
            raise IndexError(f"document {number} of {self.count}")
        return self._document(number % self.count).tokens

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # a loader process maps the files itself

    def accept(self, tokenizer: Tokenizer) -> None:
        if tokenizer.fingerprint != (made := self.manifest["tokenizer"])["sha256"]:
            raise UserError(
                f"tokenizer is another one ({tokenizer.vocab_size} symbols) than shards {str(self.folder)!r} were made "
                f"with ({made['vocab_size']} symbols); it must be tokenizer: {self.folder}"
            )

    def fingerprint(self) -> list[str]:
        made = hashlib.sha256((self.folder / MANIFEST).read_bytes()).hexdigest()[:16]
        return [f"{self.count} {described(self._side, self._share)} of shards {made}"]

    def mean_length(self, documents: int = 64) -> float:
        return self.manifest["tokens"] / max(1, self.manifest["documents"])

    def order(self, shuffle: int | None) -> Callable[[int], Tokenized]:
        if shuffle is None:
            return self._document
        permutation = Permutation(self.count, shuffle)
        return lambda place: self._document(permutation(place))

    def _document(self, place: int) -> Tokenized:
        number = place if self._numbers is None else int(self._numbers[place])
        shard = bisect_right(self._ends, number)
        tokens, index = self._open(shard)
        local = number - self._ends[shard] + self._sizes[shard]
        ids = np.array(tokens[index[local] : index[local + 1]], dtype=np.int64)
        made = self.manifest["tokenizer"]
        if not len(ids) or ids.max() >= made["vocab_size"]:
            raise UserError(
                f"{self.folder / self._names[shard]}.tokens is damaged: document {local} is no text of its tokenizer; "
                f"`python -m neuralmem.data.prepare --check {self.folder}` looks at all"
            )
        if self._cut != "all":
            cut = int(len(ids) * (1 - self._share))
            ids = np.append(ids[:cut], made["eos_id"]) if self._cut == "train" else ids[cut:]
        return Tokenized(f"{self.name}#{number}", torch.from_numpy(ids))

    def _open(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """-> tokens of a shard and the places of its documents, mapped."""
        if shard not in self._maps:
            path = self.folder / self._names[shard]
            tokens = np.memmap(f"{path}.tokens", dtype=self._dtype, mode="r")
            index = np.memmap(f"{path}.documents", dtype="<u8", mode="r")
            self._maps[shard] = tokens, index[: self._sizes[shard] + 1]
        return self._maps[shard]

    def _on_side(self, side: Side, share: float) -> np.ndarray:
        """-> numbers of the documents of a side, four bytes each (eight where there are more than four billion)."""
        found, first, bound = [], 0, np.uint64(math.ceil(share * 2**64))
        kind = np.uint32 if self._ends[-1] < 1 << 32 else np.uint64
        for name, size in zip(self._names, self._sizes, strict=True):
            hashes = np.fromfile(self.folder / f"{name}.documents", dtype="<u8", offset=8 * (size + 1))
            held = hashes < bound
            found.append((np.flatnonzero(held if side == "validation" else ~held) + first).astype(kind))
            first += size
        return np.concatenate(found)

    def _check(self, verify: bool) -> None:
        files = {name: wanted for shard in self.manifest["shards"] for name, wanted in shard["files"].items()}
        index = {name: wanted for name, wanted in files.items() if name.endswith(".documents")}
        for some, deep in ((files, verify), (index, True)):
            if (wrong := damage(self.folder, some, deep=deep)) is not None:
                raise UserError(f"{wrong}; run the command that made it again, which repairs it")
        tokenizer = self.folder / "tokenizer.json"
        wanted = {"sha256": self.manifest["tokenizer"]["sha256"], "bytes": _size(tokenizer)}
        if (wrong := damage(self.folder, {tokenizer.name: wanted}, deep=True)) is not None:
            raise UserError(f"{wrong}; run the command that made it again, which repairs it")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
