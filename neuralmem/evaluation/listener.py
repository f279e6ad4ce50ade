"""Takes a model through scripts side by side, under controls, and returns what it answered.

Special: a state is a value, so a question is read by a copy of it and the text goes on as if nobody had asked. With the
memory frozen or off nothing is written, and before a question only what it can still see is read. The reset control
answers every question from a fresh state and reads nothing else; the shuffled one from the state after the next script.
A reading that was stopped goes on within its text: with the state, what was answered until then is kept.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.evaluation.reader import MODES, Reader
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.script import Ask, Drop, Question, Read, Script, Step

KEPT_UP = ("none", "shuffled")  # ablations under which everything is read and written
_ROWS, _STATE = 256, 1 << 28  # rows and bytes of state that are asked at once


@dataclass(frozen=True)
class Reply:
    """What a model said to a question.

    Args:
        question: the question
        right: of every token of its answer, whether it is the likeliest after those before it
        nll: of the answer, in nats
        distance: tokens from the last of what was told to the last of the question; None: it was not told
        seen: whether attention and convolutions could still see all or part of what was told
    """

    question: Question
    right: tuple[bool, ...]
    nll: float
    distance: int | None
    seen: bool

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives this answer."""
        return all(self.right)


@dataclass
class _Place:
    """Where a batch of scripts is.

    Args:
        state: after all that was read, where that is kept up
        state_bytes: per row, at the last question
        texts: since the last drop, of each row
        total: tokens so far, of each row
        first: tokens before the last drop, of each row
        stale: whether `state` is to be made from `texts` before it is asked
        step: number of the step
        done: tokens of that step's texts that an earlier reading has read
        before: tokens of the longest text of every step before
    """

    state: Any
    state_bytes: int
    texts: list[list[Rope]]
    total: list[int]
    first: list[int]
    stale: bool = False
    step: int = 0
    done: int = 0
    before: int = 0


class Listener(Reader):
    """A `Reader` that goes through scripts.

    Example:
        >>> from neuralmem import CausalLM, ModelConfig
        >>> from neuralmem.evaluation.script import Writer
        >>> from neuralmem.tokenizer import ByteTokenizer
        >>> model = CausalLM(ModelConfig(vocab_size=257, width=16, depth=1, pattern=["titans_lmm"]))
        >>> writer = Writer()
        >>> told = writer.read(b"a=1;")
        >>> writer.ask(Question(tuple(b"a="), tuple(b"1"), told))
        >>> replies, state_bytes = Listener(model, ByteTokenizer()).listen([writer.script()], "none")
        >>> len(replies[0]), replies[0][0].distance
        (1, 2)
    """

    @torch.no_grad()
    def listen(self, scripts: Sequence[Script], ablation: str) -> tuple[list[list[Reply]], int]:
        """Take a batch through scripts.

        Args:
            scripts: with the same kinds of steps in the same order
            ablation: "none", "frozen" (nothing written), "off" (memory's output is zero), "reset" (every question is
                put to a fresh state), "shuffled" (to the state after as much of the next script, the first after the
                last)

        Returns:
            The replies of each script, in the order of its questions; bytes of state per row at the last question.

        Raises:
            UserError: scripts whose steps differ in kind, a session's end for a model that knows none, or "shuffled"
                with a single script.
        """
        kinds = {tuple(type(step).__name__ for step in script.steps) for script in scripts}
        if len(kinds) != 1:
            raise UserError(f"scripts have steps of {len(kinds)} kinds; those that run side by side must be alike")
        rows = len(scripts)
        if ablation == "shuffled" and rows < 2:
            raise UserError("shuffled needs the state of another text; read at least two side by side")
        steps = list(zip(*(script.steps for script in scripts), strict=True))
        place, replies = self._begin(scripts, steps, ablation)
        for number in range(place.step, len(steps)):
            step, place.step = steps[number], number
            if isinstance(step[0], Read):
                keep = partial(self._bookmark, place, replies) if self.bookmark and ablation in KEPT_UP else None
                self._hear([one.text for one in step], place, ablation, keep)
            elif isinstance(step[0], Ask):
                self._answer_all(step, place, ablation, replies)
            else:
                self._drop(place, ablation)
        return replies, place.state_bytes

    def _begin(
        self, scripts: Sequence[Script], steps: Sequence[Any], ablation: str
    ) -> tuple[_Place, list[list[Reply]]]:
        """Where to begin, and the replies so far: at the first step, or within that where a reading was stopped."""
        rows, state = len(scripts), self.model.init_state(len(scripts))
        place = _Place(state, state.nbytes // rows, [[] for _ in scripts], [0] * rows, [0] * rows)
        replies: list[list[Reply]] = [[] for _ in scripts]
        if self.bookmark is None or ablation not in KEPT_UP:
            return place, replies
        what = [ablation, str(self.stream_chunk), *(script.sha256 for script in scripts)]
        kept = self.bookmark.begin(what, self.model, noted=True)
        if kept.state is None:
            return place, replies
        note = json.loads(kept.note)
        place.step, place.done, place.before = note["step"], note["done"], kept.tokens - note["done"]
        place.state, place.state_bytes = kept.state, note["bytes"]
        for step in steps[: place.step]:
            if isinstance(step[0], Drop):
                place.first = list(place.total)
            for row, one in enumerate(step):
                tokens = _tokens(one)
                place.total[row] += tokens
                self.progress(tokens)
        for script, found, known in zip(scripts, replies, note["replies"], strict=True):
            asked = (q for step in script.steps if isinstance(step, Ask) for q in step.questions)
            found += [Reply(q, tuple(right), *rest) for q, (right, *rest) in zip(asked, known, strict=False)]
        return place, replies

    def _bookmark(self, place: _Place, replies: list[list[Reply]], done: int, state: Any) -> None:
        """Keep how far the text of a step has been read, and what was answered before it."""

        def note() -> bytes:
            said = [[(r.right, r.nll, r.distance, r.seen) for r in own] for own in replies]
            about = {"step": place.step, "done": done, "bytes": place.state_bytes, "replies": said}
            return json.dumps(about).encode()

        assert self.bookmark is not None
        self.bookmark.keep(place.before + done, state, note)

    def _hear(
        self,
        texts: Sequence[Rope],
        place: _Place,
        ablation: str,
        keep: Callable[[int, Any], None] | None = None,
    ) -> None:
        for row, text in enumerate(texts):
            place.texts[row].append(text)
            place.total[row] += len(text)
        if ablation in KEPT_UP:
            place.texts = [[] for _ in texts]
            self.progress(sum(min(place.done, len(text)) for text in texts))
            spans = [(text, 0, len(text)) for text in texts]
            _, place.state = self._read(spans, place.state, "on", place.done, keep)
            place.before, place.done = place.before + max(map(len, texts)), 0
        else:
            self.progress(sum(map(len, texts)))
            place.stale = True

    def _drop(self, place: _Place, ablation: str) -> None:
        place.texts = [[] for _ in place.texts]
        if ablation in KEPT_UP:
            if not hasattr(self.model, "memory_only"):
                raise UserError(f"{type(self.model).__name__} cannot drop what it has seen: it has no memory_only")
            place.state = self.model.memory_only(place.state)
        else:  # nothing was written
            place.state, place.stale = self.model.init_state(len(place.total)), False
        place.first = list(place.total)

    def _catch_up(self, place: _Place, ablation: str) -> None:
        """Read what the next token can see, where nothing is written."""
        if not place.stale:
            return
        place.state, place.stale = self.model.init_state(len(place.total)), False
        if ablation == "reset":
            return
        spans = []
        for pieces in place.texts:
            text = Rope([piece for part in pieces for piece in part.pieces])
            first = max(0, len(text) - 1 - self.model.reach) // self.segment * self.segment
            spans.append((text, first, len(text)))
        calm, self.progress = self.progress, lambda tokens: None  # these tokens were counted when they came
        _, place.state = self._read(spans, place.state, MODES[ablation])
        self.progress = calm

    def _answer_all(self, asks: Sequence[Any], place: _Place, ablation: str, replies: list[list[Reply]]) -> None:
        """Replies to the questions of a step."""
        self._catch_up(place, ablation)
        pairs = [(row, question) for row, ask in enumerate(asks) for question in ask.questions]
        place.state_bytes = place.state.nbytes // len(asks)
        group = max(1, min(_ROWS, _STATE // max(1, place.state_bytes)))
        state: Any = None
        for start in range(0, len(pairs), group):
            some = pairs[start : start + group]
            rows = [(row + (ablation == "shuffled")) % len(asks) for row, _ in some]
            forked = place.state if rows == list(range(len(asks))) else place.state.select(rows)
            found, state = self._put([question for _, question in some], forked, ablation)
            for (row, question), (right, nll) in zip(some, found, strict=True):
                distance = question.distance(place.total[row])
                seen = question.seen(place.total[row], place.first[row], self.model.reach)
                replies[row].append(Reply(question, right, nll, distance, seen))
        if asks[0].keep:
            self._keep(asks, place, state, ablation)

    def _keep(self, asks: Sequence[Any], place: _Place, state: Any, ablation: str) -> None:
        """Questions that stay in the text with their answers, whose last tokens are still to be read."""
        if ablation == "shuffled":  # asked elsewhere, so nothing of it has been read here
            texts = [Rope([[*ask.questions[0].tokens, *ask.questions[0].answer]]) for ask in asks]
            self._hear(texts, place, ablation)
            return
        last = [Rope([list(ask.questions[0].answer[-1:])]) for ask in asks]
        for row, ask in enumerate(asks):
            question = ask.questions[0]
            place.texts[row].append(Rope([[*question.tokens, *question.answer]]))
            place.total[row] += len(question.tokens) + len(question.answer)
            self.progress(len(question.tokens) + len(question.answer) - (ablation != "reset"))
        if ablation == "reset":
            place.stale = True
            return
        _, place.state = self._read([(text, 0, 1) for text in last], state, MODES[ablation])
        if ablation == "none":
            place.texts = [[] for _ in asks]

    def _put(
        self, questions: Sequence[Question], state: Any, ablation: str
    ) -> tuple[list[tuple[tuple[bool, ...], float]], Any]:
        """Right tokens and nll of each question's answer, and the state before the answers' last tokens."""
        ids = [torch.tensor([*q.tokens, *q.answer[:-1]]) for q in questions]
        width = max(map(len, ids))
        select = torch.zeros(len(ids), width, dtype=torch.bool)
        for i, question in enumerate(questions):
            select[i, len(question.tokens) - 1 : len(ids[i])] = True
        logits, state = self._call(ids, width, state, MODES[ablation], select)
        targets = torch.tensor([i for q in questions for i in q.answer], device=logits.device)
        nll = -logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        right = logits.argmax(-1) == targets
        return list(_per_answer(questions, right.cpu(), nll.cpu())), state


def _tokens(step: Step) -> int:
    """Tokens by which a step makes a text longer."""
    if isinstance(step, Read):
        return len(step.text)
    kept = step.questions if isinstance(step, Ask) and step.keep else ()
    return sum(len(question.tokens) + len(question.answer) for question in kept)


def _per_answer(questions: Sequence[Question], right: Tensor, nll: Tensor) -> Iterator[tuple[tuple[bool, ...], float]]:
    sizes = [len(question.answer) for question in questions]
    for hits, losses in zip(right.split(sizes), nll.split(sizes), strict=True):
        yield tuple(hits.tolist()), float(losses.sum())
