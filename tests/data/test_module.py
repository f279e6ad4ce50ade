"""Lightning data modules: loaders that resume exactly, tokenizers in a cache, batches that move."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.cli import LightningArgumentParser
from torch.utils.data import DataLoader

from neuralmem.data import module
from neuralmem.data.batch import Batch
from neuralmem.data.module import DataModule, Files, NeedleData, RecallData, TextData, Validation
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.data.sources import Side, Source, open_source
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
        {"class_path": "NeedleData", "init_args": {"stages": [stage], "source": {"builtin": 0.7, "stdlib": 0.3}}},
    ):
        data = parser.instantiate(parser.parse_object({"data": settings})).data
        assert isinstance(data, DataModule)
        assert type(data).__name__ == settings["class_path"]


@pytest.mark.parametrize("source", ["builtin", "files"])
def test_training_and_validation_read_disjoint_documents(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "files":
        source = str(tmp_path / "files")
        Path(source).mkdir()
        for i in range(40):
            (Path(source) / f"{i}.txt").write_text(f"word{chr(97 + i % 26)} of file {i}\n" * 100 + "some text\n" * 30)
    stages = [Stage(keys=16, length=128, facts=3, questions=3)]
    data = NeedleData(stages, tokenizer="bytes", source=source, form=NeedleFormat(key_tokens=0))
    if source != "builtin":
        monkeypatch.setattr(NeedleData, "keys", [f"key{chr(97 + i)}" for i in range(26)])
    texts = {part: data.build(part)._text for part in ("train", "validation")}
    for part, ids in texts.items():
        own = "".join(document.text for document in open_source(source, side=part).read())
        assert data.tokenizer.decode(ids.tolist()) == own[: len(own) if source != "builtin" else 4_000_000]
    assert texts["train"].size > texts["validation"].size
    assert not set(bytes(texts["train"].astype("u1")).split(b"\n")) & {
        line for line in bytes(texts["validation"].astype("u1")).split(b"\n") if b"of file" in line
    }


def test_needles_lie_in_sources_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_keys", lambda *_: [f"key{chr(97 + i)}" for i in range(26)])
    weights = {}
    for letter, weight in (("a", 0.9), ("b", 0.1)):
        path = tmp_path / f"{letter}.txt"
        path.write_text(f"{letter * 99}\n" * 200)
        weights[str(path)] = weight
    data = NeedleData([Stage(keys=16, length=128, facts=3, questions=3)], tokenizer="bytes", source=weights)
    data.options["form"] = NeedleFormat(key_tokens=0)
    text = data.build("train")._text
    assert (text == ord("b")).sum() / (text != ord("\n")).sum() == pytest.approx(0.1, abs=0.02)


def test_keys_and_tokenizers_come_from_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def spy(spec: str, *, side: str) -> Source:
        opened.append(side)
        return open_source(spec, side=side)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "open_source", spy)
    data = NeedleData([Stage(keys=16, length=128, facts=3, questions=3)], tokenizer="words:300")
    assert data.tokenizer.vocab_size == 300
    data.options["form"] = NeedleFormat(key_tokens=0)
    assert len(data.keys) > 16
    assert set(opened) == {"train"}
    data.build("validation")
    assert opened[-1] == "validation"


def test_tokenizer_of_text_is_trained_on_training_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = text_data(tmp_path / "text", validation=Validation(share=0.3))
    data._tokenizer_spec = "bpe:300"
    read: list[str] = []
    monkeypatch.setattr(module, "make_tokenizer", lambda spec, texts: read.extend(texts) or ByteTokenizer())
    assert data.tokenizer.vocab_size == 257
    assert read == [document.text for document in data.open("train").read()]


def test_text_data_reads_the_part_it_builds(tmp_path: Path) -> None:
    data = text_data(tmp_path / "text", validation=Validation(share=0.3, batches=50))
    own: dict[Side, set[int]] = {}
    for part in ("train", "validation"):
        own[part] = {ord(document.text[0]) for document in data.open(part).read()}
        read = data.build(part)
        first = {
            int(i) for batch, _ in zip(read, range(50), strict=False) for i in batch.tokens.unique() if 97 <= i < 109
        }
        assert first == own[part]
    assert not own["train"] & own["validation"]


def pickled(dataset: Any) -> None:
    """A copy that has gone through a pickle, as in a spawned loader process, yields the same batches."""
    again = pickle.loads(pickle.dumps(dataset))
    assert all(equal(a, b) for a, b, _ in zip(dataset, again, range(3), strict=False))


def test_datasets_go_through_pickles(tmp_path: Path) -> None:
    pickled(text_data(tmp_path / "text").build("train"))
    pickled(recall_data(tmp_path).build("train"))
    needles = NeedleData(
        [Stage(keys=16, length=128, facts=3, questions=3)], tokenizer="bytes", form=NeedleFormat(key_tokens=0)
    ).build("train")
    next(iter(needles))
    pickled(needles)


def test_spawned_loader_processes(tmp_path: Path) -> None:
    dataset = text_data(tmp_path / "text").build("validation")
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert all(equal(a, b) for a, b in zip(loader, dataset, strict=True))
