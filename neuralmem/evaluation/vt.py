"""Variable tracking: which variables hold a value that was handed on from one to the next, among repeated noise.

Special: a chain of five statements, so the answer is five names and the needles are the five statements; a solved
example stands in front of every prompt, of the same size in all and with other names in each.
Differences that remain: names of one chain are all different and none is VAR (upstream may draw one twice), the example
has at least six lines (2024: ten) even where these do not fit into its 500 tokens, and it counts as part of the
prompt (upstream counts it apart, without the line breaks behind it).
Source: lm-evaluation-harness tasks/ruler/vt_utils.py, which is RULER's file of 2024, and RULER's variable_tracking.py
of 2025 in copies of others; evaluation.md section 4.1. The 2024 text says "assgined"; the newer one does not.
"""

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from neuralmem.errors import UserError
from neuralmem.evaluation.cell import Build, Cell, Draft, Sizes, by_rule, too_short
from neuralmem.evaluation.contexts import Encode, Insert, TokenisedHaystack
from neuralmem.evaluation.prompts import NOISE
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample

HEAD = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "\nQuestion: Find all variables that are assigned the value {value} in the text above."
PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are {assigned} the "
    "value {value}, they are: "
)
HOPS = 4
EXAMPLE_TOKENS = 500
LEAST = HOPS + 2  # lines; with fewer, upstream takes the lines apart


@dataclass(frozen=True)
class Style:
    """What differs between the texts of 2024 and 2025: how lines are joined, a word, the space behind an example.

    Args:
        line: the noise
        joint: what joins lines
        assigned: the word in the answer prefix
        behind: what follows an example
        step: lines by which an example grows
        spare: tokens that an example leaves of its 500 beside its answer; 0: its answer is not counted either
    """

    line: str
    joint: str
    assigned: str
    behind: str
    step: int
    spare: int

    def ask(self, value: str) -> tuple[str, str]:
        """Question and answer prefix."""
        return QUESTION.format(value=value), PREFIX.format(count=HOPS + 1, assigned=self.assigned, value=value)

    def lines(self, names: list[str], value: str, places: list[int], lines: int) -> tuple[list[str], list[int]]:
        """Noise with statements before the lines `places` (ascending), and where the statements then stand."""
        units = [self.line] * lines
        at = [place + i for i, place in enumerate(places)]
        for index, statement in zip(at, chain(names, value), strict=True):
            units.insert(index, statement)
        return units, at


OF_2024 = Style(NOISE + "\n", " ", "assgined", "\n\n\n\n", step=5, spare=30)
OF_2025 = Style(NOISE, "\n", "assigned", "\n\n", step=1, spare=0)


def style_of(protocol: str) -> Style:
    """The text of a protocol."""
    return OF_2024 if protocol in ("ruler2024", "lm-eval") else OF_2025


def chain(names: list[str], value: str) -> list[str]:
    """Statements that hand a value on.

    Example:
        >>> chain(["AAAAA", "BBBBB"], "12345")
        ['VAR AAAAA = 12345', 'VAR BBBBB = VAR AAAAA ']
    """
    return [
        f"VAR {names[0]} = {value}",
        *(f"VAR {new} = VAR {old} " for old, new in pairwise(names)),
    ]


def draw_names(random: Random, letters: int) -> list[str]:
    """Names of a chain's variables, all different."""
    names: dict[str, None] = {}
    while len(names) <= HOPS:
        name = "".join(random.choices(ascii_uppercase, k=letters))
        if name != "VAR":
            names[name] = None
    return list(names)


def draw_places(random: Random, lines: int) -> list[int]:
    """The lines before which statements stand, ascending."""
    return sorted(random.sample(range(lines), HOPS + 1))


def draw_value(random: Random, besides: str = "") -> str:
    """Five digits, other than `besides`."""
    while (value := str(random.randrange(10000, 99999))) == besides:
        pass
    return value


class Example:
    """The solved example of a cell: its size and places are drawn once, its names for every prompt."""

    def __init__(self, cell: Cell) -> None:
        self.style, random = style_of(cell.protocol), cell.random("example")
        self.value, step = draw_value(random), self.style.step
        self.lines = -(-LEAST // step) * step
        while self._tokens(cell.encode, self.lines + step, random) <= EXAMPLE_TOKENS:
            self.lines += step
        self.places = draw_places(random, self.lines)

    def _tokens(self, encode: Encode, lines: int, random: Random) -> int:
        names = draw_names(random, letters=3)
        text = self._asked(names, self.value, draw_places(random, lines), lines)
        return len(encode(f"{text} {names}" if self.style.spare else text)) + self.style.spare

    def _asked(self, names: list[str], value: str, places: list[int], lines: int) -> str:
        units, _ = self.style.lines(names, value, places, lines)
        question, prefix = self.style.ask(value)
        return HEAD + self.style.joint.join(units) + question + prefix

    def text(self, random: Random, value: str) -> str:
        """The example, up to where the prompt itself begins; `value` is that of the prompt.

        The newer text has another value in every prompt, the older one does not.
        """
        own = self.value if self.style is OF_2024 else draw_value(random, besides=value)
        names = draw_names(random, letters=3)
        return self._asked(names, own, self.places, self.lines) + " " + " ".join(names) + self.style.behind


def exact(cell: Cell) -> Build:
    """Prompts of exactly `cell.length` tokens, the first statement at the depth asked for, the others behind it."""
    example, style = Example(cell), style_of(cell.protocol)
    noise = TokenisedHaystack.of_units([style.line], style.joint, cell.encode, 1)

    def build(number: int, depth: float | None, random: Random) -> Sample:
        names, value = draw_names(random, letters=5), draw_value(random, besides=example.value)
        first = random.random() if depth is None else depth
        places = [first, *sorted(first + (1 - first) * random.random() for _ in range(HOPS))]
        if depth is None:
            places = sorted(random.random() for _ in places)
        front, back = cell.encode(example.text(random, value) + HEAD), cell.encode("".join(style.ask(value)))
        inserts = [Insert(*pair) for pair in zip(places, chain(names, value), strict=True)]
        try:
            context = noise.fill(cell.length - len(front) - len(back), inserts, 0)
        except UserError:
            least = len(front) + len(back) + sum(len(cell.encode(insert.text)) for insert in inserts)
            raise too_short(cell, least) from None
        rope = Rope([front, *context.pieces, back])
        spans = [(len(front) + a, len(front) + b) for a, b in context.spans]
        return cell.sample(number, rope, (len(front), len(rope) - len(back)), spans, value, names)

    return build


def ruler(cell: Cell) -> Build:
    """Prompts by RULER's rules; without a depth, statements stand before uniformly random lines."""
    example, style = Example(cell), style_of(cell.protocol)
    newest = cell.protocol == "ruler2025"
    step = 5 if newest and cell.length < 4096 else 10

    def draw(size: int, depth: float | None, random: Random) -> Draft:
        names, value = draw_names(random, letters=5), draw_value(random, besides=example.value)
        if depth is None:
            places = draw_places(random, size)
        else:
            first = min(size, int(size * depth))
            places = [first, *sorted(random.randint(first, size) for _ in range(HOPS))]
        units, at = style.lines(names, value, places, size)
        starts = [0]
        for unit in units:
            starts.append(starts[-1] + len(unit) + 1)
        question, prefix = style.ask(value)
        return Draft(
            example.text(random, value) + HEAD,
            style.joint.join(units),
            question,
            prefix.rstrip() if cell.protocol == "lm-eval" else prefix,
            key=value,
            answers=tuple(names),
            needles=tuple((starts[i], starts[i] + len(units[i].rstrip())) for i in at),
            said=f" {names}",
        )

    return by_rule(cell, draw, Sizes(step, stride=1 if newest else step, least=LEAST))
