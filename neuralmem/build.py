"""Compile the native library: `python -m neuralmem.build`, and what setup.py runs.

Special: no torch.utils.cpp_extension, which refuses CUDA on a CPU build of torch, and no torch import at all. One
library serves every Python, every torch from 2.11 on, with and without CUDA (cuda/bindings.cpp). A build is parallel,
compiles only what changed, and replaces the library in one move, so that a running process keeps the one it has.
"""

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neuralmem import library
from neuralmem.toolchain import (
    INSTRUCTION_SETS,
    BuildError,
    cuda_libraries,
    find_compiler,
    find_nvcc,
    gencode,
    host_compiler,
    parse_archs,
    torch_folder,
    torch_version,
    usable_archs,
    usable_instruction_sets,
)

MODES = ("auto", "none", "cpu", "cuda")
# No -ffast-math: NaN and infinities keep their meaning.
CXX_FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno"]
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # 2.11


@dataclass(frozen=True)
class Settings:
    """What to build; None for lists means all that the compilers know."""

    mode: str = "auto"
    archs: tuple[str, ...] | None = None
    instruction_sets: tuple[str, ...] | None = None
    jobs: int = 1
    skip_cuda: bool = False  # in mode auto: be content without CUDA kernels, but keep a library that has them
    verbose: bool = False


@dataclass(frozen=True)
class Step:
    """One compiler run: its output, and what must be unchanged for an old output to be good."""

    name: str
    command: list[str]
    output: Path
    inputs: str
    instruction_set: str = ""  # of which this is the code


def settings(
    mode: str | None = None, archs: str | None = None, instruction_sets: str | None = None, **others: Any
) -> Settings:
    """Settings from arguments, or from the environment where they are None."""
    given, source = mode or os.environ.get("NEURALMEM_BUILD") or "auto", "--mode" if mode else "NEURALMEM_BUILD"
    if given not in MODES:
        raise BuildError(f"{source} is {given!r}; it must be one of {', '.join(MODES)}")
    codes, source = archs or os.environ.get("NEURALMEM_CUDA_ARCHS"), "--archs" if archs else "NEURALMEM_CUDA_ARCHS"
    sets = instruction_sets or os.environ.get("NEURALMEM_BUILD_ISAS")
    chosen = tuple(name.strip() for name in sets.split(",")) if sets else None
    for name in chosen or ():
        if name not in INSTRUCTION_SETS:
            source = "--isas" if instruction_sets else "NEURALMEM_BUILD_ISAS"
            raise BuildError(f"{source} has {name!r}; it must be a list of {', '.join(INSTRUCTION_SETS)}")
    return Settings(given, parse_archs(source, codes) if codes else None, chosen, **others)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work_folder() -> Path:
    """Where objects are kept: build/native of a clone, else the user's cache."""
    root = library.PACKAGE.parent
    clone = (root / "pyproject.toml").is_file() and os.access(root, os.W_OK)
    return root / "build" / "native" if clone else library.cache_folder() / "objects"


def build(chosen: Settings, output: Path | None = None) -> Path | None:
    """Build the library and return its path; None when mode auto had to do without.

    Raises:
        BuildError: a mode that was asked for by name cannot be built.
    """
    if chosen.mode == "none":
        return None
    if output is None:
        writable = os.access(library.PACKAGE, os.W_OK)
        output = (library.PACKAGE if writable else library.cache_folder()) / library.NAME
    if chosen.skip_cuda and chosen.mode == "auto":
        record = library.read_record(output)
        if record and record["cuda"] and record["sources"] == library.fingerprint():
            print(f"up to date, with CUDA kernels: {output}")
            os.utime(output)
            return output
    attempts = {"auto": [False] if chosen.skip_cuda else [True, False], "cpu": [False], "cuda": [True]}[chosen.mode]
    trouble: tuple[str, Exception] | None = None
    built = None
    for with_cuda in attempts:
        try:
            built = _build(chosen, output, with_cuda)
            break
        except (BuildError, OSError) as error:
            if chosen.mode != "auto":
                raise error if isinstance(error, BuildError) else BuildError(str(error)) from error
            trouble = "CUDA kernels" if with_cuda else "native kernels (pure Python)", error
    if trouble:
        print(f"warning: neuralmem is built without {trouble[0]}: {trouble[1]}", file=sys.stderr)
        if chosen.verbose:
            print(getattr(trouble[1], "log", ""), file=sys.stderr)
    return built


def _build(chosen: Settings, output: Path, with_cuda: bool) -> Path:
    work, start = work_folder(), time.time()
    steps, link, record = plan(chosen, work, with_cuda)
    if library.read_record(output) == record:
        print(f"up to date: {output}")
        os.utime(output, (start, start))
        return output
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / ".lock"):
        failed = _run_all(steps, chosen)
        if failed:
            names = [name for name in record["cpu"] if name in failed]
            first = failed[names[-1]]
            print(f"warning: neuralmem is built without kernels for {', '.join(names)}: {first}", file=sys.stderr)
            if chosen.verbose:
                print(first.log, file=sys.stderr)
            rest = tuple(name for name in record["cpu"] if name not in failed)
            steps, link, record = plan(replace(chosen, instruction_sets=rest), work, with_cuda)
            _run_all(steps, chosen)
        output.parent.mkdir(parents=True, exist_ok=True)
        fresh = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            _compile("link", [*link, "-o", str(fresh)], chosen)
            os.utime(fresh, (start, start))  # for `make`, what is edited during a build is newer
            fresh.replace(output)
        finally:
            fresh.unlink(missing_ok=True)
    if output == library.PACKAGE / library.NAME:
        (library.cache_folder() / library.NAME).unlink(missing_ok=True)  # it would be found first
        _tell_pip(output)
    kinds = f"CPU ({', '.join(record['cpu'])})" + (f" and CUDA ({', '.join(record['cuda'])})" if with_cuda else "")
    print(f"{output}: kernels for {kinds}")
    return output


def _tell_pip(output: Path) -> None:
    """Enter the library into an installed package's list of files, so that it leaves with the package."""
    line = f"{output.relative_to(library.PACKAGE.parent).as_posix()},,\n"
    for listing in library.PACKAGE.parent.glob("neuralmem-*.dist-info/RECORD"):
        with contextlib.suppress(OSError):
            text = listing.read_text()
            if line.partition(",")[0] not in text:
                listing.write_text(text + line)


def plan(chosen: Settings, work: Path, with_cuda: bool) -> tuple[list[Step], list[str], dict[str, Any]]:
    """The steps, the command that links their outputs, and the record of the result."""
    folder = library.sources()
    files = library.source_files(folder)
    units = [f for f in files if f.parent.name == "cpu" and f.suffix == ".cpp" and f.name != "dispatch.cpp"]
    kernels = [f for f in files if f.suffix == ".cu"]
    if not units or (with_cuda and not kernels):
        raise BuildError(f"{folder} has no {'CUDA ' if units else ''}kernels")
    torch = torch_folder()
    cxx, compiler = find_compiler()
    sets = usable_instruction_sets(cxx, chosen.instruction_sets)
    border = [f for f in files if f.parent == folder]
    record: dict[str, Any] = {"sources": library.fingerprint(), "cpu": sets, "cuda": [], "nvcc": ""}
    record |= {"compiler": compiler, "torch": torch_version()}
    common = [*cxx, *CXX_FLAGS, f"-ffile-prefix-map={folder}=cuda", f"-ffile-prefix-map={torch}=torch", f"-I{folder}"]
    steps, libraries = [], [f"-L{torch / 'lib'}", "-ltorch_cpu", "-ldl", "-lpthread"]

    def add(name: str, command: list[str], source: Path, depends: list[Path], versions: str, isa: str = "") -> None:
        target = work / f"{name.replace('/', '-').replace(' ', '-')}.o"
        command = [*command, "-c", str(source), "-o", str(target)]
        steps.append(Step(name, command, target, library.digest(depends, folder) + versions, isa))

    if with_cuda:
        nvcc, record["nvcc"] = find_nvcc()
        record["cuda"] = usable_archs(nvcc, chosen.archs)
        device = [nvcc, "-O3", "-std=c++17", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{folder}"]
        device += [*gencode(record["cuda"]), *(["-ccbin", host_compiler(cxx)] if "CXX" in os.environ else [])]
        depends = library.cuda_sources(folder)
        for source in kernels:
            add(f"gpu/{source.name}", device, source, depends, record["nvcc"] + compiler)
        libraries += [f"-L{cuda_libraries(nvcc)}", "-lcudart_static", "-lrt"]
    depends = [*border, *(f for f in files if f.parent.name == "cpu")]
    for name in reversed(sets):  # the longest first
        flags = [*KERNEL_FLAGS, *INSTRUCTION_SETS[name], f"-DNM_ISA={name}"]
        for source in units:
            add(f"cpu/{source.stem} {name}", [*common, *flags], source, depends, compiler, name)
    has = [f"-DNM_HAS_{name}" for name in sets]
    dispatch = folder / "cpu" / "dispatch.cpp"
    add("cpu/dispatch", [*common, *has], dispatch, [*border, dispatch], compiler)
    glue = [*common, TORCH_TARGET, "-isystem", str(torch / "include"), *(["-DNM_WITH_CUDA"] if with_cuda else [])]
    add("bindings" + " cuda" * with_cuda, glue, folder / "bindings.cpp", border, compiler + record["torch"])

    recipe = json.dumps([[step.command for step in steps], libraries])
    record["recipe"] = hashlib.sha256(recipe.encode()).hexdigest()[:16]
    text = library.MARKER.decode() + json.dumps(record)
    source = work / "record.cpp"
    define = f'extern "C" const char nm_record[];\nconst char nm_record[] = {json.dumps(text)};\n'
    steps.append(Step("record", [*common, "-c", str(source), "-o", str(work / "record.o")], work / "record.o", define))
    link = [*cxx, "-shared", *(str(step.output) for step in steps), *libraries, "-Wl,--no-undefined", "-Wl,-s"]
    return steps, link, record


def _run_all(steps: list[Step], chosen: Settings) -> dict[str, BuildError]:
    """Run all steps; the instruction sets that did not compile, where the library can be built without them."""
    failed: dict[str, BuildError] = {}
    with ThreadPoolExecutor(chosen.jobs) as pool:
        running = [(step, pool.submit(_run, step, chosen)) for step in steps]
    for step, done in running:
        error = done.exception()
        if not error:
            continue
        if not isinstance(error, BuildError) or step.instruction_set in ("", "portable") or chosen.instruction_sets:
            raise error
        failed[step.instruction_set] = error
    return failed


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One build at a time in a folder; another one waits."""
    import fcntl  # not on every system, and setup.py must be able to import this file on all of them

    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(step: Step, chosen: Settings) -> None:
    """Run a step unless its output is there and nothing it depends on has changed."""
    stamp = step.output.with_suffix(".stamp")
    state = hashlib.sha256(json.dumps([step.command, step.inputs]).encode()).hexdigest()
    if step.output.is_file() and stamp.is_file() and stamp.read_text() == state:
        return
    stamp.unlink(missing_ok=True)
    if step.name == "record":
        step.output.with_suffix(".cpp").write_text(step.inputs)
    _compile(step.name, step.command, chosen)
    stamp.write_text(state)


def _compile(name: str, command: list[str], chosen: Settings) -> None:
    start = time.perf_counter()
    if chosen.verbose:
        print(" ".join(command), flush=True)
    # nvcc's own threads, one architecture each. Not in the command, which decides whether an output is still good.
    threads = f"{os.environ.get('NVCC_APPEND_FLAGS', '')} --threads {chosen.jobs}".strip()
    environment = {**os.environ, "NVCC_APPEND_FLAGS": threads}
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
    if done.returncode:
        log = (done.stderr + done.stdout).strip()
        first = next((line for line in log.splitlines() if "error" in line), log.partition("\n")[0])
        raise BuildError(f"{name}: {command[0]} failed: {first.strip()}", log)
    print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m neuralmem.build", description="Compile neuralmem's native kernels.")
    parser.add_argument("--mode", help="auto: what can be built here; none, cpu, cuda: that, or fail (NEURALMEM_BUILD)")
    parser.add_argument("--archs", help="GPU architectures, like 80,90a,120+PTX, or native (NEURALMEM_CUDA_ARCHS)")
    parser.add_argument("--isas", help=f"CPU instruction sets of {', '.join(INSTRUCTION_SETS)} (NEURALMEM_BUILD_ISAS)")
    parser.add_argument("--jobs", type=int, default=processors(), help="compilers at a time")
    parser.add_argument("--output", type=Path, help="where the library goes; else the package, or the user's cache")
    parser.add_argument("--skip-cuda", action="store_true", help="in mode auto: do not compile CUDA kernels")
    parser.add_argument("--verbose", action="store_true", help="print commands and compilers' messages")
    given = parser.parse_args(arguments)
    try:
        others = {"jobs": max(1, given.jobs), "skip_cuda": given.skip_cuda, "verbose": given.verbose}
        build(settings(given.mode, given.archs, given.isas, **others), given.output)
    except BuildError as error:
        print(f"{error.log}\nerror: {error}".strip(), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
