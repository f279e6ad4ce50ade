"""From what stands in a YAML file to a source of documents.

builtin                          prose of the Python standard library, always there
stdlib                           its sources
noise                            RULER's line, over and over
path, folder or glob             text, jsonl and parquet files
fineweb-edu, slimpajama, pg19    datasets of the Hugging Face hub (all names in data/names.py, options in hub.py)
hf:owner/name?split=train        any other
shards:FOLDER                    tokens that `python -m neuralmem.data.prepare` made of any of these
"""

from collections.abc import Mapping, Sequence
from typing import get_args

from neuralmem.data import corpus, noise
from neuralmem.data.document import (
    Document,
    Indexed,
    Joined,
    Numbered,
    Side,
    Source,
    Texts,
    Tokenized,
    Unreadable,
    on_side,
)
from neuralmem.data.files import open_files
from neuralmem.data.hub import is_hub, open_hub
from neuralmem.data.mixture import Mixture
from neuralmem.data.shards import PREFIX, open_shards
from neuralmem.errors import UserError

__all__ = [
    "DOCUMENT_BYTES",
    "Document",
    "Indexed",
    "Joined",
    "Mixture",
    "Side",
    "Source",
    "Texts",
    "Tokenized",
    "Unreadable",
    "on_side",
    "open_source",
]

DOCUMENT_BYTES = 1 << 18
_KINDS = "builtin, stdlib, noise, a path, folder or glob, fineweb-edu, slimpajama, pg19, hf:NAME, shards:FOLDER"


def open_source(
    spec: str | Sequence[str] | Mapping[str, float],
    *,
    side: Side = "all",
    share: float = corpus.VALIDATION_SHARE,
    text_field: str = "text",
    document_bytes: int = DOCUMENT_BYTES,
) -> Source:
    """Open one source, or several as one.

    Args:
        spec: a source as this file lists them; a list of them, whose documents are read as one; or a mapping of them to
            weights, which are their shares of the text however long their documents are
        side: "train", "validation" or "all" documents
        share: part of the documents that is validation
        text_field: the field of jsonl, parquet and hub records that holds the text
        document_bytes: a text file larger than this is read as several documents

    Raises:
        UserError: what was named does not exist, is empty or cannot be read.

    Example:
        >>> document = next(open_source("builtin", side="validation").read())
        >>> document.id.startswith("builtin/"), len(document.text) > 100
        (True, True)
    """
    if document_bytes < 1024:
        raise UserError(f"document_bytes is {document_bytes}; it must be at least 1024")
    how = (side, share, text_field, document_bytes)
    if isinstance(spec, Mapping):
        return Mixture({name: _one(name, *how) for name in spec}, spec)
    specs = [spec] if isinstance(spec, str) else list(spec)
    if not specs or not all(specs):
        raise UserError(f"source is empty; it must be {_KINDS}, a list of these, or a mapping of these to weights")
    if len(specs) == 1:
        return _one(specs[0], *how)
    sources = [source for one in specs for source in _numbered(_open(one, *how), one)]
    if len({one.startswith(PREFIX) for one in specs}) > 1:
        raise UserError(f"source is {specs!r}; shards cannot be joined with text, only with shards")
    return Joined(" + ".join(specs), sources)


def _one(spec: str, side: Side, share: float, text_field: str, document_bytes: int) -> Source:
    sources = _open(spec, side, share, text_field, document_bytes)
    return sources[0] if len(sources) == 1 else Joined(spec, _numbered(sources, spec))


def _numbered(sources: Sequence[Source], spec: str) -> list[Numbered]:
    found = [source for source in sources if isinstance(source, Numbered)]
    if len(found) < len(sources):
        raise UserError(
            f"source is {spec!r}, a stream, and a stream cannot be joined with others; use it alone, or give weights: "
            "{SOURCE: 0.7, OTHER: 0.3}"
        )
    return found


def _open(spec: str, side: Side, share: float, text_field: str, document_bytes: int) -> Sequence[Source]:
    if spec in get_args(corpus.Flavour):
        # The corpus splits by module, so that a module's prose and its source are on the same side.
        documents = corpus.documents(spec, side, share)  # type: ignore[arg-type]
        return [Texts(documents, spec, side_key=corpus.module_of)]
    if spec == "noise":
        return [Texts(noise.documents(side, share), spec)]
    if spec.startswith(PREFIX):
        return [open_shards(spec, side=side, share=share)]
    if is_hub(spec):
        return [open_hub(spec, side=side, share=share, text_field=text_field)]
    return open_files(spec, side=side, share=share, text_field=text_field, document_bytes=document_bytes)
