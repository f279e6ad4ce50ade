"""Half-life of a fact: it is told once, text follows, and at every power of two of tokens it is asked for.

Special: the questions leave no trace, so one text gives the whole curve; of several facts, distances are exact for the
last one told. Fitted is what lies beyond the reach of attention; a half-life that was not reached within the longest
distance is said to be that, and not extrapolated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar

import numpy as np

from neuralmem.errors import UserError
from neuralmem.evaluation.curves import Curve, Curves
from neuralmem.evaluation.decay import Fit, HalfLife, half_life
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.script import Script, Writer
from neuralmem.evaluation.streams import CONTROLS, Cell, Row, answers, chance, line_curves, mean_nll, score
from neuralmem.evaluation.tables import Line

FORMS = ("exponential", "power law")


@dataclass(frozen=True)
class Forgetting:
    """Settings.

    Args:
        longest: tokens since a fact, the last power of two that is not more is asked at
        shortest: the first one
        facts: told next to each other, all asked each time
        spread: tokens of text in front of every fact, at least

    Raises:
        UserError: there is no power of two in between.
    """

    longest: int = 4096
    shortest: int = 32
    facts: int = 1
    spread: int = 16
    name: ClassVar[str] = "half-life"

    def __post_init__(self) -> None:
        if len(self.distances) < 3:
            raise UserError(f"--longest is {self.longest}; it must be at least {4 * self.shortest}, for three points")

    @property
    def distances(self) -> list[int]:
        """Powers of two, in tokens.

        Example:
            >>> Forgetting(longest=300).distances
            [32, 64, 128, 256]
        """
        return [1 << k for k in range((self.shortest - 1).bit_length(), self.longest.bit_length())]

    def cells(self, facts: Facts) -> list[Cell]:
        labels = {"facts": self.facts, "spread": self.spread, "longest": self.distances[-1]}
        return [Cell(labels, partial(self._write, facts))]

    def _write(self, facts: Facts, number: int, random: Random) -> Script:
        writer, passage = Writer(), facts.passage(random)
        pairs = [(key, facts.draw_value(key, random)) for key in facts.draw_keys(self.facts, random)]
        told = facts.tell(writer, pairs, passage, self.spread)
        for distance in self.distances:
            questions = [facts.question(*pair, end, since=distance) for pair, end in zip(pairs, told, strict=True)]
            size = len(questions[-1].tokens)
            if distance <= size:
                raise UserError(f"--shortest is {self.shortest}; it must be more than {size}, the tokens of a question")
            writer.read(*passage.cut(told[-1] + distance - size - writer.tokens))
            writer.ask(*questions)
        return writer.script(number)

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line per distance."""
        lines: list[Line] = []
        for distance in self.distances:
            found = answers(rows, since=distance)
            mean = round(sum(a["distance"] for a in found["none"]) / len(found["none"]))
            line = {"since": distance, "tokens": mean, **score(found)}
            line |= {f"nll {name}": mean_nll(found[name]) for name in CONTROLS if name in found}
            lines.append(line)
        return lines

    def fits(self, rows: Sequence[Row], draws: int = 1000) -> dict[str, tuple[Fit, HalfLife]]:
        """Both curves with their half-lives; empty where fewer than three distances lie beyond reach."""
        plain = [row for row in rows if row["ablation"] == "none"]
        beyond = self.fitted(rows)
        if len(beyond) < 3:
            return {}
        exact = np.array([[_share(row, distance) for distance in beyond] for row in plain])
        guess = 1 / plain[0]["values"]
        return {form: half_life(form, beyond, exact, guess, draws) for form in FORMS}

    def fitted(self, rows: Sequence[Row]) -> list[int]:
        """Distances at which no fact is seen any more; all of them for a model that sees everything."""
        plain = answers(rows)["none"]
        beyond = [d for d in self.distances if not any(a["seen"] for a in plain if a["since"] == d)]
        return beyond or self.distances

    def curves(self, rows: Sequence[Row]) -> Curves:
        curves = line_curves(self.lines(rows), "since", {"accuracy": "memory on"})
        guess, fitted = 1 / rows[0]["values"], self.fitted(rows)
        for form, (found, _) in self.fits(rows, draws=1).items():
            xs = np.geomspace(fitted[0], fitted[-1], 80).tolist()
            points = [(x, guess + (1 - guess) * found.at(x), None, None) for x in xs]
            curves.append(Curve(form, points, ":", marks=False))
        axes, note = ("tokens since the fact", "exact answers"), self.notes(rows)[0]
        return Curves("half-life of a fact", *axes, curves, reach=rows[0]["reach"], note=note)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """The half-life first; then each curve's, with its interval."""
        found = self.fits(rows)
        if not found:
            return ["Fewer than three distances lie beyond reach: no curve was fitted. Give a longer --longest."]
        best = min(found, key=lambda form: found[form][0].error)
        alike = not any(math.isfinite(life.tokens) for _, life in found.values())
        by = "" if alike else f", by the {best}, which fits better"
        notes = [f"Half-life: {self._say(found[best][1])}{by}; {chance(rows)}."]
        for form, (curve, life) in found.items():
            notes.append(
                f"{form}: {self._say(life)}; level {curve.level:.2f}, root mean square error {curve.error:.3f}."
            )
        if all(answer["seen"] for answer in answers(rows)["none"]):
            notes.append("Attention sees all of it: this is no half-life of a memory.")
        return notes

    def _say(self, life: HalfLife) -> str:
        """In words; what was not reached is not made up."""
        end = f"{self.distances[-1]:,}"
        if math.isnan(life.tokens):
            return "none, since nothing was recalled"
        low, high = (f"over {end}" if math.isinf(x) else f"{x:,.0f}" for x in (life.low, life.high))
        interval = f"95% interval {low} to {high}"
        if math.isinf(life.tokens):
            return f"not reached within {end} tokens ({interval})"
        return f"{life.tokens:,.0f} tokens ({interval})"


def _share(row: Row, distance: int) -> float:
    """Exact answers of a text at a distance."""
    some = [answer["exact"] for answer in row["answers"] if answer["since"] == distance]
    return sum(some) / len(some)
