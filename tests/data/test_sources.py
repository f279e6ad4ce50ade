"""Sources: what they yield, in which order, on which side; and what bad input gets."""

import json
import pickle
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, IterableDataset

from neuralmem.data.document import on_side
from neuralmem.data.readers import reader
from neuralmem.data.sources import Joined, Source, Texts, open_source
from neuralmem.errors import UserError


def ids(source: Source, **how: int) -> list[str]:
    return [document.id for document in source.read(**how)]


def write_lines(path: Path, texts: list[str], field: str = "text") -> None:
    path.write_text("".join(json.dumps({field: text, "n": 1}) + "\n\n" for text in texts), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    root = tmp_path / "corpus"
    (root / "deep").mkdir(parents=True)
    (root / "b.txt").write_text("b text", encoding="utf-8")
    (root / "deep" / "a.md").write_text("a téxt", encoding="utf-8")
    (root / "deep" / ".hidden.txt").write_text("hidden")
    (root / "ignored.py").write_text("code")
    write_lines(root / "lines.jsonl", ["line one", "zwei\nü", "three"])
    table = pa.table({"text": [f"row {i}" for i in range(10)], "n": list(range(10))})
    parquet.write_table(table, root / "rows.parquet", row_group_size=4)
    return root


def test_a_folder_with_every_kind(folder: Path) -> None:
    source = open_source(str(folder), share=0)
    texts = {document.id: document.text for document in source.read()}
    assert source.count == len(texts) == 15
    assert texts["b.txt"] == "b text"
    assert texts["deep/a.md"] == "a téxt"
    assert [texts[f"lines.jsonl#{i}"] for i in (1, 2, 3)] == ["line one", "zwei\nü", "three"]
    assert texts["rows.parquet#0.1"] == "row 0"
    assert texts["rows.parquet#2.2"] == "row 9"


def test_globs_and_lists(folder: Path) -> None:
    assert ids(open_source(str(folder / "*.py"), share=0)) == ["ignored.py"]
    assert ids(open_source(str(folder / "**" / "*.md"), share=0)) == ["deep/a.md"]
    both = open_source([str(folder / "b.txt"), str(folder / "lines.jsonl")], share=0)
    assert ids(both) == ["b.txt", "lines.jsonl#1", "lines.jsonl#2", "lines.jsonl#3"]


def test_any_order_can_be_entered_anywhere(folder: Path) -> None:
    sources = [open_source(str(folder), share=0), Texts([(str(i), "t") for i in range(20)])]
    sources.append(Joined("both", [Texts([("a", "x"), ("b", "y")]), Texts([(str(i), "t") for i in range(5)])]))
    for source in sources:
        plain, mixed = ids(source), ids(source, shuffle=3)
        assert sorted(mixed) == sorted(plain)
        assert mixed != plain
        assert mixed == ids(source, shuffle=3) != ids(source, shuffle=4)
        assert [ids(source, shuffle=3, start=k) for k in range(5)] == [mixed[k:] for k in range(5)]
        assert ids(source, shuffle=3, start=1, step=3) == mixed[1::3]


def test_shuffling_reads_row_groups_together(folder: Path) -> None:
    groups = [
        name.split("#")[1].split(".")[0] for name in ids(open_source(str(folder / "rows.parquet"), share=0), shuffle=1)
    ]
    assert len([1 for a, b in pairwise(groups) if a != b]) == 2


def test_large_files_become_several_documents(tmp_path: Path) -> None:
    text = "".join(f"line {i} äöü\n" for i in range(1000))
    (tmp_path / "large.txt").write_text(text, encoding="utf-8")
    (tmp_path / "dense.txt").write_text("é日" * 3000, encoding="utf-8")
    for name, whole in (("large.txt", text), ("dense.txt", "é日" * 3000)):
        documents = list(open_source(str(tmp_path / name), share=0, document_bytes=1500).read())
        assert len(documents) > 3
        assert "".join(document.text for document in documents) == whole
    assert all(
        document.text.startswith("line ")
        for document in open_source(str(tmp_path / "large.txt"), share=0, document_bytes=1500).read()
    )


def test_sides_are_disjoint_and_complete(tmp_path: Path) -> None:
    write_lines(tmp_path / "many.jsonl", [f"text {i}" for i in range(200)])
    train, held, every = (
        ids(open_source(str(tmp_path / "many.jsonl"), side=side, share=0.2)) for side in ("train", "validation", "all")
    )
    assert sorted(train + held) == sorted(every)
    assert 20 < len(held) < 60
    assert all(on_side(name, "validation", 0.2) for name in held)


def test_a_single_document_is_cut(tmp_path: Path) -> None:
    text = " ".join(f"word{i}" for i in range(100))
    (tmp_path / "one.txt").write_text(text)
    train, held = (
        next(open_source(str(tmp_path / "one.txt"), side=side, share=0.1).read()).text
        for side in ("train", "validation")
    )
    assert f"{train} {held}" == text
    assert 0.05 < len(held) / len(text) < 0.15


def test_what_is_not_utf8_is_replaced_and_said_once(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(
        "café \ufffd naïve".encode("utf-8").replace(b"\xc3\xa9", b"\xe9").replace(b"\xc3\xaf", b"\xef")
    )
    source = open_source(str(tmp_path / "latin.txt"), share=0)
    with pytest.warns(UserWarning, match=r"latin.txt' is not UTF-8 in 2 place"):
        assert next(source.read()).text == "caf\ufffd \ufffd na\ufffdve"
    assert next(source.read()).text  # no second warning


class Reader(IterableDataset[str]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __iter__(self) -> Iterator[str]:
        return (document.text for document in self.source.read(*reader((0, 1)), shuffle=1))


@pytest.mark.parametrize("files", [1, 3])
def test_loader_processes_share_a_stream_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    for number in range(files):
        write_lines(tmp_path / f"{number}.jsonl", [f"text {number} {i}" for i in range(20)])
    source = open_source(f"hf:json?data_files={tmp_path}/*.jsonl&streaming=1&buffer=10", share=0)
    read = list(DataLoader(Reader(source), batch_size=None, num_workers=2))
    assert sorted(read) == sorted(f"text {number} {i}" for number in range(files) for i in range(20))


def test_hub_names_through_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    write_lines(tmp_path / "rows.jsonl", [f"text {i}" for i in range(50)], field="body")
    spec = f"hf:json?data_files={tmp_path / 'rows.jsonl'}&streaming=1&field=body&buffer=10"
    source = open_source(spec, share=0)
    mixed = [document.text for document in source.read(shuffle=1)]
    assert [document.text for document in source.read()] == [f"text {i}" for i in range(50)]
    assert sorted(mixed) == sorted(f"text {i}" for i in range(50))
    assert [document.text for document in source.read(7, 2, shuffle=1)] == mixed[7::2]
    with pytest.raises(UserError, match="a stream cannot be joined"):
        open_source([spec, "builtin"])
    with pytest.raises(UserError, match=r"cannot be loaded: .* HF_HUB_OFFLINE=1"):
        open_source(f"hf:json?data_files={tmp_path / 'none.jsonl'}&streaming=1")
    with pytest.raises(UserError, match="no text there, its fields are body, n"):
        next(open_source(spec.replace("&field=body", "")).read())
    with pytest.raises(UserError, match=r"has option 'spilt'; .* did you mean 'split'"):
        open_source("hf:json?spilt=train")


def test_bad_input(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "packed.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "fake.parquet").write_bytes(b"no parquet")
    (tmp_path / "wrong.jsonl").write_text('{"text": "fine"}\nno json\n{"body": 1}\n')
    for spec, how, message in [
        ("builtni", {}, "source is 'builtni', which is no file or folder; did you mean 'builtin'"),
        (str(folder / "b.txy"), {}, "did you mean 'b.txt'"),
        (str(folder / "*.none"), {}, "no file or folder"),
        (str(tmp_path / "empty"), {}, "no .*jsonl.* file"),
        (str(tmp_path / "empty.txt"), {}, "is empty"),
        (str(tmp_path / "packed.jsonl.gz"), {}, "it must be text, .jsonl"),
        (str(tmp_path / "fake.parquet"), {}, "is not a parquet file"),
        (
            str(folder / "rows.parquet"),
            {"text_field": "txt"},
            "text_field is 'txt'; .* its fields are text, n; did you mean 'text'",
        ),
        (str(folder / "b.txt"), {"share": 1.5}, "validation.share is 1.5"),
        (str(folder / "b.txt"), {"share": 0, "side": "validation"}, "no validation documents"),
        (str(folder / "b.txt"), {"document_bytes": 10}, "document_bytes is 10"),
        ([], {}, "source is empty"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            open_source(spec, **how)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    wrong = open_source(str(tmp_path / "wrong.jsonl"), share=0)
    with pytest.raises(UserError, match=r"wrong.jsonl#2 is not a JSON line"):
        list(wrong.read())
    with pytest.raises(UserError, match=r"wrong.jsonl#3 has no text there, its fields are body"):
        list(wrong.read(start=2))


def test_a_fingerprint_changes_with_names_sizes_and_options(folder: Path, tmp_path: Path) -> None:
    def seen(spec: object, **how: object) -> tuple[str, ...]:
        return tuple(open_source(spec, **how).fingerprint())  # type: ignore[arg-type]

    first = seen(str(folder), share=0)
    assert [line.split(", names")[0] for line in first] == [
        "2 documents of 2 file(s), 13 bytes",
        f"3 documents of 1 file(s), {(folder / 'lines.jsonl').stat().st_size:,} bytes",
        f"10 documents of 1 file(s), {(folder / 'rows.parquet').stat().st_size:,} bytes",
    ]
    shutil.copytree(folder, tmp_path / "moved")
    assert seen(str(tmp_path / "moved"), share=0) == first
    found = [first, seen(str(folder), side="train", share=0.5), seen(str(folder), side="train", share=0.4)]
    found += [seen([str(folder / "b.txt"), "builtin"]), seen(str(folder / "b.txt"), document_bytes=2048)]
    (folder / "b.txt").rename(folder / "c.txt")
    found.append(seen(str(folder), share=0))
    (folder / "c.txt").write_text("b text.", encoding="utf-8")
    found.append(seen(str(folder), share=0))
    assert len(set(found)) == len(found)
    one, other = (Texts([("a", text)]).fingerprint() for text in ("same length", "same LENGTH"))
    assert one != other


def test_the_fingerprint_of_a_dataset_is_what_was_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    hub = f"hf:json?data_files={folder / 'lines.jsonl'}"
    specs = (hub, f"{hub}&streaming=1", f"{hub}&streaming=1&buffer=7")
    found = [tuple(open_source(spec, share=share).fingerprint()) for spec in specs for share in (0, 0.5)]
    assert found[0] == found[1]  # all documents, whatever the share
    found += [tuple(open_source(spec, side="train", share=0.5).fingerprint()) for spec in specs]
    assert len(set(found)) == 6
    assert found[-1][0].startswith("the stream of train documents (share 0.5) of json {")
    assert found[-1][0].endswith(", buffer 7")


def test_sources_go_through_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned loader processes get a source as a pickle."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    hub = f"hf:json?data_files={folder / 'lines.jsonl'}"
    for spec in ("builtin", str(folder), str(folder / "*.py"), hub, f"{hub}&streaming=1", ["builtin", hub]):
        source = open_source(spec, share=0)
        documents = [document for document, _ in zip(source.read(), range(40), strict=False)]
        again = pickle.loads(pickle.dumps(source))
        assert [document for document, _ in zip(again.read(), range(40), strict=False)] == documents
        assert again.name == source.name


@pytest.mark.parametrize("line", [b'{"text": "a"}', b' {"text": "a"}', b'{"text": "a"} \r', b'{"text": "a"}\t'])
def test_white_space_around_a_record_is_none_of_it(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "one.jsonl").write_bytes(line + b"\n" + line)
    assert [document.text for document in open_source(str(tmp_path / "one.jsonl"), share=0).read()] == ["a", "a"]


@pytest.mark.parametrize(
    "line", [b'{"text": "a"} {}', b'{"text": "a"},', b'\xef\xbb\xbf{"text": "a"}', b'{"text": "a"']
)
def test_anything_else_around_it_is_no_json_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "one.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UserError, match="is not a JSON line"):
        list(open_source(str(tmp_path / "one.jsonl"), share=0).read())
