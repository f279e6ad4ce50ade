"""Reading goes on with another number of readers: every token once, in a memory that starts where it must."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralmem.data.batch import Batch
from neuralmem.data.document import Source
from neuralmem.data.handover import hand_over, positions
from neuralmem.data.module import RecallData, TextData
from neuralmem.data.packing import PackedText
from neuralmem.data.sources import Texts, open_source
from neuralmem.data.synthetic import Stage
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # what torchdata calls
LENGTHS = [(37 * i) % 61 for i in range(150)]  # one in 61 is empty
TEXTS = Texts([(str(i), chr(0x4E00 + i) * n) for i, n in enumerate(LENGTHS)])  # three bytes a character
WHOLE = sorted(text for text in (document.text for document in TEXTS.read()) if text)


def reader(source: Source, index: int, count: int, carry: bool, seed: int | None) -> PackedText:
    return PackedText(
        source,
        ByteTokenizer(),
        length=24,
        batch_size=2,
        align=8,
        carry=carry,
        seed=seed,
        batches=10_000,
        shard=(index, count),
    )


def pieces(batch: Batch) -> list[str]:
    """Bytes between resets, of every row, as latin-1; the separator is dropped."""
    found = []
    for row, tokens in enumerate(batch.tokens):
        mask = torch.ones_like(tokens, dtype=torch.bool) if batch.mask is None else batch.mask[row]
        found.append("".join(chr(i) for i in tokens[mask].tolist() if i < 256))
    return found


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    steps=st.lists(st.integers(0, 4), min_size=16, max_size=16),
    carry=st.booleans(),
    seed=st.none() | st.integers(0, 9),
)
def test_every_token_is_read_once(counts: list[int], steps: list[int], carry: bool, seed: int | None) -> None:
    tokens = torch.zeros(257, dtype=torch.long)
    states: list[dict] = []
    for turn, count in enumerate(counts):
        readers = [reader(TEXTS, index, count, carry, seed) for index in range(count)]
        last = turn == len(counts) - 1
        after = []
        for index, one in enumerate(readers):
            if states:
                one.take_over(states)
            limit = 10_000 if last else 1 + steps[4 * turn + index]
            for _, batch in zip(range(limit), one, strict=False):
                mask = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.mask is None else batch.mask
                tokens += torch.bincount(batch.tokens[mask], minlength=257)
            after.append(json.loads(json.dumps(one.state_dict())))
        states = after
    expected = torch.bincount(torch.tensor(list("".join(WHOLE).encode())), minlength=257)
    expected[256] = len(WHOLE)  # a separator behind every document
    assert torch.equal(tokens, expected)


def test_the_rest_of_a_document_is_read_in_order_from_a_fresh_memory() -> None:
    source = Texts([("long", "abcdefghijklmnopqrstuvwxyz" * 4), ("short", "0123"), ("other", "4567")])
    first = PackedText(source, ByteTokenizer(), length=24, batch_size=1, align=8, carry=True)
    batch = next(iter(first))
    assert pieces(batch) == ["abcdefghijklmnopqrstuvwx"]
    again = PackedText(source, ByteTokenizer(), length=32, batch_size=1, align=8, carry=True)
    again.take_over([first.state_dict()])
    batch = next(iter(again))
    assert pieces(batch) == ["yzabcdefghijklmnopqrstuvwxyzabcd"]
    assert batch.reset is not None
    assert batch.reset.nonzero().tolist() == [[0, 0]]
    assert again.state_dict()["cursors"] == [[0, 0, 56]]


def test_readers_in_different_passes() -> None:
    """Of nine documents reader 0 has 0 2 4 6 8 and, in its second pass, 0 2; reader 1 has 1 3 of its first."""
    rest = {
        "yielded": 3,
        "cursors": [None],
        "faults": {"documents": 4, "counts": {"empty": 1}, "first": {"empty": "a.txt"}},
        "settings": {},
    }
    states = [{"epoch": 1, "next": 4} | rest, {"epoch": 0, "next": 5, "left": [[0, 1, 7]]} | rest]
    new = [hand_over(states, index, 3, total=9) for index in range(3)]
    dealt = sorted(one for position in new for one in position["left"])
    assert dealt == [[0, 1, 7], [0, 5, 0], [0, 7, 0], [1, 1, 0], [1, 3, 0]]
    assert [position["next"] for position in new] == [4, 5, 6]
    assert [position["epoch"] for position in new] == [1, 1, 1]
    assert [position["yielded"] for position in new] == [2, 2, 2]
    assert sum(position["faults"]["counts"].get("empty", 0) for position in new) == 2
    with pytest.raises(UserError, match="different passes over a stream; go on with as many"):
        hand_over(states, 0, 1, total=None)


def test_a_stream_is_handed_over(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="streams of files are read by datasets")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in WHOLE))
    source = open_source(f"hf:json?data_files={tmp_path}/text.jsonl&streaming=1&buffer=8")
    found: list[str] = []
    states = []
    for index in range(2):
        one = reader(source, index, 2, True, None)
        found += [piece for _, batch in zip(range(4 + index), one, strict=False) for piece in pieces(batch)]
        states.append(one.state_dict())
    last = reader(source, 0, 1, True, None)
    last.take_over(states)
    found += [piece for batch in last for piece in pieces(batch)]
    assert sorted("".join(found)) == sorted("".join(WHOLE).encode().decode("latin-1"))


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 2), (1, 2)])
def test_loader_processes_hand_over(before: int, after: int) -> None:
    def data(workers: int) -> TextData:
        return TextData(source="builtin", sequence_length=64, batch_size=2, align=8, num_workers=workers)

    loader = data(before).train_dataloader()
    seen = [batch for _, batch in zip(range(7), loader, strict=False)]
    places = positions([loader.state_dict()])
    assert len(places) == max(1, before)
    del loader
    other = data(after)
    other.take_over(places)
    seen += [batch for _, batch in zip(range(7), other.train_dataloader(), strict=False)]
    rows = [tuple(row) for batch in seen for row in batch.tokens.tolist()]
    assert len(rows) == len(set(rows)) == 28


def test_synthetic_batches_are_new_ones() -> None:
    def data() -> RecallData:
        return RecallData([Stage(length=32, facts=2, questions=2)] * 2, batch_tokens=64)

    first = data()
    loaders = [first.build("train", (index, 2)) for index in range(2)]
    seen = [
        batch for one, count in zip(loaders, (3, 5), strict=True) for _, batch in zip(range(count), one, strict=False)
    ]
    loaders[1].advance()
    other = data()
    other.take_over([one.state_dict() for one in loaders])
    training = other.train_dataloader()
    seen += [batch for _, batch in zip(range(5), training, strict=False)]
    assert training.dataset.stage == 1
    drawn = [tuple(batch.tokens.flatten().tolist()) for batch in seen]
    assert len(set(drawn)) == len(drawn)
