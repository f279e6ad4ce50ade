"""Copying: a block of random tokens, a gap of text, and the block again; is it predicted better the second time.

Special: needs no training on a task. The first tokens of a block are its cue; the loss and the likeliest tokens of the
rest are compared between the two times, and the model has nothing but the first time to go by.
Source: repeated random sequences, as used for induction (Olsson et al., arXiv:2209.11895), with a gap (evaluation.md
6.4, T5 and T7).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from random import Random
from typing import ClassVar

from neuralmem.errors import UserError
from neuralmem.evaluation.curves import Curves
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.script import Question, Script, Writer
from neuralmem.evaluation.stats import Share
from neuralmem.evaluation.streams import CONTROLS, Cell, Row, answers, line_curves, share, values, with_value
from neuralmem.evaluation.tables import Line


@dataclass(frozen=True)
class Copy:
    """Settings.

    Args:
        gaps: tokens of text between the two times, at least; each a setting of its own
        block: tokens of the block
        cue: its first tokens, which are not predicted

    Raises:
        UserError: a block without anything but its cue.
    """

    gaps: tuple[int, ...] = (64, 256, 1024)
    block: int = 32
    cue: int = 4
    name: ClassVar[str] = "copy"

    def __post_init__(self) -> None:
        if not 1 <= self.cue < self.block:
            raise UserError(f"--cue is {self.cue}; it must be at least 1 and below --block, which is {self.block}")

    def cells(self, facts: Facts) -> list[Cell]:
        return [
            Cell(
                {"gap": gap, "block": self.block, "cue": self.cue},
                partial(self._write, facts, gap),
            )
            for gap in self.gaps
        ]

    def _write(self, facts: Facts, gap: int, number: int, random: Random) -> Script:
        writer, passage = Writer(), facts.passage(random)
        writer.read(*passage.take(1))
        block = random.choices(facts.vocabulary, k=self.block)
        cue, rest = tuple(block[: self.cue]), tuple(block[self.cue :])
        told = writer.ask_and_keep(Question(cue, rest, None, {"time": 1}))
        writer.read(*passage.take(gap))
        # What is predicted first stood right behind the cue.
        writer.ask_and_keep(Question(cue, rest, told - len(rest) + 1, {"time": 2}))
        return writer.script(number)

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line per gap: tokens that were the likeliest, and nats per token, at the first and the second time."""
        lines = []
        for gap in values(rows, "gap"):
            own = with_value(rows, "gap", gap)
            first, second = (answers(own, time=time) for time in (1, 2))
            plain = second["none"]
            line: Line = {"gap": gap, "distance": round(sum(a["distance"] for a in plain) / len(plain))}
            line["null model"] = sum(a["seen"] for a in plain) / len(plain)
            line["first time"], line["second time"] = right(first["none"]), right(plain)
            line |= {name: right(second[name]) for name in CONTROLS if name in second}
            before, after = nll_per_token(first["none"]), nll_per_token(plain)
            line |= {"nll first": before, "nll second": after, "nll saved": 1 - after / before}
            line |= {f"nll {name}": nll_per_token(second[name]) for name in CONTROLS if name in second}
            lines.append(line)
        return lines

    def curves(self, rows: Sequence[Row]) -> Curves:
        names = {"second time": "memory on", "first time": "first time"}
        curves = line_curves(self.lines(rows), "gap", names)
        reach = rows[0]["reach"] - self.block if rows else None
        axes = "tokens of text in between", "likeliest tokens"
        return Curves("copying a random block", *axes, curves, reach=reach, note=self.notes(rows)[0])

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [f"Blocks of {self.block} random tokens; the {self.block - self.cue} behind the cue are predicted."]


def right(some: Sequence[Row]) -> Share:
    """Of tokens that were the likeliest."""
    return share(some, itemgetter("right"), itemgetter("of"))


def nll_per_token(some: Sequence[Row]) -> float:
    """Nats per token, of answers whose likelihood is finite; NaN if there is none."""
    finite = [a for a in some if a["nll"] is not None]
    return sum(a["nll"] for a in finite) / sum(a["of"] for a in finite) if finite else float("nan")
