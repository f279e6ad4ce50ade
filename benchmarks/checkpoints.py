"""The trained models that come with the package: train them, ask them, put them into the package, write it down.

A model is a config of configs/checkpoints/, or several: NAME.yaml may begin with the weights that NAME_fourth.yaml
makes, that with those of NAME_third.yaml, and so on to NAME_first.yaml, which may begin with a run of another model.
Where a run is gone and its model is shipped, a copy of that in the run's folder, runs/checkpoints/NAME-third, will do.
Its run and its answers lie in runs/checkpoints/NAME, and what is there is not made again: training goes on where it
stopped, and so does every question. What is shipped, in neuralmem/pretrained/NAME, is the run's model with its config
and `made.json`: commands, commit, seed, data, and every score. Where the run is gone, the shipped model is asked what
it was not asked before, and `ship` adds that to its scores. The tables in the README, docs/checkpoints.md and
docs/baselines.md are made from these files and nowhere else.

Run: python benchmarks/checkpoints.py                    all models, all steps: hours on two cores
     python benchmarks/checkpoints.py mag-tiny --step ask --step ship
     python benchmarks/checkpoints.py --step docs        only the tables
"""

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from checkpoint_tables import CONTROLS, MODELS, TEXT, update_docs

from neuralmem.data.sources import open_source
from neuralmem.models.checkpoint import load, save
from neuralmem.models.pretrained import FOLDER
from neuralmem.models.weights import weights_of
from neuralmem.training.folder_io import differing

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "checkpoints"
ALL = (*MODELS, *TEXT)
MEMORIES = tuple(name for name in MODELS if name != "window-tiny")
TITANS = ("mag-tiny", "mac-tiny")
# How many needles at 16K: what there were hours for. The figure wanted of a Titans is of five hundred.
NEEDLES = {500: ("mag-tiny", "mac-tiny"), 100: ("hope-tiny", "window-tiny")}
STEPS = ("train", "ask", "ship", "docs")
CONVERTED = {  # a run's beginning: made by, of
    "mag-tiny-longer": ("benchmarks/larger_memory.py", "--taps", "8", "runs/checkpoints/mag-tiny-third"),
    "mag-tiny-wider": ("benchmarks/larger_memory.py", "--heads", "4", "runs/checkpoints/mag-tiny-fourth"),
    "mac-tiny-start": ("benchmarks/mac_from_mag.py", "neuralmem/mag-tiny"),
}


@dataclass(frozen=True)
class Question:
    """A command of eval.py, and whom it is asked.

    Args:
        name: folder of the answers
        command: words behind `eval.py`, without checkpoint and --out
        table: the CSV that it writes
        models: who is asked
    """

    name: str
    command: tuple[str, ...]
    table: str
    models: Sequence[str] = tuple(MODELS)


def needles(name: str, task: str, length: str, samples: int, ablate: str, models: Sequence[str]) -> Question:
    """Needles at random depths."""
    command = ("niah", "--tasks", task, "--lengths", length, "--samples", str(samples), "--depths", "random")
    haystack = () if task == "s-niah-pk" else ("--haystack", "builtin")
    return Question(name, (*command, *haystack, "--ablate", ablate), "table.csv", models)


QUESTIONS = (
    *(needles("needle_16k", "s-niah-pk", "16k", n, "none", models) for n, models in NEEDLES.items()),
    needles("needle_16k_controls", "s-niah-pk", "16k", 100, CONTROLS, MEMORIES),
    *(needles("number_16k", "s-niah-n", "16k", n, "none", models) for n, models in NEEDLES.items()),
    needles("number_16k_controls", "s-niah-n", "16k", 100, CONTROLS, MEMORIES),
    needles("needle_256k", "s-niah-pk", "256k", 100, "none", TITANS),
    needles("needle_1m", "s-niah-pk", "1m", 10, "none", ("mag-tiny",)),
    Question(
        "within_reach",
        (
            *("niah", "--tasks", "recall", "--lengths", "128", "--samples", "100", "--depths", "random"),
            *("--facts", "5", "--ablate", "none"),
        ),
        "table.csv",
    ),
    Question("overwrite", ("overwrite",), "overwrite.csv"),
    Question(
        "attribution",
        ("attribution", "--tasks", "s-niah-n", "--haystack", "builtin", "--lengths", "4k", "--samples", "50"),
        "attribution.csv",
        MEMORIES,
    ),
    Question(
        "positions",
        ("positions", "--haystack", "stdlib", "--lengths", "16k", "--samples", "48", "--shuffle-lines"),
        "positions.csv",
    ),
    Question(
        "baselines",
        (
            *("baselines", "--tasks", "s-niah-n", "--haystack", "builtin", "--lengths", "16k", "--samples", "100"),
            *("--depths", "random", "--ablate", "none", "--budget", "512", "--passage", "100"),
            *("--capacities", "1k,4k,16k"),
        ),
        "baselines.csv",
        ("mag-tiny",),
    ),
    *(
        Question(
            name,
            ("positions", "--haystack", "stdlib", *options, "--ablate", "off,frozen"),
            "positions.csv",
            tuple(TEXT),
        )
        for name, options in (
            ("positions_shuffled", ("--lengths", "2k", "--samples", "140", "--shuffle-lines")),
            ("positions_shuffled_4k", ("--lengths", "4k", "--samples", "70", "--shuffle-lines")),
            ("positions_plain", ("--lengths", "4k", "--samples", "48")),
        )
    ),
    Question("perplexity", ("perplexity", "--haystack", "stdlib"), "perplexity.csv", (*MODELS, *TEXT)),
)


def call(*arguments: str) -> None:
    """Run a script of the repository."""
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def config_of(name: str) -> Path:
    """The config of a model."""
    return ROOT / "configs" / "checkpoints" / f"{name.replace('-', '_')}.yaml"


def parts(name: str) -> list[str]:
    """The runs that make a model, one after another; each has a config of its own and gives its weights to the next."""
    before = [f"{name}-{number}" for number in ("first", "second", "third", "fourth")]
    return [*(part for part in before if config_of(part).exists()), name]


def start(part: str) -> str | None:
    """What a run begins with; None for random weights."""
    return yaml.safe_load(config_of(part).read_text()).get("init_from")


def conversion(part: str) -> tuple[str, ...]:
    """The command that makes what a run begins with; () where nothing has to be made."""
    begins = start(part)
    return (*CONVERTED[Path(begins).name], begins) if begins and Path(begins).name in CONVERTED else ()


def origin(name: str) -> dict[str, Any] | None:
    """What a model's first run begins with, as it is or converted: what is known of the run of a shipped model that
    made it, and the model's name."""
    begins = start(parts(name)[0])
    if begins is None:
        return None
    part = Path(CONVERTED.get(Path(begins).name, (begins,))[-1]).name
    model = next(one for one in ALL if part in parts(one))
    about = json.loads((FOLDER / model / "made.json").read_text())
    run = [*about["before"], about][parts(model).index(part)]
    read = {key: run["training"][key] for key in ("step", "tokens")}
    return {"name": f"neuralmem/{model}", "weights_sha256": run["weights_sha256"], **read, "trained": run["trained"]}


def train(name: str) -> None:
    """Train a model, or go on with it."""
    for part in parts(name)[len(gone(name)) :]:
        begun = (RUNS / part / "checkpoints").is_dir()
        if (made_first := conversion(part)) and not begun:
            call(*made_first)
        call("train.py", *options_of(part), *(("--resume", "auto") if begun else ()))


def options_of(part: str) -> tuple[str, ...]:
    """The options of train.py for a run."""
    return "--config", str(config_of(part).relative_to(ROOT)), "--run", str((RUNS / part).relative_to(ROOT))


def missing(name: str) -> str | None:
    """Why a model can be neither asked nor shipped; None if it can."""
    run = RUNS / name
    if (run / "config.yaml").is_file():
        return None if (run / "model.safetensors").is_file() else "its run has no model yet; go on with --step train"
    return None if (FOLDER / name).is_dir() else "neither trained nor shipped"


def place_of(name: str) -> Path:
    """Where a model is: its run, or the package where the run is gone."""
    return RUNS / name if (RUNS / name / "config.yaml").is_file() else FOLDER / name


def command_of(question: Question, name: str) -> str:
    """What asks it, as `made.json` says it."""
    return f"eval.py {' '.join(question.command)} --checkpoint neuralmem/{name}"


def shipped_scores(name: str) -> dict[str, Any]:
    """What the shipped model was asked, if it is the one at `place_of`."""
    path = FOLDER / name / "made.json"
    made = json.loads(path.read_text()) if path.is_file() else {}
    return made["scores"] if made.get("weights_sha256") == weights_of(place_of(name)) else {}


def ask(name: str) -> None:
    """Ask a model what these weights have not answered."""
    known = shipped_scores(name)
    for question in QUESTIONS:
        asked = known.get(question.name, {}).get("command") == command_of(question, name)
        if name in question.models and not asked:
            out = RUNS / name / question.name
            call("eval.py", *question.command, "--checkpoint", str(place_of(name)), "--out", str(out))


def unlike(config: Any, resolved: Any) -> list[str]:
    """What a config sets otherwise than the resolved one of a run, which names classes by their whole path."""
    return [
        f"{name} is {wanted!r}, the run had {had!r}"
        for name, wanted, had in differing(config, resolved)
        if not (name.endswith("class_path") and str(had).endswith(f".{wanted}"))
    ]


def ship(name: str) -> None:
    """Put a model into the package, with what it was made with; of one whose run is gone, only what it answered since.

    Raises:
        SystemExit: a run was made with other settings than its config has now, or began with another model.
    """
    folder = FOLDER / name
    if place_of(name) == folder:
        known = json.loads((folder / "made.json").read_text())
        (folder / "made.json").write_text(json.dumps(known | {"scores": scores(name)}, indent=1) + "\n")
        return
    if (base := origin(name)) and not gone(name):
        began = json.loads((RUNS / parts(name)[0] / "machine.json").read_text())["began"]
        if base["trained"]["ended"] > began:
            raise SystemExit(f"{base['name']} is younger than {name}, which began with another; train {name} again")
    for part in parts(name)[len(gone(name)) :]:
        config, resolved = (yaml.safe_load(file.read_text()) for file in (config_of(part), RUNS / part / "config.yaml"))
        if problems := unlike(config, resolved):
            raise SystemExit(f"{config_of(part)} is not what made {RUNS / part}: {problems[0]}")
    run, about = RUNS / name, made(name)  # before what was shipped is removed: its scores may be of these weights
    model, tokenizer = load(run)
    shutil.rmtree(folder, ignore_errors=True)
    save(folder, model, tokenizer, data=json.loads((run / "data.json").read_text()))
    for part in parts(name):
        shutil.copy(config_of(part), folder / f"config{part.removeprefix(name)}.yaml")
    (folder / "made.json").write_text(json.dumps(about, indent=1) + "\n")


def made(name: str) -> dict[str, Any]:
    """How a model was made, and what it answered."""
    run, config = RUNS / name, yaml.safe_load(config_of(name).read_text())
    commands = [words for part in parts(name) for words in (conversion(part), ("train.py", *options_of(part)))]
    before, last = beginnings(name), last_line(run)
    training = {key: float(last[key]) for key in ("stage", "answers", "loss") if key in last}  # of text only a loss
    base = json.loads((FOLDER / name / "made.json").read_text()).get("origin") if gone(name) else origin(name)
    return {
        "name": f"neuralmem/{name}",
        "command": " && ".join(f"python {' '.join(words)}" for words in commands if words),
        "seed": config["seed_everything"],
        "parameters": sum(p.numel() for p in load(run)[0].parameters()),
        "weights_sha256": weights_of(run),
        "training": until(before, run) | training,
        "data": fingerprints(config["data"]["init_args"]["source"]),
        "trained": json.loads((run / "machine.json").read_text()),
        "origin": base and {key: base[key] for key in ("name", "weights_sha256", "step", "tokens")},
        "before": before,
        "scores": scores(name),
    }


def scores(name: str) -> dict[str, Any]:
    """What a model was asked, now and before: commands, by which code, and every line of the tables."""
    known, found = shipped_scores(name), dict[str, Any]()
    for question in QUESTIONS:  # of which several may have a name, for other models
        if name in question.models and (RUNS / name / question.name / question.table).exists():
            found[question.name] = {
                "command": command_of(question, name),
                **answered(RUNS / name, question, weights_of(place_of(name))),
                "lines": read_table(RUNS / name, question),
            }
        elif question.name in known:
            found.setdefault(question.name, known[question.name])
    return found


def answered(run: Path, question: Question, weights: str) -> dict[str, Any]:
    """By which code a question was answered, and the hash of all its rows.

    Raises:
        SystemExit: the rows are of other weights than these, and must not be shipped as theirs.
    """
    (rows,) = (run / question.name).glob("*.jsonl")
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    if {line["ckpt_sha256"] for line in lines if not line.get("baseline")} != {weights}:
        raise SystemExit(f"{rows} has answers of other weights than {weights}; remove its folder and ask again")
    machine = json.loads((run / question.name / "machine.json").read_text())
    return {
        "commit": machine["commit"],
        "ended": machine["ended"],
        "rows": len(lines),
        "rows_sha256": hashlib.sha256(rows.read_bytes()).hexdigest(),
    }


def gone(name: str) -> list[str]:
    """The first of a model's runs, where the last of them is no run but a copy of the shipped model that it made."""
    before = parts(name)[:-1]
    copies = [(RUNS / part / "made.json").is_file() and not (RUNS / part / "machine.json").is_file() for part in before]
    return before[: len(copies) - copies[::-1].index(True)] if any(copies) else []


def beginnings(name: str) -> list[dict[str, Any]]:
    """Of every run before a model's last: how its weights were made, which they are, and what was read until then.

    Raises:
        SystemExit: the copy is of none of the runs that made the shipped model, or of one whose length nobody knows.
    """
    found, left = [], gone(name)
    if left:
        shipped, weights = json.loads((FOLDER / name / "made.json").read_text()), weights_of(RUNS / left[-1])
        read = {key: shipped["training"][key] for key in ("step", "tokens")}
        known = [*shipped["before"], {key: shipped[key] for key in ("seed", "weights_sha256", "trained")}]
        known[-1]["training"] = read
        hashes = [part["weights_sha256"] for part in known]
        if weights not in hashes or "training" not in known[hashes.index(weights)]:
            raise SystemExit(f"{RUNS / left[-1]} has weights that {FOLDER / name} says nothing of, and no machine.json")
        found = known[: hashes.index(weights) + 1]
    for part in parts(name)[len(left) : -1]:
        run = RUNS / part
        found.append(
            {
                "seed": yaml.safe_load(config_of(part).read_text())["seed_everything"],
                "weights_sha256": weights_of(run),
                "trained": json.loads((run / "machine.json").read_text()),
                "training": until(found, run),
            }
        )
    return found


def until(before: Sequence[dict[str, Any]], run: Path) -> dict[str, float]:
    """Steps and tokens of a run and all before it."""
    last = last_line(run)
    return {key: float(last[key]) + (before[-1]["training"][key] if before else 0) for key in ("step", "tokens")}


def last_line(run: Path) -> dict[str, str]:
    """What metrics.csv says of a run's end."""
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[-1]


def fingerprints(source: Any) -> dict[str, str]:
    """Of every source of text, by side: the hash of what stands in it."""
    return {
        side: hashlib.sha256("\n".join(open_source(source, side=side).fingerprint()).encode()).hexdigest()
        for side in ("train", "validation")
    }


def read_table(run: Path, question: Question) -> list[dict[str, str]]:
    """The lines of a CSV; of needles only those over all depths."""
    with (run / question.name / question.table).open() as file:
        return [line for line in csv.DictReader(file) if line.get("depth_pct", "all") == "all"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(ALL)} (all)")
    parser.add_argument("--step", choices=STEPS, action="append", help="only this; may be given again (all)")
    options = parser.parse_args()
    if wrong := [name for name in options.models if name not in ALL]:
        parser.error(f"no model {wrong[0]!r}; there are {', '.join(ALL)}")
    steps = options.step or STEPS
    for name in options.models or ALL:  # whole before the next, which may begin with it
        if "train" in steps:
            train(name)
        if problem := missing(name):
            print(f"{name}: {problem}")
            continue
        for step in (ask, ship):
            if step.__name__ in steps:
                step(name)
    if "docs" in steps:
        update_docs()


if __name__ == "__main__":
    main()
