"""Builds and runs the C++ programs of cuda/tests: matrix products per instruction set, CUDA kernels in an emulator.

FLAGS are those of the library. A program test_*.cpp says in a comment what is added: `// build: <flags>`. Programs
named test_cpu_* are compiled and run once per instruction set that this processor has. They exit with 1 when a check
fails.
"""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from neuralmem import build, library, toolchain
from tests.native.test_build import needs_compiler

CUDA = library.sources()
PROGRAMS = sorted((CUDA / "tests").glob("test_*.cpp"))
FLAGS = [*build.CXX_FLAGS, *build.KERNEL_FLAGS, "-Wall", "-I", str(CUDA)]
NEEDS = {
    "portable": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "amx": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "amx_tile", "amx_bf16"},
}


def runs() -> list[tuple[Path, str]]:
    """Every program with the instruction set it is compiled for; "" is the compiler's default."""
    return [(p, isa) for p in PROGRAMS for isa in (NEEDS if p.name.startswith("test_cpu_") else [""])]


def processor_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return set(found[1].split()) if found else set()


def test_every_instruction_set_is_known_here() -> None:
    assert set(NEEDS) == set(toolchain.INSTRUCTION_SETS)


@needs_compiler
@pytest.mark.parametrize(("program", "isa"), runs(), ids=lambda value: value.stem if isinstance(value, Path) else value)
def test_program(program: Path, isa: str) -> None:
    if missing := NEEDS.get(isa, set()) - processor_flags():
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
    compiler, version = toolchain.find_compiler()
    if isa and isa not in toolchain.usable_instruction_sets(compiler, None):
        pytest.skip(f"{' '.join(compiler)} cannot compile for {isa}")
    own = [flag for line in re.findall(r"^// build: (.+)$", program.read_text(), re.MULTILINE) for flag in line.split()]
    chosen = [*toolchain.INSTRUCTION_SETS[isa], f"-DNM_ISA={isa}"] if isa else []
    output = build.work_folder() / "tests" / f"{program.stem}-{isa or 'default'}"
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [*compiler, *FLAGS, *chosen, str(program), "-o", str(output), *own]

    files = sorted(f for f in CUDA.rglob("*") if f.suffix in library.KINDS)  # kept while nothing of this changes
    state = hashlib.sha256(f"{command} {version} {library.digest(files, CUDA)}".encode()).hexdigest()
    stamp = output.with_suffix(".stamp")
    if not (output.exists() and stamp.exists() and stamp.read_text() == state):
        stamp.unlink(missing_ok=True)
        done = subprocess.run(command, capture_output=True, text=True, cwd=CUDA.parent)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        stamp.write_text(state)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([output], capture_output=True, text=True, cwd=CUDA.parent, env=environment, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_instruction_sets_share_no_code() -> None:
    """An inline function compiled for several sets is linked once, maybe in AVX-512 for a processor without it."""
    objects = {isa: sorted(build.work_folder().glob(f"cpu-*-{isa}.o")) for isa in NEEDS}
    if not any(objects.values()) or toolchain.output_of(["nm", "--version"]) is None:
        pytest.skip("the library was not built in this checkout, or there is no nm")
    for isa, files in objects.items():
        for file in files:
            listing = toolchain.output_of(["nm", "-C", "--defined-only", str(file)]) or ""
            shared = re.findall(r"^\w+ [WVu] (.+)$", listing, re.MULTILINE)
            assert [n for n in shared if f"nm::{isa}::" not in n and not n.startswith("DW.ref.")] == [], file.name
