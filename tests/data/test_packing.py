"""Packing: every token once, in its place, with the right target; exact resume; clear refusals."""

import json
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralmem.data.batch import NO_LOSS, Batch
from neuralmem.data.packing import PackedText
from neuralmem.data.sources import Texts, open_source
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer, train_bpe

TOKENIZER = ByteTokenizer()
LENGTHS = [3, 90, 1, 17, 40, 8, 64, 0, 33, 5, 16, 7]
TEXTS = Texts([(str(i), chr(97 + i) * n) for i, n in enumerate(LENGTHS)])


def packed(carry: bool = False, length: int = 32, batch_size: int = 3, **options: object) -> PackedText:
    options = {"align": 8, "batches": 1000} | options
    return PackedText(TEXTS, TOKENIZER, length=length, batch_size=batch_size, carry=carry, **options)  # type: ignore[arg-type]


def rows(batches: list[Batch], row: int) -> tuple[list[int], list[int], list[bool], list[bool]]:
    """One row of all batches in sequence: tokens, targets, mask, reset."""
    tokens = torch.cat([b.tokens[row] for b in batches])
    mask = torch.cat(
        [torch.ones(len(b.tokens[row]), dtype=torch.bool) if b.mask is None else b.mask[row] for b in batches]
    )
    reset = torch.cat(
        [torch.zeros(len(b.tokens[row]), dtype=torch.bool) if b.reset is None else b.reset[row] for b in batches]
    )
    return tokens.tolist(), torch.cat([b.targets[row] for b in batches]).tolist(), mask.tolist(), reset.tolist()


def equal(first: Batch, second: Batch) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check_stream(tokens: list[int], targets: list[int], mask: list[bool], starts: list[int], align: int) -> list[str]:
    """Check one stream of tokens whose documents begin at `starts`; -> the documents' texts."""
    found = []
    for start, stop in pairwise([*starts, len(tokens)]):
        assert start % align == 0
        real = sum(mask[start:stop])
        assert mask[start : start + real] == [True] * real  # pads only behind a document
        document = tokens[start : start + real]
        assert document[-1] == TOKENIZER.eos_id
        assert TOKENIZER.eos_id not in document[:-1]
        assert targets[start:stop] == document[1:] + [NO_LOSS] * (stop - start - real + 1)
        if stop < len(tokens):
            assert stop - start - real < align  # no more pads than needed
        found.append(TOKENIZER.decode(document))
    return found


@settings(max_examples=30, deadline=None)
@given(
    align=st.sampled_from([1, 4, 8]),
    blocks=st.integers(1, 6),
    batch_size=st.integers(1, 5),
    seed=st.none() | st.integers(0, 9),
)
def test_carry_holds_every_token_once(align: int, blocks: int, batch_size: int, seed: int | None) -> None:
    batches = list(packed(True, length=8 * blocks, batch_size=batch_size, align=align, seed=seed))
    assert all(b.tokens.shape == (batch_size, 8 * blocks) for b in batches)
    found = []
    for row in range(batch_size):
        tokens, targets, mask, reset = rows(batches, row)
        found += check_stream(tokens, targets, mask, [i for i, start in enumerate(reset) if start], align)
    assert sorted(found) == sorted(document.text for document in TEXTS.read() if document.text)


@settings(max_examples=30, deadline=None)
@given(align=st.sampled_from([1, 4, 8]), blocks=st.integers(1, 6), batch_size=st.integers(1, 5))
def test_without_carry_rows_follow_each_other(align: int, blocks: int, batch_size: int) -> None:
    length = 8 * blocks
    batches = list(packed(False, length=length, batch_size=batch_size, align=align))
    single = [Batch(*(None if f is None else f[r : r + 1] for f in b)) for b in batches for r in range(len(b.tokens))]
    tokens, targets, mask, _ = rows(single, 0)
    starts, place = [], 0
    for text in (document.text for document in TEXTS.read() if document.text):
        starts.append(place)
        place += -(-(len(text) + 1) // align) * align
    assert check_stream(tokens, targets, mask, starts, align) == [d.text for d in TEXTS.read() if d.text]
    for number, batch in enumerate(single):
        inner = {start - number * length for start in starts} & set(range(1, length))
        if inner:
            assert batch.reset is not None
        if batch.reset is not None:  # column 0 is always a fresh start; None if no row of the batch has an inner start
            assert set(batch.reset[0].nonzero()[:, 0].tolist()) == inner | {0}


def test_masks_and_resets_are_left_out_where_they_say_nothing() -> None:
    source = Texts([("a", "x" * 127)])
    for carry in (False, True):
        first, *rest = PackedText(source, TOKENIZER, length=32, batch_size=1, align=8, carry=carry, batches=9)
        assert len(rest) == 3
        assert all(batch.mask is None for batch in (first, *rest))
        assert all(batch.reset is None for batch in rest)
        assert (first.reset is None) == (not carry)


@pytest.mark.parametrize("carry", [False, True])
@pytest.mark.parametrize("shard", [(0, 1), (1, 2)])
def test_resume_from_any_batch(carry: bool, shard: tuple[int, int]) -> None:
    def make() -> PackedText:
        return packed(carry, batch_size=2, seed=5, batches=None, shard=shard)

    reader, expected, states = make(), [], []
    for _, batch in zip(range(40), reader, strict=False):
        expected.append(batch)
        states.append(reader.state_dict())
    for number in (0, 1, 2, 7, 20, 38):
        again = make()
        again.load_state_dict(states[number])
        assert again.state_dict() == states[number]
        for batch, wanted in zip(again, expected[number + 1 :], strict=False):
            assert equal(batch, wanted)


def test_epochs_differ_and_a_pass_can_be_repeated() -> None:
    endless = packed(batches=None, seed=1, batch_size=1, length=320)
    first, second = (batch.tokens for _, batch in zip(range(2), endless, strict=False))
    assert not torch.equal(first, second)
    one_pass = packed()
    next(iter(one_pass))  # given up early
    assert all(equal(a, b) for a, b in zip(list(one_pass), list(one_pass), strict=True))
    assert len(list(packed(batches=2))) == len(packed(batches=2)) == 2
    assert len(endless) == 10**12


def test_shards_divide_the_documents() -> None:
    texts = []
    for index in range(3):
        for batch in packed(batch_size=1, shard=(index, 3)):
            texts += batch.tokens[batch.mask if batch.mask is not None else slice(None)].flatten().tolist()
    assert sorted(texts) == sorted(i for d in TEXTS.read() if d.text for i in [*TOKENIZER.encode(d.text), 256])


def test_a_place_hangs_on_the_order_and_the_tokenizer() -> None:
    state = packed(seed=0).state_dict()
    packed(seed=0, length=64).load_state_dict(state)  # rows may be longer from there on
    other = train_bpe(["abc " * 50], 300)
    for reader, message in [
        (packed(seed=1), "^data.seed has changed .*: it was 0, it is 1; resume with what it was"),
        (packed(), "^data.seed has changed .*: it was 0, it is None; "),
        (PackedText(TEXTS, other, length=32, batch_size=1, align=8, seed=0), "^data.tokenizer has changed "),
    ]:
        with pytest.raises(UserError, match=message):
            reader.load_state_dict(state)


def test_documents_that_cannot_be_read_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"text {i}"}) if i % 5 else "no json" for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, '{"text": ""}']))
    source = open_source(str(tmp_path / "rows.jsonl"), share=0)

    def make() -> PackedText:
        return PackedText(source, TOKENIZER, length=32, batch_size=1, align=8, seed=3)

    packed, batches, states = make(), [], []
    with warnings.catch_warnings(record=True, action="always") as said:
        for _, batch in zip(range(14), packed, strict=False):
            batches.append(batch)
            states.append(packed.state_dict())
    assert "is not a JSON line" in str(said[0].message)
    assert [str(one.message).split(" cannot be read")[0] for one in said] == ["1 document(s)", "10 document(s)"]
    faults = states[-1]["faults"]
    assert faults["counts"]["corrupt"] > 10
    assert states[3]["faults"]["documents"] < faults["documents"]
    again = make()
    again.load_state_dict(states[5])
    with warnings.catch_warnings(record=True, action="always") as said:
        assert all(equal(wanted, batch) for wanted, batch in zip(batches[6:], again, strict=False))
    assert [str(one.message).split(" cannot be read")[0] for one in said] == ["10 document(s)"]
    assert again.state_dict()["faults"]["counts"]["corrupt"] >= 10


def test_where_no_document_can_be_read_it_ends(tmp_path: Path) -> None:
    for count in (5, 200):
        (tmp_path / f"{count}.jsonl").write_text('{"body": "x"}\n' * count)
        source = open_source(str(tmp_path / f"{count}.jsonl"), share=0)
        packed = PackedText(source, TOKENIZER, length=32, batch_size=1)
        with warnings.catch_warnings(action="ignore"), pytest.raises(UserError, match="its fields are body"):
            next(iter(packed))


def test_bad_input() -> None:
    empty = Texts([("a", ""), ("b", "")])
    for call, message in [
        (lambda: packed(length=30), "sequence_length is 30; it must be a multiple of align = 8, for example 24"),
        (lambda: packed(batch_size=0), "batch_size is 0; it must be at least 1"),
        (lambda: next(iter(packed(True, batch_size=20, batches=None))), "12 document.* too few"),
        (lambda: next(iter(packed(shard=(13, 14), batches=None))), "too few"),
        (lambda: next(iter(PackedText(empty, TOKENIZER, length=8, batch_size=1))), "has no text"),
        (lambda: packed(True).load_state_dict(packed().state_dict()), "resume with the settings of the saved run"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


@pytest.mark.parametrize("carry", [False, True])
def test_a_huge_document_is_read_in_pieces_and_counted(carry: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(packed(carry))
    monkeypatch.setattr("neuralmem.data.packing.LONGEST", 20)
    pieces, faults = packed(carry), []
    for one, other in zip(pieces, whole, strict=True):
        faults.append(pieces.state_dict()["faults"])
        assert one.tokens.dtype == torch.long
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)
    assert faults[-1]["counts"]["huge"] == sum(length > 20 for length in LENGTHS)
    assert faults[-1]["first"]["huge"] == "1"
