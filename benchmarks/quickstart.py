"""Run both demos, time them, and put what came out into the README: the table, the heat map, and what machine it was.

The table in the README is made from `results/<machine>/quickstart.json` and nowhere else.
Run: python benchmarks/quickstart.py                  train, evaluate, write the results, update the README
     python benchmarks/quickstart.py --readme FILE    only update the README from a results file
"""

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from record import write

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "quickstart.png"
MODELS = {"quickstart": "Titans MAG", "quickstart_baseline": "sliding-window Transformer"}
CONTROLS = ("none", "frozen", "off", "reset")


def run(*arguments: str) -> float:
    """Seconds that a command took."""
    start = perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    return perf_counter() - start


def measure(config: str) -> dict[str, Any]:
    """Train and evaluate one config as `make demo` does."""
    folder = ROOT / "runs" / config
    shutil.rmtree(folder, ignore_errors=True)
    trained = run("train.py", "--config", f"configs/{config}.yaml")
    evaluated = run("eval.py", "niah", "--checkpoint", f"runs/{config}")
    with (folder / "niah" / "table.csv").open() as file:
        table = [row for row in csv.DictReader(file) if row["depth_pct"] == "all"]
    if config == "quickstart":
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next((folder / "niah").glob("heatmap*.png")), PICTURE)
    return {"config": config, "train_seconds": trained, "eval_seconds": evaluated, "table": table}


def percent(row: dict[str, str], name: str) -> str:
    return f"{100 * float(row[name]):.1f}%"


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """One line of the README's table per model, control and length."""
    shown = []
    for row in rows:
        for ablation in CONTROLS:
            for cell in (x for x in row["table"] if x["ablation"] == ablation):
                name = MODELS[row["config"]] + ("" if ablation == "none" else f", memory {ablation}")
                interval = f"{100 * float(cell['beyond_low']):.1f}-{100 * float(cell['beyond_high']):.1f}"
                found = f"{percent(cell, 'beyond')} ({interval}, n={cell['n_beyond']})"
                bold = f"**{found}**" if name == MODELS["quickstart"] else found
                shown.append(f"| {name} | {int(cell['nominal_len']):,} | {bold} | {percent(cell, 'null')} |")
    return shown


def section(path: Path) -> str:
    """The README's results, from a results file."""
    content = json.loads(path.read_text())
    machine, rows = content["machine"], content["rows"]
    minutes = [(row["train_seconds"] + row["eval_seconds"]) / 60 for row in rows]
    reach = rows[0]["table"][0]["reach"]
    where = f"{machine['processor']}, {machine['threads']} threads"
    return f"""Training and evaluation took {minutes[0]:.1f} minutes on {where} (torch {machine["torch"]}, commit
{machine["commit"]}). Facts like `@word 123` stand in source files of the Python
library; one of six is asked for at the end. There are 1,000 possible values; neither the pair of word and value nor the
text around it was in training. Training rows have 256 tokens, an eighth of the batches each 1,024 and 2,048.

| model | tokens | needles found beyond reach (95%, n) | null model |
|---|---|---|---|
{chr(10).join(lines(rows))}

Beyond reach: the needle stands more than {reach} tokens before the question, farther than attention and convolutions
see. Null model: what a model without memory could find of needles placed anywhere.

![accuracy by depth and length](docs/images/quickstart.png)

Source: `{path.relative_to(ROOT)}`."""


def update_readme(path: Path) -> None:
    """Put the results between the README's markers."""
    readme = ROOT / "README.md"
    marked = r"(<!-- results:start -->\n).*?(\n<!-- results:end -->)"
    readme.write_text(re.sub(marked, lambda m: m[1] + section(path) + m[2], readme.read_text(), flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="a results file; nothing is run")
    options = parser.parse_args()
    path = options.readme or write("quickstart", [measure(config) for config in MODELS])
    update_readme(path.resolve())
    print(path)


if __name__ == "__main__":
    main()
