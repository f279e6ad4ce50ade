"""nvcc compiles the CUDA kernels for every architecture they are meant for, without spilling a register.

The sources are compiled one by one and kept while nothing changes. Kernels for float16 differ from those for bfloat16
in the names of instructions only, so each architecture is compiled for one of them.
"""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

from neuralmem import build, library, toolchain
from tests.native.test_build import needs_nvcc

CUDA = library.sources()
ARCHS = ("80", "90a", "100", "120")
KERNELS = sorted((CUDA / "gpu").glob("*.cu"))

pytestmark = needs_nvcc


def compiled(source: Path, *flags: str, command: list[str] | None = None) -> tuple[Path, str]:
    """The object file and what the compiler (nvcc) says; from an earlier run if that was of the same sources."""
    nvcc, version = toolchain.find_nvcc()
    name = "-".join([source.stem, *(re.sub(r"\W+", "-", flag).strip("-") for flag in flags)])
    output = build.work_folder() / "tests" / f"{name}.o"
    report, stamp = output.with_suffix(".txt"), output.with_suffix(".stamp")
    output.parent.mkdir(parents=True, exist_ok=True)
    command = command or [nvcc, "-O3", "-std=c++17", "-Xptxas", "-v", f"-I{CUDA}"]
    command = [*command, *flags, str(source), "-o", str(output)]
    files = [f for f in sorted(CUDA.rglob("*")) if f.suffix in library.KINDS and f.parent.name != "cpu"]
    if source.parent.name == "gpu":
        files = [f for f in files if f.parent.name != "tests"]
    state = hashlib.sha256(f"{command} {version} {library.digest(files, CUDA)}".encode()).hexdigest()
    with build.locked(output.with_suffix(".lock")):  # two processes of pytest compile it once
        if not (output.exists() and stamp.exists() and stamp.read_text() == state):
            stamp.unlink(missing_ok=True)
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
            report.write_text(done.stdout + done.stderr)
            stamp.write_text(state)
    return output, report.read_text()


@pytest.mark.parametrize("arch", [*ARCHS[:2], *(pytest.param(arch, marks=pytest.mark.soak) for arch in ARCHS[2:])])
@pytest.mark.parametrize("source", KERNELS, ids=lambda source: source.stem)
def test_no_kernel_spills(source: Path, arch: str) -> None:
    only = "-DNM_FLOAT16_ONLY" if arch == ARCHS[0] else "-DNM_BFLOAT16_ONLY"
    _, report = compiled(source, *toolchain.gencode([arch]), only, "-c")
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) > 4
    kernels = re.findall(r"entry function '(\w+)'", report)
    assert [k for k, numbers in zip(kernels, spills, strict=False) if numbers != ("0", "0")] == [], report
    assert all(numbers == ("0", "0") for numbers in spills)  # functions that are no entries included
    assert "C7510" not in report


def test_a_spill_would_be_seen(tmp_path: Path) -> None:
    source = tmp_path / "spilling.cu"
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spilling(float *x) {\n"
        "  float y[128];\n  for (int i = 0; i < 128; i++) y[i] = x[i * 1024 + threadIdx.x];\n"
        "  for (int k = 0; k < x[0]; k++)\n"
        "#pragma unroll\n"
        "    for (int i = 0; i < 128; i++) y[i] += y[(i + 7) % 128] * x[k];\n"
        "  for (int i = 0; i < 128; i++) x[i * 1024 + threadIdx.x] = y[i];\n}\n"
    )
    nvcc, _ = toolchain.find_nvcc()
    command = [
        nvcc,
        "-O3",
        "-Xptxas",
        "-v",
        *toolchain.gencode(["90a"]),
        "-c",
        str(source),
        "-o",
        str(tmp_path / "x.o"),
    ]
    report = subprocess.run(command, capture_output=True, text=True).stderr
    assert re.search(r"[1-9]\d* bytes spill stores", report), report
