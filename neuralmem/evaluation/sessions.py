"""Recall across sessions: facts are told in some of them, the windows are emptied in between, the last one asks.

Special: between sessions only what the memory learned is carried on (`CausalLM.memory_only`), so no fact is ever in
reach of attention; the control with an emptied memory carries nothing.
Source: evaluation.md 6.4, T6.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar

from neuralmem.evaluation.curves import Curves
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.script import Script, Writer
from neuralmem.evaluation.streams import Cell, Row, answers, chance, line_curves, score
from neuralmem.evaluation.tables import Line


@dataclass(frozen=True)
class Sessions:
    """Settings.

    Args:
        sessions: in which facts are told
        facts: told in each
        spread: tokens of text in front of every fact, at least
        tail: tokens of text at the end of a session, at least
    """

    sessions: int = 8
    facts: int = 4
    spread: int = 16
    tail: int = 64
    name: ClassVar[str] = "sessions"

    def cells(self, facts: Facts) -> list[Cell]:
        labels = {"sessions": self.sessions, "facts": self.facts, "spread": self.spread, "tail": self.tail}
        return [Cell(labels, partial(self._write, facts))]

    def _write(self, facts: Facts, number: int, random: Random) -> Script:
        writer = Writer()
        keys = facts.draw_keys(self.sessions * self.facts, random, "--sessions times --facts")
        pairs = [(key, facts.draw_value(key, random)) for key in keys]
        told: list[int] = []
        for start in range(0, len(pairs), self.facts):
            passage = facts.passage(random)
            told += facts.tell(writer, pairs[start : start + self.facts], passage, self.spread)
            writer.read(*passage.take(self.tail))
            writer.drop()
        writer.read(*facts.passage(random).take(self.spread))
        writer.ask(
            *(
                facts.question(*pair, end, lag=self.sessions - i // self.facts)
                for i, (pair, end) in enumerate(zip(pairs, told, strict=True))
            )
        )
        return writer.script(number)

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line per lag: how many sessions ago a fact was told, 1 is the one before."""
        return [
            {"lag": lag, "tokens since": round(sum(a["distance"] for a in found["none"]) / len(found["none"]))}
            | score(found)
            for lag in range(1, self.sessions + 1)
            for found in [answers(rows, lag=lag)]
        ]

    def curves(self, rows: Sequence[Row]) -> Curves:
        curves = line_curves(self.lines(rows), "lag", {"accuracy": "memory on"})
        axes = "sessions since the fact was told", "exact answers"
        return Curves("recall across sessions", *axes, curves, note=self.notes(rows)[0], linear=True)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [f"Windows are emptied between sessions, only the memory's state is carried; {chance(rows)}."]
