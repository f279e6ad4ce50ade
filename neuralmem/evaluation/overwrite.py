"""Overwriting: keys get new values later in the text; is the latest value answered, an old one, or something else.

Special: each key is asked once per value that it ever had, so the three shares are measured and add up to one.
Source: zoology's forgetting_mqar (evaluation.md 6.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar

from neuralmem.evaluation.curves import Curves
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.script import Script, Writer
from neuralmem.evaluation.streams import Cell, Row, answers, chance, line_curves, score, share, values, with_value
from neuralmem.evaluation.tables import Line


@dataclass(frozen=True)
class Overwrite:
    """Settings.

    Args:
        updates: how often every key gets a new value, each number a setting of its own
        facts: keys
        gap: tokens of text behind the last fact, at least
        spread: tokens of text in front of every fact, at least
    """

    updates: tuple[int, ...] = (0, 1, 2, 4)
    facts: int = 8
    gap: int = 64
    spread: int = 16
    name: ClassVar[str] = "overwrite"

    def cells(self, facts: Facts) -> list[Cell]:
        return [
            Cell(
                {"updates": count, "facts": self.facts, "gap": self.gap, "spread": self.spread},
                partial(self._write, facts, count),
            )
            for count in self.updates
        ]

    def _write(self, facts: Facts, updates: int, number: int, random: Random) -> Script:
        writer, passage = Writer(), facts.passage(random)
        keys, told = facts.draw_keys(self.facts, random), {}
        history: dict[str, list[int]] = {key: [] for key in keys}
        for _ in range(updates + 1):
            for key in random.sample(keys, len(keys)):
                history[key].append(facts.draw_value(key, random, history[key]))
                told[key] = facts.tell(writer, [(key, history[key][-1])], passage, self.spread)[0]
        writer.read(*passage.take(self.gap))
        writer.ask(
            *(
                facts.question(key, value, told[key], age=age)
                for key in keys
                for age, value in enumerate(reversed(history[key]))
            )
        )
        return writer.script(number)

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line per number of updates; accuracy is that of the latest value."""
        lines = []
        for count in values(rows, "updates"):
            own = with_value(rows, "updates", count)
            line = {"updates": count, **score(answers(own, age=0))}
            found = answers(own)["none"]  # one per value of a key; the latest counts the key
            line["stale"] = share(found, lambda a: a["exact"] * (a["age"] > 0), _is_latest)
            line["other"] = share(found, lambda a: _is_latest(a) - a["exact"], _is_latest)
            lines.append(line)
        return lines

    def curves(self, rows: Sequence[Row]) -> Curves:
        names = {"accuracy": "memory on", "stale": "says an old value", "other": "says something else"}
        curves = line_curves(self.lines(rows), "updates", names)
        axes = "updates of every key", "answers"
        return Curves("overwriting", *axes, curves, note=self.notes(rows)[0], linear=True)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [f"The latest of the values is right; asked behind at least {self.gap} tokens of text; {chance(rows)}."]


def _is_latest(answer: Row) -> int:
    return int(answer["age"] == 0)
