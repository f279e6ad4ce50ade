"""Text to token ids and back: bytes, byte-level BPE trained here, or any `tokenizer.json`.

What is special: a file of any size is read as a stream of tokens that does not depend on how it was cut (`stream`);
text never turns into a control token (a document with the letters "<|endoftext|>" in it does not end there); bytes need
no library. Files are in the format of Hugging Face `tokenizers`; the byte tokenizer is written as a BPE without merges.
"""

import codecs
import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch

from neuralmem.errors import UserError
from neuralmem.typing import Tensor

END = "<|endoftext|>"
# Names under which other people's tokenizers keep their end-of-document token, most telling first.
_END_NAMES = (END, "<|end_of_text|>", "<|end▁of▁sentence|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>", "[EOS]", "[SEP]")
_BLOCK = 1 << 16  # characters read at a time
_LONGEST = 1 << 20  # characters without a safe place to cut, after which a cut is made anyway
_PROBE = "One day, Ann's cat (a tom) saw 12 birds.\n\n  It said:\tmiau\r\nx = y1 + 2 déjà vu 日本 語\n語 "


class Tokenizer:
    """A tokenizer read from the text of a `tokenizer.json`.

    Args:
        definition: content of a `tokenizer.json`, in the format of Hugging Face `tokenizers`

    Raises:
        UserError: the text is no tokenizer, or names no end-of-document token.

    Example:
        >>> tokenizer = train_bpe(["low lower lowest slow"] * 9, vocab_size=270)
        >>> tokenizer.decode(tokenizer.encode("slower")), tokenizer.vocab_size
        ('slower', 266)
    """

    vocab_size: int
    eos_id: int

    def __init__(self, definition: str) -> None:
        self._definition = definition
        self._hf = _parse(definition)
        self._hf.encode_special_tokens = True  # documents are text, they never contain control tokens
        vocabulary = self._hf.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        names = [name for name in _END_NAMES if name in vocabulary]
        if not names:
            raise UserError(f"tokenizer has no end-of-document token; it must have one of {', '.join(_END_NAMES)}")
        self.eos_id = vocabulary[names[0]]

    def encode(self, text: str) -> list[int]:
        """-> token ids of `text`, without any document separator."""
        return self._hf.encode(_well_formed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[Tensor]:
        """-> Int[N] token ids of every text, as `encode` gives them, faster.

        Memory is bounded for a text of any length: it is cut as in `stream`. Uses threads unless TOKENIZERS_PARALLELISM
        is false. The dtype is the tokenizer's own: uint8 for bytes, else int32.
        """
        pieces = [self._bounded(_well_formed(text)) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        if len(flat) == 1:  # a batch of one would start the library's threads, after which a process should not fork
            encoded = [self._hf.encode(flat[0], add_special_tokens=False)]
        else:
            encoded = self._hf.encode_batch_fast(flat, add_special_tokens=False)
        ids = (_int_tensor(one.ids) for one in encoded)
        return [next(ids) if len(parts) == 1 else torch.cat([next(ids) for _ in parts]) for parts in pieces]

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """-> the text of `ids`; control tokens are left out.

        Raises:
            UserError: an id is outside 0..vocab_size - 1.
        """
        return self._hf.decode(self._checked(ids), skip_special_tokens=True)

    def stream(self, path: str | os.PathLike[str], length: int = 4096) -> Iterator[Tensor]:
        """Read a file of any size as consecutive tensors Int[1, T], T = `length` except for the last.

        The tokens do not depend on `length` and are those of the whole file encoded at once. Memory is bounded: text is
        encoded up to places where no token can span, which is in front of white space that follows a letter or digit
        (after a million characters without one, wherever reading stands). A tokenizer that treats the start of a text
        specially, as SentencePiece does, gets the whole file at once. Bytes that are not UTF-8 are replaced by U+FFFD;
        the byte tokenizer passes them on as they are. An empty file yields nothing: a call of a model needs a token.

        Raises:
            UserError: there is no such file, or `length` is not positive.
        """
        if length < 1:
            raise UserError(f"length is {length}; it must be at least 1")
        if not Path(path).is_file():
            raise UserError(f"path is {os.fspath(path)!r}, which is no file")
        return self._stream(Path(path), length)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `tokenizer.json` into `folder`, which is created where needed."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "tokenizer.json").write_text(self._definition, encoding="utf-8", newline="")

    @property
    def definition(self) -> str:
        """The content of `tokenizer.json`."""
        return self._definition

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of `tokenizer.json`, in hexadecimal."""
        return hashlib.sha256(self._definition.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._definition,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint[:12]!r})"

    def _stream(self, path: Path, length: int, block: int = _BLOCK) -> Iterator[Tensor]:
        rest = torch.empty(0, dtype=torch.long)
        for ids in self._file_ids(path, block):
            rest = torch.cat([rest, ids])
            whole = len(rest) // length * length
            yield from rest[:whole].view(-1, 1, length).unbind()
            rest = rest[whole:].clone()
        if len(rest):
            yield rest[None]

    def _file_ids(self, path: Path, block: int) -> Iterator[Tensor]:
        """-> token ids of a file, in pieces of any size."""
        for text in _pieces(path, block) if self._can_be_cut else [path.read_bytes().decode("utf-8", "replace")]:
            yield torch.tensor(self.encode(text), dtype=torch.long)

    def _bounded(self, text: str) -> list[str]:
        """Cut a long text at safe places into pieces of a bounded length."""
        pieces, start = [], 0
        while len(text) - start > _LONGEST and self._can_be_cut:
            piece = text[start : start + _LONGEST]
            piece = piece[: next(_safe_places(piece, backwards=True), len(piece))]
            pieces.append(piece)
            start += len(piece)
        return [*pieces, text[start:] if start else text]

    @cached_property
    def _can_be_cut(self) -> bool:
        """Whether pieces cut at safe places encode as the whole does, found by trying."""
        pieces = [_PROBE[a:b] for a, b in pairwise([0, *_safe_places(_PROBE), len(_PROBE)])]
        return [i for piece in pieces for i in self.encode(piece)] == self.encode(_PROBE)

    def _checked(self, ids: Iterable[int] | Tensor) -> list[int]:
        ids = [int(i) for i in (ids.flatten().tolist() if isinstance(ids, Tensor) else ids)]
        wrong = next((i for i in ids if not 0 <= i < self.vocab_size), None)
        if wrong is not None:
            raise UserError(f"ids contain {wrong}; they must be 0 to vocab_size - 1 = {self.vocab_size - 1}")
        return ids


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8 and an end-of-document token: 257 symbols, ids 0..255 are the byte values.

    Example:
        >>> tokenizer = ByteTokenizer()
        >>> tokenizer.encode("né"), tokenizer.eos_id, tokenizer.vocab_size
        ([110, 195, 169], 256, 257)
        >>> tokenizer.decode([110, 195, 169, 256])
        'né'
    """

    def __init__(self) -> None:
        self._definition, self.vocab_size, self.eos_id = _byte_definition(), 257, 256

    def encode(self, text: str) -> list[int]:
        return list(_well_formed(text).encode())

    def encode_batch(self, texts: Sequence[str]) -> list[Tensor]:
        return [torch.frombuffer(_utf8(text), dtype=torch.uint8) if text else torch.empty(0).byte() for text in texts]

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        return bytes(i for i in self._checked(ids) if i != self.eos_id).decode("utf-8", "replace")

    def _file_ids(self, path: Path, block: int) -> Iterator[Tensor]:
        with path.open("rb") as file:
            while data := file.read(block):
                yield torch.frombuffer(bytearray(data), dtype=torch.uint8).long()

    def __reduce__(self) -> tuple[Any, ...]:
        return ByteTokenizer, ()


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load a `tokenizer.json`, or the one in a folder.

    Raises:
        UserError: no such file, or not a tokenizer.
    """
    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise UserError(
            f"tokenizer is {str(file)!r}, which is no file; it must be a tokenizer.json, or a folder with one"
        )
    try:
        definition = file.read_bytes().decode("utf-8")
        return ByteTokenizer() if definition == _byte_definition() else Tokenizer(definition)
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{str(file)!r} cannot be used: {error}") from None


def train_bpe(
    texts: Iterable[str], vocab_size: int, *, split_digits: bool = True, split_words: bool = False
) -> Tokenizer:
    """Train a byte-level BPE. It encodes any text; the same texts give the same tokenizer.

    Args:
        texts: training texts, read once
        vocab_size: symbols at most, of which 257 are the bytes and the end-of-document token
        split_digits: every digit is a token of its own, so that numbers are spelled the same everywhere
        split_words: spaces before words are tokens of their own, so that a word is spelled the same after a space, a
            line break or a sign; costs about a third more tokens

    Raises:
        UserError: `vocab_size` is below 257, or there is no text.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HfTokenizer

    if vocab_size < 257:
        raise UserError(f"vocab_size is {vocab_size}; it must be at least 257, for 256 bytes and {END}")
    texts = (_well_formed(text) for text in texts)
    if (first := next(texts, None)) is None:
        raise UserError("texts are empty; they must hold text to train a tokenizer on")
    hf = HfTokenizer(models.BPE())
    steps: list[Any] = []
    if split_words:
        number = r" ?\p{N}" if split_digits else r" ?\p{N}+"
        texts = chain(texts, ["".join(f" {digit}" for digit in range(10)) * 3000])  # each " 0" to " 9" becomes a token
        steps.append(pre_tokenizers.Split(Regex(rf"\p{{L}}+|{number}| +|\s|[^\s\p{{L}}\p{{N}}]"), "isolated"))
    elif split_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split_words))
    hf.pre_tokenizer, hf.decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    hf.train_from_iterator((text for group in ((first,), texts) for text in group), trainer)
    # Training used threads; without this the library warns whenever a data loader forks later.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return Tokenizer(hf.to_str(pretty=True))


def _parse(definition: str) -> Any:
    """-> tokenizers.Tokenizer. The library reports every fault as a plain Exception."""
    from tokenizers import Tokenizer as HfTokenizer

    try:
        return HfTokenizer.from_str(definition)
    except Exception as error:
        raise UserError(f"tokenizer is not a tokenizer.json: {' '.join(str(error).split())[:120]}") from None


def _int_tensor(ids: list[int]) -> Tensor:
    """As torch.tensor(ids, dtype=torch.int32), six times as fast."""
    return torch.frombuffer(array("i", ids), dtype=torch.int32) if ids else torch.empty(0, dtype=torch.int32)


def _utf8(text: str) -> bytearray:
    try:
        return bytearray(text, "utf-8")
    except UnicodeEncodeError:
        return bytearray(_well_formed(text), "utf-8")


def _well_formed(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates, which JSON can smuggle in and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


@lru_cache
def _byte_definition() -> str:
    """The byte tokenizer as a `tokenizer.json`: a byte-level alphabet in byte order and no merges.

    The separator is in the vocabulary but not an added token, so that no text can produce it.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}  # GPT-2's alphabet: the others move to 256 + n
    moved = iter(range(256, 512))
    vocabulary = {chr(byte if byte in printable else next(moved)): byte for byte in range(256)} | {END: 256}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    whole: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    whole |= {"normalizer": None, "pre_tokenizer": level, "post_processor": None, "decoder": level}
    whole["model"] = model | {"vocab": vocabulary, "merges": []}
    return json.dumps(whole, ensure_ascii=False, indent=1)


def _pieces(path: Path, block: int) -> Iterator[str]:
    """Cut a file's text at the last safe place of what has been read."""
    decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
    with path.open("rb") as file:
        while data := file.read(block):
            rest += decoder.decode(data)
            cut = next(_safe_places(rest, backwards=True), len(rest) if len(rest) > _LONGEST else 0)
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
    if rest := rest + decoder.decode(b"", final=True):
        yield rest


def _safe_places(text: str, backwards: bool = False) -> Iterator[int]:
    """Where a text may be cut: in front of white space after a letter or digit.

    No pre-tokenizer in use (GPT-2, GPT-4, Llama 3, Qwen) matches across such a place: words take white space only in
    front, and line breaks join punctuation only.
    """
    places = range(1, len(text))
    for i in reversed(places) if backwards else places:
        if text[i] in " \n\r\t" and text[i - 1].isalnum():
            yield i
