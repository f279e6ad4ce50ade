"""The small-model form: facts in text, such as "@word 123", one of them is asked for at the end, exact match.

Special: facts are written, and keys and values chosen, by the format the checkpoint was trained with; only pairs of
key and value that training held out are asked for, in text that training held out, with at least four facts of other
keys around. The run's data.json says all that; a checkpoint without one is asked in the default format.
Source: `data/needles.py`; `data.json` is the `data` part of the run's config.yaml, {"class_path": ..., "init_args":
{...}}.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from neuralmem.data.corpus import VALIDATION_SHARE
from neuralmem.data.document import limited
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.data.needles import HAYSTACK_CHARACTERS, find_keys
from neuralmem.data.sources import open_source
from neuralmem.errors import UserError
from neuralmem.evaluation.cell import Build, Cell, too_short
from neuralmem.evaluation.contexts import Insert, TokenisedHaystack
from neuralmem.evaluation.rope import Rope
from neuralmem.evaluation.sample import Sample
from neuralmem.models.checkpoint import verify
from neuralmem.models.pretrained import locate

DISTRACTORS = 4  # facts with other keys, at least
FACTS = 6  # facts in a prompt: the one asked for and five others
CORPORA = ("builtin", "stdlib")


@dataclass(frozen=True)
class TrainingData:
    """What evaluation has to know of a checkpoint's training data.

    Args:
        length: tokens per training row, in the last stage of a curriculum; None: not known
        haystack: name of the haystack that held-out text comes from when the user names none
        share: part of the documents held out
        source: the text trained on, as `open_source` takes it; where keys are found
        form: format of facts, and the pairs held out
        keys: the curriculum's last stage used so many keys; 0: all
        facts: whether facts and questions about them were trained on, not text alone; None: not known
        carried: whether a row went on with the memory of the row before, so that longer texts were read too
    """

    length: int | None = None
    haystack: str = "builtin"
    share: float = VALIDATION_SHARE
    source: str | tuple[str, ...] | dict[str, float] = "builtin"
    form: NeedleFormat = field(default_factory=lambda: NeedleFormat(key_tokens=0))
    keys: int = 0
    facts: bool | None = None
    carried: bool = False


def read_training_data(checkpoint: str | Path) -> TrainingData:
    """From the data.json of a checkpoint, given as `load` takes it; without one, the defaults.

    Raises:
        UserError: the checkpoint does not exist or is not whole, or its data.json cannot be used.
    """
    folder = locate(checkpoint)
    path = verify(folder).get("data.json", folder / "data.json")
    if not path.is_file():
        return TrainingData()
    try:
        given = _object(json.loads(path.read_text(encoding="utf-8")), "its content")
        return from_arguments(_object(given.get("init_args", given), "init_args"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--checkpoint has {path}, which cannot be used: {reason}") from None


def from_arguments(given: dict[str, Any]) -> TrainingData:
    """From the arguments of a data module.

    Raises:
        UserError: a value of the wrong type.

    Example:
        >>> from_arguments({"sequence_length": 512, "source": "stdlib"}).haystack
        'stdlib'
        >>> from_arguments({"sequence_length": 512, "carry": True}).carried
        True
        >>> from_arguments({"stages": [{"length": 128}, {"length": 256}]}).length
        256
    """
    stages = given.get("stages") or [{}]
    if not isinstance(stages, list):
        raise UserError(f"stages is {stages!r:.60}; it must be a list")
    stage = _object(stages[-1], f"stages[{len(stages) - 1}]")
    source = given.get("source") or "builtin"
    names = [source] if isinstance(source, str) else source
    if not isinstance(names, list | dict) or not all(isinstance(name, str) for name in names):
        raise UserError(f"source is {source!r:.60}; it must be a text, a list of texts, or texts with their weights")
    share = _object(given.get("validation"), "validation").get("share")
    length = _number(stage.get("length") or given.get("sequence_length"), "length", int, least=1)
    return TrainingData(
        length=None if length is None else int(length),
        haystack=next((name for name in names if name in CORPORA), "builtin"),
        share=VALIDATION_SHARE if share is None else float(_number(share, "validation.share", float) or 0),
        source=tuple(source) if isinstance(source, list) else source,
        form=_form(_object(given.get("form"), "form")),
        keys=int(_number(stage.get("keys"), "keys", int) or 0),
        facts="facts" in stage,
        carried=given.get("carry") is True,
    )


def _form(given: dict[str, Any]) -> NeedleFormat:
    """The format of facts, with the defaults for what is not given."""
    form = {f.name: given[f.name] for f in fields(NeedleFormat) if given.get(f.name) is not None}
    for name, value in form.items():
        if name not in ("fact", "ask"):
            _number(value, f"form.{name}", type(getattr(NeedleFormat, name)), least=name == "digits")
        elif not isinstance(value, str):
            raise UserError(f"form.{name} is {value!r:.60}; it must be a text")
    return NeedleFormat(**form) if form else NeedleFormat(key_tokens=0)


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict | None):
        raise UserError(f"{name} is {value!r:.60}; it must be an object")
    return value or {}


def _number(value: Any, name: str, kind: type, least: int = 0) -> float | None:
    """The value, an int or, where the kind is float, either."""
    allowed = (int, float) if kind is float else int
    if value is not None and (isinstance(value, bool) or not isinstance(value, allowed) or not value >= least):
        what = "a number" if kind is float else "an integer"
        raise UserError(f"{name} is {value!r:.60}; it must be {what} of at least {int(least)}")
    return value


def training_keys(training: TrainingData, tokenizer: Any, facts: int) -> list[str]:
    """The keys that training used, in its order.

    Raises:
        UserError: the training text is not there any more, or has too few words that can be keys.
    """
    texts = (document.text for document in open_source(training.source, side="train", share=training.share).read())
    words = find_keys(limited(texts, HAYSTACK_CHARACTERS), tokenizer, training.form)
    keys = [word for word in words if not training.form.is_key_held_out(word)][: training.keys or None]
    if len(keys) < facts:
        raise UserError(f"--facts is {facts}; it must be at most {len(keys)}, the keys of the training text")
    return keys


def tokenise_lines(text: str, tokenizer: Any) -> TokenisedHaystack:
    """A haystack that can be parted between lines, tokenised as training tokenises it."""
    ends = [tokenizer.decode([i]).endswith("\n") for i in range(tokenizer.vocab_size)]
    return TokenisedHaystack.of_text(text, ends, tokenizer.encode)


def recall_prompts(
    cell: Cell, haystack: TokenisedHaystack, form: NeedleFormat, keys: Sequence[str], facts: int
) -> Build:
    """Prompts of exactly `cell.length` tokens: text with facts at line starts, then a question.

    The asked fact stands at the depth asked for, the others anywhere. Candidates are the values of the other facts,
    then random ones: a model that has kept some fact, but not whose, does not rank the truth first.
    """

    def build(number: int, depth: float | None, random: Random) -> Sample:
        values = _held_out_values(form, random.sample(keys, facts), random)
        key, value = next(iter(values.items()))
        places = [random.random() if depth is None else depth, *(random.random() for _ in range(facts - 1))]
        texts = [form.statement(k, v) for k, v in values.items()]
        question = cell.encode(form.question(key))
        inserts = [Insert(*pair) for pair in zip(places, texts, strict=True)]
        try:
            context = haystack.fill(cell.length - len(question), inserts, random.randrange(len(haystack)))
        except UserError:
            least = len(question) + sum(len(cell.encode(text)) for text in texts)
            raise too_short(cell, least) from None
        rope = Rope([*context.pieces, question])
        others = [v for v in values.values() if v != value][:9]
        while len(others) < min(9, 10**form.digits - 1):
            other = random.randrange(10**form.digits)
            if other not in (value, *others):
                others.append(other)
        answers = [form.answer(v) for v in (value, *others)]
        inside = (0, len(rope) - len(question))
        return cell.sample(number, rope, inside, context.spans[:1], key, [form.number(value)], answers)

    return build


def _held_out_values(form: NeedleFormat, keys: Sequence[str], random: Random) -> dict[str, int]:
    """A value for every key, all different, each pair held out from training."""
    rng = np.random.default_rng(random.getrandbits(64))
    values: dict[str, int] = {}
    for key in keys:
        value = form.value(rng, key, held_out=True)
        for _ in range(1000):
            if value not in values.values():
                break
            value = form.value(rng, key, held_out=True)
        values[key] = value
    return values
