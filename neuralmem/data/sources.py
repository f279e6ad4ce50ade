"""From what stands in a YAML file to a source of documents.

builtin                          prose of the Python standard library, always there
stdlib                           its sources
path, folder or glob             text, jsonl and parquet files
hf:owner/name?split=train        a dataset of the Hugging Face hub (data/hub.py has the options)
"""

from collections.abc import Sequence
from typing import get_args

from neuralmem.data import corpus
from neuralmem.data.document import Document, Indexed, Joined, Side, Source, Texts, on_side
from neuralmem.data.files import open_files
from neuralmem.data.hub import open_hub
from neuralmem.errors import UserError

__all__ = ["DOCUMENT_BYTES", "Document", "Indexed", "Joined", "Side", "Source", "Texts", "on_side", "open_source"]

DOCUMENT_BYTES = 1 << 18


def open_source(
    spec: str | Sequence[str],
    *,
    side: Side = "all",
    share: float = corpus.VALIDATION_SHARE,
    text_field: str = "text",
    document_bytes: int = DOCUMENT_BYTES,
) -> Source:
    """Open one source, or several as one.

    Args:
        spec: "builtin", "stdlib", a path, folder or glob, or "hf:NAME"; or a list of these
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
    specs = [spec] if isinstance(spec, str) else list(spec)
    if document_bytes < 1024:
        raise UserError(f"document_bytes is {document_bytes}; it must be at least 1024")
    if not specs or not all(specs):
        raise UserError(
            "source is empty; it must be builtin, stdlib, a path, folder or glob, hf:NAME, or a list of these"
        )
    if len(specs) == 1 and specs[0].startswith("hf:"):
        return open_hub(specs[0], side=side, share=share, text_field=text_field)
    sources = [source for one in specs for source in _open(one, side, share, text_field, document_bytes)]
    return sources[0] if len(sources) == 1 else Joined(" + ".join(specs), sources)


def _open(spec: str, side: Side, share: float, text_field: str, document_bytes: int) -> list[Indexed]:
    if spec in get_args(corpus.Flavour):
        # The corpus splits by module, so that a module's prose and its source are on the same side.
        return [Texts(corpus.documents(spec, side, share), spec)]  # type: ignore[arg-type]
    if spec.startswith("hf:"):
        source = open_hub(spec, side=side, share=share, text_field=text_field)
        if not isinstance(source, Indexed):
            raise UserError(f"source is {spec!r}, a stream, and a stream cannot be joined with others; use it alone")
        return [source]
    return open_files(spec, side=side, share=share, text_field=text_field, document_bytes=document_bytes)
