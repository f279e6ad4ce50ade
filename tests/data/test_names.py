"""Datasets by their short names, read by `datasets` from local folders that are laid out as on the hub.

Not tested, for want of a network: that the hub still has them there.
"""

import gzip
import json
import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from neuralmem.data.document import Document, Unreadable
from neuralmem.data.fingerprint import source_fingerprint
from neuralmem.data.hub import _is_damage, is_hub, options_of
from neuralmem.data.names import NAMES
from neuralmem.data.packing import PackedText
from neuralmem.data.prepare import main
from neuralmem.data.sources import Side, Source, open_source
from neuralmem.errors import UserError
from neuralmem.tokenizer import ByteTokenizer

pytest.importorskip("datasets")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where names of the hub are folders, which `datasets` then takes."""
    import pyarrow as pa
    import zstandard
    from pyarrow import parquet

    def table(file: str, count: int, **columns: Any) -> None:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = [f"{path.stem} {i}" for i in range(count)]
        parquet.write_table(pa.table({"id": texts, "text": texts} | columns), path)

    def lines(file: str, count: int) -> None:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = ({"text": f"{path.stem} {i}", "meta": {"redpajama_set_name": "C4"}} for i in range(count))
        path.write_bytes(zstandard.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))

    for name in ("fineweb", "fineweb-edu"):
        home = f"HuggingFaceFW/{name}"
        table(f"{home}/data/CC-MAIN-2024-10/whole.parquet", 5)
        table(f"{home}/sample/10BT/000_00000.parquet", 60)
        table(f"{home}/sample/10BT/001_00000.parquet", 40)
        table(f"{home}/sample/100BT/hundred.parquet", 7)
        configs = "".join(
            f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {path}/*\n"
            for config, path in (
                ("default", "data/*"),
                ("sample-10BT", "sample/10BT"),
                ("sample-100BT", "sample/100BT"),
            )
        )
        (tmp_path / home / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for part, count in (("train", 20), ("validation", 3), ("test", 2)):
        lines(f"cerebras/SlimPajama-627B/{part}/chunk1/example_{part}_0.jsonl.zst", count)
        table(f"DKYoon/SlimPajama-6B/data/{part}-00000-of-00001.parquet", count)
        table(f"emozilla/pg19/data/{part}-00000-of-00001.parquet", count, url=["u"] * count)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def texts(source: Source) -> list[str]:
    return [document.text for document in source.read()]


@pytest.mark.parametrize("streaming", ["", "?streaming=0"])
@pytest.mark.parametrize("name", ["slimpajama", "slimpajama-6b", "pg19"])
def test_splits_of_their_own(hub: Path, name: str, streaming: str) -> None:
    sides: tuple[Side, ...] = ("train", "validation", "all")
    train, held, every = (texts(open_source(name + streaming, side=side, share=0.1)) for side in sides)
    assert len(train) == 20
    assert len(held) == 3
    assert every == train
    assert all("train" in text for text in train)
    assert all("validation" in text for text in held)


@pytest.mark.parametrize("streaming", ["", "?streaming=0"])
@pytest.mark.parametrize("name", ["fineweb", "fineweb-edu"])
def test_split_by_hash_where_there_is_none(hub: Path, name: str, streaming: str) -> None:
    train, held = (texts(open_source(name + streaming, side=side, share=0.2)) for side in ("train", "validation"))
    assert sorted(train + held) == sorted([f"000_00000 {i}" for i in range(60)] + [f"001_00000 {i}" for i in range(40)])
    assert 8 < len(held) < 35


def test_a_stream_and_a_download_are_split_alike(hub: Path) -> None:
    one, other = (open_source(f"fineweb-edu?streaming={i}", side="validation", share=0.2) for i in (0, 1))
    assert texts(one) == texts(other)


def test_options_win_over_what_a_name_means(hub: Path) -> None:
    assert texts(open_source("fineweb-edu?config=sample-100BT", share=0)) == [f"hundred {i}" for i in range(7)]
    assert len(texts(open_source("pg19?split=test", share=0))) == 2
    assert options_of("pg19?split=test")[1]["split"] == "test"
    assert source_fingerprint(["pg19"]) != source_fingerprint(["pg19?split=test"])
    with pytest.raises(UserError, match=r"has option 'confg'; .* did you mean 'config'"):
        open_source("fineweb-edu?confg=x")
    with pytest.raises(UserError, match=r"has buffer '0'; it must be a positive number"):
        open_source("fineweb-edu?buffer=0")
    with pytest.raises(UserError, match="which is no file or folder; did you mean 'fineweb-edu'"):
        open_source("finewebedu")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_complete(name: str) -> None:
    assert is_hub(name)
    dataset, options = options_of(name)
    assert dataset.count("/") == 1
    assert {"split", "field", "streaming"} <= options.keys()


def test_weights(hub: Path) -> None:
    mixed = open_source({"fineweb-edu": 0.7, "pg19": 0.3}, side="train", share=0.1)
    found = [document.text for document, _ in zip(mixed.read(shuffle=0), range(4096), strict=False)]
    size = sum(len(text) for text in found)
    assert sum(len(text) for text in found if text.startswith("train")) / size == pytest.approx(0.3, abs=0.02)


def test_loader_processes_read_every_document_of_a_stream_once(hub: Path) -> None:
    """Of two files, which `datasets` would divide among the processes once more."""
    source = open_source("fineweb-edu", side="train", share=0.2)
    packed = PackedText(source, ByteTokenizer(), length=32, batch_size=1, batches=10**6)
    found: Counter[int] = Counter()
    for batch in DataLoader(packed, batch_size=None, num_workers=2):
        found.update(batch.tokens[batch.mask if batch.mask is not None else slice(None)].flatten().tolist())
    assert found == Counter(token for text in texts(source) for token in [*text.encode(), 256])


def test_a_damaged_file_of_a_stream_ends_and_the_next_one_follows(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{{}} {i}"}) + "\n" for i in range(3)]
    for number, damage in enumerate(("", "{no json\n", "", "\xe9\n", "cut", "", "sum", "")):
        text = "".join(rows).replace("{}", str(number)) + (damage if damage.endswith("\n") else "")
        packed = bytearray(gzip.compress(text.encode("latin-1")))
        if damage == "cut":
            packed = packed[: len(packed) // 2]
        elif damage == "sum":
            packed[-5] ^= 1  # of the checksum
        (tmp_path / f"{number}.jsonl.gz").write_bytes(packed)
    source = open_source(f"hf:json?data_files={tmp_path}/*.gz&streaming=1")
    found = list(source.scan())
    damaged = [one.error for one in found if isinstance(one, Unreadable)]
    assert [error.partition(" of ")[0] for error in damaged] == ["file 2", "file 4", "file 5", "file 7"]
    assert all("is damaged and was not read to its end: " in error for error in damaged)
    whole = [f"{number} {i}" for number in (0, 2, 5, 7) for i in range(3)]
    assert [one.text for one in found if isinstance(one, Document)] == whole
    assert list(source.scan()) == found
    packing = PackedText(source, ByteTokenizer(), length=32, batch_size=1, batches=10**6)
    with pytest.warns(UserWarning, match=r"1 document\(s\) cannot be read and are left out: file 2 of 8"):
        assert len(list(packing)) > 0


def test_a_parquet_file_of_a_stream_whose_bytes_were_overwritten_is_damaged(hub: Path) -> None:
    source = open_source("fineweb-edu")
    (*_, last) = sorted((hub / "HuggingFaceFW/fineweb-edu/sample/10BT").iterdir())
    content = bytearray(last.read_bytes())
    content[20:200] = bytes(180)
    last.write_bytes(content)
    *whole, damaged = source.scan()
    assert [one.text for one in whole if isinstance(one, Document)] == [f"000_00000 {i}" for i in range(60)]
    assert isinstance(damaged, Unreadable)
    assert "file 2 of 2 of source 'fineweb-edu' is damaged" in damaged.error


def test_a_first_file_that_is_no_parquet_is_said_before_a_run_begins(hub: Path) -> None:
    (first, *_) = sorted((hub / "HuggingFaceFW/fineweb-edu/sample/10BT").iterdir())
    first.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be loaded: "):
        open_source("fineweb-edu")


def test_a_refusal_of_the_hub_is_no_damage() -> None:
    """Taken for damage it would leave out a file, and every place in the data would be another."""
    from huggingface_hub.errors import BadRequestError

    assert issubclass(BadRequestError, ValueError)
    assert not _is_damage(BadRequestError.__new__(BadRequestError))
    assert not _is_damage(ConnectionError("the line is dead"))
    assert not _is_damage(TimeoutError())


def test_prepare(hub: Path) -> None:
    """Shards are split as the stream they are from."""
    assert main(["fineweb-edu", "--out", "shards", "--processes", "1", "--shard-tokens", "300", "--quiet"]) == 0
    shards = open_source("shards:shards", side="validation", share=0.2)
    wanted = texts(open_source("fineweb-edu", side="validation", share=0.2))
    assert [bytes(found.tokens[:-1].tolist()).decode() for found in shards.scan()] == wanted  # type: ignore[union-attr]


class Counted:
    """Rows of a stream, and how many were read."""

    def __init__(self, count: int, breaks_at: int | None = None) -> None:
        self.count, self.breaks_at, self.read = count, breaks_at, 0

    def __iter__(self) -> Iterator[dict[str, str]]:
        for number in range(self.count):
            if number == self.breaks_at:
                self.breaks_at = None
                raise ConnectionError("the line is dead")
            self.read += 1
            yield {"text": f"text {number}"}


@pytest.mark.parametrize("room", [1 << 20, 100, 0])
def test_validation_finds_its_part_of_a_stream_once(hub: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """A thousandth of a stream is a long read, and validation asks for it again and again."""
    monkeypatch.setattr("neuralmem.data.hub.KEPT_CHARACTERS", room)
    source = open_source("fineweb-edu", side="validation", share=0.2)
    rows = Counted(1000)
    source._dataset = rows  # type: ignore[attr-defined]
    first = [document.id for document, _ in zip(source.scan(), range(50), strict=False)]
    once = rows.read
    assert [document.id for document, _ in zip(source.scan(), range(50), strict=False)] == first
    assert (rows.read == once) is (room > 10**5)
    whole = [document.id for document in source.scan()]
    assert (len(set(whole)), whole[:50]) == (len(whole), first)
    twice = rows.read
    assert [document.id for document in source.scan()] == whole
    assert (rows.read == twice) is (room > 10**5)  # the second whole pass reads nothing
    assert [document.id for document in source.scan(3, 7)] == whole[3::7]
    assert 120 < len(whole) < 280
    assert [document.id for document in pickle.loads(pickle.dumps(source)).scan()] == whole


def test_a_validation_that_broke_off_goes_on(hub: Path) -> None:
    source = open_source("fineweb-edu", side="validation", share=0.2)
    source._dataset = Counted(200, breaks_at=100)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="the line is dead"):
        texts(source)
    whole = texts(source)  # this time it does not break
    assert len(whole) > 20
    fresh = open_source("fineweb-edu", side="validation", share=0.2)
    fresh._dataset = Counted(200)  # type: ignore[attr-defined]
    assert texts(fresh) == whole


def test_a_stream_that_breaks_says_where(hub: Path) -> None:
    source = open_source("fineweb-edu", share=0)

    def broken() -> Any:
        yield {"text": "one"}
        raise ConnectionError("the line is dead")

    source._dataset = broken()  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="broke after 1 documents: the line is dead; run again, in training"):
        texts(source)
