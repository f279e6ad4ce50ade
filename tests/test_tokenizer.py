"""Tokenizers: round trips, files of the library `tokenizers`, streams however they are cut, bad input."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralmem import tokenizer as module
from neuralmem.errors import UserError
from neuralmem.tokenizer import END, ByteTokenizer, Tokenizer, load_tokenizer, train_bpe

TEXT = (
    Path(module.__file__).read_text(encoding="utf-8") + "\nÄtna, naïve — 日本語 字\n🙂 \t x  y\r\n\r\n 12345 end " * 9
)
UTF8 = st.text(st.characters(codec="utf-8"))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([TEXT], 400)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_bpe([TEXT], 400, split_words=True)


def read(tokenizer: Tokenizer, path: Path, length: int) -> list[int]:
    pieces = list(tokenizer.stream(path, length))
    assert all(piece.shape == (1, length) for piece in pieces[:-1])
    assert all(piece.dtype == torch.long for piece in pieces)
    return [i for piece in pieces for i in piece[0].tolist()]


@given(UTF8)
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == text
    assert ids == list(text.encode())


@settings(max_examples=50)
@given(text=UTF8)
def test_bpe_round_trip(bpe: Tokenizer, words: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text
    assert words.decode(words.encode(text)) == text


def test_byte_file_is_read_alike_by_the_library(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as HfTokenizer

    ByteTokenizer().save(tmp_path)
    hf = HfTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert hf.get_vocab_size() == 257

    @settings(max_examples=50)
    @given(UTF8)
    def same(text: str) -> None:
        assert hf.encode(text).ids == ByteTokenizer().encode(text)

    same()
    same.hypothesis.inner_test(TEXT + END)
    assert hf.decode(ByteTokenizer().encode(TEXT)) == TEXT


def test_save_and_load(tmp_path: Path, bpe: Tokenizer) -> None:
    bpe.save(tmp_path / "new" / "folder")
    for path in (tmp_path / "new" / "folder", tmp_path / "new" / "folder" / "tokenizer.json"):
        assert load_tokenizer(path) == bpe
        assert load_tokenizer(path).fingerprint == bpe.fingerprint
    ByteTokenizer().save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    assert bpe != ByteTokenizer()
    for tokenizer in (bpe, ByteTokenizer()):
        assert pickle.loads(pickle.dumps(tokenizer)).encode(END) == tokenizer.encode(END)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
@pytest.mark.parametrize("length", [1, 13, 4096])
def test_stream_is_the_whole_file(
    tmp_path: Path, bpe: Tokenizer, words: Tokenizer, monkeypatch: pytest.MonkeyPatch, block: int, length: int
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT[-1500:], encoding="utf-8", newline="")
    for tokenizer in (ByteTokenizer(), bpe, words):
        assert tokenizer._can_be_cut
        original = tokenizer._stream
        monkeypatch.setattr(tokenizer, "_stream", lambda path, length, o=original: o(path, length, block))
        assert read(tokenizer, path, length) == tokenizer.encode(TEXT[-1500:])


GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@settings(max_examples=200)
@given(text=st.text("aB1é字 \n\t\r.,'_", max_size=40))
def test_safe_places_are_safe_for_the_usual_patterns(bpe: Tokenizer, words: Tokenizer, text: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    for cut in module._safe_places(text):
        for tokenizer in (bpe, words):
            assert tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:]) == tokenizer.encode(text)
        parts = [part for piece in (text[:cut], text[cut:]) for part, _ in split.pre_tokenize_str(piece)]
        assert parts == [part for part, _ in split.pre_tokenize_str(text)]


def test_stream_of_a_tokenizer_that_marks_the_beginning(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as HfTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    hf = HfTokenizer(models.BPE())
    hf.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    hf.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=500, special_tokens=["</s>"], show_progress=False))
    tokenizer = Tokenizer(hf.to_str())
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8", newline="")
    assert read(tokenizer, tmp_path / "text.txt", 100) == tokenizer.encode(TEXT)


def test_stream_of_odd_files(tmp_path: Path, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken").write_bytes(b"caf\xe9 au lait \xf0\x9f")
    (tmp_path / "dense").write_text("x" * 5000)
    assert not list(bpe.stream(tmp_path / "empty"))
    assert bpe.decode(read(bpe, tmp_path / "broken", 3)) == "caf\ufffd au lait \ufffd"
    assert read(ByteTokenizer(), tmp_path / "broken", 3) == list(b"caf\xe9 au lait \xf0\x9f")
    monkeypatch.setattr(module, "_LONGEST", 1000)
    assert bpe.decode(i for piece in bpe._stream(tmp_path / "dense", 64, 500) for i in piece[0].tolist()) == "x" * 5000


def test_text_never_ends_a_document(bpe: Tokenizer, words: Tokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe, words):
        assert tokenizer.eos_id not in tokenizer.encode(f"a{END}b")
        assert tokenizer.decode(tokenizer.encode(f"a{END}b")) == f"a{END}b"


def test_digits_and_words_are_spelled_alike(bpe: Tokenizer, words: Tokenizer) -> None:
    assert len(bpe.encode("8305")) == 4
    token = words.encode("the")
    assert words.encode("the the\n@the=") == [
        *token, *words.encode(" "), *token, *words.encode("\n@"), *token, *words.encode("="),
    ]  # fmt: skip


def test_training_is_deterministic(bpe: Tokenizer) -> None:
    assert train_bpe([TEXT], 400).fingerprint == bpe.fingerprint
    assert bpe.vocab_size == 400


def test_lone_surrogates_are_replaced(bpe: Tokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


def test_bad_input(tmp_path: Path, bpe: Tokenizer) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    without_end = json.loads(bpe._definition) | {"added_tokens": []}
    without_end["model"]["vocab"] = {k: v for k, v in without_end["model"]["vocab"].items() if k != END}
    (tmp_path / "no_end.json").write_text(json.dumps(without_end))
    for call, message in [
        (lambda: load_tokenizer(tmp_path / "none"), "which is no file; it must be a tokenizer.json"),
        (lambda: load_tokenizer(tmp_path), "not a tokenizer.json"),
        (lambda: load_tokenizer(tmp_path / "bytes.json"), "cannot be used"),
        (lambda: load_tokenizer(tmp_path / "no_end.json"), "no end-of-document token"),
        (lambda: ByteTokenizer().decode([257]), "ids contain 257; they must be 0 to vocab_size - 1 = 256"),
        (lambda: bpe.decode(torch.tensor([-1])), "ids contain -1"),
        (lambda: train_bpe(["a"], 256), "vocab_size is 256; it must be at least 257"),
        (lambda: train_bpe([], 300), "texts are empty"),
        (lambda: bpe.stream(tmp_path / "none"), "path is .*, which is no file"),
        (lambda: bpe.stream(tmp_path / "tokenizer.json", 0), "length is 0; it must be at least 1"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
