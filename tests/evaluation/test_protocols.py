"""How long prompts are, where needles stand, and that the same seed gives the same prompts."""

from pathlib import Path
from random import Random

import pytest
import torch

from neuralmem.data.corpus import fixed_slice
from neuralmem.errors import UserError
from neuralmem.evaluation import protocols
from neuralmem.evaluation.cell import Build, Cell
from neuralmem.evaluation.contexts import Insert, TokenisedHaystack
from neuralmem.evaluation.haystack import Haystack, open_haystack, split_sentences
from neuralmem.evaluation.prompts import GENERATED, NOISE, Task, find_task
from neuralmem.evaluation.protocols import GRID, exact, ruler
from neuralmem.evaluation.sample import Sample
from neuralmem.tokenizer import ByteTokenizer, train_bpe

BYTES = ByteTokenizer()


def cell(
    task: str = "s-niah-n", protocol: str = "exact", length: int = 2048, haystack: str = "grammar", seed: int = 1
) -> Cell:
    return Cell(find_task(task), protocol, length, open_haystack(haystack, 60_000), seed, BYTES.encode)


def builder(c: Cell) -> Build:
    if c.protocol != "exact":
        return ruler(c)
    separator = "\n" if c.haystack.is_noise else " "
    return exact(c, TokenisedHaystack.of_units(c.haystack.sentences, separator, c.encode, 1 << 16))


def text(sample: Sample) -> str:
    return BYTES.decode(sample.rope.slice(0, len(sample.rope)))


def span(sample: Sample, part: tuple[int, int]) -> str:
    return BYTES.decode(sample.rope.slice(*part))


@pytest.mark.parametrize("task", ["s-niah-pk", "s-niah-n", "s-niah-w", "s-niah-w-words"])
@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0, None])
def test_exact_is_exact_and_spans_are_right(task: str, depth: float | None) -> None:
    c = cell(task, length=1500, haystack="noise" if task == "s-niah-pk" else "grammar")
    sample = builder(c)(0, depth, c.random(0))
    assert len(sample.rope) == 1500
    needle = f"One of the special magic {sample.task.kind} for {sample.key} is: {sample.answers[0]}."
    assert span(sample, sample.needles[0]).strip() == needle
    assert text(sample).count(sample.answers[0]) == 1 or sample.task.kind == "words"
    assert text(sample)[sample.question :].startswith(f"\nWhat is the special magic {sample.task.kind[:-1]} for")
    assert "  " not in text(sample) or depth == 1.0, "where the haystack is cut, the cut may come after a space"
    assert text(sample)[: sample.context[0]].endswith("afterwards.\n")
    assert text(sample)[sample.context[0]] not in " \n"


def test_depth_is_where_the_needle_begins() -> None:
    c = cell(length=8192)
    build = builder(c)
    for number, depth in enumerate([0.0, 0.25, 0.5, 0.75, 1.0]):
        sample = build(number, depth, c.random(number))
        context = sample.context[1] - sample.context[0]
        wanted = depth * (context - (sample.needles[0][1] - sample.needles[0][0]))
        assert abs(sample.needles[0][0] - sample.context[0] - wanted) < 130, "half a sentence"
        assert sample.depth == pytest.approx(100 * (sample.needles[0][0] - sample.context[0]) / context)
        assert sample.distance == 8192 - sample.needles[0][1]


def test_needle_stands_between_sentences() -> None:
    c = cell(length=4096)
    sample = builder(c)(0, 0.5, c.random(0))
    assert text(sample)[: sample.needles[0][0]].endswith(".")
    assert text(sample)[sample.needles[0][1] :].startswith(" ")


@pytest.mark.parametrize("haystack", ["noise", "grammar"])
@pytest.mark.parametrize("protocol", ["ruler2024", "ruler2025", "lm-eval"])
@pytest.mark.parametrize("length", [1024, 4096])
def test_ruler_leaves_room_for_the_answer_and_is_largest(haystack: str, protocol: str, length: int) -> None:
    c = cell("s-niah-pk" if haystack == "noise" else "s-niah-n", protocol, 4 * length, haystack)
    build = builder(c)
    samples = [build(i, None, c.random(i)) for i in range(8)]
    prefix = 0 if protocol != "lm-eval" else len(" The special magic number for mentioned in the provided text is") + 40
    tokens = [len(s.rope) for s in samples]
    assert max(tokens) <= 4 * length - GENERATED + prefix
    step = {"noise": 5 if length < 1024 else 25, "grammar": 500}[haystack] if protocol != "ruler2025" else 1
    unit = len(NOISE) + 1 if haystack == "noise" else 9
    # A sample whose key is longer than that of the measuring prompt gives one step back.
    assert max(tokens) > 4 * length - GENERATED - 2 * step * unit - 60


def test_rules_differ_as_published() -> None:
    """The coarse rule leaves up to a step unused, the binary one hardly anything (evaluation.md, finding 1)."""
    sizes = {}
    for protocol in ("ruler2024", "ruler2025"):
        c = cell(protocol=protocol, length=8000)
        sizes[protocol] = len(builder(c)(0, None, c.random(0)).rope)
    assert sizes["ruler2025"] > 8000 - GENERATED - 60
    assert sizes["ruler2024"] < sizes["ruler2025"] - 500


def test_ruler2024_clamps_a_haystack_that_ends_and_ruler2025_repeats_it(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("It is a short text. It ends soon. " * 40)
    lengths = {}
    for protocol in ("ruler2024", "ruler2025"):
        c = cell(protocol=protocol, length=8192, haystack=f"file:{path}")
        lengths[protocol] = len(builder(c)(0, None, c.random(0)).rope)
    assert lengths["ruler2024"] < 2000
    assert lengths["ruler2025"] > 7900


def test_ruler_noise_positions_are_lines() -> None:
    c = cell("s-niah-pk", "ruler2024", 4096, "noise")
    build = builder(c)
    lines = set()
    for i in range(12):
        sample = build(i, None, c.random(i))
        context = span(sample, sample.context).split("\n")
        lines.add(next(n for n, line in enumerate(context) if line != NOISE))
        assert sum(line == NOISE for line in context) == len(context) - 1
        assert span(sample, sample.needles[0]).strip().startswith("One of the special")
    assert len(lines) > 6


def test_ruler_text_depths_come_from_the_grid() -> None:
    assert GRID[:4] == [0, 3, 5, 8]
    assert len(set(GRID)) == 40
    c = cell("s-niah-w", "ruler2025", 4096)
    sample = builder(c)(0, None, c.random(0))
    before = span(sample, (sample.context[0], sample.needles[0][0]))
    sentences = len(split_sentences(span(sample, sample.context).replace(span(sample, sample.needles[0]), "", 1)))
    index = len(split_sentences(before)) if before.strip() else 0
    assert index in {int(sentences * g / 100) for g in GRID}


def test_same_seed_same_prompts_in_any_order() -> None:
    c = cell(length=1024)
    build = builder(c)
    forward = [build(i, 0.5, c.random(i)).rope.sha256() for i in range(4)]
    backward = [build(i, 0.5, c.random(i)).rope.sha256() for i in reversed(range(4))]
    assert forward == backward[::-1]
    assert len(set(forward)) == 4
    other = cell(length=1024, seed=2)
    assert builder(other)(0, 0.5, other.random(0)).rope.sha256() != forward[0]


@pytest.mark.parametrize("protocol", ["exact", "ruler2024", "ruler2025", "lm-eval"])
def test_length_smaller_than_the_needle(protocol: str) -> None:
    c = cell(protocol=protocol, length=300)
    with pytest.raises(UserError, match=r"--lengths holds 300; it must be at least about \d+ tokens"):
        builder(c)(0, 0.5, c.random(0))


def test_exact_length_with_merges() -> None:
    tokenizer = train_bpe([open_haystack("grammar", 20_000).text], 400)
    c = Cell(find_task("s-niah-n"), "exact", 700, open_haystack("grammar", 60_000), 3, tokenizer.encode)
    sample = builder(c)(0, 0.4, c.random(0))
    assert len(sample.rope) == 700
    assert tokenizer.decode(sample.rope.slice(*sample.needles[0])).strip().endswith(f"is: {sample.answers[0]}.")


@pytest.mark.parametrize("seed", range(30))
def test_fill_never_loses_a_token(seed: int) -> None:
    """Without its inserts, a context is the haystack from a unit on, round and round."""
    random = Random(seed)
    units = ["".join(random.choice("abcde") for _ in range(random.randint(1, 9))) for _ in range(random.randint(1, 6))]
    hay = TokenisedHaystack.of_units(units, " ", lambda s: list(s.encode()), 10_000)
    inserts = [Insert(random.choice([0.0, random.random(), 1.0]), "X" * random.randint(1, 4)) for _ in range(3)]
    first, length = random.randrange(len(units)), random.randint(20, 90)
    context = hay.fill(length, inserts, first)
    filled = b"".join(bytes(torch.as_tensor(p).tolist()) for p in context.pieces).decode()
    assert len(filled) == length
    for (a, b), insert in zip(context.spans, inserts, strict=True):
        assert filled[a:b].strip() == insert.text
    bare = "".join(c for i, c in enumerate(filled) if not any(a <= i < b for a, b in context.spans))
    around = " " + " ".join((units * 200)[first : first + 100])
    assert around.startswith(bare) or around[1:].startswith(bare)


def test_sample_knows_what_is_beyond() -> None:
    c = cell(length=1024)
    sample = builder(c)(0, 0.0, c.random(0))
    assert sample.beyond(sample.distance - 1)
    assert not sample.beyond(sample.distance)


def test_unknown_haystack_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--haystack is 'bultin'.*did you mean 'builtin'"):
        open_haystack("bultin", 100)
    with pytest.raises(UserError, match="which is no file"):
        open_haystack(f"file:{tmp_path / 'none.txt'}", 100)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match="holds no text"):
        open_haystack(f"file:{tmp_path / 'empty.txt'}", 100)


def test_tasks_are_rulers() -> None:
    assert find_task("s-niah-pk") == Task("s-niah-pk", "niah_single_1", "numbers", "noise")
    assert find_task("niah_single_2").name == "s-niah-n"


# Bytes of the first three prompts. The shorter lengths of the two older rules are such that a prompt with one step more
# of haystack would fit if the answer, which they count, were left out. RULER's steps of 500 words are steps of 3,000
# bytes: at 3.5k, text shrinks to one word.
SIZES = {
    ("exact", "noise", 2048): [2048, 2048, 2048],
    ("exact", "noise", 8192): [8192, 8192, 8192],
    ("exact", "text", 2048): [2048, 2048, 2048],
    ("exact", "text", 8192): [8192, 8192, 8192],
    ("ruler2024", "noise", 2288): [1704, 1692, 1692],
    ("ruler2024", "noise", 8192): [7116, 7098, 7098],
    ("ruler2024", "text", 3580): [384, 375, 372],
    ("ruler2024", "text", 8192): [6859, 6868, 6865],
    ("ruler2025", "noise", 2048): [1881, 1884, 1884],
    ("ruler2025", "noise", 8192): [8013, 8031, 8010],
    ("ruler2025", "text", 2048): [357, 357, 366],
    ("ruler2025", "text", 8192): [8042, 8051, 8045],
    ("lm-eval", "noise", 2212): [1701, 1704, 1707],
    ("lm-eval", "noise", 8192): [7101, 7110, 7110],
    ("lm-eval", "text", 3514): [363, 354, 363],
    ("lm-eval", "text", 8192): [6865, 6866, 6856],
}


@pytest.mark.parametrize(("protocol", "haystack", "length"), SIZES)
def test_golden_lengths(protocol: str, haystack: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "sentence_splitter", lambda: ("own-sentences", split_sentences))
    hay = Haystack("noise") if haystack == "noise" else Haystack("fixed", fixed_slice())
    c = Cell(find_task("s-niah-n"), protocol, length, hay, 42, BYTES.encode)
    build = builder(c)
    assert [len(build(i, None, c.random(i)).rope) for i in range(3)] == SIZES[protocol, haystack, length]
