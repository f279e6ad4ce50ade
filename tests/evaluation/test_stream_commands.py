"""The commands over streams as a user calls them: files, a table, errors in one line."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.evaluation.cli import main
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import save
from neuralmem.tokenizer import ByteTokenizer

# As little as shows everything. Its model has learned nothing, so that the tables say: none of it.
QUICK = {
    "recall": "--facts 2,3",
    "overwrite": "--updates 0,1 --facts 2",
    "copy": "--gaps 16,64 --block 12",
    "sessions": "--sessions 2 --facts 2",
    "half-life": "--longest 256 --shortest 64",
    "capacity": "--pairs 2,4",
    "continual": "--tasks 2 --classes 2 --shown 1",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257,
        width=16,
        depth=1,
        pattern=["titans_mag"],
        attention=AttentionConfig(heads=1, window=16),
        memory=MemoryConfig(heads=1, chunk_size=16),
    )
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save(folder, CausalLM(config), ByteTokenizer())
    data = {"stages": [{"length": 256, "facts": 5}], "source": str(text_file), "form": {"key_tokens": 0}}
    (folder / "data.json").write_text(json.dumps({"class_path": "NeedleData", "init_args": data}))
    return folder


def call(command: str, checkpoint: Path, out: Path, text_file: Path, options: str) -> int:
    common = ["--checkpoint", str(checkpoint), "--out", str(out), "--haystack", f"file:{text_file}"]
    return main([command, *common, *options.split()])


@pytest.mark.parametrize("command", QUICK)
def test_a_command_writes_its_files_and_goes_on(
    command: str, checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"{QUICK[command]} --samples 2"
    assert call(command, checkpoint, tmp_path, text_file, options) == 0
    first = capsys.readouterr()
    assert first.err == ""
    assert "Reach: attention windows and convolutions alone see" in first.out
    stem = command.replace("-", "_")
    written = {f"{stem}.csv", f"{stem}.jsonl", f"{stem}.png", "report.html", "machine.json"}
    assert {path.name for path in tmp_path.iterdir()} == written
    rows = [json.loads(line) for line in (tmp_path / f"{stem}.jsonl").read_text().splitlines()]
    assert {row["ablation"] for row in rows} == {"none", "frozen", "off", "reset"}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert {row["ckpt_sha256"] for row in rows} == {manifest["files"]["model.safetensors"]["sha256"]}
    table = list(csv.DictReader(io.StringIO((tmp_path / f"{stem}.csv").read_text())))
    assert len(table) >= 1
    assert not any(answer["seen"] for row in rows for answer in row["answers"] if command not in ("copy", "half-life"))
    before = (tmp_path / f"{stem}.jsonl").read_bytes()
    assert call(command, checkpoint, tmp_path, text_file, options) == 0
    assert capsys.readouterr().out == first.out
    assert (tmp_path / f"{stem}.jsonl").read_bytes() == before, "nothing was asked again"


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("recall", "--facts 4,x", "--facts holds 'x'; it must be numbers of at least 1, as in 4,8,16"),
        ("recall", "--samples 0", "--samples is 0; it must be at least 1"),
        ("recall", "--spread -1", "--spread is -1; it must be at least 0"),
        (
            "recall",
            "--ablate frosen",
            "--ablate is 'frosen'; it must be one of none, frozen, off, reset, shuffled; did you mean",
        ),
        ("half-life", "--longest 64", "--longest is 64; it must be at least 128, for three points"),
        ("half-life", "--shortest 2 --longest 64", "--shortest is 2; it must be more than"),
        ("copy", "--cue 40", "--cue is 40; it must be at least 1 and below --block, which is 32"),
        ("copy", "--gaps none", "--gaps holds 'none'; it must be 4096, 4k, 1m, or 16x"),
        ("capacity", "--pairs 99999", "--pairs is 99999; it must be at most"),
        ("continual", "--task 3", "--task is not an option; did you mean '--tasks'"),
    ],
)
def test_what_cannot_be_is_one_line(
    command: str,
    options: str,
    message: str,
    checkpoint: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(command, checkpoint, tmp_path / "out", text_file, options) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {message}")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists(), "nothing is half-written"
