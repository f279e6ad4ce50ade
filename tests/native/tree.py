"""A copy of this project with kernels that do almost nothing: what the tests of building build, within seconds.

Bindings, headers and Python are the real ones. Nothing here touches the library of the checkout.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROJECT = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]

CPU = """#include "launchers.h"
#include <string.h>
static int64_t scratch_bytes(const nm_problem *, nm_pass) { return 0; }
static void forward(const nm_problem *p, const nm_forward *o, int64_t begin, int64_t end, void *) {
  for (int64_t i = begin; i < end; i++)  // y = 1, float32 only; the state is not written
    for (int64_t t = 0; t < p->T; t++)
      for (int64_t d = 0; d < p->D; d++)
        ((float *)o->y)[((i / p->H * p->T + t) * p->H + i % p->H) * p->D + d] = 1;
}
static void backward(const nm_problem *, const nm_backward *, int64_t, int64_t, void *) {}
static void decode(const nm_problem *, const nm_decode *, int64_t, int64_t, void *) {}
extern "C" const nm_cpu_kernels nm_cpu_portable;
const nm_cpu_kernels nm_cpu_portable = {"portable", scratch_bytes, forward, backward, decode};
"""
DISPATCH = """#include "launchers.h"
#include <string.h>
extern "C" const nm_cpu_kernels nm_cpu_portable;
const nm_cpu_kernels *nm_cpu_choose(const char *name) {
  return !name || !strcmp(name, "portable") ? &nm_cpu_portable : nullptr;
}
const char *nm_cpu_available(void) { return "portable"; }
"""
CUDA = """#include "launchers.h"
#include <cuda_runtime.h>
__global__ void nothing() {}
const char *nm_cuda_reason(const nm_problem *p, int) { return p->D == 64 ? nullptr : "the head width must be 64"; }
int64_t nm_cuda_forward_workspace(const nm_problem *) { return 0; }
int64_t nm_cuda_backward_workspace(const nm_problem *) { return 0; }
int nm_cuda_forward(const nm_problem *, const nm_forward *, void *, void *) { nothing<<<1, 1>>>(); return 0; }
int nm_cuda_backward(const nm_problem *, const nm_backward *, void *, void *) { return 0; }
int nm_cuda_decode(const nm_problem *, const nm_decode *, void *, void *) { return 0; }
int nm_cuda_capability(int) { return 80; }
const char *nm_cuda_error(int error) { return cudaGetErrorString((cudaError_t)error); }
"""


def plant(folder: Path) -> Path:
    """Make the copy in `folder` and return its root."""
    root = folder / "project"
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "neuralmem", root / "neuralmem", ignore=ignore)
    for name in PROJECT:
        shutil.copy(ROOT / name, root / name)
    for name, text in {"cpu/memory.cpp": CPU, "cpu/dispatch.cpp": DISPATCH, "gpu/memory.cu": CUDA}.items():
        file = root / "cuda" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for file in (ROOT / "cuda").glob("*.*"):  # the border: bindings and headers
        shutil.copy(file, root / "cuda" / file.name)
    tests = root / "cuda" / "tests"
    tests.mkdir()
    (tests / "test_nothing.cpp").write_text("int main() { return 0; }\n")
    return root


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python in a folder; NEURALMEM_* of the outer environment do not count."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NEURALMEM_")}
    clean |= {"OMP_NUM_THREADS": "1", "NEURALMEM_BUILD_ISAS": "portable", "XDG_CACHE_HOME": str(cwd / "cache")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**clean, **environment})
