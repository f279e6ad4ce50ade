"""Capacity: random pairs are read once, then every one is asked for; how many bits came back.

Special: bits of a pair are log2 |V| minus the answer's cross-entropy in bits, |V| the values that a key may have here,
none below 0; capacity is the largest sum over the numbers of pairs. Cutting at 0 counts lucky guesses, so the same sum
of the emptied memory stands beside it, and the sum without the cut, which no luck can raise in the mean.
Source: Morris et al. (arXiv:2505.24832) measured what training stores; this is its analogue for reading (evaluation.md
4.6). A linear memory of d x d numbers holds at most d pairs with orthogonal keys: the line to compare with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, ClassVar

from neuralmem.errors import UserError
from neuralmem.evaluation.curves import Curve, Curves
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.script import Script, Writer
from neuralmem.evaluation.stats import mean
from neuralmem.evaluation.streams import CONTROLS, Cell, Row, answers, share, values, with_value
from neuralmem.evaluation.tables import Line


@dataclass(frozen=True)
class Capacity:
    """Settings.

    Args:
        pairs: how many, each number a setting of its own
        gap: tokens of text behind the last pair, at least
        spread: tokens of text in front of every pair, at least
        parameters: numbers that the state of one text has; 0: not known
    """

    pairs: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    gap: int = 64
    spread: int = 0
    parameters: int = 0
    name: ClassVar[str] = "capacity"

    def cells(self, facts: Facts) -> list[Cell]:
        if facts.values < 2:
            raise UserError(
                f"form.pairs_held_out is {facts.form.pairs_held_out}; it must leave a key two values to ask"
            )
        return [
            Cell(
                {"pairs": count, "gap": self.gap, "spread": self.spread},
                partial(self._write, facts, count),
            )
            for count in self.pairs
        ]

    def _write(self, facts: Facts, count: int, number: int, random: Random) -> Script:
        writer, passage = Writer(), facts.passage(random)
        keys = facts.draw_keys(count, random, "--pairs")
        pairs = [(key, facts.draw_value(key, random)) for key in keys]
        told = facts.tell(writer, pairs, passage, self.spread)
        writer.read(*passage.take(self.gap))
        writer.ask(*(facts.question(*pair, end) for pair, end in zip(pairs, told, strict=True)))
        return writer.script(number)

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line per number of pairs; bits are means over texts."""
        lines = []
        for count in values(rows, "pairs"):
            own = with_value(rows, "pairs", count)
            plain = [row for row in own if row["ablation"] == "none"]
            bits, spread = mean([bits_of(row) for row in plain])
            line: Line = {"pairs": count, "accuracy": share(answers(own)["none"]), "bits": bits, "bits ±": spread}
            line["bits, no cut"] = mean([bits_of(row, cut=False) for row in plain])[0]
            for name in CONTROLS:
                if some := [row for row in own if row["ablation"] == name]:
                    line[f"bits {name}"] = mean([bits_of(row) for row in some])[0]
            line["null model"] = mean([sum(a["seen"] for a in row["answers"]) / count for row in plain])[0]
            line["bits told"] = count * math.log2(plain[0]["values"])
            line["linear memory"] = min(count, self.linear_pairs) * math.log2(plain[0]["values"])
            line["bits / state byte"] = bits / plain[0]["state_bytes"]
            line["bits / state number"] = bits / self.parameters if self.parameters else math.nan
            lines.append(line)
        return lines

    @property
    def linear_pairs(self) -> int:
        """Pairs that a linear memory of as many numbers could hold, one square matrix."""
        return math.isqrt(self.parameters)

    def curves(self, rows: Sequence[Row]) -> Curves:
        lines = self.lines(rows)
        names = {"bits": "memory on"} | {f"bits {c}": c for c in CONTROLS if any(f"bits {c}" in line for line in lines)}
        curves = [
            Curve(name, [(line["pairs"], line[column], *_interval(line, column)) for line in lines])
            for column, name in names.items()
        ]
        for column, name in (("bits told", "all that was told"), ("linear memory", "a linear memory")):
            curves.append(Curve(name, [(line["pairs"], line[column], None, None) for line in lines], ":", marks=False))
        axes = "pairs read", "bits that came back"
        return Curves("capacity", *axes, curves, note=self.notes(rows)[0], scale="amount")

    def notes(self, rows: Sequence[Row]) -> list[str]:
        lines, size = self.lines(rows), rows[0]["state_bytes"]
        best, certain = (max(lines, key=lambda line: line[name]) for name in ("bits", "bits, no cut"))
        more = " (the most asked: more may fit)" if len(lines) > 1 and best is lines[-1] else ""
        return [
            f"Capacity: {best['bits']:,.0f} bits at {best['pairs']} pairs{more}; without the cut at 0, which forgives "
            f"wrong answers, {certain['bits, no cut']:,.0f} bits at {certain['pairs']}.",
            f"That is {best['bits'] / size:.2g} bits per byte of a state of {size:,} bytes, windows included.",
        ]


def bits_of(row: Row, cut: bool = True) -> float:
    """Bits of a text's answers together; an answer whose likelihood is not finite gives none, and without the cut -inf.

    Example:
        >>> row = {"values": 4.0, "answers": [{"nll": 0.0}, {"nll": math.log(4)}, {"nll": math.log(8)}]}
        >>> bits_of(row), round(bits_of(row, cut=False), 6)
        (2.0, 1.0)
    """
    each = [math.log2(row["values"]) - _bits(answer["nll"]) for answer in row["answers"]]
    return sum(max(0.0, bits) for bits in each) if cut else sum(each)


def _bits(nll: float | None) -> float:
    return math.inf if nll is None else nll / math.log(2)


def _interval(line: Line, column: str) -> tuple[Any, Any]:
    half = line["bits ±"]
    return (None, None) if column != "bits" or math.isnan(half) else (line["bits"] - half, line["bits"] + half)
