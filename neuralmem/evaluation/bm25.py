"""BM25, the ranking of search engines: how well a text answers a question by the words that they share.

Special: the idf is the one that is never negative, so a word that most texts hold counts for little and not against
them.
Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond"; the idf with 1 + inside
the logarithm and the defaults of k1 and b are Lucene's.
"""

import math
import re
from collections.abc import Mapping, Sequence

K1, B = 1.2, 0.75


def split_words(text: str) -> list[str]:
    """Runs of letters, digits and underscores, in lower case.

    Example:
        >>> split_words("@Zebra=123, ad-hoc")
        ['zebra', '123', 'ad', 'hoc']
    """
    return re.findall(r"\w+", text.lower())


def bm25(query: Sequence[str], texts: Sequence[Mapping[str, int]], k1: float = K1, b: float = B) -> list[float]:
    """Scores of texts, 0 for one that shares no word with the question.

    score = sum over the question's words t of idf(t) f (k1 + 1) / (f + k1 (1 - b + b l / mean l)) with
    idf(t) = ln(1 + (N - n + 0.5) / (n + 0.5)), for f occurrences of t in a text of l words, and n of N texts with t.

    Args:
        query: words; one that stands there twice counts twice
        texts: how often each has which word
        k1: how much further occurrences add
        b: how much longer texts are marked down, 0 to 1

    Example:
        >>> [round(score, 4) for score in bm25(["zebra"], [{"zebra": 1, "is": 1}, {"is": 2}])]
        [0.6931, 0.0]
    """
    frequencies = [(word, sum(word in text for text in texts)) for word in query]
    weights = [(word, math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))) for word, n in frequencies if n]
    if not weights:
        return [0.0] * len(texts)
    lengths = [sum(text.values()) for text in texts]
    mean = sum(lengths) / len(lengths)
    scores = []
    for text, length in zip(texts, lengths, strict=True):
        norm = k1 * (1 - b + b * length / mean)
        found = ((weight, text[word]) for word, weight in weights if word in text)
        scores.append(sum((weight * f * (k1 + 1) / (f + norm) for weight, f in found), 0.0))
    return scores
