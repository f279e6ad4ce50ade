"""What runs here and why: `nm.backends()`, `python -m neuralmem`, and a library that is missing, broken or foreign."""

import json
import sys
from pathlib import Path

import pytest
import torch

import neuralmem as nm
from neuralmem import library
from neuralmem.backends import (
    _auto,
    _covers,
    _native_cpu,
    _native_cuda,
    _recorded,
    conformance_recorded,
    cpu_error,
    cuda_error,
)
from tests.native.test_build import needs_compiler
from tests.native.tree import ROOT, plant, python


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with tiny kernels."""
    tree = plant(tmp_path_factory.mktemp("backends"))
    done = python("-m", "neuralmem.build", "--mode", "cpu", cwd=tree)
    assert done.returncode == 0, done.stderr
    return tree / "neuralmem" / library.NAME


def report(**environment: str) -> dict[str, str]:
    """The rows of `python -m neuralmem`, which never fails."""
    done = python("-m", "neuralmem", cwd=ROOT, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return {line[:13].strip(): line[14:] for line in done.stdout.splitlines() if line and line[13] == " "}


def test_every_backend_has_an_answer() -> None:
    answers = nm.backends()
    assert all(answers.values())
    assert answers["native cpu"].startswith("available") != bool(cpu_error())
    assert answers["auto on cpu"] == (
        "native" if not cpu_error() else f"chunked, because native cannot run: {cpu_error()}"
    )


@needs_compiler
def test_the_report_names_versions_library_and_what_auto_picks(built: Path) -> None:
    rows = report(NEURALMEM_LIBRARY=str(built))
    assert rows["neuralmem"] == nm.__version__
    assert rows["torch"].startswith(torch.__version__)
    assert rows["library"] == str(built)
    assert rows["built for"] == "portable; CUDA none"
    assert rows["native cpu"].startswith(
        "available: portable; its sources have changed since"
    )  # the kernels are others
    assert rows["native cuda"] == "built without CUDA kernels; python -m neuralmem.build --mode cuda"
    assert rows["auto on cpu"] == "native"


@needs_compiler
def test_switches_are_reported(built: Path) -> None:
    rows = report(NEURALMEM_LIBRARY=str(built), NEURALMEM_BACKEND="chunked", NEURALMEM_CPU_ISA="mmx")
    wrong = "NEURALMEM_CPU_ISA is 'mmx'; it must be one of portable"
    assert rows["native cpu"] == wrong
    assert rows["auto on cpu"] == "chunked, because NEURALMEM_BACKEND says so"
    assert report(NEURALMEM_LIBRARY=str(built), NEURALMEM_CPU_ISA="mmx")["auto on cpu"] == (
        f"chunked, because native cannot run: {wrong}"
    )
    rows = report(NEURALMEM_LIBRARY=str(built), NEURALMEM_BACKEND="native", NEURALMEM_CPU_ISA="portabel")
    assert rows["auto on cpu"] == (
        "native, because NEURALMEM_BACKEND says so, but native cannot run: NEURALMEM_CPU_ISA is 'portabel'; "
        "it must be one of portable; did you mean 'portable'?"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_backend_in_the_environment_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setenv("NEURALMEM_BACKEND", "cunked")
    assert nm.backends()[f"auto on {device}"] == (
        "an error, because NEURALMEM_BACKEND is 'cunked'; it must be one of auto, reference, chunked, native; "
        "did you mean 'chunked'?"
    )


def test_a_processor_that_no_compiled_instruction_set_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["neuralmem.backends"]  # the package's attribute of this name is the function
    info = {"cpu": "", "trouble": "none", "runs": "", "record": {"cpu": ["avx512", "amx"]}}
    monkeypatch.setattr(module, "_load", lambda: ("", info))
    cpu_error.cache_clear()
    try:
        error = "built for avx512, amx, which this processor cannot run; python -m neuralmem.build"
        assert cpu_error() == _native_cpu() == error
        assert _auto("cpu") == f"chunked, because native cannot run: {error}"
    finally:
        cpu_error.cache_clear()


def test_a_library_that_does_not_load_is_a_reason(tmp_path: Path) -> None:
    rows = report(NEURALMEM_LIBRARY="/nonexistent/_C.so")
    assert rows["native cpu"].startswith("/nonexistent/_C.so does not load: ")
    assert rows["auto on cpu"].startswith("chunked, because native cannot run: /nonexistent/_C.so does not load")
    broken = tmp_path / "_C.so"
    broken.write_bytes(b"\x7fELF" + bytes(4))
    rows = report(NEURALMEM_LIBRARY=str(broken), NEURALMEM_BACKEND="native")
    assert rows["native cpu"].startswith(f"{broken} does not load: ")
    assert rows["auto on cpu"].startswith("native, because NEURALMEM_BACKEND says so, but native cannot run: ")


# What is wrong with a call, and the end of the message. The answer of the tiny kernels to a good call is 1 everywhere.
REFUSED = {
    "arguments[0] = q[0]": "q has shape [5, 2, 4]; it must be [B, T, H, D]",
    "arguments[0] = q.int()": "q has dtype Int; it must be float32, float64, bfloat16 or float16",
    "arguments[1] = q[:, :3]": "k has shape [1, 3, 2, 4]; it must be [1, 5, 2, 4]",
    "arguments[2] = q.double()": "v has dtype float64; it must be float32",
    "arguments[3] = gate.mT.contiguous().mT": "theta is not contiguous",
    "arguments[4] = gate": "momentum has 0 tensors; it must have 1",
    "arguments[6] = []": "weights has 0 tensors; it must have 1 to 8",
    "arguments[6] = w * 9": "weights has 9 tensors; it must have 1 to 8",
    "arguments[6] = [w[0][:, :, :3].contiguous()]": "weights[0] has shape [1, 2, 3, 4]; it must be [1, 2, 4, 4]",
    "arguments[6] = [w[0].bfloat16()]": "weights[0] has dtype bfloat16; it must be float32",
    "arguments[7] = w": "momentum has 1 tensors; it must have 0",
    "arguments[10] = w[0][0, :, 0].contiguous()": "gain and bias belong together: give both, or None for both",
    "arguments[12] = gate[..., 0].contiguous()": "write_mask has dtype float32; it must be bool",
    "arguments[13] = torch.ones(1, 5, dtype=bool)": "first_weights has 0 tensors; it must have 1",
    "arguments[14] = 0": "chunk_size is 0; it must be at least 1",
    "arguments[15] = 4": "activation is 4; it must be 0 (silu), 1 (gelu), 2 (gelu_tanh) or 3 (identity)",
    "arguments[17] = -1": "keep_every is -1; it must be at least 0",
}
PROGRAM = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for change in ["", *sys.argv[2:]]:
    q, gate, w = torch.randn(1, 5, 2, 4), torch.full((1, 5, 2), 0.1), [torch.randn(1, 2, 4, 4)]
    arguments = [q, q, q, gate, None, gate, w, [], [], [], None, None, None, None, 2, 0, True, 0]
    exec(change)
    try:
        print(torch.ops.neuralmem.neural_memory(*arguments)[0].unique().tolist())
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


@needs_compiler
def test_the_op_itself_names_what_does_not_fit(built: Path) -> None:
    done = python("-c", PROGRAM, str(built), *REFUSED, cwd=built.parent.parent)
    good, *refused = done.stdout.splitlines()
    assert good == "[1.0]", done.stderr
    for (change, message), said in zip(REFUSED.items(), refused, strict=True):
        assert message in said, change


EMPTY = """
import sys, torch
torch.ops.load_library(sys.argv[1])
for B, T, H in ((1, 0, 2), (0, 5, 2), (1, 5, 0)):
    q, gate, w = torch.randn(B, T, H, 4), torch.rand(B, T, H), [torch.randn(B, H, 4, 4)]
    inputs = [q, q, q, gate, gate, gate, w, w, [], [], None, None, None, None, 2, 0, True, 1]
    y, weights, momentum, boundaries = torch.ops.neuralmem.neural_memory(*inputs)
    results = torch.ops.neuralmem.neural_memory_backward(boundaries, y, w, w, *inputs)
    like = [torch.equal(a, b) for a, b in zip([y, *weights, *momentum, *results[6], *results[7]], [q, *w * 4])]
    decoded = torch.ops.neuralmem.neural_memory_decode(torch.randn(B, 1, H, 4), *inputs[1:8], None, None, None, 0, True)
    print(list(boundaries.shape), all(like), list(decoded.shape))
"""


@needs_compiler
def test_nothing_to_do_is_done_without_a_kernel(built: Path) -> None:
    """No tokens: the state and its gradients pass through; no samples or heads: everything is empty."""
    done = python("-c", EMPTY, str(built), cwd=built.parent.parent)
    assert done.stdout.splitlines() == [
        "[0, 1, 2, 32] True [1, 1, 2, 4]",
        "[3, 0, 2, 32] True [0, 1, 2, 4]",
        "[3, 1, 0, 32] True [1, 1, 0, 4]",
    ], done.stderr


def test_a_library_covers_the_gpus_that_can_run_its_code() -> None:
    assert _covers("80", 80)
    assert _covers("80", 86)  # same generation
    assert not _covers("86", 80)
    assert not _covers("80", 90)
    assert _covers("80+PTX", 90)
    assert _covers("90a", 90)
    assert not _covers("100a", 103)  # code for one GPU
    assert not _covers("120+PTX", 100)


def test_auto_takes_a_gpu_only_when_its_conformance_run_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = sys.modules["neuralmem.backends"]  # the package's attribute of this name is the function
    info = {"record": {"cuda": ["90a"], "sources": library.fingerprint()}}
    monkeypatch.setattr(module, "_load", lambda: ("", info))
    monkeypatch.setattr(module, "_gpus", lambda: [("H200", 90)])
    monkeypatch.setattr(library, "PACKAGE", tmp_path)
    for runs, answer in (
        ([], "chunked, because no conformance run of the kernels is recorded for H200 (9.0)"),
        ([{"capability": "8.0"}], "chunked, because no conformance run of the kernels is recorded for H200 (9.0)"),
        ([{"capability": "9.0"}], "native"),
    ):
        (tmp_path / "conformance.json").write_text(json.dumps({"recorded": runs}))
        _recorded.cache_clear()
        assert _auto("cuda") == answer
        assert conformance_recorded(90) == (answer == "native")
    _recorded.cache_clear()
    monkeypatch.setattr(module, "_gpus", lambda: [("A100", 80)])
    wrong = "built for 90a, which compute capability 8.0 cannot run"
    assert _auto("cuda") == f"chunked, because native cannot run: {wrong}"
    monkeypatch.setenv("NEURALMEM_BACKEND", "native")
    assert _auto("cuda") == f"native, because NEURALMEM_BACKEND says so, but native cannot run: {wrong}"
    monkeypatch.setattr(module, "_gpus", lambda: [("H200", 90)])
    assert _native_cuda() == "available: built for 90a"
    assert cuda_error(80) == "built for 90a, which compute capability 8.0 cannot run"


def test_recorded_runs_name_what_was_run() -> None:
    runs = json.loads((ROOT / "neuralmem" / "conformance.json").read_text())["recorded"]
    for run in runs:
        assert set(run) == {"capability", "gpu", "torch", "nvcc", "sources", "date", "commit"}
