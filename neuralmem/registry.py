"""The file name is the registry: `rule: titans` is memory/titans.py, `pattern: [titans_mac]` layers/titans_mac.py.

Special: there is no list to maintain, and a name from a config or a downloaded checkpoint can reach these folders only.
Files that begin with an underscore are shared parts, not choices; so are those of OTHERS.
"""

import importlib
import inspect
from pathlib import Path

from neuralmem.errors import UserError, nearest

FOLDERS = {"rule": "memory", "layer": "layers", "model": "models"}
OTHERS = {"model": {"checkpoint", "convert", "pretrained", "weights"}}
ROOT = Path(__file__).parent


def names(kind: str) -> list[str]:
    """The names that can be chosen.

    Args:
        kind: "rule", "layer" or "model"

    Example:
        >>> "titans" in names("rule")
        True
    """
    files = {file.stem for file in (ROOT / FOLDERS[kind]).glob("*.py") if not file.stem.startswith("_")}
    return sorted(files - OTHERS.get(kind, set()))


def find(kind: str, name: str, base: type, field: str) -> type:
    """The one class derived from `base` that the file called `name` defines.

    Args:
        kind: "rule", "layer" or "model"
        name: a file name without .py
        base: what the class must be derived from
        field: the config field that the name came from, for the error message

    Raises:
        UserError: there is no such file, with the nearest name.
    """
    known = names(kind)
    if name not in known:
        raise UserError(f"{field} is {name!r}; it must be one of {', '.join(known)}{nearest(name, known)}")
    module = importlib.import_module(f"neuralmem.{FOLDERS[kind]}.{name}")
    classes = [
        x
        for _, x in inspect.getmembers(module, inspect.isclass)
        if issubclass(x, base) and x.__module__ == module.__name__
    ]
    if len(classes) != 1:
        raise TypeError(f"{module.__name__} must define exactly one {base.__name__}, it defines {len(classes)}")
    return classes[0]
