"""What emulated tests of the CUDA kernels take for granted, checked on a GPU: instructions, wrappers, whole kernels.

`conformance` compares every function of cuda/gpu/simt.h with the emulator's, `forward_on_gpu` and `backward_on_gpu` are
the emulator's tests of the kernels, run on the hardware. Without a GPU only that they compile and link, and the
emulator's roundings, can be tested.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from neuralmem import toolchain
from tests.native.test_build import needs_compiler, needs_nvcc
from tests.native.test_nvcc import CUDA, compiled

pytestmark = [needs_compiler, needs_nvcc]

TESTS = CUDA / "tests"
NO_GPU = 77
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


def link(name: str, objects: list[Path]) -> Path:
    nvcc, _ = toolchain.find_nvcc()
    output = objects[0].with_name(name)
    done = subprocess.run([nvcc, *map(str, objects), "-o", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def on_host(source: str, *flags: str) -> Path:
    """A C++ file compiled by the host's compiler: with the emulator's functions, not with those for the GPU."""
    compiler, _ = toolchain.find_compiler()
    return compiled(TESTS / source, *flags, "-c", command=[*compiler, "-O2", "-std=c++17", "-Wall", f"-I{CUDA}"])[0]


@cache
def program(name: str, arch: str, *flags: str) -> Path:
    def device(source: Path) -> Path:
        return compiled(source, *toolchain.gencode([arch]), *flags, "-c")[0]

    if name == "conformance":
        objects = [device(TESTS / "conformance.cu"), on_host("conformance_emulated.cpp")]
    else:
        host = {"forward_on_gpu": "test_gpu_forward.cpp", "backward_on_gpu": "test_gpu_gradients.cpp"}[name]
        objects = [
            on_host(host, "-DNM_ON_GPU"),
            device(CUDA / "gpu" / "memory.cu"),
            device(CUDA / "gpu" / "backward.cu"),
        ]
    return link("-".join([name, arch, *flags]), objects)


def here() -> str:
    """The architecture of the GPU in this machine."""
    major, minor = torch.cuda.get_device_capability()
    return f"{major}{minor}a" if major == 9 else f"{major}{minor}"


def run(*command: str | Path) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1800)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_program_compiles_and_the_emulator_rounds_like_cuda() -> None:
    done = subprocess.run([program("conformance", "90a")], capture_output=True, text=True)
    assert done.returncode in (0, NO_GPU), done.stdout + done.stderr


@pytest.mark.parametrize("name", ["forward_on_gpu", "backward_on_gpu"])
def test_the_kernels_tests_link_for_a_gpu(name: str) -> None:
    assert program(name, "90a", "-DNM_BFLOAT16_ONLY").exists()  # with objects that test_nvcc.py needs as well


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("seed", range(4))
def test_hardware_agrees_with_the_emulator(seed: int) -> None:
    run(program("conformance", here()), str(seed))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["forward_on_gpu", "backward_on_gpu"])
def test_kernels(name: str) -> None:
    run(program(name, here()))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("tool", SANITIZERS)
@pytest.mark.parametrize("name", ["conformance", "forward_on_gpu", "backward_on_gpu"])
def test_sanitizer(name: str, tool: str) -> None:
    beside_nvcc = Path(shutil.which(toolchain.find_nvcc()[0]) or "").with_name("compute-sanitizer")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(beside_nvcc)
    if sanitizer is None:
        pytest.skip(f"compute-sanitizer was not found on the path or beside {toolchain.find_nvcc()[0]}")
    run(sanitizer, "--tool", tool, "--error-exitcode", "9", program(name, here()))
