"""Perplexity and bits per byte of held-out documents, each read as a stream from a fresh memory.

Special: weighted by tokens, with intervals over documents and the same documents under every control. Tokens whose
history is longer than attention's reach are counted apart, since only there a memory can help. Two null models stand
beside it: all tokens equally likely, and their frequencies in these very documents, which is the best that a model
that sees no context could do.
Source: evaluation.md sections 4.5 and 11.
"""

import hashlib
import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuralmem.data.document import Document
from neuralmem.evaluation.bootstrap import Mean, weighted_mean
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.losses import LossReader, Reading
from neuralmem.evaluation.rows import Subject
from neuralmem.tokenizer import Tokenizer

BYTE = re.compile("<0x[0-9A-F]{2}>")  # a single byte in a vocabulary of text, for what that cannot spell
IDENTITY = ("text_sha256", "memory", "ckpt_sha256", "chunk_size_eval", "dtype")


class Piece(NamedTuple):
    """A document in tokens.

    Args:
        id: of the document
        tokens: Int[T], the first is given and not predicted
        bytes: of the predicted tokens, in UTF-8; a token may be a part of a character
        sha256: of the tokens
    """

    id: str
    tokens: Tensor
    bytes: int
    sha256: str


def pieces(documents: Iterable[Document], tokenizer: Tokenizer, budget: int) -> Iterator[Piece]:
    """Documents of two tokens at least, until so many tokens have been given; the last one is cut."""
    size = token_bytes(tokenizer)
    for document in documents:
        if budget < 2:
            return
        ids = tokenizer.encode(document.text)[:budget]
        if len(ids) > 1:
            budget -= len(ids)
            yield Piece(document.id, torch.tensor(ids), sum(map(size, ids[1:])), sha256(ids))


def token_bytes(tokenizer: Tokenizer) -> Callable[[int], int]:
    """What counts the bytes of a token within a text, also where decoding gives U+FFFD for a part of a character.

    Example:
        >>> from neuralmem.tokenizer import ByteTokenizer
        >>> [token_bytes(ByteTokenizer())(i) for i in ByteTokenizer().encode("né")]
        [1, 1, 1]
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import pre_tokenizers

    backend = Backend.from_str(tokenizer.definition)
    spelled_in_bytes = "ByteLevel" in json.dumps(json.loads(tokenizer.definition)["decoder"])
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())

    @cache
    def size(i: int) -> int:
        token = backend.id_to_token(i) or ""
        if spelled_in_bytes:  # a letter is a byte, but for tokens that were added as text
            return len(token if alphabet.issuperset(token) else token.encode())
        if BYTE.fullmatch(token):
            return 1
        # Twice, since the first token of a text may lose its space.
        return len(tokenizer.decode([i, i]).encode()) - len(tokenizer.decode([i]).encode())

    return size


def sha256(ids: Sequence[int] | Tensor) -> str:
    """Hash of token ids as little-endian 32-bit integers, as `Rope.sha256` has it."""
    return hashlib.sha256(torch.as_tensor(ids, dtype=torch.int32).numpy().astype("<i4").tobytes()).hexdigest()


def measure(
    documents: Sequence[Piece],
    reader: LossReader,
    readings: Sequence[Reading],
    subject: Subject,
    journal: Journal,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """Read what has not been read yet; returns the rows of all documents, in order, for each reading in turn."""
    found = []
    for reading in readings:
        keys = [key(document.sha256, reading, subject) for document in documents]
        todo = sorted(
            {d.sha256: d for d, k in zip(documents, keys, strict=True) if journal.find(**k) is None}.values(),
            key=lambda d: len(d.tokens),
        )
        cost = [sum(reader.cost(len(d.tokens), reading) for d in some) for some in (documents, todo)]
        reader.progress(cost[0] - cost[1])
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            begin = time.perf_counter()
            losses = reader.read([d.tokens for d in batch], reading)
            bookmark = reader.bookmark if reading != "window" else None
            seconds = (bookmark.seconds if bookmark else time.perf_counter() - begin) / len(batch)
            journal.add(
                *(
                    key(d.sha256, reading, subject)
                    | _values(d, row, subject)
                    | {"state_bytes": losses.state_bytes, "wall_s": round(seconds, 6)}
                    for d, row in zip(batch, losses.rows, strict=True)
                )
            )
            if bookmark is not None:
                bookmark.end()
        for document, k in zip(documents, keys, strict=True):
            if row := journal.find(**k):
                journal.confirm(row, partial(_again, document, row, subject))
        # Older rows counted the bytes of decoded text, which a part of a character is not.
        found += [row | {"bytes": d.bytes} for d, k in zip(documents, keys, strict=True) if (row := journal.find(**k))]
    return found


def key(text_sha256: str, reading: str, subject: Subject) -> dict[str, Any]:
    """What tells the reading of one text from others."""
    return {
        "text_sha256": text_sha256,
        "memory": reading,
        "ckpt_sha256": subject.ckpt_sha256,
        "chunk_size_eval": subject.chunk_size_eval,
        "dtype": subject.dtype,
    }


def _values(document: Piece, losses: Tensor, subject: Subject) -> dict[str, Any]:
    beyond = losses[subject.reach + 1 :].double()  # the loss at i has i + 1 tokens of history
    return {
        "document": document.id,
        "bytes": document.bytes,
        "nll": losses.double().sum().item(),
        "nll_beyond": beyond.sum().item(),
        "device": subject.device,
        **_of_text(document, subject),
    }


def _of_text(document: Piece, subject: Subject) -> dict[str, Any]:
    """What the text and the model's config decide."""
    tokens = len(document.tokens) - 1
    return {
        "tokens": tokens,
        "tokens_beyond": max(0, tokens - subject.reach - 1),
        "reach": subject.reach,
        "tokenizer_sha256": subject.tokenizer_sha256,
        "chunk_size_train": subject.chunk_size_train,
    }


def _again(document: Piece, row: Mapping[str, Any], subject: Subject) -> dict[str, Any]:
    """What a row must say; no token has a loss below 0, so a part of them loses no more than all."""
    must = _of_text(document, subject)
    if math.isnan(row["nll"]) or math.isnan(row["nll_beyond"]):  # a model may have said that
        return must
    nll = max(0.0, row["nll"])
    most = nll if must["tokens_beyond"] else 0.0
    return {**must, "nll": nll, "nll_beyond": min(max(0.0, row["nll_beyond"]), most)}


class Line(NamedTuple):
    """What one reading says.

    Args:
        memory: "on", or the control
        loss: nats per token, weighted by tokens
        bits_per_byte: of the predicted text
        beyond: loss of tokens with more history than attention's reach; n is 0 where no document is so long
        gain: loss of this reading less that of "on", by document, so above 0 where the memory as it is does better
        gain_beyond: the same for tokens beyond reach
    """

    memory: str
    loss: Mean
    bits_per_byte: Mean
    beyond: Mean
    gain: Mean
    gain_beyond: Mean


def summarise(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[Line]:
    """A line for every reading; the documents must be the same, in the same order, for all."""
    readings = list(dict.fromkeys(row["memory"] for row in rows))
    by = {name: [row for row in rows if row["memory"] == name] for name in readings}
    lines = []
    for name, own in by.items():
        tokens, beyond = [r["tokens"] for r in own], [r["tokens_beyond"] for r in own]
        base = by.get("on", own)
        gains = [a["nll"] - b["nll"] for a, b in zip(own, base, strict=True)]
        further = [a["nll_beyond"] - b["nll_beyond"] for a, b in zip(own, base, strict=True)]
        lines.append(
            Line(
                name,
                weighted_mean([r["nll"] for r in own], tokens, seed),
                weighted_mean([r["nll"] / math.log(2) for r in own], [r["bytes"] for r in own], seed),
                weighted_mean([r["nll_beyond"] for r in own], beyond, seed),
                weighted_mean(gains, tokens, seed),
                weighted_mean(further, beyond, seed),
            )
        )
    return lines


def null_models(documents: Sequence[Piece], vocab_size: int) -> dict[str, float]:
    """Loss in nats per predicted token of two models that see no context.

    Example:
        >>> piece = Piece("a", torch.tensor([9, 1, 2, 1, 2]), 4, "")
        >>> null_models([piece], 8) == {"uniform": math.log(8), "frequencies": math.log(2)}
        True
    """
    counts = Counter(i for document in documents for i in document.tokens[1:].tolist())
    total = sum(counts.values())
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    return {"uniform": math.log(vocab_size), "frequencies": entropy}
