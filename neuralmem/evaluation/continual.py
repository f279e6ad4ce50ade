"""Continual learning: tasks come one after the other in one text; what is known of each after each of them.

Special: a task is a handful of classes that no other task has, told several times: keys with values, said word for
word, or intents with labels, in words that change. After every task, behind a gap that attention cannot see over, all
tasks are asked, those to come included. R[i][j] is the share of exact answers on task j after i tasks; R[0] is what is
known before the first.
Source: GEM (arXiv:1706.08840) for the measures, Nested Learning (arXiv:2512.24695) for tasks learned in context.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar, NamedTuple

from neuralmem.evaluation.curves import Curve, Curves
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.intents import LABELS, Intents
from neuralmem.evaluation.script import Question, Script, Writer
from neuralmem.evaluation.stats import mean
from neuralmem.evaluation.streams import CONTROLS, Cell, Row, answers, chance, share
from neuralmem.evaluation.tables import Line


@dataclass(frozen=True)
class Continual:
    """Settings.

    Args:
        tasks: how many
        classes: of each: keys with values of their own, or intents with labels
        shown: how often each is told in its task
        gap: tokens of text behind a task, at least, before all are asked
        spread: tokens of text in front of every fact, at least
        intents: whether classes are intents, whose examples and questions are all worded differently
    """

    tasks: int = 5
    classes: int = 8
    shown: int = 3
    gap: int = 64
    spread: int = 0
    intents: bool = False
    name: ClassVar[str] = "continual"

    def cells(self, facts: Facts) -> list[Cell]:
        labels = {name: getattr(self, name) for name in ("tasks", "classes", "shown", "gap", "spread")}
        if self.intents:
            labels |= {"intents": True, "values": len(LABELS)}
        return [Cell(labels, partial(self._write, facts))]

    def _write(self, facts: Facts, number: int, random: Random) -> Script:
        writer, passage = Writer(), facts.passage(random)
        classes = (self._intents if self.intents else self._facts)(facts, random)
        told: dict[str, int] = {}
        writer.read(*passage.take(max(1, self.spread)))
        for after in range(self.tasks + 1):
            if after:
                own = classes[(after - 1) * self.classes : after * self.classes]
                for i, one in ((i, one) for i in range(self.shown) for one in random.sample(own, len(own))):
                    told[one.name] = writer.read(*passage.take(self.spread), one.examples[i])
                writer.read(*passage.take(self.gap))
            writer.ask(
                *(one.ask(told.get(one.name), after=after, task=1 + i // self.classes) for i, one in enumerate(classes))
            )
        return writer.script(number)

    def _facts(self, facts: Facts, random: Random) -> list["_Class"]:
        """Keys with values, told and asked word for word."""
        chosen: dict[str, int] = {}
        for key in facts.draw_keys(self.tasks * self.classes, random, "--tasks times --classes"):
            chosen[key] = facts.draw_value(key, random, [*chosen.values()])
        return [
            _Class(key, [facts.fact(key, value)] * self.shown, partial(facts.question, key, value))
            for key, value in chosen.items()
        ]

    def _intents(self, facts: Facts, random: Random) -> list["_Class"]:
        """Intents with labels, asked in words that no example has."""
        intents = Intents(facts.encode)
        return [
            _Class(one.name, intents.examples(one, self.shown, random), partial(intents.question, one, random))
            for one in intents.draw(self.tasks * self.classes, random, "--tasks times --classes")
        ]

    def matrix(self, rows: Sequence[Row], control: str = "none") -> list[list[float]]:
        """R of a control: R[i][j - 1] is the share of exact answers on task j after i tasks."""
        own = [row for row in rows if row["ablation"] == control]
        return [
            [share(answers(own, after=i, task=j)[control]).share for j in range(1, self.tasks + 1)]
            for i in range(self.tasks + 1)
        ]

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line per row of R, then the measures of the model and of its controls."""
        lines: list[Line] = []
        for i, known in enumerate(self.matrix(rows)):
            seen = [a for a in answers(rows, after=i)["none"] if a["distance"] is not None]
            null = sum(a["seen"] for a in seen) / len(seen) if seen else 0.0
            tasks = {f"task {j}": x for j, x in enumerate(known, 1)}
            lines.append({"memory": "on", "after": i, **tasks, "null model": null})
        for control in ("none", *CONTROLS):
            if any(row["ablation"] == control for row in rows):
                lines.append({"memory": "on" if control == "none" else control, "after": "all"})
                lines[-1] |= self._measured([row for row in rows if row["ablation"] == control], control)
        return lines

    def _measured(self, rows: Sequence[Row], control: str) -> Line:
        """The measures, and half their 95% intervals over texts: of all but forgetting, whose maximum is no mean."""
        each = [measures(self.matrix([row], control)) for row in rows]
        line: Line = {}
        for name, value in measures(self.matrix(rows, control))._asdict().items():
            line[name] = value
            if name != "forgetting":
                line[f"{name} ±"] = mean([getattr(one, name) for one in each])[1]
        return line | {"texts": len(rows)}

    def curves(self, rows: Sequence[Row]) -> Curves:
        known = self.matrix(rows)
        curves = [
            Curve(f"task {j}", [(i, known[i][j - 1], None, None) for i in range(self.tasks + 1)])
            for j in range(1, self.tasks + 1)
        ]
        average = [(i, sum(known[i][:i]) / i, None, None) for i in range(1, self.tasks + 1)]
        curves.append(Curve("mean of those read", average, "--"))
        axes = "tasks read", "exact answers"
        return Curves("tasks one after the other", *axes, curves, note=self.notes(rows)[0], linear=True)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        what = "intents a task, asked in other words than told," if self.intents else "keys a task,"
        return [f"{self.classes} {what} each told {self.shown} times; {chance(rows)}."]


class _Class(NamedTuple):
    """What is learned: its name, its examples in tokens, and what makes its question of where it was told last."""

    name: str
    examples: list[list[int]]
    ask: Callable[..., Question]


class Measures(NamedTuple):
    """Of continual learning. `bwt` below 0 and `forgetting` above 0 mean that later tasks cost earlier ones."""

    acc: float
    bwt: float
    fwt: float
    forgetting: float
    learned: float


def measures(R: Sequence[Sequence[float]]) -> Measures:
    """From R[0..T][1..T], R[0] being the baseline; what was not asked is NaN.

    ACC = mean_j R[T][j];  BWT = mean_{j<T} (R[T][j] - R[j][j]);  FWT = mean_{j>1} (R[j-1][j] - R[0][j]);
    forgetting = mean_{j<T} (max_{i>=1} R[i][j] - R[T][j]);  learned = mean_j R[j][j]. NaN where there is one task.

    Example:
        >>> found = measures([[0.0, 0.1], [1.0, 0.2], [0.5, 0.75]])
        >>> [round(x, 3) for x in found]
        [0.625, -0.5, 0.1, 0.5, 0.875]
    """
    T, last = len(R) - 1, R[-1]
    tasks = range(T)  # task j + 1 stands in column j and was read by row j + 1
    backward = [last[j] - R[j + 1][j] for j in tasks[:-1]]
    forward = [R[j][j] - R[0][j] for j in tasks[1:]]
    fallen = [max(R[i][j] for i in range(1, T + 1) if not math.isnan(R[i][j])) - last[j] for j in tasks[:-1]]
    means = (sum(x) / len(x) if x else math.nan for x in (list(last), backward, forward, fallen))
    acc, bwt, fwt, forgetting = means
    return Measures(acc, bwt, fwt, forgetting, learned=sum(R[j + 1][j] for j in tasks) / T)
