"""The corpus that is always there: what the running Python ships with, in two flavours.

"stdlib": the sources of the standard library, one document per file (3.11: 674 files, 11 MB). "builtin": the prose in
it, one document per module with its documentation strings and one per topic of the language reference (1.6 MB). Tests,
IDLE, installed packages and files generated for one machine are left out. Nothing is downloaded. The content is the
same for the same Python version; `fixed_slice` is the same for many. Both flavours of a module are on the same side
of the split into training and validation.
"""

import ast
import hashlib
import random
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from neuralmem.data.document import Document, Side, limited, on_side
from neuralmem.errors import UserError, nearest

Flavour = Literal["builtin", "stdlib"]
VALIDATION_SHARE = 0.1

# Equal in CPython 3.8.18, 3.9.18, 3.10.13, 3.11.7, 3.12.1 and 3.13.0.
_FIXED = ("this.py", "_threading_local.py", "_py_abc.py", "optparse.py")
FIXED_SHA256 = "b3f053e71f42995e710bff2617a45b69a1f18886a1930255c3eb9bf29565c68b"

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "idle_test", "lib2to3", "__pycache__"}


def documents(flavour: Flavour = "builtin", side: Side = "all", share: float = VALIDATION_SHARE) -> list[Document]:
    """The documents of a flavour, sorted by id.

    Args:
        flavour: "builtin" (prose) or "stdlib" (sources)
        side: "train", "validation" or "all"
        share: part of the modules and topics that is validation

    Raises:
        UserError: no such flavour or side, or this Python came without the sources of its library.
    """
    if flavour not in get_args(Flavour):
        hint = nearest(flavour, get_args(Flavour))
        raise UserError(f"corpus is {flavour!r}; it must be one of {', '.join(get_args(Flavour))}{hint}")
    found = _prose() if flavour == "builtin" else _sources()
    return [document for document in found if on_side(module_of(document.id), side, share)]


def module_of(name: str) -> str:
    """A document's module or topic, on which its side hangs: prose and source of a module are on the same.

    Example:
        >>> module_of("builtin/json/decoder.py") == module_of("stdlib/json/decoder.py")
        True
    """
    return name.partition("/")[2]


def haystack(
    flavour: Flavour = "builtin", side: Side = "validation", seed: int = 0, share: float = VALIDATION_SHARE
) -> Iterator[str]:
    """Endless text for evaluation: whole documents in seeded order, a line break after each.

    After `size(flavour, side)` characters all documents have been read once; the next round has another order.

    Example:
        >>> next(haystack(seed=1)) == next(haystack(seed=1))
        True
    """
    texts, order = [document.text for document in documents(flavour, side, share)], random.Random(seed)
    while texts:
        order.shuffle(texts)
        for text in texts:
            yield text.rstrip("\n") + "\n"


def haystack_text(characters: int, flavour: Flavour = "builtin", side: Side = "validation", seed: int = 0) -> str:
    """The first `characters` of `haystack`, cut at the end.

    Example:
        >>> len(haystack_text(5000))
        5000
    """
    return "".join(limited(haystack(flavour, side, seed), characters))


def size(flavour: Flavour = "builtin", side: Side = "all", share: float = VALIDATION_SHARE) -> int:
    """Characters of a flavour, without repetition."""
    return sum(len(document.text.rstrip("\n")) + 1 for document in documents(flavour, side, share))


def fixed_slice(characters: int = 64_000) -> str:
    """Text for golden tests, the same on CPython 3.8 to 3.13; its sha256 at full length is `FIXED_SHA256`.

    Raises:
        UserError: this Python's library differs, so golden values do not apply.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((root / name).read_text(encoding="utf-8") for name in _FIXED)[:64_000]
    if hashlib.sha256(text.encode()).hexdigest() != FIXED_SHA256:
        raise UserError("this Python's library differs from CPython 3.8 to 3.13 in files that golden values need")
    return text[:characters]


@lru_cache
def _sources() -> tuple[Document, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    names = sorted(path.as_posix() for path in paths if not _is_left_out(path))
    if not names:
        raise UserError(
            f"this Python came without the sources of its library in {str(root)!r}; give a text source instead"
        )
    texts = ((name, (root / name).read_bytes().decode("utf-8", "replace")) for name in names)
    return tuple(Document(f"stdlib/{name}", text) for name, text in texts if text.strip())


def _is_left_out(path: Path) -> bool:
    generated = path.name.startswith("_sysconfigdata") or path.parts[0].startswith("config-")
    return generated or not _LEFT_OUT.isdisjoint(path.parts)


@lru_cache
def _prose() -> tuple[Document, ...]:
    from pydoc_data.topics import topics

    modules = ((source.id.partition("/")[2], _documentation(source.text)) for source in _sources())
    parts = {name: text for name, text in modules if len(text) > 200}
    parts |= {f"topics/{name}": text.strip() + "\n" for name, text in topics.items()}
    return tuple(Document(f"builtin/{name}", text) for name, text in sorted(parts.items()))


def _documentation(source: str) -> str:
    """The documentation strings of a module in order of appearance, without examples of interactive sessions."""
    try:
        texts = _strings(ast.parse(source))
    except (SyntaxError, ValueError):
        return ""
    paragraphs = [part for text in texts for part in text.split("\n\n")]
    prose = [part.strip("\n") for part in paragraphs if part.strip() and ">>>" not in part]
    return "\n\n".join(prose) + "\n"


def _strings(node: ast.AST) -> Iterator[str]:
    """Documentation strings of a node and of the definitions inside it; expressions are not looked into."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield ast.get_docstring(node) or ""
    for name in ("body", "orelse", "handlers", "finalbody"):
        for inner in getattr(node, name, ()):
            if isinstance(inner, ast.stmt | ast.ExceptHandler):
                yield from _strings(inner)
