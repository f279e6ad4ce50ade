"""Parser errors as one line: which field, what was given, what is allowed, and the nearest valid name.

Special: jsonargparse reports every attempt to make sense of a value over many lines; the one thing that a user needs to
know is picked out here.
"""

import re
from collections.abc import Sequence

from neuralmem.errors import nearest

WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}


def explain(message: str, options: Sequence[str], classes: Sequence[str]) -> str:
    """One line for a message of jsonargparse.

    Args:
        message: what the parser says
        options: the names of all options without dashes, "model.depth"
        classes: the names of the classes that `data` accepts

    Example:
        >>> explain("unrecognized arguments: --model.depht 4", ["model.depth"], [])
        "--model.depht is not an option; did you mean '--model.depth'?"
        >>> explain('Parser key "model.depth":\\n  Expected a <class \\'int\\'>. Got value: four', [], [])
        "model.depth is 'four'; it must be an integer"
    """
    if match := re.search(r"unrecognized arguments: (.+)", message):
        return _not_an_option(match[1].split(), options)
    if match := re.search(r"argument (\S+): expected one argument", message):
        return f"{match[1].split('/')[-1]} needs a value"
    if match := re.search(r"arguments are required: (.+)", message):
        return f"{match[1]} is missing; give it in a --config file, configs/ has examples"
    if match := re.search(r'Linked "([\w.]+)" must be given via "([\w.]+)"', message):
        return f"{match[1]} cannot be set, it follows from {match[2].split('.')[0]}"
    if match := re.match(r'Parser key "(?P<field>[\w.]+)":?(?P<rest>.*)', message, re.DOTALL):
        return _bad_value(match["field"].replace(".init_args", ""), match["rest"], options, classes)
    if found := _unknown_field(message, "", options):
        return found
    return _short(message)


def explain_mismatch(message: str) -> str:
    """What torch says of weights that are not the model's, without all but the first tensor.

    Example:
        >>> explain_mismatch('Error(s) in loading:\\n\\tMissing key(s) in state_dict: "model.a", "model.b". ')
        'it lacks tensor model.a'
    """
    if match := re.search(r'(Missing|Unexpected) key\(s\) in state_dict: "([^"]+)"', message):
        return (
            f"it lacks tensor {match[2]}" if match[1] == "Missing" else f"it has tensor {match[2]}, the model has not"
        )
    shapes = r"size mismatch for (\S+): .*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)"
    if match := re.search(shapes, message, re.DOTALL):
        return f"its tensor {match[1]} has shape {match[2]}, the model's {match[3]}"
    return _short(message)


def explain_missing(error: BaseException) -> str | None:
    """One line for an error behind which a package is missing, else None.

    Args:
        error: of making a class that the configuration names
    """
    named = re.search(r"Problem with given class_path '([^']+)'", str(error))
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ImportError):
        cause = cause.__cause__ or cause.__context__
    if cause is None or named is None:
        return None
    wanted = re.search(r"Requirement '([^']+)'", str(cause))
    package = wanted[1] if wanted else getattr(cause, "name", None) or str(cause)
    bare = re.split(r"[<>=!~\[ ]", package)[0]
    return f"{named[1].rsplit('.', 1)[-1]} needs the package {bare}, which is not installed: pip install '{package}'"


def _not_an_option(words: Sequence[str], options: Sequence[str]) -> str:
    given = next((word for word in words if word.startswith("-")), words[0]).split("=")[0]
    if not given.startswith("-"):
        return f"{given!r} is not an option; options begin with --"
    return f"{given} is not an option{nearest(given, [f'--{name}' for name in options])}"


def _unknown_field(message: str, above: str, options: Sequence[str]) -> str | None:
    match = re.search(r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option) '(?P<field>[\w.]+)'", message)
    if not match:
        return None
    path = ".".join(part for part in (above, match["group"], match["field"].removeprefix("init_args.")) if part)
    parts = path.split(".")
    known = [name.split(".") for name in options]
    # The first part of the path that no option shares is the one that is wrong.
    depth = next((i for i in range(len(parts)) if not any(k[: i + 1] == parts[: i + 1] for k in known)), len(parts) - 1)
    here = sorted({k[depth] for k in known if k[:depth] == parts[:depth] and len(k) > depth})
    return (
        f"{'.'.join(parts[:depth]) or 'the configuration'} has no field {parts[depth]!r}{nearest(parts[depth], here)}"
    )


def _bad_value(field: str, rest: str, options: Sequence[str], classes: Sequence[str]) -> str:
    if match := re.search(r"does not exist: '?([^'\n]+)", rest):
        return f"{field} is {match[1]!r}, which does not exist"
    if re.search(r"instantiatable class, but .*is abstract", rest):
        match = re.search(r"'class_path': '([^']+)'", rest) or re.search(r"Given value: (.+)", rest)
        return _no_class(field, match[1] if match else "", classes, "")
    if match := re.search(r"Problem with given class_path '([^']+)':\s*(.*)", rest, re.DOTALL):
        problem = re.split(r"\n    - ", match[2])[0]  # what follows are other readings of the whole value
        if inner := re.match(r'Parser key "([\w.]+)":(.*)', problem, re.DOTALL):
            return _bad_value(f"{field}.{inner[1]}", inner[2], options, classes)
        if found := _unknown_field(match[2], field, options):
            return found
        return _no_class(field, match[1], classes, match[2].splitlines()[0])
    if match := re.search(r"Expected a dot import path string: (\S+)", rest):
        return _no_class(field, match[1], classes, "")
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value|$)", rest, re.MULTILINE)
    given = re.search(r"(?:Got|Given) value: (.*)", rest)
    if not kinds or not given:
        return _short(f"{field}: {rest}")
    value = re.sub(r"^NestedArg\(key='[^']*', val=(.*)\)$", r"\1", given[1].strip()).strip("'\"")
    return f"{field} is {value!r}; it must be {_allowed(kinds)}{nearest(value, _choices(kinds))}"


def _no_class(field: str, name: str, classes: Sequence[str], why: str) -> str:
    if field == "data":
        short = name.rsplit(".", 1)[-1]
        return f"data is {name!r}; it must be one of {', '.join(classes)}{nearest(short, classes)}"
    return f"{field}: {name!r} is not a class" + (f": {why.strip()}" if why else ", such as package.module.Class")


def _choices(kinds: Sequence[str]) -> list[str]:
    found = [
        word.strip("'\" ") for kind in kinds if "Literal[" in kind for word in kind.split("[", 1)[1][:-1].split(",")
    ]
    return list(dict.fromkeys(found))


def _allowed(kinds: Sequence[str]) -> str:
    choices = _choices(kinds)
    words = [f"one of {', '.join(choices)}"] if choices else []
    for kind in kinds:
        name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).split("[")[0]
        if name.rsplit(".", 1)[-1] != "Literal":
            words.append(WORDS.get(name, name))
    return " or ".join(dict.fromkeys(words))


def _short(message: str, most: int = 300) -> str:
    text = " ".join(message.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
