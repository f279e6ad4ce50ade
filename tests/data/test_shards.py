"""Shards as a source of training: every document once, exact resume, the same sides, damage that is found."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from neuralmem.data.build_shards import Settings, build_shards
from neuralmem.data.module import Files, TextData, Validation
from neuralmem.data.packing import PackedText
from neuralmem.data.permutation import Permutation
from neuralmem.data.shards import Shards
from neuralmem.data.sources import Joined, Source, Texts, Tokenized, open_source
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer, train_bpe

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
TEXTS = [(f"t{i}", f"{chr(97 + i % 26)}{i} " * (1 + i % 7)) for i in range(80)]
TOKENIZER = ByteTokenizer()


def make(folder: Path, source: Source | None = None, tokens: int = 300) -> Path:
    build_shards(source or Texts(TEXTS), TOKENIZER, folder, about={"name": "t"}, settings=Settings(tokens))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("shards"))


def texts(source: Source, **how: Any) -> list[str]:
    return [TOKENIZER.decode(found.tokens) for found in source.scan(**how) if isinstance(found, Tokenized)]


def test_map_style(folder: Path) -> None:
    shards = Shards(folder)
    assert len(shards) == len(TEXTS)
    assert [TOKENIZER.decode(shards[i]) for i in range(len(shards))] == [text for _, text in TEXTS]
    assert shards[-1].tolist() == [*TEXTS[-1][1].encode(), 256]
    assert len(shards.manifest["shards"]) > 3
    for number in (len(TEXTS), -len(TEXTS) - 1):
        with pytest.raises(IndexError):
            shards[number]


def test_any_order_can_be_entered_anywhere(folder: Path) -> None:
    shards = open_source(f"shards:{folder}", share=0)
    plain, mixed = texts(shards), texts(shards, shuffle=3)
    assert plain == [text for _, text in TEXTS]
    assert sorted(mixed) == sorted(plain)
    assert mixed != plain
    assert mixed == texts(shards, shuffle=3) != texts(shards, shuffle=4)
    assert [texts(shards, shuffle=3, start=k) for k in range(5)] == [mixed[k:] for k in range(5)]
    assert texts(shards, shuffle=3, start=1, step=3) == mixed[1::3]
    assert texts(pickle.loads(pickle.dumps(shards)), shuffle=3) == mixed


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_a_permutation_is_one(size: int) -> None:
    orders = [[Permutation(size, seed)(place) for place in range(size)] for seed in (0, 1, -5)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 16:
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] != sorted(orders[0])


def test_a_permutation_mixes() -> None:
    """Of 1000 seeds, no place of ten prefers a number: chi square of 81 degrees of freedom, 99.9% are below 125."""
    seen = np.zeros((10, 10))
    for seed in range(1000):
        order = Permutation(10, seed)
        for place in range(10):
            seen[place, order(place)] += 1
    assert ((seen - 100) ** 2 / 100).sum() < 125


def test_a_document_is_on_the_side_where_its_text_is(tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(200)))
    for spec in (str(tmp_path / "many.jsonl"), "builtin"):
        out = make(tmp_path / spec.rpartition("/")[2].partition(".")[0], open_source(spec, share=0), tokens=1 << 17)
        for side in ("train", "validation"):
            wanted = [document.text for document in open_source(spec, side=side, share=0.2).read()]
            assert texts(open_source(f"shards:{out}", side=side, share=0.2)) == wanted


def test_a_single_document_is_cut(tmp_path: Path) -> None:
    make(tmp_path, Texts([("one", "word " * 100)]))
    train, held = (Shards(tmp_path, side=side, share=0.1)[0].tolist() for side in ("train", "validation"))
    assert train[:-1] + held == [*b"word " * 100, 256]
    assert train[-1] == 256
    assert 0.05 < len(held) / 501 < 0.15


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_and_workers_read_every_document_once(folder: Path, ranks: int, workers: int) -> None:
    """One pass over all, in the order that the seed names."""
    found: Counter[int] = Counter()
    for rank in range(ranks):
        packed = PackedText(
            Shards(folder), TOKENIZER, length=64, batch_size=2, seed=7, batches=10**6, shard=(rank, ranks)
        )
        for batch in DataLoader(packed, batch_size=None, num_workers=workers):
            found.update(batch.tokens[batch.mask if batch.mask is not None else slice(None)].flatten().tolist())
    assert found == Counter(token for _, text in TEXTS for token in [*text.encode(), 256])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("carry", [False, True])
def test_loaders_resume_exactly(folder: Path, workers: int, carry: bool) -> None:
    def loader() -> Any:
        data = TextData(
            str(folder),
            f"shards:{folder}",
            sequence_length=32,
            batch_size=2,
            align=8,
            carry=carry,
            num_workers=workers,
            validation=Validation(share=0.2),
        )
        return data.train_dataloader()

    first = loader()
    iterator = iter(first)
    for _ in range(23):  # into the second pass over the documents
        next(iterator)
    state = first.state_dict()
    expected = [next(iterator) for _ in range(4)]
    again = loader()
    again.load_state_dict(state)
    for wanted, batch in zip(expected, again, strict=False):
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(wanted, batch, strict=True))


def test_shards_train_as_their_text_does(tmp_path: Path, folder: Path) -> None:
    source, (a, b) = (
        Texts(TEXTS),
        (
            PackedText(source, TOKENIZER, length=32, batch_size=2, align=8, batches=99)
            for source in (Texts(TEXTS), Shards(folder))
        ),
    )
    assert source.count == 80
    for one, other in zip(a, b, strict=True):
        assert all(x is y is None or torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    train_bpe(["some text to train on"] * 5, 270).save(tmp_path)
    for tokenizer in ("bpe:300", str(tmp_path)):
        with pytest.raises(UserError, match=r"tokenizer.* must be") as caught:
            _ = TextData(tokenizer, f"shards:{folder}").vocab_size
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=rf"another one .* must be tokenizer: {folder}"):
        PackedText(Shards(folder), train_bpe(["text"] * 5, 270), length=8, batch_size=1)
    assert TextData("bytes", f"shards:{folder}").vocab_size == 257
    assert TextData(str(folder), f"shards:{folder}").vocab_size == 257


@pytest.mark.parametrize("name", ["00001.tokens", "00001.documents", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "longer", "flipped", "gone"])
def test_damage_is_found(tmp_path: Path, name: str, how: str) -> None:
    make(tmp_path)
    data = bytearray((tmp_path / name).read_bytes())
    if how == "gone":
        (tmp_path / name).unlink()
    else:
        place = data.index(b'"documents": ') + 13 if name == "manifest.json" else len(data) // 2
        data[place] ^= 1 if how == "flipped" else 0
        (tmp_path / name).write_bytes(data[:-2] if how == "cut" else data + b"\0" if how == "longer" else data)
    if (name, how) == ("00001.tokens", "flipped"):  # the sizes are right, and reading it all takes a word
        Shards(tmp_path)
    with pytest.raises(UserError, match=r"is damaged|is missing|no folder of shards") as caught:
        open_source(f"shards:{tmp_path}?verify=1")
    assert "\n" not in str(caught.value)


def test_a_token_that_is_none_is_found_while_reading(tmp_path: Path) -> None:
    make(tmp_path)
    tokens = np.fromfile(tmp_path / "00000.tokens", dtype="<u2")
    tokens[0] = 60_000
    tokens.tofile(tmp_path / "00000.tokens")
    with pytest.raises(UserError, match=r"00000.tokens is damaged: document 0"):
        Shards(tmp_path)[0]


def test_refusals(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    for spec, message in [
        (f"shards:{tmp_path}", "is not finished: run the same command again"),
        (f"shards:{tmp_path / 'none'}", "is no folder of shards; `python -m neuralmem.data.prepare` makes one"),
        (f"shards:{folder}?verfy=1", "the one option of shards is verify=1"),
        ([f"shards:{folder}", "builtin"], "shards cannot be joined with text"),
        ({f"shards:{folder}": 1.0, "builtin": 1.0}, "shards cannot be mixed with text"),
    ]:
        with pytest.raises(UserError, match=message):
            open_source(spec, share=0)
    with pytest.raises(UserError, match="holds tokens, and text is needed here"):
        next(open_source(f"shards:{folder}").read())
    packed = PackedText(Shards(folder), TOKENIZER, length=8, batch_size=1)
    other = make(tmp_path / "other", Texts([("a", "other")]))
    with pytest.raises(UserError, match=r"^data.source has changed .* documents of shards [0-9a-f]{16}, it is 1 docum"):
        PackedText(Shards(other), TOKENIZER, length=8, batch_size=1).load_state_dict(packed.state_dict())


def test_several_folders(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", Texts([("a", "other")]))
    both = open_source([f"shards:{folder}", f"shards:{other}"], share=0)
    assert isinstance(both, Joined)
    assert texts(both) == [text for _, text in TEXTS] + ["other"]
    assert sorted(texts(both, shuffle=1)) == sorted([text for _, text in TEXTS] + ["other"])
    mixed = open_source({f"shards:{folder}": 3, f"shards:{other}": 1}, share=0)
    tokens = {"other": 0, "all": 0}
    for found, _ in zip(mixed.scan(shuffle=1), range(4096), strict=False):
        assert isinstance(found, Tokenized)
        tokens["other"] += len(found.tokens) if TOKENIZER.decode(found.tokens) == "other" else 0
        tokens["all"] += len(found.tokens)
    assert abs(tokens["other"] / tokens["all"] - 0.25) < 0.01


def test_validation_from_a_folder_of_its_own(folder: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "held", Texts([("h", "held out")]))
    data = TextData(source=f"shards:{folder}", validation=Validation(source=f"shards:{other}"), files=Files())
    assert len(texts(data.open("train"))) == len(TEXTS)
    assert texts(data.open("validation")) == ["held out"]


def test_reading_needs_no_datasets(folder: Path) -> None:
    program = (
        "import sys; sys.modules['datasets'] = sys.modules['pyarrow'] = None\n"
        "from neuralmem.data.sources import open_source\n"
        f"print(open_source('shards:{folder}').count)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "80", done.stderr
