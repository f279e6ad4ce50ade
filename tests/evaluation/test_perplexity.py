"""Perplexity and loss by position of a model whose losses are known, and of one whose memory is worth nothing."""

import json
import math
from pathlib import Path

import pytest
import torch

from neuralmem.data.document import Document
from neuralmem.errors import UserError
from neuralmem.evaluation import perplexity, positions
from neuralmem.evaluation.bootstrap import weighted_mean
from neuralmem.evaluation.held_out import HeldOutRow, open_text, rows_of
from neuralmem.evaluation.journal import Journal
from neuralmem.evaluation.losses import READINGS, LossReader
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.rows import Subject
from neuralmem.tokenizer import ByteTokenizer, Tokenizer, train_bpe
from tests.evaluation.fake import Learner
from tests.evaluation.test_losses import letters

BYTES = ByteTokenizer()
SUBJECT = Subject(40, BYTES.fingerprint, "c" * 64, 32, 32, "float32", "cpu")


def document(size: int, start: int) -> Document:
    return Document(f"d{start}", bytes(letters(size, start).tolist()).decode())


def test_perplexity_is_weighted_by_tokens(tmp_path: Path) -> None:
    model, texts = Learner(reach=40), [document(200, 0), document(20, 3), document(90, 11)]
    found = list(perplexity.pieces(texts, BYTES, 1000))
    assert [(len(p.tokens), p.bytes) for p in found] == [(200, 199), (20, 19), (90, 89)]
    reader = LossReader(model, 64)
    rows = perplexity.measure(found, reader, READINGS, SUBJECT, Journal(tmp_path / "x.jsonl", perplexity.IDENTITY))
    lines = {line.memory: line for line in perplexity.summarise(rows)}
    for memory in ("on", "off"):
        losses = [model.loss(ord(d.text[i]), i + 1, memory) for d in texts for i in range(len(d.text) - 1)]
        far = [model.loss(ord(d.text[i]), i + 1, memory) for d in texts for i in range(41, len(d.text) - 1)]
        line = lines[memory]
        assert line.loss.value == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert line.bits_per_byte.value == pytest.approx(sum(losses) / len(losses) / math.log(2), abs=1e-5)
        assert line.beyond.value == pytest.approx(sum(far) / len(far), abs=1e-5)
        assert (line.loss.n, line.beyond.n) == (3, 2)
    assert lines["off"].gain_beyond.low > 0
    assert lines["window"].gain_beyond.low > 0
    assert lines["off"].gain_beyond.value > lines["off"].gain.value > 0, "nothing is gained within reach"


def test_the_same_call_reads_nothing_again(tmp_path: Path) -> None:
    model, found = Learner(), list(perplexity.pieces([document(50, i) for i in range(4)], BYTES, 1000))
    path = tmp_path / "x.jsonl"

    def again(some: list[perplexity.Piece]) -> list[dict]:
        return perplexity.measure(some, LossReader(model), ["on"], SUBJECT, Journal(path, perplexity.IDENTITY))

    first = again(found[:2])
    assert model.tokens == 2 * 49
    assert again(found)[:2] == first
    assert model.tokens == 4 * 49
    assert len(path.read_text().splitlines()) == 4


def test_a_budget_cuts_the_last_document() -> None:
    found = list(perplexity.pieces([document(30, 0), Document("one", "x"), document(30, 1)], BYTES, 40))
    assert [len(p.tokens) for p in found] == [30, 10]


@pytest.mark.parametrize(
    ("text", "budget", "count"),
    [("aäö", 40, 4), ("é", 40, 1), ("éa", 40, 2), ("日本", 40, 5), ("日本", 3, 2), ("a日", 2, 1), ("a\ufffdb", 40, 4)],
)
def test_bytes_are_those_of_the_predicted_tokens(text: str, budget: int, count: int) -> None:
    (piece,) = perplexity.pieces([Document("d", text)], BYTES, budget)
    assert piece.bytes == count


def sentences() -> Tokenizer:
    """As SentencePiece has them: a mark for a space, which a text loses at its start, and bytes for what is unknown."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    words = [("<unk>", 0.0), ("</s>", 0.0), ("▁the", -1.0), ("▁", -2.0), ("t", -3.0), ("ing", -2.0)]
    backend = Backend(
        models.Unigram([*words, *((f"<0x{i:02X}>", -9.0) for i in range(256))], unk_id=0, byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens(["</s>"])
    return Tokenizer(backend.to_str())


def test_a_token_of_bpe_may_end_within_a_character() -> None:
    """Two characters in two tokens, of two bytes and of four; and added tokens, which are text as they stand."""
    bpe = train_bpe(["é日本 語 low lower déjà"] * 30, 300)
    ids = bpe.encode("日本")
    assert len(ids) == 2
    assert "\ufffd" in bpe.decode(ids[:1])
    size = perplexity.token_bytes(bpe)
    assert list(map(size, ids)) == [2, 4]
    text = "日本 lower é😀\n"
    assert sum(map(size, bpe.encode(text))) == len(text.encode())
    definition = json.loads(bpe.definition)
    added = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    definition["added_tokens"].append({"id": bpe.vocab_size, "content": "\t日", **added})
    assert perplexity.token_bytes(Tokenizer(json.dumps(definition)))(bpe.vocab_size) == 4


def test_other_tokenizers_tell_bytes_from_text() -> None:
    tokenizer = sentences()
    (piece,) = perplexity.pieces([Document("d", "the ting é the")], tokenizer, 40)
    assert len(piece.tokens) == 8
    assert piece.bytes == len(" ting é the".encode())
    (cut,) = perplexity.pieces([Document("d", "the ting é the")], tokenizer, 6)
    assert cut.bytes == len(" ting ") + 1


def test_bytes_of_an_older_row_are_not_believed(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.jsonl", perplexity.IDENTITY)
    found = list(perplexity.pieces([Document("d", "aé")], BYTES, 40))
    (row,) = perplexity.measure(found, LossReader(Learner()), ["on"], SUBJECT, journal)
    journal.add(row | {"bytes": -1})
    assert perplexity.measure(found, LossReader(Learner()), ["on"], SUBJECT, journal) == [row]


def test_weighted_mean_and_its_interval() -> None:
    mean = weighted_mean([1.0, 9.0, 0.0], [1, 3, 0])
    assert mean.value == 2.5
    assert (mean.low, mean.high, mean.n) == (1, 3, 2)
    many = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    wide = weighted_mean(many, [1] * 400)
    half = 1.96 * torch.tensor(many).std().item() / 20  # the textbook's, for a mean of independent numbers
    assert (wide.high - wide.low) / 2 == pytest.approx(half, rel=0.1)
    assert math.isnan(weighted_mean([], []).value)


def measured(tmp_path: Path, model: Learner, size: int = 1600, capitals: int | None = None) -> list[dict]:
    rows = [HeldOutRow(letters(size + 1, start, capitals), "beginning", f"{start}") for start in range(6)]
    journal = Journal(tmp_path / "p.jsonl", positions.IDENTITY)
    return positions.measure(rows, LossReader(model, 512), ("on", "off"), SUBJECT, journal, 200, "letters")


def test_loss_by_position_keeps_falling_where_all_is_remembered(tmp_path: Path) -> None:
    model = Learner(reach=40)
    rows = measured(tmp_path, model)
    buckets = positions.summarise(rows, 200)
    ends = [50, 100, 200, 400, 800, 1600]
    assert [b.end for b in buckets if b.memory == "on"] == ends
    assert [b.beyond for b in buckets if b.memory == "on"] == [False, True, True, True, True, True]
    expected = [
        sum(model.loss(97 + (start + i) % 26, i + 1) for start in range(6) for i in range(a, b)) / 6 / (b - a)
        for a, b in zip([0, *ends], ends, strict=False)
    ]
    assert [b.loss.value for b in buckets if b.memory == "on"] == pytest.approx(expected, abs=1e-4)
    assert positions.verdict(buckets, 200).holds is True
    assert positions.verdict(buckets, 200, "off").holds is False
    assert positions.growth(buckets, 200, "off").holds is True
    assert "up to 200 to 801-1,600, n=6 documents" in positions.verdict(buckets, 200).sentence
    before = model.tokens
    assert measured(tmp_path, model) == rows
    assert model.tokens == before


def test_an_easier_end_of_the_text_is_not_taken_for_memory(tmp_path: Path) -> None:
    buckets = positions.summarise(measured(tmp_path, Learner(remembers=False), capitals=400), 200)
    assert positions.verdict(buckets, 200).holds is True
    assert positions.verdict(buckets, 200, "off").holds is True
    assert positions.growth(buckets, 200, "off").holds is False
    plain = positions.summarise(measured(tmp_path / "plain", Learner(remembers=False)), 200)
    assert positions.verdict(plain, 200).holds is False


def test_what_cannot_be_said_is_not_said(tmp_path: Path) -> None:
    rows = measured(tmp_path, Learner(), size=150)
    buckets = positions.summarise(rows, 200)
    assert positions.verdict(buckets, 200).holds is None
    assert "no text is longer than 200" in positions.verdict(buckets, 200).sentence
    assert "does not say its training length" in positions.verdict(buckets, None).sentence
    one = positions.summarise(measured(tmp_path / "b", Learner())[:1], 200)
    assert "one document leaves no interval" in positions.verdict(one, 200).sentence


def test_held_out_text_is_named(text_file: Path, training: TrainingData) -> None:
    text = open_text(f"file:{text_file}", training)
    assert text.id == "file:text.txt"
    assert [d.text for d in text.documents()] == [text_file.read_text()]
    own = open_text("", training)
    assert own.id == "text.txt validation"
    (held,) = own.documents()
    assert text_file.read_text().endswith(held.text)
    with pytest.raises(UserError, match=r"--haystack is 'bultin'; .* did you mean 'builtin'"):
        open_text("bultin", training)


def test_rows_say_what_they_are() -> None:
    texts = [Document("a", "abc"), Document("b", "defghijk"), Document("c", "lm")]
    found = [(bytes(r.tokens.tolist()), r.kind, r.document) for r in rows_of(texts, BYTES.encode, 3, 9)]
    assert found == [(b"defg", "beginning", "b"), (b"hijk", "part", "b"), (b"abcl", "joined", "joined 0")]


def test_the_parts_of_one_document_are_one_draw(tmp_path: Path) -> None:
    rows = measured(tmp_path, Learner())
    apart = positions.summarise(rows, 200)[-1]
    together = positions.summarise([row | {"document": str(int(row["document"]) // 3)} for row in rows], 200)[-1]
    assert (apart.texts, together.texts) == (6, 6)
    assert (apart.loss.n, together.loss.n) == (6, 2)
    assert together.loss.value == pytest.approx(apart.loss.value)
