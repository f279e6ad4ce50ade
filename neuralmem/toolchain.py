"""What a build needs from the machine: torch's headers, a C++ compiler, nvcc, names of instruction sets and GPUs.

Special: the standard library only, and torch is looked up without importing it. Every function answers or raises
BuildError with one line that says what is missing.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

OLDEST_TORCH = (2, 11)  # the stable ABI that cuda/bindings.cpp is written for

# cuda/cpu is compiled once per instruction set, all into one library that chooses at run time (cuda/cpu/dispatch.cpp).
AVX512 = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
INSTRUCTION_SETS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "amx": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
}
DEFAULT_ARCHS = ("80", "90a", "100", "120+PTX")


class BuildError(Exception):
    """Why nothing was built, in one line; `log` is what a compiler said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


def output_of(command: list[str]) -> str | None:
    """What a command prints, or None if it does not run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def torch_folder() -> Path:
    """The folder of the installed torch, with its headers."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError("torch is not visible here (pip's isolated builds hide it)")
    folder = Path(spec.origin).parent
    if not (folder / "include" / "torch" / "csrc" / "stable").is_dir():
        raise BuildError(f"torch {torch_version()} has no headers of the stable ABI; it must be 2.11 or newer")
    if tuple(int(x) for x in re.findall(r"\d+", torch_version())[:2]) < OLDEST_TORCH:
        raise BuildError(f"torch {torch_version()} is too old; it must be 2.11 or newer")
    return folder


def torch_version() -> str:
    """The installed torch's version."""
    return importlib.metadata.version("torch")


def find_compiler() -> tuple[list[str], str]:
    """The C++ compiler (CXX, words as in a shell; else g++, c++ or clang++) and the first line of its --version."""
    if platform.system() != "Linux":
        raise BuildError(f"native kernels are built on Linux only, not on {platform.system()}")
    given = os.environ.get("CXX")
    try:
        commands = [shlex.split(given)] if given else [["g++"], ["c++"], ["clang++"]]
    except ValueError as error:
        raise BuildError(f"CXX={given}: {error}") from None
    for command in commands:
        if command and (answer := output_of([*command, "--version"])):
            return command, answer.splitlines()[0]
    missing = f"CXX={given} is no C++ compiler that runs" if given else "no C++ compiler found (g++, c++, clang++)"
    raise BuildError(missing)


def host_compiler(command: list[str]) -> str:
    """The compiler itself, for nvcc, which takes one word: without `ccache` before it and options after it."""
    return next(word for word in reversed(command) if not word.startswith("-"))


def usable_instruction_sets(compiler: list[str], wanted: tuple[str, ...] | None) -> list[str]:
    """Those of this processor family that the compiler knows, slowest first; what was asked for must be among them."""
    family = list(INSTRUCTION_SETS) if platform.machine().lower() in ("x86_64", "amd64") else ["portable"]
    known = [name for name in family if _accepts(compiler, INSTRUCTION_SETS[name])]
    for name in wanted or ():
        if name not in known:
            raise BuildError(f"{shlex.join(compiler)} cannot compile for {name} here; it can for {', '.join(known)}")
    return [name for name in known if wanted is None or name in wanted]


def _accepts(compiler: list[str], flags: list[str]) -> bool:
    return output_of([*compiler, *flags, "-x", "c++", "-E", os.devnull, "-o", os.devnull]) is not None


def find_nvcc() -> tuple[str, str]:
    """nvcc (NVCC, else in CUDA_HOME, else on the path) and its version."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for name in (os.environ.get("NVCC"), f"{home}/bin/nvcc", shutil.which("nvcc")):
        if not name or not (shutil.which(name) or Path(name).exists()):
            continue
        version = re.search(r"release ([\d.]+)", output_of([name, "--version"]) or "")
        if version is None:
            raise BuildError(f"{name} does not run")
        return name, version[1]
    raise BuildError("nvcc was not found; set CUDA_HOME or NVCC")


def cuda_libraries(nvcc: str) -> Path:
    """The folder of libcudart_static.a. nvcc may be a wrapper script, so its own place is one guess among others."""
    homes: list[Any] = [os.environ.get("CUDA_HOME"), Path(shutil.which(nvcc) or nvcc).resolve().parent.parent]
    trial = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
    said = subprocess.run(trial, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    homes += [*re.findall(r"^#\$ TOP=(.+)$", said.stderr + said.stdout, re.MULTILINE), "/usr/local/cuda"]
    for home in filter(None, homes):
        for folder_name in ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"):
            if (Path(home) / folder_name / "libcudart_static.a").exists():
                return Path(home) / folder_name
    raise BuildError(f"no libcudart_static.a near {nvcc}; set CUDA_HOME")


def usable_archs(nvcc: str, wanted: tuple[str, ...] | None) -> list[str]:
    """GPU architectures to compile for; of the default ones those that this nvcc knows, one of them also as PTX."""
    listed = output_of([nvcc, "--list-gpu-code"]) or ""
    known = {code.rstrip("af") for code in re.findall(r"sm_(\w+)", listed)}
    missing = [arch for arch in wanted or DEFAULT_ARCHS if arch.removesuffix("+PTX").rstrip("af") not in known]
    if wanted is not None:
        if missing:
            raise BuildError(f"{nvcc} cannot compile for {', '.join(missing)}")
        return list(wanted)
    found = [arch for arch in DEFAULT_ARCHS if arch not in missing]
    if not found:
        raise BuildError(f"{nvcc} knows none of the architectures {', '.join(DEFAULT_ARCHS)}")
    return found if found[-1].endswith("+PTX") else [f"{found[0]}+PTX", *found[1:]]


def gencode(archs: list[str]) -> list[str]:
    """nvcc's options for a list of architectures. Not -arch=sm_90a: that also emits PTX that cannot hold wgmma."""
    options = []
    for arch in archs:
        number = arch.removesuffix("+PTX")
        code = f"[sm_{number},compute_{number}]" if arch.endswith("+PTX") else f"sm_{number}"
        options.append(f"-gencode=arch=compute_{number},code={code}")
    return options


def parse_archs(source: str, text: str) -> tuple[str, ...]:
    """Architectures as in "80,90a,120+PTX"; "native" is that of the GPUs in this machine."""
    found: list[str] = []
    for arch in filter(None, (part.strip() for part in text.split(","))):
        if arch == "native":
            answer = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"])
            if not answer:
                raise BuildError(f"{source} is native, but nvidia-smi shows no GPU")
            found += sorted({"90a" if cap == "9.0" else cap.replace(".", "") for cap in answer.split()})
        elif match := re.fullmatch(r"(\d+)[af]?(\+PTX)?", arch.replace(".", "")):
            if int(match[1]) < 80:
                raise BuildError(f"{source} has {arch!r}; the kernels need bf16 tensor cores, so at least 80")
            found.append(arch.replace(".", ""))
        else:
            raise BuildError(f"{source} has {arch!r}; it must be a list like 80,90a,120+PTX, or native")
    if not found:
        raise BuildError(f"{source} names no architecture; it must be a list like 80,90a,120+PTX, or native")
    return tuple(dict.fromkeys(found))
