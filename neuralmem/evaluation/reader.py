"""Reads prompts into a model; what comes out: greedy answers and likelihoods of candidates, also under controls.

Special: prompts are read in pieces, a batch of them at once, so their length costs time and not memory; each haystack
is read once, and the state after it is both asked the question and thrown away for the reset control, where a fresh
state reads the question alone: what that one still knows sat in the weights or in the question. In the shuffled control
the question is asked of the state after another sample's haystack, so that the state is full, but of something else.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralmem.evaluation.bookmark import Bookmark
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample
from neuralmem.generation.protocol import LanguageModel, TokenizerLike, device_of
from neuralmem.typing import MemoryMode

ABLATIONS = ("none", "frozen", "off", "reset", "shuffled")
MODES: dict[str, MemoryMode] = {"none": "on", "reset": "on", "shuffled": "on", "frozen": "frozen", "off": "off"}
_ROWS, _STATE = 256, 1 << 28  # rows and bytes of state that candidates are scored with at once


@dataclass(frozen=True)
class Answer:
    """What a model said to one sample.

    Args:
        ablation: "none", "frozen" (nothing written), "off" (memory's output is zero), "reset" (state emptied before
            the question), "shuffled" (the state after another sample's haystack)
        text: greedy continuation
        log_likelihoods: of the sample's candidates, the true one first
        state_bytes: size of the state after the prompt, for this sample
        seconds: its share of the time that its batch took, reading included
        partner: number of the sample whose haystack was read instead, None: its own was
        reading: the part of `seconds` that went by before the question
        text_bytes: what a baseline keeps of the text, in tokens
        index_bytes: and in what it searches them with
    """

    ablation: str
    text: str
    log_likelihoods: tuple[float, ...]
    state_bytes: int
    seconds: float
    partner: int | None = None
    reading: float = 0.0
    text_bytes: int = 0
    index_bytes: int = 0


class Reader:
    """Asks a model.

    Args:
        model: any `LanguageModel`
        tokenizer: the model's
        stream_chunk: tokens read per call, at most
        progress: called with the number of prompt tokens read, or left out since nothing could come of them
        segment: the model's layers part a text into segments of so many tokens from its start on (Titans MAC)
        bookmark: where to keep how far haystacks are read, so that a long reading that was stopped goes on

    With the memory frozen or off nothing is written, and a token acts on those up to `model.reach` after it only. So
    under these controls only the last of the haystack that the question's first token can see is read, from a segment's
    start on: the answers are those of the whole prompt, at a cost that does not grow with it.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: TokenizerLike,
        stream_chunk: int = 4096,
        progress: Callable[[int], None] = lambda tokens: None,
        segment: int = 1,
        bookmark: Bookmark | None = None,
    ) -> None:
        self.model, self.tokenizer, self.stream_chunk, self.progress = model, tokenizer, stream_chunk, progress
        self.segment, self.device, self.bookmark = segment, device_of(model), bookmark

    @torch.no_grad()
    def ask(
        self,
        samples: Sequence[Sample],
        ablations: Sequence[str],
        max_new_tokens: int,
        partner: Callable[[], Sample] | None = None,
    ) -> Iterator[tuple[str, list[Answer]]]:
        """Read a batch of samples under each ablation; yields its name and one answer per sample.

        Args:
            samples: the batch
            ablations: which
            max_new_tokens: length of the answers
            partner: makes another sample, whose haystack is read for "shuffled" where the batch is a single one

        Raises:
            ValueError: "shuffled" of a single sample without a partner.
        """
        for mode in ("on", "frozen", "off"):
            wanted = [name for name in ABLATIONS if name in ablations and MODES[name] == mode]
            if not wanted:
                continue
            start = time.perf_counter()
            contexts = [(s.rope, self._first(s, mode), s.question) for s in samples]
            self.progress(sum(first for _, first, _ in contexts))
            read = self._read_haystacks(contexts, mode)
            reading = time.perf_counter() - start
            if self.bookmark is not None and mode == "on":
                reading = self.bookmark.seconds
            for name in wanted:
                start = time.perf_counter()
                partners: list[int | None] = [None] * len(samples)
                state = self.model.init_state(len(samples)) if name == "reset" else read
                if name == "shuffled":
                    state, partners = self._shuffle(samples, read, partner)
                answers = self._answer(samples, state, mode, max_new_tokens)
                seconds = (reading + time.perf_counter() - start) / len(samples)
                both = zip(answers, partners, strict=True)
                yield name, [Answer(name, *answer, seconds, other, reading / len(samples)) for answer, other in both]
            if self.bookmark is not None:
                self.bookmark.end()

    def _read_haystacks(self, spans: Sequence[tuple[Rope, int, int]], mode: MemoryMode) -> Any:
        """-> the state after rope[start:stop] of every row, read from where an earlier reading has come to."""
        state, done, bookmark = self.model.init_state(len(spans)), 0, self.bookmark if mode == "on" else None
        if bookmark is not None:
            what = [f"{rope.sha256()} {start} {stop}" for rope, start, stop in spans]
            kept = bookmark.begin([str(self.stream_chunk), *what], self.model)
            state, done = state if kept.state is None else kept.state, kept.tokens
            self.progress(sum(min(done, stop - start) for _, start, stop in spans))
        return self._read(spans, state, mode, done, None if bookmark is None else bookmark.keep)[1]

    def _shuffle(
        self, samples: Sequence[Sample], read: Any, partner: Callable[[], Sample] | None
    ) -> tuple[Any, list[int | None]]:
        """For every sample the state after another's haystack, that of the row before it, and the other's number."""
        if len(samples) > 1:
            before = [(row - 1) % len(samples) for row in range(len(samples))]
            return read.select(before), [samples[row].number for row in before]
        if partner is None:
            raise ValueError("a batch of one sample has no other haystack: give a partner")
        other = partner()
        _, state = self._read([(other.rope, 0, other.question)], self.model.init_state(1), "on")
        return state, [other.number]

    def _first(self, sample: Sample, mode: MemoryMode) -> int:
        """The first token that is read: one that acts on the question, as do all after it."""
        if mode == "on":
            return 0
        return max(0, sample.question - 1 - self.model.reach) // self.segment * self.segment

    def _answer(
        self, samples: Sequence[Sample], state: Any, mode: MemoryMode, max_new_tokens: int
    ) -> list[tuple[str, tuple[float, ...], int]]:
        questions = [(s.rope, s.question, len(s.rope)) for s in samples]
        last, state = self._read(questions, state, mode)
        scores = self._score(samples, last, state, mode)
        texts = self._generate(last, state, mode, max_new_tokens)
        size = state.nbytes // len(samples)
        return [(text, score, size) for text, score in zip(texts, scores, strict=True)]

    def _read(
        self,
        spans: Sequence[tuple[Rope, int, int]],
        state: Any,
        mode: MemoryMode,
        done: int = 0,
        keep: Callable[[int, Any], None] | None = None,
    ) -> tuple[Tensor, Any]:
        """Read rope[start:stop] of every row, of which `done` tokens have been read before -> Float[B, V] logits after
        each row's last token that is read now, and the state; `keep` is told how far it has come with every call."""
        lengths = torch.tensor([stop - start for _, start, stop in spans])
        longest = int(lengths.max())
        last = torch.zeros(len(spans), self.tokenizer.vocab_size, device=self.device)
        for at in range(done, longest, self.stream_chunk):
            width = min(self.stream_chunk, longest - at)
            rows = [rope.slice(start + at, min(start + at + width, stop)) for rope, start, stop in spans]
            ends = torch.arange(at + 1, at + width + 1) == lengths[:, None]
            logits, state = self._call(rows, width, state, mode, ends)
            self.progress(sum(map(len, rows)))
            last[ends.any(1).to(self.device)] = logits.float()
            if keep is not None:
                keep(at + width, state)
        return last, state

    def _call(
        self, rows: Sequence[Tensor], width: int, state: Any, mode: MemoryMode, select: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Rows of ids, left-aligned and padded to `width`, through the model; logits where `select` Bool[B, T] says."""
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
            mask[i, : len(row)] = True
        full = bool(mask.all())
        select = mask if select is None else select
        return self.model(
            tokens.to(self.device),
            state,
            mask=None if full else mask.to(self.device),
            memory=mode,
            select=select.to(self.device),
        )

    def _score(self, samples: Sequence[Sample], last: Tensor, state: Any, mode: MemoryMode) -> list[tuple[float, ...]]:
        """Log-likelihood of every candidate, teacher-forced from the state after the prompt."""
        count = len(samples[0].candidates)
        if not count:
            return [()] * len(samples)
        # Several candidates at a time: the state is copied for each, so a large one allows fewer.
        group = max(1, min(count, _ROWS // len(samples), _STATE // max(1, state.nbytes)))
        columns: list[Tensor] = []
        for first in range(0, count, group):
            pairs = [(row, j) for j in range(first, min(first + group, count)) for row in range(len(samples))]
            rows = [row for row, _ in pairs]
            ids = [torch.tensor(samples[row].candidates[j]) for row, j in pairs]
            forked = state if len(rows) == len(samples) else state.select(rows)
            columns += self._likelihoods(ids, last[rows], forked, mode).view(-1, len(samples))
        return [tuple(row) for row in torch.stack(columns, -1).tolist()]

    def _likelihoods(self, ids: list[Tensor], last: Tensor, state: Any, mode: MemoryMode) -> Tensor:
        """Float64[B]: log-likelihood of each row's ids, whose first is predicted by `last`."""
        first = torch.stack([i[0] for i in ids]).to(last.device)
        total = last.log_softmax(-1).gather(-1, first[:, None])[:, 0].double()
        rest = max(map(len, ids)) - 1
        if rest:
            logits, _ = self._call([i[:-1] for i in ids], rest, state, mode)
            targets = torch.cat([i[1:] for i in ids]).to(logits.device)
            steps = logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            rows = torch.arange(len(ids)).repeat_interleave(torch.tensor([len(i) - 1 for i in ids]))
            total.index_add_(0, rows.to(logits.device), steps)
        return total.cpu()

    def _generate(self, last: Tensor, state: Any, mode: MemoryMode, max_new_tokens: int) -> list[str]:
        """Greedy continuation; a row that ends its document says nothing more."""
        token, rows = last.argmax(-1), []
        done = torch.zeros(len(last), dtype=torch.bool, device=last.device)
        for step in range(max_new_tokens):
            done |= token == self.tokenizer.eos_id
            rows.append(torch.where(done, self.tokenizer.eos_id, token))
            if bool(done.all()) or step + 1 == max_new_tokens:
                break
            logits, state = self.model(token[:, None], state, memory=mode)
            token = logits[:, -1].argmax(-1)
        ids = torch.stack(rows, -1).tolist()
        return [self.tokenizer.decode([i for i in row if i != self.tokenizer.eos_id]) for row in ids]
