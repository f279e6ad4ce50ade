"""The house stands: storeys, forbidden pairs, circles, Lightning's two rooms, and what `import neuralmem` costs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import neuralmem
from tests.architecture import STOREYS, violations

PACKAGE = Path(neuralmem.__file__).parent
ROOT = PACKAGE.parent

HOUSE = {
    "typing.py": "",
    "state.py": "import house.typing",
    "ops/titans/__init__.py": "from house.ops.titans import reference",
    "ops/titans/reference.py": "import house.typing",
    "modules/norm.py": "from .. import typing",
    "memory/titans.py": "from house.ops.titans import reference\nfrom house.modules.norm import RMSNorm",
    "layers/mac.py": "from house.memory import titans",
    "models/causal_lm.py": "import house.layers.mac",
    "data/tokens.py": "import house.typing",
    "data/module.py": "import lightning.pytorch as L",
    "generation/stream.py": "import house.models.causal_lm",
    "training/fit.py": "import house.data.tokens, house.models.causal_lm\nimport lightning.pytorch as L",
    "evaluation/niah.py": "import house.generation.stream",
    "__init__.py": "import house.training.fit, house.evaluation.niah",
}


def build(folder: Path, changes: dict[str, str]) -> Path:
    for path, text in (HOUSE | changes).items():
        file = folder / "house" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text if text.startswith("#") else f'"""A room."""\n{text}')
    return folder / "house"


def test_the_house_stands() -> None:
    assert violations(PACKAGE) == []


def test_every_file_and_folder_stands_on_a_storey() -> None:
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or any(p.glob("*.py"))}
    assert rooms == set().union(*STOREYS)


def test_a_sound_house_is_found_sound(tmp_path: Path) -> None:
    assert violations(build(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("ops/bad.py", "import house.layers.mac", "ops must not import layers"),
        ("ops/bad.py", "from house import layers", "ops must not import layers"),
        ("ops/bad.py", "from ..layers import mac", "ops must not import layers"),
        ("ops/bad.py", "def f():\n    import house.layers.mac", "ops must not import layers"),
        ("ops/titans/reference.py", "from ...modules.norm import x", "ops must not import modules"),
        ("state.py", "from house.models import causal_lm", "state must not import models"),
        ("training/bad.py", "import house.evaluation.niah", "training and evaluation must not know each other"),
        ("evaluation/bad.py", "import house.training.fit", "evaluation and training must not know each other"),
        ("generation/bad.py", "import house.data.tokens", "generation and data must not know each other"),
        ("data/bad.py", "import house.modules.norm", "data may only import"),
        ("shed/tools.py", "", "shed has no storey"),
        ("layers/a.py", "import house.layers.b", "circle"),
        ("models/bad.py", "import lightning.pytorch as L", "lightning lives in"),
        ("data/bad.py", "from lightning.pytorch import LightningDataModule", "lightning lives in"),
        ("layers/bad.py", "# no docstring", "a file opens with a docstring"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, path: str, text: str, message: str) -> None:
    changes = {path: text} | ({"layers/b.py": "import house.layers.a"} if message == "circle" else {})
    assert any(message in sentence for sentence in violations(build(tmp_path, changes)))


def run(program: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_needs_torch_einops_and_safetensors_only() -> None:
    answer = run(
        "import sys, time, torch; before = set(sys.modules); start = time.perf_counter(); import neuralmem\n"
        "took = time.perf_counter() - start; new = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "print(sorted(new - sys.stdlib_module_names - {m.split('.')[0] for m in before})); print(f'{took:.2f} s')"
    )
    found, took = answer.splitlines()
    print(f"import neuralmem: {took} on top of torch")
    assert found == "['einops', 'neuralmem', 'safetensors']"


def test_training_and_evaluation_do_not_load_each_other() -> None:
    for here, there in (("training", "evaluation"), ("evaluation", "training")):
        loaded = run(
            f"import sys, neuralmem.{here}; print(any(m.startswith('neuralmem.{there}') for m in sys.modules))"
        )
        assert loaded.strip() == "False"


def test_the_public_names_are_few_and_exist() -> None:
    assert len(neuralmem.__all__) <= 20
    assert len(set(neuralmem.__all__)) == len(neuralmem.__all__)
    for name in neuralmem.__all__:
        assert getattr(neuralmem, name).__doc__, f"{name} has no docstring"


def test_the_doors_are_short() -> None:
    for door in ("train.py", "eval.py"):
        assert len((ROOT / door).read_text().splitlines()) <= 40, door
