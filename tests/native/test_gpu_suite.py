"""`make test-gpu` itself, as far as it shows without a GPU: it cannot pass by skipping, needs few packages, and leaves
a record that holds for the kernels it ran.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from neuralmem import library
from tests.native import record
from tests.native.tree import ROOT

SKIPPING = """
import pytest

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="torch sees no CUDA device")
def test_of_a_device() -> None: ...

@pytest.mark.gpu
def test_of_a_tool() -> None:
    pytest.skip("compute-sanitizer was not found")

@pytest.mark.skipif(True, reason="not for here")
def test_of_something_else() -> None: ...
"""
# The command that `make test-gpu` runs, where some packages are not installed.
COLLECT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))
import pytest
sys.exit(pytest.main(["--collect-only", "-q", *sys.argv[2:]]))
"""


@pytest.mark.parametrize(("required", "counts"), [("1", "2 skipped, 1 error"), ("", "3 skipped")])
def test_a_gpu_test_that_a_mark_skips_has_failed_where_a_gpu_is_required(
    tmp_path: Path, required: str, counts: str
) -> None:
    file = tmp_path / "test_skipping.py"
    file.write_text(SKIPPING)
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider", "-m", ""]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NEURALMEM_REQUIRE_GPU": required},
    )
    assert counts in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if required else 0)
    assert ("but the test was to be skipped: Skipped: torch sees no CUDA device" in done.stdout) == bool(required)


def test_collecting_needs_torch_pytest_einops_and_safetensors_only() -> None:
    listed = re.findall(r'^  "([\w-]+)[\[<>=].*"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    absent = {name.replace("-", "_") for name in listed} - {"neuralmem", "torch", "pytest", "einops", "safetensors"}
    absent |= {"xdist", "yaml", "numpy"}
    assert {"lightning", "jaxtyping", "hypothesis"} <= absent
    command = re.search(r"NEURALMEM_REQUIRE_GPU=1 \$\(PYTEST\) (.+)", (ROOT / "Makefile").read_text())
    assert command
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, ",".join(absent), *shlex.split(command[1])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    collected = done.stdout + done.stderr
    for name in ("test_native_cuda", "test_attention_flash", "test_gpu_conformance"):
        assert name in collected


def test_recorded_runs_are_of_the_kernels_as_they_are() -> None:
    assert record.stale() == [], "kernels changed since these runs: `make record-gpu` again, or remove the entries"


def test_an_entry_is_replaced_and_goes_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "conformance.json"
    file.write_text('{"recorded": []}')
    for capability, sources in (("10.0", "old"), ("9.0", "old"), ("9.0", library.cuda_fingerprint())):
        record.enter({"capability": capability, "sources": sources}, file)
    assert [run["capability"] for run in json.loads(file.read_text())["recorded"]] == ["9.0", "10.0"]
    assert record.stale(file) == [{"capability": "10.0", "sources": "old"}]


def test_the_hash_is_of_the_border_and_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("launchers.h", "bindings.cpp", "gpu/memory.cu", "gpu/read.h", "cpu/memory.h", "tests/device_call.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(library, "sources", lambda: tmp_path)
    first = library.cuda_fingerprint()
    for name, counts in (("cpu/memory.h", False), ("tests/device_call.h", False), ("gpu/read.h", True)):
        (tmp_path / name).write_text("changed")
        assert (library.cuda_fingerprint() != first) == counts, name


def test_without_a_library_for_gpus_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "find", lambda: None)
    assert record.main() == 2
    assert capsys.readouterr().err.startswith("error: no GPU")
