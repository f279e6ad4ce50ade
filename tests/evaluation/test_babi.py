"""Small worlds: answers against an independent reader of the sentences, prompts, score, and models known beforehand."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.evaluation.asking import IDENTITY, ask_missing
from neuralmem.evaluation.babi import correct, new_tokens, prompt, samples, score, summarise, tokenise
from neuralmem.evaluation.babi_worlds import PLACES, TASKS, Story
from neuralmem.evaluation.haystack import Haystack, open_haystack
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.rows import Subject
from neuralmem.evaluation.sample import Sample
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.babi_reader import answer, sentences
from tests.evaluation.fake import Oracle

BYTES = ByteTokenizer()
BY_HAND = [  # sentences, question, answer
    ("Mary went to the office. John moved to the garden. Mary journeyed to the kitchen.", "Where is Mary?", "kitchen"),
    ("Mary went to the office. Mary took the milk there. Mary moved to the hallway.", "Where is the milk?", "hallway"),
    (
        "Mary went to the office. Mary took the milk. Mary left the milk. Mary moved to the hallway.",
        "Where is the milk?",
        "office",
    ),
    (
        "John went to the office. John got the apple. John went back to the garden. John travelled to the kitchen.",
        "Where was the apple before the kitchen?",
        "garden",
    ),
    (
        "The office is north of the kitchen. The garden is south of the kitchen.",
        "What is north of the kitchen?",
        "office",
    ),
    (
        "The hallway is south of the kitchen. The bedroom is east of the kitchen.",
        "What is the kitchen west of?",
        "bedroom",
    ),
    ("Fred took the milk. Fred handed the milk to Bill.", "Who received the milk?", "Bill"),
    ("Fred took the milk. Fred handed the milk to Bill.", "What did Fred give to Bill?", "milk"),
]


@pytest.mark.parametrize(("facts", "question", "expected"), BY_HAND)
def test_the_reader_reads_what_people_would(facts: str, question: str, expected: str) -> None:
    assert answer(sentences(facts), question) == expected


@pytest.mark.parametrize("task", TASKS)
def test_answers_follow_from_the_sentences(task: str) -> None:
    stories = [TASKS[task].make(Random(f"test/{i}")) for i in range(300)]
    for story in stories:
        assert answer(story.facts, story.question) == story.answer, story
        needed = [story.facts[i] for i in story.support]
        assert answer(needed, story.question) == story.answer, story
        assert story.answer in TASKS[task].labels
        assert story.answer.lower() not in story.question.lower()
    assert {len(story.support) for story in stories} == {"qa2": {2}, "qa3": {3}}.get(task, {1})
    counts = Counter(story.answer for story in stories)
    assert counts.keys() == set(TASKS[task].labels)
    assert max(counts.values()) < 300 * 0.3, "no answer is much more frequent than the others"


@pytest.mark.parametrize(("task", "least"), [("qa1", 100), ("qa2", 80), ("qa3", 90), ("qa4", 100), ("qa5", 90)])
def test_the_needed_sentences_are_needed(task: str, least: int) -> None:
    changed = 0
    for i in range(100):
        story = TASKS[task].make(Random(f"test/{i}"))
        rest = [fact for n, fact in enumerate(story.facts) if n not in story.support]
        try:
            changed += answer(rest, story.question) != story.answer
        except AssertionError:  # several answers
            changed += 1
    assert changed >= least


PROMPT = """\
Facts about the places of persons are hidden in a text, and a question follows. Answer it from the facts alone. \
The latest fact about a person counts.

<example>
Mary went to the office. John moved to the garden. Where is John?
Answer: garden
</example>

<example>
John went to the office. Where is John?
Answer: office
</example>

Answer with one word and write nothing else.

<context>
It rained. Mary took to the road.
</context>

Question: Where is Mary?"""


def test_the_prompt_has_the_published_frame() -> None:
    shown = [
        Story(("Mary went to the office.", "John moved to the garden."), "Where is John?", "garden", (1,)),
        Story(("John went to the office.",), "Where is John?", "office", (0,)),
    ]
    assert prompt("qa1", shown, "It rained. Mary took to the road.", "Where is Mary?") == PROMPT


SAID = [  # what was said, answer, question, correct
    ("kitchen", "kitchen", "Where is Mary?", True),
    ("\nAnswer: The most recent location of Mary is Kitchen.", "kitchen", "Where is Mary?", True),
    ("the office", "kitchen", "Where is Mary?", False),
    ("the kitchen or the office", "kitchen", "Where is Mary?", False),
    ("the kitchen. the office", "kitchen", "Where is Mary?", True),
    ("the office. the kitchen", "kitchen", "Where is Mary?", False),
    ("kitchen\n<example>\nMary went to the office", "kitchen", "Where is Mary?", True),
    ("kitchen\n<context>\noffice", "kitchen", "Where is Mary?", True),
    ("before the office it was in the kitchen", "kitchen", "Where was the milk before the office?", True),
    ("office", "kitchen", "Where was the milk before the office?", False),
    ("", "kitchen", "Where is Mary?", False),
    ("kitchen, office", "office,kitchen", "Where is Mary?", True),
    ("kitchen", "office,kitchen", "Where is Mary?", False),
]


@pytest.mark.parametrize(("said", "truth", "question", "expected"), SAID)
def test_score(said: str, truth: str, question: str, expected: bool) -> None:
    assert correct(said, truth, question, PLACES) is expected


def test_the_published_score_cuts_at_question_in_vain_and_this_one_does_not() -> None:
    said = "kitchen\nQuestion: Is John in the office?"
    assert "Question" not in said.lower(), "so that split('Question') after lower() never cuts"
    assert correct(said, "kitchen", "Where is Mary?", PLACES)


@pytest.fixture(scope="module")
def haystack() -> Haystack:
    return open_haystack("grammar", 60_000)


def decoded(sample: Sample) -> str:
    return bytes(sample.rope.slice(0, len(sample.rope)).tolist()).decode()


@pytest.mark.parametrize("length", [0, 3000])
def test_facts_stand_in_order_between_sentences(haystack: Haystack, length: int) -> None:
    text = tokenise(haystack, BYTES.encode, 50_000)
    for sample in samples("qa2", length, 6, text, haystack.id, seed=1):
        story = TASKS["qa2"].make(Random(f"babi/1/qa2/{sample.number}"))
        whole = decoded(sample)
        context = whole.encode()[slice(*sample.context)].decode()
        assert whole.endswith(f"<context>\n{context}\n</context>\n\nQuestion: {story.question}")
        assert tuple(sentences(context)) == story.facts
        assert story.facts[story.support[0]] in whole.encode()[slice(*sample.needles[0])].decode()
        assert whole.count("<example>") == 2
        if length:
            assert len(context.encode()) == length
            for unit in re.split(r"(?<=\.) ", context)[1:-1]:
                assert unit in story.facts or unit in haystack.sentences
        else:
            assert context == " ".join(story.facts)


def test_the_same_worlds_at_every_length(haystack: Haystack) -> None:
    text = tokenise(haystack, BYTES.encode, 50_000)
    short, long = (samples("qa1", n, 4, text, haystack.id, 7) for n in (0, 2000))
    assert [s.key for s in short] == [s.key for s in long]
    assert [s.answers[0] for s in short] == [s.answers[0] for s in long]
    again = samples("qa1", 2000, 4, text, haystack.id, 7)
    assert [s.rope.sha256() for s in again] == [s.rope.sha256() for s in long]


def test_a_length_that_cannot_hold_the_facts_is_refused(haystack: Haystack) -> None:
    text = tokenise(haystack, BYTES.encode, 50_000)
    with pytest.raises(UserError, match=r"^--lengths holds 20, too short for the facts of a story, \d+ tokens; give 0"):
        samples("qa3", 20, 3, text, haystack.id, 0)


class Logician(Oracle):
    """Answers by reading what it still knows of the context; asked of what it does not know, it says "hallway"."""

    def predict(self, text: bytes, memory: str) -> torch.Tensor:
        logits = torch.zeros(self.tokenizer.vocab_size)
        logits[ord("\n")] = 4.0
        asked = re.search(rb"\n\nQuestion: ([^\n]*\?)(?P<said>[^?]*)$", text[-120:])
        if asked:
            known = (text if memory == "on" else text[-self.reach - 1 :]).decode()
            facts = sentences(known.rpartition("<context>")[2].partition("</context>")[0])
            try:
                reply = answer(facts, asked[1].decode()) or "hallway"
            except AssertionError:
                reply = "hallway"
            says = f"\nAnswer: {reply}".encode()
            if says.startswith(asked["said"]) and len(asked["said"]) < len(says):
                logits[says[len(asked["said"])]] = 8.0
        return logits


def test_a_model_that_remembers_is_right_and_its_controls_are_not(haystack: Haystack, tmp_path: Path) -> None:
    model = Logician(reach=400)
    subject = Subject(model.reach, BYTES.fingerprint, "c" * 64, 32, 32, "float32", "cpu")
    text = tokenise(haystack, BYTES.encode, 50_000)
    cell = samples("qa2", 2500, 8, text, haystack.id, 3)
    assert new_tokens(cell) == len("\nAnswer: bathroom") + 4

    def ask() -> list[dict]:
        journal = Journal(tmp_path / "babi.jsonl", IDENTITY)
        reader = Reader(model, BYTES, 512)
        return ask_missing(cell, ("none", "off", "reset"), reader, subject, journal, score, new_tokens(cell), 4)

    rows = ask()
    lines = {line.ablation: line for line in summarise(rows)}
    assert (lines["none"].accuracy.hits, lines["none"].likeliest.hits) == (8, 8)
    assert lines["none"].beyond.n == sum(sample.beyond(400) for sample in cell) >= 4
    assert all(len(sample.needles) == 2 for sample in cell)  # both facts that qa2 needs must be beyond reach
    assert lines["off"].beyond.share < 0.7
    guessed = sum(sample.answers[0] == "hallway" for sample in cell)
    assert lines["reset"].accuracy.hits == guessed, "without a context it can only guess"
    most = max(Counter(sample.answers[0] for sample in cell).values())
    assert lines["none"].null == most / 8
    assert lines["none"].chance == 1 / 6
    calls = len(model.reads)
    assert ask() == rows
    assert len(model.reads) == calls


def test_a_full_state_of_another_world_is_no_better_than_guessing(haystack: Haystack, tmp_path: Path) -> None:
    """With batches of 4 the fifth prompt stands alone, and is given another of its cell."""
    model = Logician(reach=400)
    subject = Subject(model.reach, BYTES.fingerprint, "c" * 64, 32, 32, "float32", "cpu")
    cell = samples("qa1", 2500, 5, tokenise(haystack, BYTES.encode, 50_000), haystack.id, 3)
    journal, reader = Journal(tmp_path / "babi.jsonl", IDENTITY), Reader(model, BYTES, 512)
    rows = ask_missing(cell, ("none", "shuffled"), reader, subject, journal, score, new_tokens(cell), 4)
    found = {name: [row for row in rows if row["ablation"] == name] for name in ("none", "shuffled")}
    assert all(row["correct"] and row["partner"] is None for row in found["none"])
    for row in found["shuffled"]:
        assert row["partner"] not in (None, row["sample_id"])
    assert sum(row["correct"] for row in found["shuffled"]) < 3
    with pytest.raises(UserError, match="--samples is 1; shuffled asks the state after another text"):
        ask_missing(cell[:1], ("shuffled",), reader, subject, journal, score, new_tokens(cell), 4)
