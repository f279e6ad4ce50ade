"""What memories of text keep, find and weigh, against numbers worked out by hand."""

import random
from collections.abc import Sequence

import pytest
import torch

from neuralmem.evaluation.baselines.bm25 import Search
from neuralmem.evaluation.baselines.key_value import KeyValue
from neuralmem.evaluation.baselines.recency import Recency
from neuralmem.evaluation.bm25 import bm25
from neuralmem.evaluation.grammar import sentences
from neuralmem.evaluation.passages import Splitter
from neuralmem.evaluation.text_memory import PassageMemory, Question, TextState
from neuralmem.tokenizer import ByteTokenizer, Tokenizer, train_bpe

BYTES = ByteTokenizer()
NEEDLE = " One of the special magic numbers for ad-hoc-zebra is: 7405831."


@pytest.fixture(scope="module")
def text() -> str:
    """Lines of one to six sentences, with empty lines, a very long word and letters of several bytes."""
    rng, lines, source = random.Random(3), [], sentences(3)
    for _ in range(40):
        lines.append(" ".join(sentence for _, sentence in zip(range(rng.randint(1, 6)), source, strict=False)))
    lines[3], lines[7], lines[9] = "", "x" * 300, "é" * 60 + " naïve. Ünlaut!"
    return "\n".join(lines) + "\nand the rest"


@pytest.fixture(scope="module")
def bpe(text: str) -> Tokenizer:
    return train_bpe([text], 400)


def ids(text: str, tokenizer: Tokenizer = BYTES) -> torch.Tensor:
    return torch.tensor(tokenizer.encode(text), dtype=torch.int32)


def read(memory: PassageMemory, *lines: str) -> TextState:
    """The state after these texts, written one by one."""
    state = memory.init_state(1)
    for line in lines:
        state = memory.write([ids(line)], state)
    return state


def kept(state: TextState, row: int = 0) -> list[str]:
    return [BYTES.decode(p.ids) for p in state.rows[row].passages]


def ask(memory: PassageMemory, state: TextState, question: str, key: str = "", room: int = 1000) -> str:
    texts, _ = memory.read([Question(ids(question), key)], [room], state)
    return "".join(BYTES.decode(piece) for piece in texts[0])


def test_bm25_is_what_one_computes_by_hand() -> None:
    texts: list[dict[str, int]] = [{"a": 1, "b": 1}, {"a": 2, "c": 1}, {"d": 1}]  # mean length 2
    # idf(a) = ln(1 + 1.5 / 2.5); lengths 2 and 3 give norms 1.2 and 1.65
    assert bm25(["a"], texts) == pytest.approx([0.4700036, 0.5665797, 0.0], abs=1e-6)
    # idf(d) = ln(1 + 2.5 / 1.5), norm 0.75, and the word is asked for twice
    assert bm25(["d", "d", "nowhere"], texts) == pytest.approx([0.0, 0.0, 2.4660851], abs=1e-6)
    assert bm25(["a"], texts, k1=2.0, b=0.0) == pytest.approx([0.4700036, 0.7050054, 0.0], abs=1e-6)
    assert bm25(["x"], texts) == [0.0] * 3
    assert bm25(["x"], []) == []


@pytest.mark.parametrize("unit", ["line", "chunk"])
@pytest.mark.parametrize("size", [7, 64])
@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_passages_do_not_depend_on_how_the_text_arrives(
    name: str, size: int, unit: str, text: str, bpe: Tokenizer
) -> None:
    tokenizer = BYTES if name == "bytes" else bpe
    splitter, whole, rng = Splitter(tokenizer, size, unit), ids(text, tokenizer), random.Random(size)
    passages, rest = splitter.split(whole)
    assert torch.equal(torch.cat([*passages, rest]), whole)
    assert max(map(len, passages)) <= size
    for _ in range(3):
        found, left = [], whole[:0]
        for piece in whole.split([1] * 50 + cuts(len(whole) - 50, rng)):
            some, left = splitter.split(torch.cat([left, piece]))
            found += some
        assert [p.tolist() for p in found] == [p.tolist() for p in passages]
        assert torch.equal(left, rest)


def cuts(total: int, rng: random.Random) -> list[int]:
    sizes: list[int] = []
    while (left := total - sum(sizes)) > 0:
        sizes.append(min(left, rng.randint(1, 200)))
    return sizes


def test_where_text_is_cut() -> None:
    def split(text: str, size: int, unit: str) -> list[str]:
        passages, rest = Splitter(BYTES, size, unit).split(ids(text))
        return [BYTES.decode(p) for p in [*passages, rest] if len(p)]

    assert split("ab\ncd\nef\ngh", 7, "line") == ["ab\n", "cd\n", "ef\n", "gh"]
    assert split("ab\ncd\nef\ngh", 7, "chunk") == ["ab\ncd\n", "ef\ngh"]
    assert split("It is. 3.5 or so it was\n", 12, "line") == ["It is.", " 3.5 or so ", "it was\n"]
    assert split("a" * 10, 4, "line") == ["aaaa", "aaaa", "aa"]


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_search_finds_a_needle_of_any_tokenizer(name: str, text: str, bpe: Tokenizer) -> None:
    tokenizer = BYTES if name == "bytes" else bpe
    whole = ids(text.replace(". ", "." + NEEDLE + " ", 1), tokenizer)
    memory = Search(tokenizer, Splitter(tokenizer, 100))
    state = memory.init_state(1)
    for piece in whole.split(333):
        state = memory.write([piece], state)
    question = Question(ids("\nWhat is the magic number for ad-hoc-zebra?", tokenizer), "")
    texts, _ = memory.read([question], [100], state)
    assert NEEDLE in tokenizer.decode(torch.cat(texts[0]))
    assert sum(map(len, texts[0])) <= 100


def test_what_is_found_comes_in_the_order_of_the_text_within_the_room() -> None:
    memory = Search(BYTES, Splitter(BYTES, 20))
    state = read(memory, "bee one\n", "cat two\n", "bee bee\n", "dog\n", "unfinished bee")
    assert ask(memory, state, "bee") == "bee one\nbee bee\nunfinished bee"
    assert ask(memory, state, "bee", room=8) == "bee bee\n"
    assert ask(memory, state, "cat bee?", room=16) == "cat two\nbee bee\n"
    assert ask(memory, state, "cow") == ""


def test_recency_keeps_the_last_passages() -> None:
    memory = Recency(BYTES, Splitter(BYTES, 20), capacity=12)
    state = read(memory, "aa 1\n", "bb 2\ncc", " 3\n", "dd")
    assert kept(state) == ["bb 2\n", "cc 3\n"]
    assert ask(memory, state, "?") == "bb 2\ncc 3\ndd"
    assert ask(memory, state, "?", room=11) == "cc 3\ndd", "nothing is left out in between"
    assert (state.text_bytes, state.index_bytes) == (4 * 12, 0)


def key_value(capacity: int, stay: int, find: str = "bm25", size: int = 20) -> KeyValue:
    return KeyValue(BYTES, Splitter(BYTES, size), capacity, stay, find)


def test_key_value_forgets_what_was_not_used_for_longest() -> None:
    memory = key_value(capacity=6, stay=11)  # lines are six tokens each: one fits into the second level
    state = read(memory, "aa bb\n", "cc dd\n", "aa ee\n")  # the third finds the first
    assert [p.read for p in state.rows[0].passages] == [18, 12, 18]
    state = memory.write([ids("ff gg\n")], state)  # at 24 "cc dd" was used 12 tokens ago and sinks
    levels = memory.levels(state.rows[0].passages, 24)
    assert [[p.start for p in level] for level in levels] == [[0, 12, 18], [6]]
    state = memory.write([ids("hh ii\n")], state)  # at 30 both with "aa" sink; the latest of the sunk stays
    assert kept(state) == ["aa ee\n", "ff gg\n", "hh ii\n"]
    state = memory.write([ids("aa ee\n")], state)  # is kept already, and is in the first level again
    assert kept(state) == ["ff gg\n", "hh ii\n", "aa ee\n"]
    _, state = memory.read([Question(ids("ff?"), "")], [100], state)
    assert [p.read for p in state.rows[0].passages] == [36, 30, 36], "a question uses what it finds"
    state = memory.write([ids("jj kk\n")], state)  # at 42 "hh ii" has sunk
    assert [[p.start for p in level] for level in memory.levels(state.rows[0].passages, 42)] == [[18, 30, 36], [24]]
    state = memory.write([ids("ll mm\n")], state)  # at 48 those used at 36 sink, the later of them stays
    assert kept(state) == ["aa ee\n", "jj kk\n", "ll mm\n"]


def test_key_value_keeps_longer_what_may_stay_longer() -> None:
    lines = ("aa bb\n", "cc dd\n", "ee ff\n", "gg hh\n", "ii jj\n")
    assert kept(read(key_value(capacity=6, stay=11), *lines)) == list(lines[2:])
    assert kept(read(key_value(capacity=6, stay=17), *lines)) == list(lines[1:])
    assert kept(read(key_value(capacity=12, stay=11), *lines)) == list(lines[1:])


def test_key_value_is_bounded(text: str) -> None:
    memory = key_value(capacity=300, stay=150, size=60)
    state, dropped = memory.init_state(1), False
    for piece in ids(text).split(97):
        state = memory.write([piece], state)
        kept_now = state.rows[0]
        first, second = memory.levels(kept_now.passages, kept_now.position - len(kept_now.rest))
        assert sum(len(p.ids) for p in second) <= 300
        assert all(kept_now.position - p.read <= 150 + 60 + 97 for p in first)
        dropped = dropped or kept_now.passages[0].start > 0
    assert dropped
    assert state.text_bytes < 4 * 1000 < 4 * len(text)


def test_a_key_is_its_words_in_a_row() -> None:
    memory = key_value(capacity=500, stay=250, find="key", size=30)
    state = read(memory, "ad-hoc-zebra is 1\n", "zebra ad hoc is 2\n", "hoc zebra\n", "Ad-hoc-zebra is 3\n")
    assert ask(memory, state, "What of it?", key="ad-hoc-zebra") == "ad-hoc-zebra is 1\nAd-hoc-zebra is 3\n"
    assert ask(memory, state, "What of it?", key="ad-hoc-zebra", room=18) == "Ad-hoc-zebra is 3\n"
    assert ask(memory, state, "ad-hoc-zebra?", key="quagga") == ""


def memories() -> Sequence[PassageMemory]:
    splitter = Splitter(BYTES, 60)
    return [Recency(BYTES, splitter, 300), Search(BYTES, splitter), key_value(capacity=300, stay=150, size=60)]


@pytest.mark.parametrize("memory", memories(), ids=lambda memory: type(memory).__name__)
def test_a_state_is_a_value(memory: PassageMemory, text: str) -> None:
    half = len(text) // 2
    before = memory.write([ids(text[:half]), ids("aa bb\n")], memory.init_state(2))
    seen = [kept(before, 0), kept(before, 1), before.nbytes]
    swapped = memory.write([ids("cc\n"), ids(text[half:])], before.select([1, 0]))
    memory.read([Question(ids("the"), ""), Question(ids("aa"), "")], [100, 100], before)
    assert [kept(before, 0), kept(before, 1), before.nbytes] == seen
    alone = memory.write([ids(text)], memory.init_state(1))
    assert kept(swapped, 1) == kept(alone)
    assert kept(swapped, 0) == ["aa bb\n", "cc\n"]
    assert swapped.position.tolist() == [9, len(text.encode())]
    twice = alone.select([0, 0])
    assert (twice.nbytes, twice.text_bytes) == (2 * alone.nbytes, 2 * alone.text_bytes)


def test_bytes_are_those_of_tokens_and_packed_index() -> None:
    state = read(Search(BYTES, Splitter(BYTES, 20)), "ab ab c\n", "ab é\n", "rest")
    assert state.text_bytes == 4 * (8 + 6 + 4)
    assert state.index_bytes == 2 * 12 + (2 + 2) * 8 + len("ab" + "c") + len("é".encode())
    assert state.nbytes == state.text_bytes + state.index_bytes
