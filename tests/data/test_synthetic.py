"""Synthetic tasks: right answers, disjoint parts, draws that repeat, stages that advance, bad input."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from neuralmem.data.batch import NO_LOSS, Batch, exact_answers
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.data.needles import DECOYS, Needles, find_keys
from neuralmem.data.sources import open_source
from neuralmem.data.synthetic import Curriculum, Longer, Recall, Stage
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer, Tokenizer, train_bpe

STAGES = [Stage(keys=8, length=100, facts=4, questions=4), Stage(length=256, facts=6, questions=8, gap=40)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe((d.text for d in open_source("builtin", side="validation").read()), 700, split_words=True)


@pytest.fixture(scope="module")
def keys(tokenizer: Tokenizer) -> list[str]:
    return find_keys((d.text for d in open_source("builtin", side="validation").read()), tokenizer, NeedleFormat())


def needles(tokenizer: Tokenizer, keys: list[str], **options: object) -> Needles:
    haystack = open_source("builtin", side="validation")
    options = {"stages": STAGES, "seed": 3, "batch_tokens": 2048} | options
    return Needles(tokenizer=tokenizer, haystack=haystack, keys=keys, **options)  # type: ignore[arg-type]


def facts(text: str) -> list[tuple[str, str]]:
    """All "@key=123" of a text in sequence; the last may stand behind an unfinished line."""
    return re.findall(r"@(\w+)=(\d{3})\n", text)


def equal(first: Batch, second: Batch) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def some(task: Curriculum, count: int) -> list[Batch]:
    return [batch for _, batch in zip(range(count), task, strict=False)]


@pytest.mark.parametrize("placing", ["scattered", "front"])
@pytest.mark.parametrize("stage", [0, 1])
def test_answers_in_text_are_right(tokenizer: Tokenizer, keys: list[str], placing: str, stage: int) -> None:
    task = needles(tokenizer, keys, placing=placing)
    task.stage = stage
    layout = STAGES[stage]
    batch = next(iter(task))
    assert batch.tokens.shape == (2048 // layout.length, layout.length)
    assert batch.groups is not None
    assert batch.answers is not None
    for row, targets, groups in zip(batch.tokens, batch.targets, batch.groups, strict=True):
        text = tokenizer.decode(row)
        found = facts(text)
        told, asked = found[: layout.facts], found[layout.facts :]
        assert len({key for key, _ in told}) == layout.facts
        assert len(asked) == layout.questions
        assert set(asked) <= set(told)
        assert set(told) == set(asked)  # at least as many questions as facts: all are asked
        for number, (_, value) in enumerate(asked):
            assert tokenizer.decode(targets[groups == number]) == value
        assert row.tolist() != sorted(row.tolist())
        assert tokenizer.encode(text) == row.tolist() or text.startswith((" ", "\n"))  # joined tokens are the text's
    assert torch.equal(batch.answers, batch.groups >= 0)
    assert bool((batch.targets[:, :-1] == batch.tokens[:, 1:])[batch.targets[:, :-1] != NO_LOSS].all())


def test_the_gap_is_kept(tokenizer: Tokenizer, keys: list[str]) -> None:
    for task in (
        needles(tokenizer, keys, stages=STAGES[1:]),
        needles(tokenizer, keys, stages=STAGES[1:], placing="front"),
    ):
        for row in torch.cat([batch.tokens for batch in some(task, 5)]):
            text = tokenizer.decode(row)
            found = list(re.finditer(r"@(\w+)=(\d{3})\n", text))
            assert len(tokenizer.encode(text[found[5].end() : found[6].start()])) >= 40


def test_weights(tokenizer: Tokenizer, keys: list[str]) -> None:
    batch = next(iter(needles(tokenizer, keys, text_weight=0.25)))
    assert batch.weights is not None
    answers = batch.weights[batch.answers].sum()
    assert answers == batch.answers.sum()  # type: ignore[union-attr]
    assert batch.weights.sum() - answers == pytest.approx(0.25 * answers.item(), rel=1e-4)
    assert bool((batch.weights[batch.targets == NO_LOSS] == 0).all())
    assert batch.weights[batch.weights > 0].numel() == (batch.targets != NO_LOSS).sum()


def test_held_out_pairs_keys_and_text(tokenizer: Tokenizer, keys: list[str]) -> None:
    def pairs(task: Needles) -> set[tuple[str, str]]:
        return {pair for batch in some(task, 10) for row in batch.tokens for pair in facts(tokenizer.decode(row))}

    form, stages = NeedleFormat(), STAGES[1:]
    train = pairs(needles(tokenizer, keys, stages=stages))
    held = pairs(needles(tokenizer, keys, stages=stages, part="validation"))
    new = pairs(needles(tokenizer, keys, stages=stages, part="validation", new_keys=True))
    assert min(len(train), len(held), len(new)) > 100
    assert not any(form.is_held_out(key, int(value)) for key, value in train)
    assert all(form.is_held_out(key, int(value)) for key, value in held | new)
    assert not any(form.is_key_held_out(key) for key, _ in train | held)
    assert all(form.is_key_held_out(key) for key, _ in new)
    documents = [{d.id for d in open_source("builtin", side=side).read()} for side in ("train", "validation")]
    assert not documents[0] & documents[1]


def test_bytes_and_other_formats() -> None:
    form = NeedleFormat(fact="\nThe number of {key} is: {value}.", digits=4, key_tokens=0)
    haystack = open_source("builtin", side="validation")
    task = Needles([Stage(length=400, facts=2, questions=2)], tokenizer=ByteTokenizer(), haystack=haystack, form=form)
    batch = next(iter(task))
    text = ByteTokenizer().decode(batch.tokens[0])
    values = [
        text[i + 4 : i + 8] for i in range(len(text)) if text.startswith(" is:", i) and text[i + 4 : i + 5] == " "
    ]
    assert batch.answers is not None
    answer = ByteTokenizer().decode(batch.targets[0][batch.answers[0]])
    assert [len(part) for part in answer.split()] == [4, 4]
    assert all(text.count(part + ".") >= 2 for part in answer.split())
    assert values


def test_questions_of_their_own_form() -> None:
    """RULER's needle and question: read as text, every question is answered by the value that its fact told."""
    form = NeedleFormat(
        fact="One of the special magic numbers for {key} is: {value}.\n",
        ask="What is the special magic number for {key}? The special magic number for {key} is",
        digits=7,
        key_tokens=0,
    )
    haystack = open_source("builtin", side="validation")
    stages = [Stage(length=800, facts=3, questions=3)]
    task = Needles(stages, tokenizer=ByteTokenizer(), haystack=haystack, form=form, batch_tokens=8000)
    batch = next(iter(task))
    assert batch.answers is not None
    for tokens, targets, answers in zip(batch.tokens, batch.targets, batch.answers, strict=True):
        text = ByteTokenizer().decode(tokens)
        told = dict(re.findall(r"One of the special magic numbers for (\w+) is: (\d{7})\.\n", text))
        asked = re.findall(
            r"What is the special magic number for (\w+)\? The special magic number for \1 is (\d{7})", text
        )
        assert len(told) == 3
        assert dict(asked) == told
        assert ByteTokenizer().decode(targets[answers]).split() == [value for _, value in asked]
        assert ByteTokenizer().decode(tokens[-2:]) == ".\n"


def test_rows_in_several_forms() -> None:
    """Each row is in one of the formats that its stage uses, whose keys are words or pairs of words."""
    tokenizer = ByteTokenizer()
    spoken = NeedleFormat("{key} is {value}.\n", ask="What is {key}? It is", digits=4, key_words=2, key_tokens=0)
    stages = [Stage(length=400, facts=3, questions=3, forms=1), Stage(length=400, facts=3, questions=3)]
    haystack = open_source(["noise", "builtin"], side="validation")
    form = NeedleFormat(key_tokens=0)
    task = Needles(stages, tokenizer=tokenizer, haystack=haystack, form=form, other_forms=[spoken], batch_tokens=8000)
    kinds = []
    for stage in (0, 1):
        task.stage = stage
        for tokens in next(iter(task)).tokens:
            text = tokenizer.decode(tokens)
            told, asked = (
                re.findall(rule, text)
                for rule in (r"(?m)^([A-Za-z]+-[A-Za-z]+) is (\d{4})\.$", r"What is (\S+)\? It is (\d{4})\.")
            )
            assert dict(asked) == dict(told)
            assert (len(told), len(facts(text))) in ((0, 6), (3, 0))
            kinds.append((stage, bool(told)))
    assert set(kinds) == {(0, False), (1, False), (1, True)}
    with pytest.raises(UserError, match=r"other_forms\[0\]\.key_words is 0; it must be at least 1"):
        Needles(stages, tokenizer=tokenizer, haystack=haystack, form=form, other_forms=[replace(spoken, key_words=0)])
    with pytest.raises(UserError, match=r"other_forms\[0\]\.fact is 'none'; it must hold"):
        Needles(stages, tokenizer=tokenizer, haystack=haystack, form=form, other_forms=[replace(spoken, fact="none")])


def test_the_latest_value_counts() -> None:
    tokenizer = ByteTokenizer()
    haystack = open_source("builtin", side="validation")
    stages = [Stage(length=256, facts=4, questions=4, updates=2)]
    form = NeedleFormat(key_tokens=0)
    task = Needles(stages, tokenizer=tokenizer, haystack=haystack, form=form, batch_tokens=4096)
    batch = next(iter(task))
    for tokens in batch.tokens:
        said = facts(tokenizer.decode(tokens))
        told, asked = said[:6], said[6:]
        assert len({key for key, _ in told}) == 4
        values = {key: [value for other, value in told if other == key] for key, _ in told}
        assert all(a != b for told in values.values() for a, b in pairwise(told))  # told again with another value
        assert dict(asked) == dict(told)  # of two facts the later one
    with pytest.raises(UserError, match=r"stages\[0\]\.updates is -1; it must be at least 0"):
        Needles([Stage(length=256, facts=4, updates=-1)], tokenizer=tokenizer, haystack=haystack, form=form)
    with pytest.raises(UserError, match="RecallData tells every key once"):
        Recall([Stage(length=64, facts=4, updates=1)])


def test_keys_that_end_alike() -> None:
    """As many as asked for where there are words, of those that a stage may use, none twice."""
    tokenizer, haystack = ByteTokenizer(), open_source("builtin", side="validation")
    stages = [Stage(keys=300, length=512, facts=8, questions=8)]

    def keys(alike: float, key_words: int = 1) -> list[list[str]]:
        form = NeedleFormat(key_tokens=0, key_words=key_words)
        task = Needles(stages, tokenizer=tokenizer, haystack=haystack, form=form, batch_tokens=65536, alike=alike)
        texts = [tokenizer.decode(row) for row in next(iter(task)).tokens]
        rows = [re.findall(r"@([A-Za-z-]+)=\d{3}\n", text)[:8] for text in texts]
        pool = set(task.keys[:300])
        assert all(len(set(row)) == 8 for row in rows)
        assert all(set(key.split("-")) <= pool and len(key.split("-")) == key_words for row in rows for key in row)
        assert all(len({word for key in row for word in key.split("-")}) == 8 * key_words for row in rows)
        return rows

    def endings(rows: list[list[str]]) -> float:
        """Different ones, on the mean over rows."""
        return float(np.mean([len({key[-2:].lower() for key in row}) for row in rows]))

    none, half, all_of_them = (endings(keys(alike)) for alike in (0.0, 0.5, 1.0))
    assert none - 0.5 > half > all_of_them + 0.5
    assert all_of_them > 1  # where no word is left that ends so, a key stays
    assert endings(keys(0.0, key_words=2)) - 0.5 > endings(keys(0.5, key_words=2))


def test_decoys_are_lines_of_the_text_that_nothing_asks_for() -> None:
    tokenizer = ByteTokenizer()
    haystack, stages = open_source("builtin", side="validation"), [Stage(length=1024, facts=4, questions=4)]
    like = [re.escape(line).replace(r"\{word\}", r"\w{3,12}").replace(r"\{number\}", r"\d{1,8}") for line in DECOYS]
    decoy = re.compile(f"^(?:{'|'.join(like)})".replace("\\\n", "\n"), re.MULTILINE)

    def drawn(decoys: float) -> Batch:
        form = NeedleFormat(key_tokens=0)
        options = {"batch_tokens": 65536, "text_weight": 0.2, "decoys": decoys}
        return next(iter(Needles(stages, tokenizer=tokenizer, haystack=haystack, form=form, **options)))  # type: ignore[arg-type]

    alike = NeedleFormat("{key} is {value}.\n", key_tokens=0)
    few = Needles(stages, tokenizer=tokenizer, haystack=haystack, form=alike, keys=list("abcdef"), decoys=50.0)
    for tokens in next(iter(few)).tokens:
        said = re.findall(r"^([a-f]) is (\d+)\.$", tokenizer.decode(tokens), re.MULTILINE)
        values = {key: {value for other, value in said if other == key} for key, _ in said}
        assert sum(len(some) == 1 for some in values.values()) >= 4  # no decoy tells a key of the row another value

    batch, counts = drawn(5.0), []
    for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
        text = tokenizer.decode(tokens)
        told = dict(facts(text)[:4])
        assert len(told) == 4
        assert facts(text)[4:] == [(key, told[key]) for key, _ in facts(text)[4:]]
        found = [match.span() for match in decoy.finditer(text) if text[match.start() - 1] == "\n"]
        if len(text.encode()) == len(text):
            counts.append(len(found))
            assert all((targets[start - 1 : stop - 1] == NO_LOSS).all() for start, stop in found if start)
    assert 3.5 < np.mean(counts) < 6.5
    plain = [len(decoy.findall(tokenizer.decode(row))) for row in drawn(0.0).tokens]
    assert np.mean(plain) < 0.5
    full = drawn(100.0)  # more than there is room for: half of the text at most
    assert all(len(facts(tokenizer.decode(row))) == 8 for row in full.tokens)


def recall(**options: object) -> Recall:
    stages = [Stage(keys=8, length=40, facts=4, questions=4, gap=16), Stage(length=128, facts=8, questions=12, gap=64)]
    return Recall(**({"stages": stages, "batch_tokens": 2048, "seed": 1} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("stage", [0, 1])
def test_recall(scattered: bool, stage: int) -> None:
    task = recall(scattered=scattered)
    task.stage = stage
    layout, batch = task.stages[stage], next(iter(task))
    for row, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        at = [i for i, target in enumerate(targets) if target != NO_LOSS]
        places = [i for i, token in enumerate(row[: at[0]]) if token < 64]
        told = {row[i]: row[i + 1] for i in places}
        assert len(places) == len(told) == layout.facts
        assert len(at) == layout.questions
        assert all(targets[i] == told[row[i]] == row[i + 1] for i in at)
        assert at[0] - places[-1] - 2 >= layout.gap
        assert max(row) < task.vocab_size == 144
        assert not scattered or places != list(range(places[0], places[0] + 2 * len(places), 2)) or len(places) < 6
    assert exact_answers(batch, batch.targets).all()
    assert len(exact_answers(batch, batch.targets)) == len(batch.tokens) * layout.questions
    assert not exact_answers(batch, batch.targets + 1).any()


def test_recall_holds_pairs_out() -> None:
    shares = []
    for part in ("train", "validation"):
        task = recall(part=part)
        task.stage = 1
        for batch in some(task, 5):
            keys, values = batch.tokens[batch.answers].numpy(), batch.targets[batch.answers].numpy() - 64
            assert (task.is_held_out(keys, values) == (part == "validation")).all()
        grid = np.meshgrid(np.arange(64), np.arange(64))
        shares.append(task.is_held_out(*grid).mean())
    assert shares[0] == shares[1]
    assert 0.2 < shares[0] < 0.3


def test_draws_repeat_and_differ(tokenizer: Tokenizer, keys: list[str]) -> None:
    for make in (recall, lambda **options: needles(tokenizer, keys, **options)):
        first = some(make(), 3)
        assert all(equal(a, b) for a, b in zip(first, some(make(), 3), strict=True))
        for other in (make(seed=9), make(shard=(1, 2)), make(part="validation")):
            assert not any(equal(a, b) for a, b in zip(first, some(other, 3), strict=True))
        limited = make(batches=2)
        assert len(limited) == len(list(limited)) == len(list(limited)) == 2
        assert len(make()) == 10**12


def test_resume_and_stages() -> None:
    task = recall()
    iterator = iter(task)
    next(iterator)
    assert task.advance()
    assert next(iterator).tokens.shape[1] == 128
    state = task.state_dict()
    assert not task.advance()
    expected = [next(iterator) for _ in range(3)]
    again = recall()
    with pytest.raises(UserError, match=r"^data.seed has changed since the checkpoint was saved: it was 1, it is 9; "):
        recall(seed=9).load_state_dict(state)
    again.load_state_dict(state)
    assert again.stage == 1
    assert all(equal(a, b) for a, b in zip(expected, some(again, 3), strict=True))


def test_mixed_lengths() -> None:
    task = recall(stages=[Stage(length=64, facts=2, questions=2, longer=[Longer(256, 0.5, 4, 8)])])
    shapes = [tuple(batch.tokens.shape) for batch in some(task, 40)]
    assert set(shapes) == {(32, 64), (8, 256)}
    assert 8 < shapes.count((8, 256)) < 32


def test_bad_input(tokenizer: Tokenizer, keys: list[str]) -> None:
    for call, message in [
        (lambda: recall(stages=[]), r"stages is \[\]"),
        (lambda: recall(part="test"), "part is 'test'"),
        (
            lambda: recall(stages=[Stage(length=20)]),
            r"stages\[0\].length is 20; it must be at least 24",
        ),
        (lambda: recall(stages=[Stage(facts=0)]), r"stages\[0\].facts is 0; it must be at least 1"),
        (lambda: recall(stages=[Stage(keys=4)]), r"stages\[0\].facts is 6; only 4 distinct keys"),
        (lambda: recall(stages=[Stage(longer=[Longer(99, 0.9, 1, 1)] * 2)]), "shares that add up to more than 1"),
        (lambda: recall(held_out=0.0), "held_out is 0.0"),
        (lambda: setattr(recall(), "stage", 2), "stage is 2; it must be 0 to 1"),
        (lambda: needles(tokenizer, keys, stages=[Stage(length=50)]), r"stages\[0\].length is 50"),
        (lambda: needles(tokenizer, keys, stages=[Stage(length=10**7)]), "the tokens of the haystack"),
        (
            lambda: needles(tokenizer, keys, form=NeedleFormat(fact="{key}")),
            "it must hold {key} and, behind it, {value}",
        ),
        (lambda: needles(tokenizer, keys, decoys=-1.0), "decoys is -1.0; it must be between 0 and 100"),
        (lambda: needles(tokenizer, keys, alike=1.5), "alike is 1.5; it must be between 0 and 1"),
        (lambda: needles(tokenizer, keys, placing="behind"), "placing is 'behind'"),
        (
            lambda: find_keys(["few words"], tokenizer, NeedleFormat()),
            "form.key_tokens is 1; only 0 words of 3 to 12 letters stand in the text 20 times and",
        ),
        (lambda: find_keys(["few words"], tokenizer, NeedleFormat(key_tokens=0)), "too little text: only 0 words"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
    joined = train_bpe(["1234567890 " * 50 + "=1" * 9], 300, split_digits=False)
    with pytest.raises(UserError, match="use a tokenizer that splits digits"):
        needles(joined, ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"] * 3)
