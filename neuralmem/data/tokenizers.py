"""Tokenizers as they stand in a YAML file: bytes, trained on the data, or a file. Trained ones are kept in a cache."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from neuralmem.data.document import limited
from neuralmem.errors import UserError, nearest
from neuralmem.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe

TRAINING_CHARACTERS = 8_000_000  # text that a tokenizer is trained on


def make_tokenizer(spec: str, texts: Iterable[str]) -> Tokenizer:
    """From what stands in a YAML file to a tokenizer.

    Args:
        spec: "bytes"; "bpe:1024" or "words:1024", trained on the texts with that many symbols ("words": spaces are
            tokens of their own) and kept in the cache folder; or the path of a tokenizer.json or of a folder with one
        texts: what to train on, if need be

    The cache is $NEURALMEM_CACHE, or neuralmem/ in the user's cache folder.

    Raises:
        UserError: none of these, or no such file.
    """
    kind, colon, size = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if colon and kind in ("bpe", "words"):
        if not size.isdigit():
            raise UserError(f"tokenizer is {spec!r}; it must be {kind}:NUMBER, for example {kind}:1024")
        return _trained(kind, int(size), texts)
    if not Path(spec).exists():
        hint = nearest(spec, ["bytes", "bpe:1024", "words:1024"])
        raise UserError(f"tokenizer is {spec!r}; it must be bytes, bpe:NUMBER, words:NUMBER, or a path{hint}")
    return load_tokenizer(spec)


def _trained(kind: str, size: int, texts: Iterable[str]) -> Tokenizer:
    sample = list(limited(texts, TRAINING_CHARACTERS))
    name = hashlib.sha256("\0".join([kind, str(size), *sample]).encode("utf-8", "replace")).hexdigest()[:24]
    cache = os.environ.get("NEURALMEM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "neuralmem"
    folder = Path(cache).expanduser() / "tokenizers"
    if (folder / name / "tokenizer.json").is_file():
        return load_tokenizer(folder / name)
    tokenizer = train_bpe(sample, size, split_words=kind == "words")
    with contextlib.suppress(OSError):  # a read-only home costs the seconds of training again, nothing else
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            tokenizer.save(part)
            (folder / name).mkdir(exist_ok=True)
            os.replace(Path(part) / "tokenizer.json", folder / name / "tokenizer.json")
    return tokenizer
