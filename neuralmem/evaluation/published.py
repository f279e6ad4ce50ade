"""Published needle scores, with what their sources say of how they were made and what they leave out.

Special: all were read in text copies of the papers (of Titans and Gated DeltaNet in several, which agree); a cell from
a third party's text, or from a single one of several sources, is marked, and nothing that was not found is filled in.
Scores are percent; where a source gives shares they are those times 100.
Source: evaluation.md section 3 and papers.md section 7.8, which name the copies that were compared.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A published table.

    Args:
        name: short
        paper: arXiv number, and table where it is known
        stated: what it says of its conditions
        unstated: what it does not say
        samples: per cell; None: not known
        before_2025: it is older than RULER's rule of June 2025, so its lengths come from the older rules
        unverified: why its cells are not certain; empty where a copy of the table itself was read
    """

    name: str
    paper: str
    stated: str
    unstated: str
    samples: int | None
    before_2025: bool
    unverified: str = ""


@dataclass(frozen=True)
class Published:
    """One cell: a model's score in percent, None where the source has one that was not found."""

    source: Source
    model: str
    task: str
    length: int
    score: float | None
    unverified: str = ""


TITANS = Source(
    "Titans",
    "2501.00663 Table 2",
    "Llama-2 tokenizer (32K), trained at 4K on FineWeb-Edu (15B tokens up to 400M, 30B at 760M)",
    "which size, samples (all cells but one are multiples of 0.2, as 500 give), RULER version, base prompt, whether W "
    "has uuids (taken for RULER's third single task). No reproduction by others was found",
    500,
    before_2025=True,
)
GDN = Source(
    "Gated DeltaNet",
    "2412.06464 Table 2",
    "1.3B, 100B tokens of FineWeb-Edu, trained at 4K",
    "samples (multiples of 0.2), RULER version",
    500,
    before_2025=True,
)
GDN2 = Source(
    "GDN-2",
    "2605.22791",
    "1.3B, 100B tokens, as the third party says",
    "samples, RULER version",
    None,
    before_2025=False,
    unverified="from a third party's table",
)
HOPE = Source(
    "Nested Learning",
    "2512.24695 Table 1",
    "about 50B tokens, 32K vocabulary",
    "size, samples, RULER version",
    None,
    before_2025=False,
    unverified="partly from secondary text",
)
PROTEUS = Source(
    "Proteus",
    "2608.16844 Table 2",
    "Titans trained at 8K; a rerun by others",
    "samples (multiples of 0.2), RULER version",
    500,
    before_2025=False,
)
TTT = Source(
    "TTT-E2E",
    "2512.23675 Table 2",
    "3B, 128K, sliding window 8K; shares of two digits",
    "samples, RULER version",
    None,
    before_2025=False,
)
RWKV = Source(
    "RWKV-X",
    "2504.21463 Table 2",
    "models of 0.2B, 1-8K",
    "samples (multiples of 0.2), RULER version",
    500,
    before_2025=True,
)
ATLAS = Source(
    "ATLAS",
    "2505.23735 Table 3",
    "trained at 4K",
    "size, samples, RULER version",
    None,
    before_2025=True,
    unverified="only some cells were found, some in secondary text",
)

S1, S2, S3, MK, MQ, MV = "s-niah-pk", "s-niah-n", "s-niah-w", "mk-niah-1", "mq-niah", "mv-niah"

# Source, model, lengths in 1,024 tokens, task -> scores at these lengths. "?": one source only, "-": not found.
TABLES: list[tuple[Source, str, str, dict[str, str]]] = [
    (TITANS, "TTT", "2/4/8/16", {S1: "98.4/98.8/98.0/88.4", S2: "60.2/36.6/10.2/4.4", S3: "78.8/28.0/4.4/0.0"}),
    (TITANS, "Mamba2", "2/4/8/16", {S1: "98.6/61.4/31.0/5.4", S2: "98.4/55.8/14.2/0.0", S3: "42.2/4.2/0.0/0.0"}),
    (TITANS, "DeltaNet", "2/4/8/16", {S1: "96.8/98.8/98.6/71.4", S2: "47.2/15.4/12.8/5.4", S3: "46.2/20.0/1.6/0.0"}),
    (
        TITANS,
        "Titans LMM",
        "2/4/8/16",
        {S1: "99.8/98.4/98.2/96.2", S2: "100.0/99.8/93.4/80.2", S3: "90.4/89.4/85.8/80.6"},
    ),
    (
        TITANS,
        "Titans MAC",
        "2/4/8/16",
        {S1: "99.2/98.8/99.0/98.4", S2: "99.6/98.2/97.6/97.4", S3: "98.2/98.2/95.6/95.2"},
    ),
    (
        TITANS,
        "Titans MAG",
        "2/4/8/16",
        {S1: "99.4/98.0/97.4/97.4", S2: "99.2/98.8/97.2/98.6", S3: "98.0/98.0/90.2/88.2"},
    ),
    (
        TITANS,
        "Titans MAL",
        "2/4/8/16",
        {S1: "98.8/98.6/98.8/97.8", S2: "99.8/98.1/96.8/96.4", S3: "98.0/97.4/92.0/90.4"},
    ),
    (GDN, "DeltaNet", "1/2/4/8", {S1: "97.4/96.8/99.0/98.8", S2: "98.4/45.6/18.6/14.4", S3: "85.2/47.0/22.4"}),
    (GDN, "Mamba2", "1/2/4/8", {S1: "99.2/98.8/65.4/30.4", S2: "99.4/98.8/56.2/17.0", S3: "64.4/47.6/4.6"}),
    (GDN, "Gated DeltaNet", "1/2/4/8", {S1: "98.4/88.4/91.4/91.8", S2: "100/99.8/92.2/29.6", S3: "86.6/84.2/27.6"}),
    (
        GDN2,
        "Mamba-2",
        "1/2/4/8",
        {S1: "100/100/97/55.8", S2: "99.6/99.6/62.6/21.0", S3: "59.2/38.6/14.4", MK: "29/21.2/21.4"},
    ),
    (
        GDN2,
        "Gated DeltaNet",
        "1/2/4/8",
        {S1: "99.8/100/100/97.6", S2: "100/100/87.2/32.0", S3: "89.8/54.2/60.6", MK: "58/37/27.8"},
    ),
    (
        GDN2,
        "KDA",
        "1/2/4/8",
        {S1: "100/100/99.2/70.6", S2: "100/100/89/30.6", S3: "77.4/63.2/26.2", MK: "54/44.2/28"},
    ),
    (
        GDN2,
        "GDN-2",
        "1/2/4/8",
        {S1: "100/100/100/97.8", S2: "100/100/93/39.2", S3: "92/89.8/31.8", MK: "72.6/51.4/37.8"},
    ),
    (
        HOPE,
        "Transformer",
        "4/8/16",
        {
            S1: "88.6/76.4/79.8",
            S2: "100/98.8/94.2",
            S3: "78.0/69.2/40.8",
            MK: "79.4/83.0/61.4",
            MQ: "58.9/48.0/29.8",
            MV: "37.5/34.1/21.5",
        },
    ),
    (
        HOPE,
        "HOPE-Attention",
        "4/8/16",
        {
            S1: "100/100/100",
            S2: "100/98.4/94.4",
            S3: "76.8/68.8/42.4",
            MK: "80.2/84.8/60.8",
            MQ: "60.4/47.8/30.6",
            MV: "35.2/34.4/24.8",
        },
    ),
    (
        HOPE,
        "RWKV-7",
        "4/8/16",
        {
            S1: "100/100/99.6",
            S2: "93.8/44.8/12.6",
            S3: "63.8/13.2/5.8",
            MK: "21.4/18.8/9.6",
            MQ: "20.4/14.8/8.6",
            MV: "16.2/13.4/6.8",
        },
    ),
    (
        HOPE,
        "Comba",
        "4/8/16",
        {
            S1: "100/100/99.4",
            S2: "92.6/47.2/13.4",
            S3: "62.4/13.8/7.4",
            MK: "21.4/19.4/8.2",
            MQ: "21.8/15.2/6.4",
            MV: "16.5/13.5/7.2",
        },
    ),
    (
        HOPE,
        "DLA",
        "4/8/16",
        {
            S1: "96.4/71.2/44.0",
            S2: "79.6/42.6/28.2",
            S3: "18.2/8.8/4.0",
            MK: "27.4/20.0/11.8",
            MQ: "26.4/22.0/6.4",
            MV: "25.6/12.8/9.6",
        },
    ),
    (
        HOPE,
        "Titans",
        "4/8/16",
        {
            S1: "100/100/100",
            S2: "99.6/84.6/75.4",
            S3: "74.2/42.8/21.2",
            MK: "26.4/23.6/8.2",
            MQ: "22.8/19.8/9.4",
            MV: "24.6/15.1/8.2",
        },
    ),
    (
        HOPE,
        "HOPE",
        "4/8/16",
        {
            S1: "100/100/100",
            S2: "99.2/88.4/78.2",
            S3: "73.2/46.2/24.8",
            MK: "29.4?/24.8?/14.8",
            MQ: "31.7?/24.8?/14.2?",
            MV: "-/-/-",
        },
    ),
    (
        PROTEUS,
        "Transformer",
        "4/8/16",
        {
            S1: "97.8/86.2/83.8",
            S2: "100/99.2/96.4",
            S3: "82.2/72.0/48.4",
            MK: "80.0/79.4/60.8",
            MQ: "57.4/46.2/28.8",
            MV: "36.6/33.8/20.2",
        },
    ),
    (
        PROTEUS,
        "Hope-Attention",
        "4/8/16",
        {
            S1: "100/100/100",
            S2: "100/99.4/96.8",
            S3: "83.4/72.8/50.0",
            MK: "81.4/85.2/62.2",
            MQ: "62.0/47.6/30.6",
            MV: "37.2/36.2/23.0",
        },
    ),
    (
        PROTEUS,
        "Comba",
        "4/8/16",
        {
            S1: "100/100/99.4",
            S2: "92.6/47.2/13.4",
            S3: "62.4/13.8/7.4",
            MK: "22.8/20.4/10.4",
            MQ: "22.2/16.0/6.2",
            MV: "15.8/14.2/6.6",
        },
    ),
    (
        PROTEUS,
        "Titans",
        "4/8/16",
        {
            S1: "100/100/100",
            S2: "99.6/84.6/69.4",
            S3: "74.2/42.8/21.4",
            MK: "27.0/22.8/11.8",
            MQ: "23.2/18.4/10.2",
            MV: "24.8/15.4/8.8",
        },
    ),
    (
        TTT,
        "full attention",
        "8/16/32/64/128",
        {S1: "100/100/100/100/99", S2: "99/100/100/100/86", S3: "64/64/67/83/64"},
    ),
    (TTT, "sliding window", "8/16/32/64/128", {S1: "100/50/26/13/7"}),
    (TTT, "TTT-E2E", "8/16/32/64/128", {S1: "100/46/24/13/6", S2: "99/43/28/16/5", S3: "77/44/24/10/3"}),
    (TTT, "Gated DeltaNet", "8/16/32/64/128", {S1: "100/50/26/13/7"}),
    (TTT, "hybrid SWA + full", "8/16/32/64/128", {S1: "100/93/88/69/21"}),
    (RWKV, "RWKV-7 0.19B", "1/2/4/8", {S1: "100/100/100/100", S2: "100/98.4/5.2/3.2", S3: "98.4/96.8/27.6/6.6"}),
    (RWKV, "RWKV-X 0.22B", "1/2/4/8", {S2: "100/99.6/18.8/3.6", S3: "99/92.6/40.2/1.6"}),
    (ATLAS, "Atlas", "2/4/8/16", {S2: "100/100/93.0/84.0"}),
    (ATLAS, "Atlas (MAG)", "2/4/8/16", {S1: "-/-/-/98.6", S2: "100/99.2/97.4/97.0"}),
]


def published() -> Iterator[Published]:
    """All cells.

    Example:
        >>> next(cell.score for cell in published() if cell.model == "Titans MAC" and cell.length == 16384)
        98.4
    """
    for source, model, lengths, tasks in TABLES:
        for task, scores in tasks.items():
            for length, score in zip(lengths.split("/"), scores.split("/"), strict=False):
                single = "one source only" if score.endswith("?") else ""
                value = None if score == "-" else float(score.removesuffix("?"))
                yield Published(source, model, task, 1024 * int(length), value, single or source.unverified)
