"""The registry: a file name is a choice, everything else is refused with the nearest name."""

from pathlib import Path

import pytest

import neuralmem.memory
from neuralmem import registry
from neuralmem.errors import UserError
from neuralmem.layers._layer import Layer
from neuralmem.memory._memory import Memory


def test_names_are_the_files_without_the_shared_parts() -> None:
    folder = Path(neuralmem.memory.__file__).parent
    assert registry.names("rule") == sorted(f.stem for f in folder.glob("*.py") if f.stem[0] != "_")
    assert {"transformer", "titans_lmm", "titans_mac", "titans_mag", "titans_mal"} <= set(registry.names("layer"))


def test_every_name_finds_one_class() -> None:
    for kind, base in (("rule", Memory), ("layer", Layer)):
        for name in registry.names(kind):
            assert issubclass(registry.find(kind, name, base, "field"), base)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("titan", "memory.rule is 'titan'; it must be one of delta, titans; did you mean 'titans'?"),
        ("Titans", "memory.rule is 'Titans'; it must be one of"),
        ("_rule", "memory.rule is '_rule'; it must be one of"),
        ("__init__", "memory.rule is '__init__'; it must be one of"),
        ("os.path", "memory.rule is 'os.path'; it must be one of"),
        ("../ops/checks", "memory.rule is '../ops/checks'; it must be one of"),
        ("", "memory.rule is ''; it must be one of"),
        (None, "memory.rule is None; it must be one of"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        registry.find("rule", name, Memory, "memory.rule")
    known = ", ".join(registry.names("rule"))
    assert str(error.value).startswith(message.replace("delta, titans", known))


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / "memory").mkdir()
    (folder / "memory" / f"{name}.py").write_text(text)
    monkeypatch.setattr(registry, "ROOT", folder)
    monkeypatch.setattr(neuralmem.memory, "__path__", [str(folder / "memory")])


def test_a_dependency_that_is_missing_keeps_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, "needs_more", "import a_package_that_does_not_exist")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_does_not_exist"):
        registry.find("rule", "needs_more", Memory, "memory.rule")


@pytest.mark.parametrize("count", [0, 2])
def test_a_file_must_define_exactly_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    text = "from neuralmem.memory._memory import Memory\n" + "".join(
        f"class Rule{i}(Memory):\n    pass\n" for i in range(count)
    )
    plant(tmp_path, monkeypatch, f"defines_{count}", text)
    with pytest.raises(TypeError, match=rf"must define exactly one Memory, it defines {count}"):
        registry.find("rule", f"defines_{count}", Memory, "memory.rule")
