"""Lightning data modules: loaders that resume exactly, tokenizers in a cache, batches that move."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.cli import LightningArgumentParser

from neuralmem.data.batch import Batch
from neuralmem.data.module import DataModule, Files, NeedleData, RecallData, TextData, Validation
from neuralmem.data.synthetic import Stage
from neuralmem.data.tokenizers import make_tokenizer
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NEURALMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenizers"


def equal(first: Batch, second: Batch) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(first, second, strict=True))


def text_data(folder: Path, **options: Any) -> TextData:
    folder.mkdir(exist_ok=True)
    for i in range(12):
        (folder / f"{i}.txt").write_text("".join(chr(97 + i) + str(j) for j in range(40 + i)))
    return TextData(source=str(folder), sequence_length=32, batch_size=2, align=8, **options)


def recall_data(folder: Path, **options: Any) -> RecallData:
    return RecallData([Stage(keys=8, length=32, facts=3, questions=3)], batch_tokens=128, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [text_data, recall_data])
def test_loaders_resume_exactly(tmp_path: Path, make: Any, workers: int) -> None:
    loader = make(tmp_path / "text", num_workers=workers).train_dataloader()
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    state = loader.state_dict()
    expected = [next(iterator) for _ in range(4)]
    again = make(tmp_path / "text", num_workers=workers).train_dataloader()
    again.load_state_dict(state)
    assert all(equal(a, b) for a, b in zip(expected, again, strict=False))


def test_validation_leaves_the_random_state_alone(tmp_path: Path) -> None:
    data = text_data(tmp_path / "text")
    before = torch.get_rng_state()
    first = list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())
    assert first
    assert all(equal(a, b) for a, b in zip(first, data.val_dataloader(), strict=True))


def test_text_data(tmp_path: Path) -> None:
    data = text_data(tmp_path / "text", carry=True, validation=Validation(share=0.3, batches=2), files=Files())
    assert isinstance(data.tokenizer, ByteTokenizer)
    assert (data.vocab_size, data.batch_size, data.length, data.carry_memory) == (257, 2, 32, True)
    assert next(iter(data.train_dataloader())).tokens.shape == (2, 32)
    assert len(list(data.val_dataloader())) <= 2
    sides = [{document.id for document in data.open(side).read()} for side in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 12


def test_needle_data() -> None:
    data = NeedleData([Stage(keys=16, length=128, facts=3, questions=3)], tokenizer="words:700", batch_tokens=512)
    train, held = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train.tokens.shape == held.tokens.shape == (4, 128)
    assert data.vocab_size == 700
    assert not equal(train, held)


def test_trained_tokenizers_are_cached(cache: Path) -> None:
    texts = ["some text to train on, some more text"] * 5
    first = make_tokenizer("bpe:270", texts)
    assert len(list(cache.glob("*/tokenizer.json"))) == 1
    assert make_tokenizer("bpe:270", iter(texts)) == first
    assert make_tokenizer("words:270", texts) != first
    assert len(list(cache.iterdir())) == 2
    assert make_tokenizer(str(next(cache.iterdir())), []).vocab_size == first.vocab_size


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("byte", "it must be bytes, bpe:NUMBER, .* did you mean 'bytes'"),
        ("bpe:many", "it must be bpe:NUMBER"),
        ("bpe:12", "at least 257"),
        ("none/tokenizer.json", "or a path"),
    ],
)
def test_bad_tokenizers(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_tokenizer(spec, ["text"])


def test_batches_move_and_keep_their_type() -> None:
    batch = Batch(
        torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long), mask=torch.ones(1, 2).bool()
    )
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, Batch)
    assert moved.tokens.device.type == moved.mask.device.type == "meta"  # type: ignore[union-attr]
    assert moved.reset is None


def test_yaml_schema() -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    stage = {"keys": 8, "length": 64, "longer": [{"length": 256, "share": 0.1, "facts": 6, "questions": 12}]}
    for settings in (
        {"class_path": "TextData", "init_args": {"source": ["builtin", "stdlib"], "validation": {"share": 0.2}}},
        {"class_path": "RecallData", "init_args": {"stages": [stage]}},
        {"class_path": "NeedleData", "init_args": {"stages": [stage], "form": {"digits": 4}}},
    ):
        data = parser.instantiate(parser.parse_object({"data": settings})).data
        assert isinstance(data, DataModule)
        assert type(data).__name__ == settings["class_path"]
