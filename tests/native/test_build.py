"""Building: every mode, what is refused, what falls back with one line, and that only what changed is compiled again.

Built is a copy of the project with tiny kernels (tree.py), in this process, for the portable instruction set.
"""

import platform
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from neuralmem import build, library, toolchain
from neuralmem.toolchain import BuildError
from tests.native.tree import plant


def _compiler() -> str:
    try:
        toolchain.torch_folder()
        toolchain.find_compiler()
    except BuildError as error:
        return str(error)
    return ""


def _nvcc() -> str:
    try:
        toolchain.cuda_libraries(toolchain.find_nvcc()[0])
    except BuildError as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(_compiler()), reason=f"nothing to compile with: {_compiler()}")
needs_nvcc = pytest.mark.skipif(bool(_compiler() or _nvcc()), reason=f"no CUDA compiler: {_compiler() or _nvcc()}")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("build"))


@pytest.fixture
def tree(planted: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The copy as the project of this process; objects of earlier tests are there, the library is not."""
    monkeypatch.setattr(library, "PACKAGE", planted / "neuralmem")
    monkeypatch.setenv("XDG_CACHE_HOME", str(planted / "cache"))
    monkeypatch.setenv("NEURALMEM_BUILD_ISAS", "portable")
    for name in ("NEURALMEM_BUILD", "NEURALMEM_CUDA_ARCHS", "NEURALMEM_LIBRARY", "CXX", "NVCC"):
        monkeypatch.delenv(name, raising=False)
    (planted / "neuralmem" / library.NAME).unlink(missing_ok=True)
    shutil.rmtree(planted / "cache", ignore_errors=True)
    library.fingerprint.cache_clear()
    yield planted
    library.fingerprint.cache_clear()


def make(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, what was done (without seconds), and the errors of one call of the command."""
    library.fingerprint.cache_clear()
    code = build.main([*arguments, "--jobs", "1"])
    told = capsys.readouterr()
    done = [line.split(" s  ")[1] for line in told.out.splitlines() if " s  " in line]
    return code, done or told.out.splitlines(), told.err


@needs_compiler
def test_a_build_compiles_once_and_then_what_changed(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tree / "neuralmem" / library.NAME
    assert make(capsys, "--mode", "cpu")[0] == 0
    record = library.read_record(path)
    assert record is not None
    assert record["cpu"] == ["portable"]
    assert record["cuda"] == []
    assert record["sources"] == library.fingerprint()

    before = path.stat().st_mtime_ns
    assert make(capsys, "--mode", "cpu") == (0, [f"up to date: {path}"], "")
    assert path.stat().st_mtime_ns > before  # `make` compares times

    held = path.open("rb")  # as a process that has loaded it
    source = tree / "cuda" / "cpu" / "dispatch.cpp"
    source.write_text(f"{source.read_text()}// changed\n")
    assert make(capsys, "--mode", "cpu")[1] == ["cpu/memory portable", "cpu/dispatch", "record", "link"]
    assert held.read(4) == b"\x7fELF"
    assert path.stat().st_ino != Path(f"/proc/self/fd/{held.fileno()}").stat().st_ino
    held.close()


def test_mode_none_builds_nothing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(capsys, "--mode", "none") == (0, [], "")
    assert library.find() is None


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--mode", "gpu"], {}, "--mode is 'gpu'; it must be one of auto, none, cpu, cuda"),
        ([], {"NEURALMEM_BUILD": "yes"}, "NEURALMEM_BUILD is 'yes'; it must be one of auto, none, cpu, cuda"),
        (["--archs", "75"], {}, "--archs has '75'; the kernels need bf16 tensor cores, so at least 80"),
        ([], {"NEURALMEM_CUDA_ARCHS": "hopper"}, "NEURALMEM_CUDA_ARCHS has 'hopper'; it must be a list like"),
        (["--archs", ","], {}, "--archs names no architecture"),
        (["--isas", "sse9"], {}, "--isas has 'sse9'; it must be a list of portable, avx2"),
        ([], {"NEURALMEM_BUILD_ISAS": "avx3"}, "NEURALMEM_BUILD_ISAS has 'avx3'"),
        (["--mode", "cpu"], {"CXX": "/nonexistent"}, "CXX=/nonexistent is no C++ compiler that runs"),
        (["--mode", "cuda"], {"NVCC": "/bin/false"}, "/bin/false does not run"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tree: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variables: dict[str, str],
    message: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, done, errors = make(capsys, *arguments)
    assert (code, done) == (2, [])
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1


def test_without_a_compiler_auto_is_pure_python(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    why = "CXX=/nonexistent is no C++ compiler that runs"
    assert make(capsys) == (0, [], f"warning: neuralmem is built without native kernels (pure Python): {why}\n")
    assert library.find() is None


@needs_compiler
def test_with_a_broken_nvcc_auto_is_cpu_only(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVCC", "/bin/false")
    code, _, errors = make(capsys)
    assert (code, errors) == (0, "warning: neuralmem is built without CUDA kernels: /bin/false does not run\n")
    record = library.read_record(tree / "neuralmem" / library.NAME)
    assert record
    assert record["cuda"] == []


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the only processor family with several instruction sets")
def test_an_instruction_set_that_does_not_compile_is_left_out(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler = tmp_path / "c++"  # knows the option, but not what it stands for
    compiler.write_text(
        '#!/bin/sh\ncase " $* " in *" -mavx2 "*" -c "*) echo "error: no such register" >&2; exit 1;; esac\n'
        f'exec {" ".join(toolchain.find_compiler()[0])} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("NEURALMEM_BUILD_ISAS", "portable,avx2")
    code, _, errors = make(capsys, "--mode", "cpu")
    assert (code, errors.splitlines()[-1]) == (
        2,
        f"error: cpu/memory avx2: {compiler} failed: error: no such register",
    )  # asked for by name
    monkeypatch.delenv("NEURALMEM_BUILD_ISAS")
    for mode in (["--mode", "cpu"], ["--mode", "auto", "--skip-cuda"]):
        (tree / "neuralmem" / library.NAME).unlink(missing_ok=True)
        code, _, errors = make(capsys, *mode)
        assert code == 0
        assert errors.startswith("warning: neuralmem is built without kernels for avx2, avx512, amx: cpu/memory ")
        assert errors.count("\n") == 1
        record = library.read_record(tree / "neuralmem" / library.NAME)
        assert record
        assert record["cpu"] == ["portable"]


@needs_compiler
def test_cxx_may_be_several_words(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = toolchain.find_compiler()[0]
    monkeypatch.setenv("CXX", f"env 'LC_ALL=C' {compiler[0]} -Wall")
    found, version = toolchain.find_compiler()
    assert toolchain.host_compiler(found) == compiler[0]
    assert version
    assert make(capsys, "--mode", "cpu")[0] == 0
    assert library.read_record(tree / "neuralmem" / library.NAME)
    monkeypatch.setenv("CXX", "'g++")
    assert make(capsys, "--mode", "cpu")[::2] == (2, "error: CXX='g++: No closing quotation\n")


@needs_compiler
def test_sources_that_do_not_compile_leave_the_library_alone(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(capsys, "--mode", "cpu")
    path, source = tree / "neuralmem" / library.NAME, tree / "cuda" / "cpu" / "memory.cpp"
    old, text = path.read_bytes(), source.read_text()
    source.write_text(f"{text}\nint broken = nonsense;\n")
    code, _, errors = make(capsys, "--mode", "cpu")
    assert code == 2
    assert "nonsense" in errors.splitlines()[-1]
    code, _, errors = make(capsys, "--mode", "auto", "--skip-cuda")
    assert code == 0
    assert errors.count("\n") == 1
    assert "nonsense" in errors
    assert path.read_bytes() == old
    source.write_text(text)
    assert make(capsys, "--mode", "cpu")[0] == 0


@needs_nvcc
def test_cuda_kernels_are_built_for_the_chosen_architectures(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tree / "neuralmem" / library.NAME
    code, done, errors = make(capsys, "--mode", "cuda", "--archs", "8.0,90a")
    assert (code, errors) == (0, "")
    assert "gpu/memory.cu" in done
    record = library.read_record(path)
    assert record
    assert record["cuda"] == ["80", "90a"]
    assert make(capsys, "--skip-cuda")[1] == [f"up to date, with CUDA kernels: {path}"]  # what `make test` runs
    assert make(capsys, "--mode", "cuda", "--archs", "80")[1][0] == "gpu/memory.cu"
    assert make(capsys, "--mode", "cuda", "--archs", "999")[2].endswith("cannot compile for 999\n")


def test_architectures_that_an_old_nvcc_lacks_are_left_out(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'sm_80\nsm_90'\n")
    nvcc.chmod(0o755)
    assert toolchain.usable_archs(str(nvcc), None) == ["80+PTX", "90a"]  # PTX, so that later GPUs can run it
    with pytest.raises(BuildError, match="cannot compile for 120"):
        toolchain.usable_archs(str(nvcc), ("80", "120"))
    assert toolchain.gencode(["80+PTX", "90a"]) == [
        "-gencode=arch=compute_80,code=[sm_80,compute_80]",
        "-gencode=arch=compute_90a,code=sm_90a",
    ]


@needs_compiler
def test_a_package_that_cannot_be_written_uses_the_cache(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.os, "access", lambda path, mode: False)
    assert make(capsys, "--mode", "cpu")[0] == 0
    cached = library.cache_folder() / library.NAME
    assert library.find() == cached
    monkeypatch.undo()
    monkeypatch.setattr(library, "PACKAGE", tree / "neuralmem")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "cache"))
    monkeypatch.setenv("NEURALMEM_BUILD_ISAS", "portable")
    assert make(capsys, "--mode", "cpu")[0] == 0  # now beside the package, and the other would be found first
    assert not cached.exists()
    assert library.find() == tree / "neuralmem" / library.NAME


@needs_compiler
def test_two_builds_at_a_time_do_not_collide(tree: Path) -> None:
    outputs = [tree / "one" / library.NAME, tree / "two" / library.NAME]
    chosen = build.settings("cpu")
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda output: build.build(chosen, output), outputs)) == outputs
    assert library.read_record(outputs[0]) == library.read_record(outputs[1]) is not None


def test_files_that_are_no_library_have_no_record(tmp_path: Path) -> None:
    broken = tmp_path / library.NAME
    assert library.read_record(broken) is None
    broken.write_bytes(b"\x7fELF" + library.MARKER + b'{"cpu": ')
    assert library.read_record(broken) is None
