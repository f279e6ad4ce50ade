"""Questions about small worlds whose sentences lie scattered in a long text, in the manner of BABILong.

Special: prompts have BABILong's frame and answers its score, without the mistake that its cut at "Question" never finds
anything in a text that was put in lower case before. Sentences of the world stand in order at random places between
sentences of a haystack. Instructions, examples and worlds are our own, and so is the text around them, so that the
numbers are not those of the published table; the examples are stories of the same kind without a haystack.
Source: booydar/babilong 7a6efee, 2406.10149 (evaluation.md section 4.3).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.evaluation.babi_worlds import TASKS, Story
from neuralmem.evaluation.contexts import Context, Insert, TokenisedHaystack
from neuralmem.evaluation.haystack import Haystack
from neuralmem.evaluation.prompts import Task
from neuralmem.evaluation.reader import Answer
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.rows import Subject, facts_of_line
from neuralmem.evaluation.sample import Sample
from neuralmem.evaluation.scoring import rank_of_first
from neuralmem.evaluation.stats import Share, wilson

TEMPLATE = "{instruction}\n\n{examples}\n\n{post_prompt}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"
EXAMPLE = "<example>\n{facts} {question}\nAnswer: {answer}\n</example>"
POST_PROMPT = "Answer with one word and write nothing else."
_ABOUT = "Facts about {what} are hidden in a text, and a question follows. Answer it from the facts alone."
INSTRUCTIONS = {
    "qa1": _ABOUT.format(what="the places of persons") + " The latest fact about a person counts.",
    "qa2": _ABOUT.format(what="persons and things")
    + " What a person carries moves with the person; what was put down stays where it is.",
    "qa3": _ABOUT.format(what="persons and things")
    + " What a person carries moves with the person; what was put down stays where it is.",
    "qa4": _ABOUT.format(what="how places lie to each other"),
    "qa5": _ABOUT.format(what="persons who give things to each other"),
}
SHOTS, GENERATED = 2, 16  # examples in a prompt and tokens of an answer, as lm-evaluation-harness has them
SPARE = 4  # tokens of an answer beyond the longest label's, where labels have many tokens
LEAST_SENTENCE = 10  # tokens: shorter sentences of the haystack are left out


def prompt(task: str, examples: Sequence[Story], context: str, question: str) -> str:
    """A prompt as text.

    Example:
        >>> story = Story(("Mary went to the office.",), "Where is Mary?", "office", (0,))
        >>> text = prompt("qa1", [story], "It rained. Mary took to the garden.", "Where is Mary?")
        >>> text[text.index("<context>") :]
        '<context>\\nIt rained. Mary took to the garden.\\n</context>\\n\\nQuestion: Where is Mary?'
    """
    shown = "\n\n".join(
        EXAMPLE.format(facts=" ".join(story.facts), question=story.question, answer=story.answer) for story in examples
    )
    return TEMPLATE.format(
        instruction=INSTRUCTIONS[task], examples=shown, post_prompt=POST_PROMPT, context=context, question=question
    )


def correct(prediction: str, answer: str, question: str, labels: Sequence[str]) -> bool:
    """BABILong's score: of the labels that the question does not name, the answer's and no other are in what was said.

    What was said is the first sentence, up to where an example, a context or a question would begin; all in lower case.

    Example:
        >>> correct(" Answer: the kitchen. No, the office", "kitchen", "Where is Mary?", ("kitchen", "office"))
        True
        >>> correct("kitchen or office", "kitchen", "Where is Mary?", ("kitchen", "office"))
        False
        >>> correct("kitchen Question: Who is in the office?", "kitchen", "Where is Mary?", ("kitchen", "office"))
        True
    """
    said = prediction.lower().split(".")[0]
    for mark in ("<context>", "<example>", "question"):
        said = said.split(mark)[0]
    known = {label.lower() for label in labels}
    found = {label for label in known if label in said and label not in question.lower()}
    return found == set(answer.lower().split(","))


def tokenise(haystack: Haystack, encode: Callable[[str], list[int]], enough: int) -> TokenisedHaystack:
    """A haystack between whose sentences facts can stand; sentences under ten tokens are left out."""
    units, tokens = [], 0
    for sentence in haystack.sentences:
        size = len(encode(" " + sentence))
        if size >= LEAST_SENTENCE:
            units.append(sentence)
            tokens += size
        if tokens >= enough:
            break
    return TokenisedHaystack.of_units(units, " ", encode, enough)


def samples(
    task: str,
    length: int,
    count: int,
    haystack: TokenisedHaystack,
    haystack_id: str,
    seed: int,
    shots: int = SHOTS,
) -> list[Sample]:
    """Prompts of one task and length. The needles are the sentences that the answer needs.

    Args:
        task: one of qa1 to qa5
        length: tokens of the context, facts included; 0: the facts alone
        count: prompts
        haystack: the text around the facts
        haystack_id: how rows name it
        seed: same seed, same worlds, at every length
        shots: examples in front

    Raises:
        UserError: a length that cannot hold its facts.
    """
    encode, kind = haystack.encode, TASKS[task]
    shown = [kind.make(Random(f"babi/{seed}/{task}/example/{i}")) for i in range(shots)]
    out = []
    for number in range(count):
        random = Random(f"babi/{seed}/{task}/{number}")
        story = kind.make(random)
        head, tail = prompt(task, shown, "\0", story.question).split("\0")
        start, end = encode(head), encode(tail)
        context = _context(story, length, haystack, random)
        rope = Rope([start, *context.pieces, end])
        spans = [(a + len(start), b + len(start)) for a, b in context.spans]
        others = [label for label in kind.labels if label != story.answer]
        candidates = tuple(tuple(encode("\nAnswer: " + label)) for label in (story.answer, *others))
        out.append(
            Sample(
                Task(task, None, "words"),
                f"{shots}-shot",
                length,
                number,
                seed,
                haystack_id,
                rope,
                (len(start), len(rope) - len(end)),
                tuple(spans[i] for i in story.support),
                len(rope) - len(end),
                story.question,
                (story.answer,),
                candidates,
            )
        )
    return out


def _context(story: Story, length: int, haystack: TokenisedHaystack, random: Random) -> Context:
    """The facts in order at random places of the haystack."""
    if not length:
        pieces: list[Tensor | list[int]] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for i, fact in enumerate(story.facts):
            pieces.append(haystack.encode(fact if not i else " " + fact))
            spans.append((at, at + len(pieces[-1])))
            at = spans[-1][1]
        return Context(pieces, spans)
    depths = sorted(random.random() for _ in story.facts)
    inserts = [Insert(*pair) for pair in zip(depths, story.facts, strict=True)]
    try:
        return haystack.fill(length, inserts, random.randrange(len(haystack)))
    except UserError:
        least = sum(len(haystack.encode(" " + fact)) for fact in story.facts)
        raise UserError(
            f"--lengths holds {length}, too short for the facts of a story, {least} tokens; give 0 for the facts alone"
        ) from None


def new_tokens(cell: Sequence[Sample]) -> int:
    """Length of the answers: 16 tokens, or more where a label has many, as in bytes."""
    return max(GENERATED, SPARE + max(len(ids) for sample in cell for ids in sample.candidates))


def score(sample: Sample, answer: Answer) -> dict[str, Any]:
    """BABILong's score of one answer, and the rank of the truth among the labels that the question does not name."""
    truth, *others = answer.log_likelihoods  # in the order of the labels, the answer's first
    possible = [x for open_to_it, x in zip(_possible(sample), others, strict=True) if open_to_it]
    rank = rank_of_first([truth, *possible])
    return _judge(sample, answer.text) | {"rank": rank, "answer_nll": -truth if math.isfinite(truth) else None}


def score_again(sample: Sample, row: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """What a row must say by its prompt and its prediction; of the rank, which only the model can say, the bounds."""
    judged = _judge(sample, row["pred"])
    return facts_of_line(sample, subject) | judged | {"rank": min(max(1, row["rank"]), judged["labels"])}


def _judge(sample: Sample, said: str) -> dict[str, Any]:
    right = correct(said, sample.answers[0], sample.key, TASKS[sample.task.name].labels)
    return {"question": sample.key, "correct": int(right), "labels": 1 + sum(_possible(sample))}


def _possible(sample: Sample) -> list[bool]:
    """Of every label but the answer, whether the question does not name it."""
    others = [label for label in TASKS[sample.task.name].labels if label != sample.answers[0]]
    return [label.lower() not in sample.key.lower() for label in others]


class Line(NamedTuple):
    """What one control says to one task and length.

    Args:
        task, length, ablation: which
        tokens: mean real length of the prompts
        accuracy: over all
        beyond: over prompts all of whose needed facts lie farther from the question than attention's reach
        likeliest: share of prompts where the truth is the likeliest label
        null: share of the most frequent answer, which is what naming it every time would score
        chance: mean of one by the number of labels, for `likeliest`
    """

    task: str
    length: int
    ablation: str
    tokens: float
    accuracy: Share
    beyond: Share
    likeliest: Share
    null: float
    chance: float


def summarise(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """A line for every task, length and control."""
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["nominal_len"], row["ablation"]), []).append(row)
    lines = []
    for name, own in sorted(groups.items(), key=lambda pair: pair[0][:2]):
        beyond = [row["correct"] for row in own if row["beyond_window"]]
        lines.append(
            Line(
                *name,
                sum(row["prompt_tokens"] for row in own) / len(own),
                wilson(sum(row["correct"] for row in own), len(own)),
                wilson(sum(beyond), len(beyond)),
                wilson(sum(row["rank"] == 1 for row in own), len(own)),
                max(Counter(row["answer"] for row in own).values()) / len(own),
                sum(1 / row["labels"] for row in own) / len(own),
            )
        )
    return lines
