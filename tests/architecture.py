"""Who may import whom: the package is a house of storeys, and imports only point down.

Special: read from the source text, so that imports inside functions and conditions count and nothing is executed. What
is hidden from it: names that the registry turns into files, which is why the registry reaches two folders only.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

# From the ground up; every file and folder of the package stands on one of them.
STOREYS = [
    {"typing", "state", "registry", "tokenizer", "config", "probe", "errors", "fields"}
    | {"library", "toolchain", "build", "backends", "durable", "lock", "flush", "page", "provenance"},
    {"ops"},
    {"modules"},
    {"memory"},
    {"layers"},
    {"models"},
    {"data", "generation"},
    {"training", "evaluation", "hf"},
    {"__init__"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(STOREYS) for name in names}
APART = [{"training", "evaluation"}, {"data", "generation"}, {"hf", "training"}, {"hf", "evaluation"}]
ONLY = {"data": STOREYS[0] | {"data"}}  # rooms with a list of their own, shorter than what lies below
LIGHTNING = ("training.", "data.module")  # where `lightning` may be imported


def module_name(package: Path, file: Path) -> str:
    """neuralmem/ops/checks.py -> ops.checks, neuralmem/ops/__init__.py -> ops, neuralmem/__init__.py -> __init__."""
    parts = file.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(package: Path, file: Path) -> Iterator[str]:
    """Full names of everything that `file` imports; for `from a import b` both a and a.b."""
    home = file.parent.relative_to(package.parent).parts
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = list(home[: len(home) - node.level + 1]) if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def own_imports(package: Path, file: Path) -> set[str]:
    """Modules of the package that `file` imports, without the package's name."""
    found = set()
    for name in imports(package, file):
        target = name.removeprefix(f"{package.name}.")
        if name.startswith(f"{package.name}."):
            path = package / Path(*target.split("."))
            if path.with_suffix(".py").is_file() or path.is_dir():
                found.add(target)
    return found


def violations(package: Path) -> list[str]:
    """One sentence per broken rule; empty when the house stands."""
    found, graph = [], {}
    for file in sorted(package.rglob("*.py")):
        module = module_name(package, file)
        targets = {name for name in own_imports(package, file) if not module.startswith(f"{name}.")} - {module}
        graph[module] = targets
        found += _storey(module, targets)
        used = {name.split(".")[0] for name in imports(package, file)}
        if "lightning" in used and not f"{module}.".startswith(LIGHTNING):
            found.append(f"{module}: lightning lives in training/ and data/module.py only")
        if not ast.get_docstring(ast.parse(file.read_text())):
            found.append(f"{module}: a file opens with a docstring")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"circle: {' -> '.join(error.args[1])}")
    return found


def _storey(module: str, targets: set[str]) -> Iterator[str]:
    here = module.split(".")[0]
    if here not in LEVEL:
        yield f"{module}: {here} has no storey"
        return
    for target in sorted(targets):
        there = target.split(".")[0]
        if there not in LEVEL or LEVEL[there] > LEVEL[here]:
            yield f"{module}: {here} must not import {there}, which is above it"
        elif {here, there} in APART:
            yield f"{module}: {here} and {there} must not know each other"
        elif there not in ONLY.get(here, LEVEL):
            yield f"{module}: {here} may only import {', '.join(sorted(ONLY[here]))}"
