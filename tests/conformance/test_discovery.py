"""The suite finds what there is: a rule, layer or model is under the laws from the moment its file exists."""

from pathlib import Path

import pytest

import neuralmem.layers
import neuralmem.memory
from neuralmem import registry
from tests.conformance import subjects

PACKAGE = Path(neuralmem.memory.__file__).parents[1]


def files(folder: str) -> set[str]:
    return {f.stem for f in (PACKAGE / folder).glob("*.py") if not f.stem.startswith("_")}


def test_every_file_of_the_folders_is_a_subject() -> None:
    names = [s.name for s in subjects.SUBJECTS]
    assert files("memory") == {s.name for s in subjects.SUBJECTS if s.kind == "rule"}
    assert files("layers") == {s.name.split("+")[0] for s in subjects.SUBJECTS if s.kind == "layer"}
    for layer in files("layers"):
        assert f"CausalLM({layer})" in names
    assert len(names) == len(set(names))


def test_a_layer_with_memory_is_tested_with_every_rule() -> None:
    for layer in ("titans_lmm", "titans_mac", "titans_mag", "titans_mal"):
        for tested in (subjects.SUBJECTS, subjects.PAIRS):
            assert any(s.name.startswith(f"{layer}+") for s in tested)
        every = [*subjects.SUBJECTS, *subjects.PAIRS]
        assert {s.name.split("+")[1] for s in every if s.name.startswith(f"{layer}+")} == files("memory")


@pytest.mark.parametrize(
    ("folder", "package", "source"),
    [("memory", neuralmem.memory, "delta"), ("layers", neuralmem.layers, "titans_mal")],
)
def test_a_planted_file_is_a_subject_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, package, source: str
) -> None:
    for name in ("memory", "layers", "models"):
        (tmp_path / name).mkdir()
        for file in (PACKAGE / name).glob("*.py"):
            (tmp_path / name / file.name).write_text(file.read_text())
    (tmp_path / folder / "brand_new.py").write_text((PACKAGE / folder / f"{source}.py").read_text())
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / folder)])
    found = {s.name: s for s in (*subjects.discover(), *subjects.pairs())}
    new = [s for name, s in found.items() if "brand_new" in name]
    assert {s.kind for s in new} >= ({"rule", "layer"} if folder == "memory" else {"layer", "model"})
    for subject in new:
        y, _ = subject.build()(subject.draw(2))
        assert y.isfinite().all()
