"""Multi-query associative recall: many facts in text, then every one of them is asked for in the same text.

Special: facts and first question are kept apart by more text than attention can see, so nothing but the memory can
answer; questions and their right answers stay in the text, as in training, in random order.
Source: Arora et al. (arXiv:2312.04927), with a minimum gap (evaluation.md 6.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import ClassVar

from neuralmem.evaluation.curves import Curves
from neuralmem.evaluation.facts import Facts
from neuralmem.evaluation.script import Script, Writer
from neuralmem.evaluation.streams import Cell, Row, answers, chance, line_curves, score, values, with_value
from neuralmem.evaluation.tables import Line


@dataclass(frozen=True)
class ManyQuestions:
    """Settings.

    Args:
        facts: how many, each number a setting of its own
        gap: tokens of text between the last fact and the first question, at least
        spread: tokens of text in front of every fact, at least
        questions: asked per script; None: one for every fact
    """

    facts: tuple[int, ...] = (4, 8, 16, 32)
    gap: int = 64
    spread: int = 16
    questions: int | None = None
    name: ClassVar[str] = "recall"

    def cells(self, facts: Facts) -> list[Cell]:
        return [
            Cell(
                {"facts": count, "gap": self.gap, "spread": self.spread},
                partial(self._write, facts, count),
            )
            for count in self.facts
        ]

    def _write(self, facts: Facts, count: int, number: int, random: Random) -> Script:
        writer, passage = Writer(), facts.passage(random)
        pairs = [(key, facts.draw_value(key, random)) for key in facts.draw_keys(count, random)]
        told = facts.tell(writer, pairs, passage, self.spread)
        writer.read(*passage.take(self.gap))
        for i in random.sample(range(count), min(count, self.questions or count)):
            writer.ask_and_keep(facts.question(*pairs[i], told[i]))
            writer.read(facts.rest(pairs[i][1]))
        return writer.script(number)

    def lines(self, rows: Sequence[Row]) -> list[Line]:
        """A line per number of facts, then one per distance, in powers of two."""
        lines = []
        for count in values(rows, "facts"):
            own = with_value(rows, "facts", count)
            lines.append({"facts": count, "distance": "all", **score(answers(own))})
        for low, high in octaves(rows):
            found = {
                control: [answer for answer in some if low <= answer["distance"] < high]
                for control, some in answers(rows).items()
            }
            lines.append({"facts": "all", "distance": f"{low}-{high - 1}", **score(found)})
        return lines

    def curves(self, rows: Sequence[Row]) -> Curves:
        lines = [line for line in self.lines(rows) if line["distance"] == "all"]
        curves = line_curves(lines, "facts", {"accuracy": "memory on"})
        return Curves("recall of many facts", "facts in the text", "exact answers", curves, note=self.notes(rows)[0])

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [f"Facts are asked for behind at least {self.gap} tokens of text; {chance(rows)}."]


def octaves(rows: Sequence[Row]) -> list[tuple[int, int]]:
    """The ranges [2^k, 2^(k+1)) that distances of the answers fall into.

    Example:
        >>> octaves([{"answers": [{"distance": 100}, {"distance": 127}, {"distance": 300}]}])
        [(64, 128), (256, 512)]
    """
    exponents = {answer["distance"].bit_length() - 1 for row in rows for answer in row["answers"]}
    return [(1 << k, 2 << k) for k in sorted(exponents)]
