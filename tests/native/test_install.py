"""Installing: wheels and editable installs in every mode, from a copy of the project with tiny kernels (tree.py)."""

import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.native.test_build import needs_compiler
from tests.native.tree import plant, python

BUILD = "import sys; from setuptools import build_meta; print('made', getattr(build_meta, sys.argv[1])(sys.argv[2]))"
HIDE_TORCH = "import sys; sys.modules['torch'] = None\n"  # as in pip's isolated builds


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("install"))


def make(tree: Path, kind: str, program: str = BUILD, **environment: str) -> tuple[str, set[str], str]:
    """Build a distribution; its name, the files in it, and everything that was said."""
    done = python("-c", program, f"build_{kind}", "dist", cwd=tree, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    name = done.stdout.rpartition("made ")[2].strip()
    return name, set(zipfile.ZipFile(tree / "dist" / name).namelist()), done.stdout + done.stderr


SOURCES = {f"neuralmem/cuda/{name}" for name in ("launchers.h", "bindings.cpp", "cpu/memory.cpp", "gpu/memory.cu")}


@needs_compiler
def test_a_wheel_with_the_library_is_for_a_platform_and_one_without_for_all(tree: Path) -> None:
    name, files, _ = make(tree, "wheel", NEURALMEM_BUILD="cpu")
    assert name.startswith("neuralmem-")
    assert "-py3-none-linux_" in name
    assert files >= {"neuralmem/_C.so", "neuralmem/conformance.json", *SOURCES}
    assert not any("cuda/tests" in file for file in files)

    name, files, said = make(tree, "wheel", NEURALMEM_BUILD="none")  # build/ still holds the library of before
    assert name.endswith("-py3-none-any.whl")
    assert "neuralmem/_C.so" not in files
    assert files >= SOURCES
    assert "warning: neuralmem" not in said


def test_without_torch_or_compiler_a_wheel_is_pure_and_says_why(tree: Path) -> None:
    name, files, said = make(tree, "wheel", HIDE_TORCH + BUILD)
    assert name.endswith("-py3-none-any.whl")
    assert "neuralmem/_C.so" not in files
    assert "warning: neuralmem is built without native kernels (pure Python): torch is not visible here" in said
    assert make(tree, "wheel", CXX="/nonexistent")[0].endswith("-py3-none-any.whl")


@pytest.mark.parametrize(
    ("mode", "message"),
    [("cpu", "error: torch is not visible here"), ("fast", "error: NEURALMEM_BUILD is 'fast'; it must be one of auto")],
)
def test_an_install_that_was_asked_for_by_name_fails_when_it_must(tree: Path, mode: str, message: str) -> None:
    for kind in ("build_wheel", "build_editable"):
        done = python("-c", HIDE_TORCH + BUILD, kind, "dist", cwd=tree, NEURALMEM_BUILD=mode)
        assert done.returncode
        assert message in done.stdout + done.stderr


@needs_compiler
def test_an_editable_install_puts_the_library_into_the_checkout(tree: Path) -> None:
    library = tree / "neuralmem" / "_C.so"
    make(tree, "editable", HIDE_TORCH + BUILD)
    assert not library.exists()
    make(tree, "editable", NEURALMEM_BUILD="cpu")
    assert library.exists()
    make(tree, "editable", HIDE_TORCH + BUILD)  # pip install -e . once more, isolated: what is there stays
    assert library.exists()
    library.unlink()


def test_sources_travel_in_a_source_distribution(tree: Path) -> None:
    done = python("-c", BUILD, "build_sdist", "dist", cwd=tree)
    assert done.returncode == 0, done.stderr
    with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert inside >= {"setup.py", "cuda/bindings.cpp", "cuda/cpu/memory.cpp", "cuda/tests/test_nothing.cpp"}


@needs_compiler
def test_an_unpacked_wheel_can_build_its_library(tree: Path, tmp_path: Path) -> None:
    name, _, _ = make(tree, "wheel", NEURALMEM_BUILD="none")
    zipfile.ZipFile(tree / "dist" / name).extractall(tmp_path)
    done = python("-m", "neuralmem.build", "--mode", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "neuralmem" / "_C.so").is_file()
    (listing,) = tmp_path.glob("neuralmem-*.dist-info/RECORD")
    assert "neuralmem/_C.so,,\n" in listing.read_text()  # uninstalled with the package, or it would shadow the next
    report = python("-m", "neuralmem", cwd=tmp_path).stdout
    assert "native cpu    available: portable\n" in report
    assert "auto on cpu   native\n" in report
