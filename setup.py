"""Packaging: pyproject.toml, and here the native library, by the same code as `python -m neuralmem.build`.

NEURALMEM_BUILD=auto builds what the machine can and never fails; none, cpu and cuda are strict. A library has no Python
tag and torch's stable ABI, so a wheel with one is py3-none-<platform>, and one without is py3-none-any.
"""

import shutil
import sys
import types
from pathlib import Path

import setuptools
from setuptools.command.build_py import build_py

if int(setuptools.__version__.partition(".")[0]) < 77:  # as in pyproject.toml, which --no-build-isolation does not read
    raise SystemExit(f"error: setuptools {setuptools.__version__} is too old; pip install 'setuptools>=77'")
from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).parent.resolve()
package = types.ModuleType("neuralmem")  # without its __init__, which needs torch
package.__path__ = [str(ROOT / "neuralmem")]
sys.modules["neuralmem"] = package

from neuralmem import build, library, toolchain  # noqa: E402


class BuildPy(build_py):
    """Adds the sources of the kernels, and the library where it can be built."""

    def run(self) -> None:
        super().run()
        folder = ROOT / "neuralmem" if self.editable_mode else Path(self.build_lib).resolve() / "neuralmem"
        output = folder / library.NAME
        if not self.editable_mode:
            output.unlink(missing_ok=True)  # of an earlier build in another mode
            shutil.rmtree(folder / "cuda", ignore_errors=True)
            for file in library.source_files(ROOT / "cuda"):
                target = folder / "cuda" / file.relative_to(ROOT / "cuda")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        try:
            build.build(build.settings(jobs=build.processors()), output)
        except toolchain.BuildError as error:
            raise SystemExit(f"{error.log}\nerror: {error}".strip()) from None


class Wheel(bdist_wheel):
    """One wheel per platform with the library, one for all without. Asked for when everything is in its place."""

    def get_tag(self) -> tuple[str, str, str]:
        native = (Path(self.bdist_dir) / "neuralmem" / library.NAME).is_file()
        self.root_is_pure = not native
        return "py3", "none", super().get_tag()[2] if native else "any"


setuptools.setup(cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel})
