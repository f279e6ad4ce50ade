"""RULER's noise: one line, over and over, as a source of text to hide facts in.

Source: NVIDIA/RULER c3f5e3b scripts/data/synthetic/niah.py, haystack "noise".
"""

from neuralmem.data.document import Document, Side, on_side

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
DOCUMENTS, LINES = 64, 512


def documents(side: Side = "all", share: float = 0.1) -> list[Document]:
    """The noise as documents of 512 lines; all are the same text, so that the sides differ in names alone.

    Example:
        >>> documents()[0].text.count(NOISE)
        512
    """
    text = f"{NOISE}\n" * LINES
    names = [f"noise/{number}" for number in range(DOCUMENTS)]
    return [Document(name, text) for name in names if on_side(name, side, share)]
