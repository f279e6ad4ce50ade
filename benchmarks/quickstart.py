"""Run both demos, time them, and put what came out into the README: the table, the heat map, and what machine it was.

The table in the README is made from `results/<machine>/quickstart.json` and nowhere else.
Run: python benchmarks/quickstart.py                  train, evaluate, write the results, update the README
     python benchmarks/quickstart.py --readme FILE    only update the README from a results file
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from record import fill, write

from neuralmem.evaluation.summary import CONTROLS

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "images" / "quickstart.png"
MODELS = {"quickstart": "Titans MAG", "quickstart_baseline": "sliding-window Transformer"}


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
    row = {"config": config, "train_seconds": trained, "eval_seconds": evaluated, "table": read_table(folder / "niah")}
    if config == "quickstart":
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next((folder / "niah").glob("heatmap*.png")), PICTURE)
        row["more"] = ask_more(folder)
    return row


def ask_more(folder: Path) -> dict[str, str]:
    """1,250 other questions at the training length, where the bar is highest and an interval has to be narrow."""
    out, options = folder / "niah_1x", ("--lengths", "1x", "--samples", "1250", "--seed", "7", "--ablate", "none")
    run("eval.py", "niah", "--checkpoint", str(folder), *options, "--out", str(out))
    return read_table(out)[0]


def read_table(folder: Path) -> list[dict[str, str]]:
    """The rows of a table.csv over all depths."""
    with (folder / "table.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["depth_pct"] == "all"]


def found(cell: dict[str, str]) -> str:
    """The share of needles found beyond reach, with its interval and n."""
    share, low, high = (100 * float(cell[name]) for name in ("beyond", "beyond_low", "beyond_high"))
    return f"{share:.1f}% ({low:.1f}-{high:.1f}, n={cell['n_beyond']})"


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The README's table: a line per model and control, a column per length."""
    lengths = sorted({int(cell["nominal_len"]) for cell in rows[0]["table"]})
    nulls = {int(cell["nominal_len"]): f"{100 * float(cell['null']):.1f}%" for cell in rows[0]["table"]}
    shown = [f"| found beyond reach (95%, n) | {' | '.join(f'{length:,} tokens' for length in lengths)} |"]
    shown.append("|---" * (len(lengths) + 1) + "|")
    for row in rows:
        for ablation in ("none", *CONTROLS):
            cells = {int(cell["nominal_len"]): found(cell) for cell in row["table"] if cell["ablation"] == ablation}
            if cells:
                name = MODELS[row["config"]] + ("" if ablation == "none" else f", memory {ablation}")
                shown.append(f"| {name} | {' | '.join(cells[length] for length in lengths)} |")
    return [*shown, f"| null model | {' | '.join(nulls[length] for length in lengths)} |"]


def section(path: Path) -> str:
    """The README's results, from a results file."""
    content = json.loads(path.read_text())
    machine, rows = content["machine"], content["rows"]
    minutes = [(row["train_seconds"] + row["eval_seconds"]) / 60 for row in rows]
    reach, more = rows[0]["table"][0]["reach"], found(rows[0]["more"])
    where = f"{machine['processor']}, {machine['threads']} threads"
    return f"""Training and evaluation took {minutes[0]:.1f} minutes on {where} (torch {machine["torch"]}, commit
{machine["commit"]}). Facts like `@word 123` stand in source files of the Python
library; one of six is asked for at the end. There are 1,000 possible values; neither the pair of word and value nor the
text around it was in training. Training rows have 256 tokens, an eighth of the batches each 1,024 and 2,048.

{chr(10).join(lines(rows))}

Beyond reach: the needle stands more than {reach} tokens before the question, farther than attention and convolutions
see. Null model: what a model without memory could find of needles placed anywhere. Of other questions at 256 tokens,
asked with another seed, the Titans finds {more}. The Transformer gets the same data and
curriculum; it never passes the first stage, rows of 128 tokens, so it has not seen longer ones.

![accuracy by depth and length](docs/images/quickstart.png)

Source: `{path.relative_to(ROOT)}`."""


def update_readme(path: Path) -> None:
    """Put the results between the README's markers."""
    fill(ROOT / "README.md", "results", f"{section(path)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, metavar="FILE", help="a results file; nothing is run")
    options = parser.parse_args()
    path = options.readme or write("quickstart", [measure(config) for config in MODELS])
    update_readme(path.resolve())
    print(path)


if __name__ == "__main__":
    main()
