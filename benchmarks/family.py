"""The whole family trained on the same texts and asked the same questions, by member and seed.

Every member is trained on the same batches, on a mixture of recall, overwriting and prose (family_tasks.py), at equal
numbers of parameters and, where a knob allows it, of state (family_members.py); who does not get through them in its
seconds of CPU time is marked as cut, and the table says how many tokens it saw. Then it reads: recall with gaps of 1 to
64 training lengths, far beyond what attention reaches; keys whose value changed; held-out prose; as many pairs as its
state can hold. The controls are the members without memory, and every member with its memory frozen.

Run: python benchmarks/family.py             three seeds, an hour or two on two cores; what is there is not run again
     python benchmarks/family.py --quick     one seed, a few seconds each: five minutes for a look, in family_quick.json
     python benchmarks/family.py --costs     only time per token, all members in turns in one process: two minutes
     python benchmarks/family.py --docs      only the table and the plot from the results
"""

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch
from family_members import WINDOW, Member, members, parameters, state_bytes
from family_table import update_docs
from family_tasks import BYTES, IGNORE, VALUES, Rows, mixture, pairs, prose, text
from race import Ticker, race
from record import machine, place
from torch.nn import functional as F

from neuralmem.config import ModelConfig
from neuralmem.models.causal_lm import CausalLM, build_model
from neuralmem.training.loss import token_loss
from neuralmem.training.optim import OptimizerConfig, learning_rate, make_optimizer

LENGTH, BATCH = 128, 3840  # tokens of a row and, about, of a batch
GAPS = (1, 2, 4, 8, 16, 32, 64)  # in training lengths
CURRICULUM = (16, 64, 128, 256)  # keys in use, over the first half of the training
HELD = (8, 16, 32, 64, 128, 256)  # pairs stated at once, for what a state holds
FULL = {"seeds": 3, "seconds": 150.0, "steps": 240, "rows": 24, "gaps": GAPS}
QUICK = {"seeds": 1, "seconds": 10.0, "steps": 240, "rows": 8, "gaps": GAPS[:4]}
OPTIMIZER = OptimizerConfig(lr=3e-3, gate_lr=3.0, warmup=30, weight_decay=0.01, final=0.05)

Row = dict[str, Any]


Draw = Callable[[np.random.Generator, float], Rows]
"""From what draws, and the share of the steps that are done, to a batch: the same for every member at a step."""


def mixed(source: torch.Tensor) -> Draw:
    """The mixture of all tasks, more keys as training goes on."""

    def draw(rng: np.random.Generator, done: float) -> Rows:
        keys = CURRICULUM[min(int(2 * done * len(CURRICULUM)), len(CURRICULUM) - 1)]
        return mixture(rng, source, BATCH, LENGTH, keys)

    return draw


def train(model: CausalLM, seed: int, settings: Row, draw: Draw) -> Row:
    """Train in place. Returns what it took: tokens, CPU seconds per token, the last losses."""
    optimizer, start, done, tokens = make_optimizer(model, OPTIMIZER), process_time(), 0.0, 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate(OPTIMIZER, lambda _: done))
    losses: list[float] = []
    seconds: list[float] = []
    while done < 1:
        begin = process_time()
        batch = draw(np.random.default_rng([seed, len(losses)]), len(losses) / settings["steps"])
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return {"failed": f"loss is {losses[-1]} after {len(losses)} steps"}
        tokens += batch.tokens.numel()
        seconds.append((process_time() - begin) / batch.tokens.numel())
        done = max(len(losses) / settings["steps"], (process_time() - start) / settings["seconds"])
        schedule.step()
    spent = {"tokens": tokens, "train_seconds": process_time() - start, "train_us_per_token": 1e6 * median(seconds)}
    return spent | {"loss": median(losses[-20:]), "cut": len(losses) < settings["steps"]}


def loss_of(model: CausalLM, batch: Rows) -> torch.Tensor:
    """Answers and prose weigh the same, however many there are of each."""
    chosen = batch.targets != IGNORE
    logits, _ = model(batch.tokens, select=chosen)
    answers = (batch.tokens >= BYTES)[chosen]
    weights = torch.where(answers, ((~answers).sum() / answers.sum()).clamp(min=1), 1.0) if answers.any() else None
    return token_loss(logits, batch.targets[chosen], weights)


def by_call(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of x [B, T] what stands at targets, call by call, as `ask` returns logits."""
    parts = zip(x.split(LENGTH, 1), targets.split(LENGTH, 1), strict=True)
    return torch.cat([part[target != IGNORE] for part, target in parts])


@torch.no_grad()
def ask(model: CausalLM, rows: Rows, memory: str = "on") -> tuple[torch.Tensor, torch.Tensor]:
    """Read rows in calls of a training length. -> logits [N, V] and targets [N] where there is something to predict."""
    state, logits = None, []
    for tokens, targets in zip(rows.tokens.split(LENGTH, 1), rows.targets.split(LENGTH, 1), strict=True):
        found, state = model(tokens, state, memory=memory, select=targets != IGNORE)  # type: ignore[arg-type]
        logits.append(found)
    return torch.cat(logits), by_call(rows.targets, rows.targets)


def exact(model: CausalLM, rows: Rows, memory: str = "on") -> float:
    logits, targets = ask(model, rows, memory)
    return (logits.argmax(-1) == targets).float().mean().item()


def overwrite(model: CausalLM, rng: np.random.Generator, rows: int) -> Row:
    """How often the latest value is given for a key that was changed, and how often the one before."""
    asked = pairs(rng, rows, facts=8, changed=4, gap=LENGTH - 88)
    logits, targets = ask(model, asked)
    stale = by_call(asked.stale, asked.targets)
    changed, said = stale != IGNORE, logits.argmax(-1)
    return {
        "latest": (said == targets)[changed].float().mean().item(),
        "outdated": (said == stale)[changed].float().mean().item(),
    }


def held_bits(model: CausalLM, rng: np.random.Generator, rows: int) -> dict[int, float]:
    """Bits known of pairs stated once, by their number: of each log2 |values| less the mean surprise, at least 0."""
    found = {}
    for facts in HELD:
        logits, targets = ask(model, pairs(rng, rows, facts=facts, gap=2 * WINDOW, spread=1))
        surprise = F.cross_entropy(logits, targets).item() / math.log(2)
        found[facts] = facts * max(0.0, math.log2(VALUES) - surprise)
    return found


def evaluate(model: CausalLM, seed: int, settings: Row) -> Row:
    """All questions, the same for every member."""
    rng, rows = np.random.default_rng([seed, 1 << 32]), settings["rows"]
    recall, frozen = {}, {}
    for times in settings["gaps"]:
        asked = pairs(rng, rows, facts=8, gap=times * LENGTH)
        recall[times] = exact(model, asked)
        if times in (1, 8) and model.has_memory:
            frozen[times] = exact(model, asked, "frozen")
    logits, targets = ask(model, prose(rng, text("validation"), rows, 4 * LENGTH))
    bits = held_bits(model, rng, rows)
    begin = process_time()
    ask(model, prose(rng, text("validation"), 8, 4 * LENGTH))
    read = (process_time() - begin) / (32 * LENGTH)
    return {
        "recall": recall,
        "frozen": frozen,
        **overwrite(model, rng, 4 * rows),
        "bits_per_byte": F.cross_entropy(logits, targets).item() / math.log(2),
        "held_bits": bits,
        "read_us_per_token": 1e6 * read,
    }


def job(member: Member, seed: int, settings: Row) -> Row:
    """Train and question one member at one seed."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = build_model(member.config)
    size = {"parameters": parameters(member.config), "state_bytes": state_bytes(member.config)}
    row = {"member": member.name, "kind": member.kind, "seed": seed, "commit": machine()["commit"]}
    row |= {"reach": model.reach, **size}
    try:
        row |= train(model, seed, settings, mixed(text("train")))
        if "failed" not in row:
            row |= evaluate(model, seed, settings)
    except Exception as error:  # one member's failure is a result, and must not end the others'
        row["failed"] = f"{type(error).__name__}: {error}"
    return row | {"config": member.config.to_dict()}


def finished(path: Path, settings: Row, members: Iterable[Member]) -> list[Row]:
    """Rows of an earlier run at the same settings and of members that are still the same, which did not fail."""
    kept = json.loads(path.read_text()) if path.exists() else {"rows": []}
    if kept.get("settings") != json.loads(json.dumps(settings)):
        return []
    configs = {member.name: member.config for member in members}
    done = [row for row in kept["rows"] if "failed" not in row]
    return [row for row in done if ModelConfig.from_dict(row["config"]) == configs.get(row["member"])]


def write_rows(path: Path, settings: Row, rows: list[Row]) -> None:
    """Write all rows so far, whole or not at all; costs that were measured stay."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    costs = {"costs": kept["costs"]} if "costs" in kept else {}
    write_result(path, {"machine": machine(), "settings": settings, "rows": rows} | costs)


def write_result(path: Path, result: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, path)


def costs(everybody: Iterable[Member], source: torch.Tensor) -> Row:
    """CPU microseconds per token of every member, in turns: a training batch forward and backward, and reading."""
    torch.set_num_threads(1)
    batch = mixed(source)(np.random.default_rng(0), 1.0)
    text = prose(np.random.default_rng(0), source, 8, 4 * LENGTH)
    runs: dict[str, Callable[[], Any]] = {}
    for member in everybody:
        model = build_model(member.config)
        runs[f"train {member.name}"] = lambda model=model: loss_of(model, batch).backward()  # type: ignore[misc]
        runs[f"read {member.name}"] = lambda model=model: ask(model, text)  # type: ignore[misc]
    with Ticker(1).running() as ticker:
        found = race(runs, ticker, rounds=(5, 5))
    tokens = {"train": batch.tokens.numel(), "read": text.tokens.numel()}
    per_token: Row = {}
    for name, times in found.items():
        kind, _, member_name = name.partition(" ")
        shown = {key: 1e6 * value / tokens[kind] for key, value in times["cpu"].items()}
        per_token.setdefault(member_name, {})[kind] = shown
    return {"commit": machine()["commit"], "us_per_token": per_token}


def run(settings: Row, path: Path, only: list[str] | None) -> None:
    """Run what is missing in `path`, two at a time, writing after every one."""
    everybody = list(members())
    rows = finished(path, settings, everybody)
    there = {(row["member"], row["seed"]) for row in rows}
    chosen = [m for m in everybody if not only or m.name in only]
    jobs = [(m, seed) for seed in range(settings["seeds"]) for m in chosen if (m.name, seed) not in there]
    with (
        ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool,
        Ticker(len(jobs)).running() as ticker,
    ):
        waiting = [pool.submit(job, member, seed, settings) for member, seed in jobs]
        for done in as_completed(waiting):
            rows.append(done.result())
            write_rows(path, settings, rows)
            ticker.finish(summary(rows[-1]))


def summary(row: Row) -> str:
    """One line on a finished job."""
    if "failed" in row:
        return f"{row['member']} seed {row['seed']}: {row['failed']}"
    recall = " ".join(f"{times}x {share:.0%}" for times, share in row["recall"].items())
    return f"{row['member']} seed {row['seed']}: {row['tokens']:,} tokens, recall {recall}, latest {row['latest']:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, seconds per member")
    parser.add_argument("--costs", action="store_true", help="only time per token, side by side")
    parser.add_argument("--docs", action="store_true", help="only update docs/family.md and its plot")
    parser.add_argument("--only", nargs="+", metavar="MEMBER", help="these members")
    options = parser.parse_args()
    path = place("family_quick" if options.quick else "family")
    if options.costs:
        kept = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "settings": FULL, "rows": []}
        write_result(path, kept | {"costs": costs(members(), text("train"))})
    elif not options.docs:
        run(QUICK if options.quick else FULL, path, options.only)
        print(path)
    if not options.quick:
        update_docs()


if __name__ == "__main__":
    main()
