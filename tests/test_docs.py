"""The documents tell the truth: what they name exists, and what they show as Python runs.

Checked are README, CONTRIBUTING, CHANGELOG and docs/: links, paths, names of this package, fields of the config, make
targets, commands of eval.py, YAML, and every row of the paper map. Blocks marked python run in order, per document, in
a folder with a small model in runs/quickstart and a text book.txt; other blocks are marked text or yaml.
"""

import contextlib
import dataclasses
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import neuralmem as nm
from neuralmem.evaluation.cli import parse
from neuralmem.models.pretrained import names

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
# What has a slash in it and begins with one of these is a path of the repository, or of the package.
FOLDERS = "neuralmem|configs|tests|docs|benchmarks|ops|modules|memory|layers|models|data|generation|training|evaluation"
PATH = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w|[\w-]+\.(?:py|toml|md)\b)")
LINK = re.compile(r"\]\(([^)#\s]*)(#[\w-]+)?\)")
HF = importlib.util.find_spec("transformers") is not None  # an extra of this package: neuralmem[hf]
PARTS = {"memory": nm.MemoryConfig, "attention": nm.AttentionConfig, "model": nm.ModelConfig}

documents = pytest.mark.parametrize("document", DOCS, ids=[d.name for d in DOCS])


def code(text: str) -> list[str]:
    """Inline code and blocks of a document."""
    return [*(block for _, block in FENCE.findall(text)), *INLINE.findall(FENCE.sub("", text))]


def blocks(document: Path, language: str) -> list[str]:
    return [block for kind, block in FENCE.findall(document.read_text()) if kind == language]


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def exists(path: str, document: Path) -> bool:
    """A path from the root, the document, the package or the tests, or a shipped model's name; a bare file name may be
    anywhere in the package."""
    if any((start / path).exists() for start in (ROOT, document.parent, ROOT / "neuralmem", ROOT / "tests")):
        return True
    if path in names():
        return True
    return "/" not in path and any((ROOT / "neuralmem").rglob(path))


@documents
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in LINK.findall(document.read_text()):
        if "://" in target:
            continue
        file = document.parent / target if target else document
        assert file.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{document.name} links to {target}{anchor}"


@documents
def test_paths_exist(document: Path) -> None:
    named = {path for piece in code(document.read_text()) for path in PATH.findall(piece)}
    missing = sorted(path for path in named if not exists(path, document))
    assert not missing, f"{document.name} names what does not exist: {', '.join(missing)}"


def resolve(name: str) -> Any:
    """The object that a dotted name means; AttributeError where there is none."""
    found: Any = importlib.import_module("neuralmem")
    for part in name.split(".")[1:]:
        if not hasattr(found, part):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


@documents
def test_names_exist(document: Path) -> None:
    pieces = code(document.read_text())
    names = {n for piece in pieces for n in re.findall(r"(?<![\w/.-])neuralmem(?:\.[A-Za-z_]\w*)+(?!/)", piece)}
    names |= {f"neuralmem{n}" for piece in pieces for n in re.findall(r"(?<![\w.])nm((?:\.[A-Za-z_]\w*)+)", piece)}
    for name in sorted(names):
        if HF or not name.startswith("neuralmem.hf"):
            resolve(name)


@documents
def test_config_fields_exist(document: Path) -> None:
    for part, name in re.findall(r"`(?:--)?(?:model\.)?(memory|attention)\.(\w+)", document.read_text()):
        assert name in {f.name for f in dataclasses.fields(PARTS[part])} | {"py"}, f"{document.name}: {part}.{name}"


@documents
def test_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for piece in code(document.read_text()):
        for target in re.findall(r"^make ([a-z-]+)", piece, re.MULTILINE):
            assert target in targets, f"{document.name}: make {target}"


@documents
def test_evaluation_commands_parse(document: Path) -> None:
    for piece in code(document.read_text()):
        for command, arguments in re.findall(r"^python eval\.py ([\w-]+) (.+)$", piece, re.MULTILINE):
            parse(command, arguments.split())


@documents
def test_yaml_builds_a_model(document: Path) -> None:
    for block in blocks(document, "yaml"):
        nm.ModelConfig.from_dict({"vocab_size": 257, **yaml.safe_load(block)["model"]})


@documents
def test_blocks_say_what_they_are(document: Path) -> None:
    for kind, block in FENCE.findall(document.read_text()):
        assert kind in ("python", "text", "yaml"), f"{document.name}: {kind!r} in front of {block[:40]!r}"


def test_results_have_their_place() -> None:
    text = (ROOT / "README.md").read_text()
    start, end = "<!-- results:start -->", "<!-- results:end -->"
    assert text.count(start) == text.count(end) == 1
    assert text.index(start) < text.index(end)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the documents assume it, which is the current one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    memory = nm.MemoryConfig(chunk_size=16)
    config = nm.ModelConfig(vocab_size=257, width=16, depth=1, pattern=["titans_mag"], memory=memory)
    nm.save("runs/quickstart", nm.CausalLM(config), nm.ByteTokenizer())
    Path("book.txt").write_text("It was a bright cold day, and the clocks were striking. " * 40)
    return tmp_path


@pytest.mark.parametrize("document", [d for d in DOCS if blocks(d, "python")], ids=lambda d: d.name)
def test_python_blocks_run(document: Path, workplace: Path) -> None:
    names: dict[str, Any] = {}
    if document.name == "huggingface.md" and not HF:
        pytest.skip("transformers is not installed: pip install neuralmem[hf]")
    for block in blocks(document, "python"):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block, str(document), "exec"), names)


def paper_map() -> list[dict[str, str]]:
    """Rows of the tables that have a column `file`, by the names of their columns."""
    rows, header = [], None
    for line in (ROOT / "docs" / "paper_map.md").read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            header = None
        elif header is None:
            header = cells
        elif "file" in header and not set(cells[0]) <= set("-: "):
            rows.append(dict(zip(header, cells, strict=True)))
    return rows


@pytest.mark.parametrize("row", paper_map(), ids=lambda row: row["equation"])
def test_paper_map_names_a_file_and_a_test(row: dict[str, str]) -> None:
    files = INLINE.findall(row["file"])
    assert files, "no file"
    for file in files:
        assert (ROOT / "neuralmem" / file).is_file(), file
    tests = INLINE.findall(row["test"])
    assert tests, "no test"
    for test in tests:
        file, _, name = test.partition("::")
        source = ROOT / "tests" / file
        assert source.is_file(), file
        assert not name or re.search(rf"def {name}\b", source.read_text()), test
