"""Facts in real text and questions about them: needles in a haystack, many to a row.

    ...text @word=123 text... @other=908 text ... @other=908 ... @word=123
             a fact            a fact              questions, answered by the values

as `NeedleFormat` writes by default; the quickstart's facts are `@word 123`.

What is special: haystack, facts and questions are joined as tokens, which is exact because a format is refused where
its tokens depend on what stands next to them. What is kept for validation is decided by hash, so that evaluation asks
for what training never saw: (key, value) pairs and whole keys (`NeedleFormat`), and the documents of the haystack.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from neuralmem.data.batch import Batch
from neuralmem.data.document import Source, limited
from neuralmem.data.faults import texts_of
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.data.synthetic import Curriculum, Layout, Longer, Stage, supervise
from neuralmem.errors import UserError
from neuralmem.tokenizer import Tokenizer

HAYSTACK_CHARACTERS = 4_000_000
DECOYS = (
    "{word}: {number}\n",
    "{word} is {number}.\n",
    "{word} is: {number}.\n",
    "{word} = {number}\n",
    "{word} {number}\n",
    "{word} ({number})\n",
)


def find_keys(texts: Iterable[str], tokenizer: Tokenizer, form: NeedleFormat, least: int = 20) -> list[str]:
    """Words that can be keys: frequent in the texts, and of `form.key_tokens` tokens inside a question.

    Args:
        texts: where the words come from
        tokenizer: of the model
        form: the format of facts
        least: how often a word must stand in the texts

    Returns:
        The words in an order that depends on nothing but the words (stages use the first ones).

    Raises:
        UserError: fewer than 16 words fit.
    """
    counts = Counter(word for text in texts for word in re.findall(r"(?<![A-Za-z])[A-Za-z]{3,12}(?![A-Za-z])", text))
    bare = len(tokenizer.encode(form.head("")))
    words = [word for word, count in counts.items() if count >= least]
    if form.key_tokens:
        words = [word for word in words if len(tokenizer.encode(form.head(word))) == bare + form.key_tokens]
    if len(words) < 16:
        few = f"only {len(words)} words of 3 to 12 letters stand in the text {least} times"
        if not form.key_tokens:
            raise UserError(f"source has too little text: {few}, 16 are needed as keys; give more text")
        raise UserError(
            f"form.key_tokens is {form.key_tokens}; {few} and have so many tokens, 16 are needed as keys: give 0 (any "
            "number), a tokenizer trained on this text that keeps spaces apart (words:NUMBER), or more text"
        )
    order = np.random.default_rng(0).permutation(len(words))
    return [word for _, word in sorted(zip(order, sorted(words), strict=True))]


def _ending(word: str) -> str:
    return word[-2:].lower()


class Needles(Curriculum):
    """Rows of real text with facts in it and questions about them behind.

    Facts stand at line starts of the first part of a row, questions at line starts of the rest, in random order, the
    last one at the row's end; "front": all facts before the text and all questions behind it.

    Args:
        stages: the curriculum
        tokenizer: of the model
        haystack: where the text comes from; its first 4 million characters are used
        keys: words to use as keys in this order; None: found in the haystack (give validation the keys of training)
        form: format of facts, and what is held out
        other_forms: further formats; each row is written in one of those that its stage uses
        placing: "scattered" or "front"
        text_weight: loss weight of the text relative to the answers; the values of facts have none
        text_share: part of the text tokens, chosen at random, that are targets; fewer make a step cheaper
        decoys: lines with a word and a number that are no facts and never asked for, per thousand tokens of the text
            between facts, on average, so that not every number is worth remembering; no word is a key of the row
        alike: share of keys after a row's first whose last word ends as that of a key before (its last two letters, in
            either case), where there is such a word: they are what a memory mixes up
        new_keys: validation asks for held-out keys instead of held-out pairs of known keys
        options: see `Curriculum`

    Raises:
        UserError: a row too short for its facts and questions, or a format whose tokens depend on their surroundings.

    Example:
        >>> from neuralmem.data.sources import open_source
        >>> from neuralmem.tokenizer import ByteTokenizer
        >>> task = Needles(
        ...     [Stage(keys=16, length=128, facts=2, questions=2)],
        ...     tokenizer=ByteTokenizer(),
        ...     haystack=open_source("builtin", side="validation"),
        ...     form=NeedleFormat(key_tokens=0),
        ... )
        >>> batch = next(iter(task))
        >>> batch.tokens.shape, int(batch.answers[0].sum()), int(batch.groups.max())
        (torch.Size([32, 128]), 6, 1)
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        tokenizer: Tokenizer,
        haystack: Source,
        keys: Sequence[str] | None = None,
        form: NeedleFormat | None = None,
        other_forms: Sequence[NeedleFormat] = (),
        placing: Literal["scattered", "front"] = "scattered",
        text_weight: float = 0.05,
        text_share: float = 1.0,
        decoys: float = 0.0,
        alike: float = 0.0,
        new_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(stages, **options)
        if placing not in ("scattered", "front"):
            raise UserError(f"placing is {placing!r}; it must be one of scattered, front")
        self.tokenizer, self.forms = tokenizer, (form or NeedleFormat(), *other_forms)
        if not 0 <= text_share <= 1:
            raise UserError(f"text_share is {text_share}; it must be between 0 and 1")
        if not 0 <= decoys <= 100:
            raise UserError(f"decoys is {decoys}; it must be between 0 and 100")
        if not 0 <= alike <= 1:
            raise UserError(f"alike is {alike}; it must be between 0 and 1")
        self.placing, self.text_weight, self.text_share = placing, text_weight, text_share
        self.decoys, self.alike = decoys, alike
        self._source = haystack.fingerprint()
        texts = list(limited(texts_of(haystack), HAYSTACK_CHARACTERS))
        words = list(keys) if keys is not None else find_keys(texts, tokenizer, self.forms[0])
        held = new_keys and self.part == "validation"
        self.keys = [word for word in words if self.forms[0].is_key_held_out(word) == held]
        self._encoded: dict[tuple[NeedleFormat, str, str | int], np.ndarray] = {}
        for number, one in enumerate(self.forms):
            self._check_format(one, f"other_forms[{number - 1}]" if number else "form")
        self._text = np.array([i for text in texts for i in tokenizer.encode(text)], dtype=np.int64)
        self._lines = self._line_starts()
        self._check_stages(len(self.keys) // max(form.key_words for form in self.forms))
        longest = max(part.length for _, _, part in self._parts())
        if longest > len(self._text):
            raise UserError(f"length is {longest}; it must be at most {len(self._text)}, the tokens of the haystack")

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"tokenizer": self.tokenizer.fingerprint, "source": self._source}

    def room(self, stage: Stage, part: Stage | Longer) -> int:
        longest = sorted(self.keys, key=lambda key: len(self.tokenizer.encode(f"-{key}")))
        needed = []
        for form in self._in_use(stage.forms if part.forms is None else part.forms):
            key = "-".join(longest[-form.key_words :])
            told, asked = (
                len(self._part(form, key_part, key)) + len(self._part(form, value_part, 0))
                for key_part, value_part in (("head", "told"), ("question", "answer"))
            )
            needed.append(told * (part.facts + part.updates) + asked * part.questions)
        return max(needed) + (stage.gap if self.placing == "front" else 0)

    def draw(self, rng: np.random.Generator, layout: Layout) -> Batch:
        rows = [self._row(rng, layout) for _ in range(layout.rows)]
        tokens, groups = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        chosen = None if self.text_share == 1 else torch.from_numpy(rng.random(tokens.shape) < self.text_share)
        return supervise(tokens, groups, self.text_weight, chosen)

    def _in_use(self, forms: int) -> tuple[NeedleFormat, ...]:
        """-> the first so many formats; 0: all."""
        return self.forms[: forms or None]

    def _part(self, form: NeedleFormat, name: str, of: str | int) -> np.ndarray:
        """-> tokens of what a format's method `name` gives of a key or a value; the first 200,000 are kept."""
        found = self._encoded.get((form, name, of))
        if found is None:
            found = np.array(self.tokenizer.encode(getattr(form, name)(of)))
            if len(self._encoded) < 200_000:
                self._encoded[form, name, of] = found
        return found

    def _row(self, rng: np.random.Generator, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
        """-> tokens Int[T], groups Int[T] (see `supervise`)."""
        usable = self._in_use(layout.forms)
        form = usable[int(rng.integers(len(usable)))] if len(usable) > 1 else usable[0]
        pool = min(layout.keys or len(self.keys), len(self.keys))
        words = rng.choice(pool, (layout.facts, form.key_words), replace=False).tolist()
        if self.alike:
            self._make_alike(rng, words, pool)
        keys = ["-".join(self.keys[i] for i in key) for key in words]
        told = np.arange(layout.facts)
        if layout.updates:  # some keys are told again, the latest value counts
            told = rng.permutation(np.append(told, rng.integers(layout.facts, size=layout.updates)))
        values: dict[int, int] = {}
        needles = []
        for i in told.tolist():
            before = values.get(i)
            while values.get(i) == before:
                values[i] = form.value(rng, keys[i], self.part == "validation")
            needles.append((self._part(form, "head", keys[i]), self._part(form, "told", values[i]), -2))
        asked = rng.permutation(max(layout.facts, layout.questions))[: layout.questions] % layout.facts
        for n, i in enumerate(asked.tolist()):
            needles.append((self._part(form, "question", keys[i]), self._part(form, "answer", values[i]), n))
        taken = {i for key in words for i in key}
        text, about = self._text_between(rng, layout.length - sum(len(q) + len(a) for q, a, _ in needles), taken)
        pieces, groups, last, tail = [], [], 0, self._tail(form)
        for place, (question, answer, group) in zip(self._places(rng, text, layout), needles, strict=True):
            pieces += [text[last:place], question, answer]
            digits = len(answer) - tail
            groups += [about[last:place], np.full(len(question), -1), np.full(digits, group), np.full(tail, -1)]
            last = place
        return np.concatenate(pieces), np.concatenate(groups)

    def _make_alike(self, rng: np.random.Generator, words: list[list[int]], pool: int) -> None:
        """Let the last words of some keys end as those of keys before them."""
        taken = {i for key in words for i in key}
        for n in range(1, len(words)):
            if rng.random() >= self.alike:
                continue
            ending = _ending(self.keys[words[int(rng.integers(n))][-1]])
            if others := [i for i in self._ending_so[ending] if i < pool and i not in taken]:
                taken.remove(words[n][-1])
                words[n][-1] = others[int(rng.integers(len(others)))]
                taken.add(words[n][-1])

    @cached_property
    def _ending_so(self) -> dict[str, list[int]]:
        """Keys by their endings."""
        found: dict[str, list[int]] = {}
        for i, word in enumerate(self.keys):
            found.setdefault(_ending(word), []).append(i)
        return found

    def _text_between(self, rng: np.random.Generator, length: int, taken: set[int]) -> tuple[np.ndarray, np.ndarray]:
        """-> tokens Int[length] of the haystack with decoys at line starts (half of it at most), groups Int[length]."""
        if not self.decoys:
            return self._passage(rng, length), np.full(length, -1)
        decoys = self._draw_decoys(rng, length, taken)
        text = self._passage(rng, length - sum(map(len, decoys)))
        places = np.sort(rng.choice(np.append(np.flatnonzero(self._breaks[text[:-1]]) + 1, 0), len(decoys)))
        pieces, groups, last = [], [], 0
        for place, decoy in zip(places, decoys, strict=True):
            pieces += [text[last:place], decoy]
            groups += [np.full(place - last, -1), np.full(len(decoy), -2)]
            last = place
        pieces.append(text[last:])
        groups.append(np.full(len(text) - last, -1))
        return np.concatenate(pieces), np.concatenate(groups)

    def _draw_decoys(self, rng: np.random.Generator, length: int, taken: set[int]) -> list[np.ndarray]:
        """-> lines of a word that is not taken and a number of one to eight digits, at most half of `length` tokens."""
        decoys, room = [], length // 2
        for _ in range(rng.poisson(self.decoys * length / 1000)):
            number = int(rng.integers(10 ** int(rng.integers(1, 9))))
            form, word = DECOYS[int(rng.integers(len(DECOYS)))], int(rng.integers(len(self.keys)))
            if word in taken:  # it would tell a key another value
                continue
            line = form.format(word=self.keys[word], number=number)
            decoy = np.array(self.tokenizer.encode(line))
            if (room := room - len(decoy)) < 0:
                break
            decoys.append(decoy)
        return decoys

    def _passage(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """-> `length` tokens of the haystack from a random line start on."""
        start = int(self._lines[rng.integers(len(self._lines))])
        return self._text[min(start, len(self._text) - length) :][:length]

    def _places(self, rng: np.random.Generator, text: np.ndarray, layout: Layout) -> np.ndarray:
        """-> where facts and then questions are inserted in a passage, ascending; the last at its end."""
        room, facts, questions = len(text), layout.facts + layout.updates, layout.questions
        if self.placing == "front":
            return np.repeat([0, room], [facts, questions])
        starts = np.flatnonzero(self._breaks[text]) + 1
        gap = min(layout.gap, room)
        middle = int(rng.integers((room - gap) // 4, (room - gap) * 3 // 4 + 1))
        early = np.append(starts[starts <= middle], 0)
        late = np.append(starts[(starts >= middle + gap) & (starts < room)], room)
        return np.concatenate(
            [np.sort(rng.choice(early, facts)), np.sort(np.append(rng.choice(late, questions - 1), room))]
        )

    def _line_starts(self) -> np.ndarray:
        """Where lines of the haystack begin; also remembers which tokens end a line."""
        ends = [self.tokenizer.decode([i]).endswith("\n") for i in range(self.tokenizer.vocab_size)]
        self._breaks = np.array(ends)
        return np.append(np.flatnonzero(self._breaks[self._text[:-1]]) + 1, 0)

    def _tail(self, form: NeedleFormat) -> int:
        """-> how many tokens of an answer are not its value, but what follows it."""
        after = form.fact.partition("{value}")[2]
        return len(self._part(form, "told", 0)) - len(self.tokenizer.encode(form.told(0).removesuffix(after)))

    def _check_format(self, form: NeedleFormat, name: str) -> None:
        """Facts are put together from their parts' tokens: refuse a format where that is not what `encode` gives."""
        if "{key}" not in form.fact or "{value}" not in form.fact.partition("{key}")[2]:
            raise UserError(f"{name}.fact is {form.fact!r}; it must hold {{key}} and, behind it, {{value}}")
        if form.ask is not None and ("{key}" not in form.ask or form.ask.endswith(" ")):
            raise UserError(f"{name}.ask is {form.ask!r}; it must hold {{key}} and not end with a space")
        if form.key_words < 1:
            raise UserError(f"{name}.key_words is {form.key_words}; it must be at least 1")
        for i in range(min(len(self.keys), 32)):
            value = i * 7919 % 10**form.digits
            key = "-".join(self.keys[(i + n) % len(self.keys)] for n in range(form.key_words))
            for head, rest in (("head", "told"), ("question", "answer")):
                parts = [*self._part(form, head, key), *self._part(form, rest, value)]
                whole = self.tokenizer.encode(getattr(form, head)(key) + getattr(form, rest)(value))
                if parts != whole or len(self._part(form, rest, value)) != len(self._part(form, rest, 0)):
                    where = f"{name}.fact is {form.fact!r}" if head == "head" else f"{name}.ask is {form.ask!r}"
                    raise UserError(
                        f"{where}, whose tokens depend on the value; put a sign such as '=' in front of {{value}}, and "
                        "use a tokenizer that splits digits"
                    )
