"""HOPE's two claims (2512.24695) at small scale: perplexity against Titans, and tasks learned one after another.

Perplexity: models of equal size trained on the built-in prose alone, bits per byte on held-out prose, as a stream.
Tasks in sequence: five tasks of eight keys each, every key shown with its value three times, the tasks one after the
other; after each task all keys so far are asked. Models with a memory were trained on such streams, other values in
each row, and only read here. The Transformer is there three times: with a window, with full attention (the ceiling: it
keeps everything), and with a window and fine-tuned: after each task it takes gradient steps on its questions and
answers, at the learning rate that keeps the most on other worlds, from the trained weights and from the first ones.

R[i, j] is the share of exact answers on task j after task i (evaluation.md 4.7, GEM 1706.08840). Reported are the mean
over tasks at the end (accuracy), the mean change since a task was learned (backward transfer), and the mean fall from
the best (forgetting).

Run: python benchmarks/hope.py            three seeds, 75 minutes on two cores; what is there is not run again
     python benchmarks/hope.py --quick    one seed, seconds each, in hope_quick.json
     python benchmarks/hope.py --docs     only the tables in docs/family.md
"""

import argparse
import copy
import json
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from family import BATCH, Row, ask, finished, loss_of, train, write_rows
from family_members import BASE, STATE, Member, fit, parameters, state_bytes
from family_table import update_hope
from family_tasks import FIRST_FILLER, FIRST_KEY, FIRST_VALUE, IGNORE, KEYS, VALUES, VOCABULARY, Rows, prose, text
from race import Ticker
from record import machine, place
from torch.nn import functional as F

from neuralmem.evaluation import continual
from neuralmem.models.causal_lm import CausalLM, build_model

TASKS, PER_TASK, SHOWN = 5, 8, 3
WINDOW_ONLY = "Transformer, frozen"  # it reads, and nothing in it changes
FINE_TUNED, STARTS = "Transformer, fine-tuned {}", ("trained as the others", "from its first weights")
CONTEXT = 512  # bytes of a row of prose
RATES, STEPS_PER_TASK = (3e-3, 1e-3, 3e-4, 1e-4), 30  # of fine-tuning
# Seconds enough that everybody sees the same tokens: at 150, HOPE saw a quarter of what Titans did.
FULL = {"seeds": 3, "seconds": 900.0, "steps": 240, "rows": 48}
QUICK = {"seeds": 1, "seconds": 10.0, "steps": 240, "rows": 16}


def contenders() -> Iterator[Member]:
    """HOPE and its like without attention, then with."""
    for name, pattern, rule in (
        ("titans", ["titans_lmm"], "titans"),
        ("hope", ["hope"], "titans"),
        ("self-modifying titans", ["titans_lmm"], "self_modifying"),
        (WINDOW_ONLY, ["transformer"], "titans"),
        ("window + titans (MAG)", ["transformer", "titans_mag"], "titans"),
        ("window + continuum (HOPE-Attention)", ["hope_attention"], "titans"),
    ):
        config = replace(BASE, pattern=pattern, memory=replace(BASE.memory, rule=rule))
        yield Member(name, fit(config, knobs=pattern != ["transformer"], state=2 * STATE))  # room for two HOPE layers
    full = replace(BASE, pattern=["transformer"], attention=replace(BASE.attention, window=None))
    yield Member("full attention", fit(full, knobs=False))


def lesson(rng: np.random.Generator, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One task's part of a row: every pair SHOWN times in random order, fillers between. keys, values: [rows, n]."""
    rows, count = len(keys), keys.shape[1] * SHOWN
    order = np.argsort(rng.random((rows, count)), 1) % keys.shape[1]
    tokens = rng.integers(FIRST_FILLER, VOCABULARY, (rows, count, 4))
    tokens[:, :, 1] = np.take_along_axis(keys, order, 1) + FIRST_KEY
    tokens[:, :, 2] = np.take_along_axis(values, order, 1) + FIRST_VALUE
    return tokens.reshape(rows, -1)


def questions(rng: np.random.Generator, keys: np.ndarray, values: np.ndarray) -> Rows:
    """Every key once, each with its value as target. [rows, n] -> rows of 2 n tokens."""
    order = np.argsort(rng.random(keys.shape), 1)
    tokens = np.stack([np.take_along_axis(keys, order, 1) + FIRST_KEY, np.take_along_axis(values, order, 1)], 2)
    tokens[:, :, 1] += FIRST_VALUE
    targets = np.full_like(tokens, IGNORE)
    targets[:, :, 0] = tokens[:, :, 1]
    flat, wanted = (torch.from_numpy(x.reshape(len(keys), -1)) for x in (tokens, targets))
    return Rows(flat, wanted, torch.full_like(wanted, IGNORE))


def draw_tasks(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of all tasks, [rows, TASKS, PER_TASK] each; no key is in two tasks."""
    keys = np.argsort(rng.random((rows, KEYS)), 1)[:, : TASKS * PER_TASK]
    values = rng.integers(0, VALUES, keys.shape)
    return keys.reshape(rows, TASKS, PER_TASK), values.reshape(rows, TASKS, PER_TASK)


def stream(rng: np.random.Generator, done: float) -> Rows:
    """A training batch: one to five tasks in sequence, then everything asked."""
    count = 1 + int(rng.integers(0, max(1, min(TASKS, math.ceil(2 * TASKS * done)))))
    rows = max(1, BATCH // (count * PER_TASK * (4 * SHOWN + 2)))
    keys, values = (x[:, :count] for x in draw_tasks(rng, rows))
    lessons = [lesson(rng, keys[:, i], values[:, i]) for i in range(count)]
    asked = questions(rng, keys.reshape(rows, -1), values.reshape(rows, -1))
    read = torch.from_numpy(np.concatenate(lessons, 1))
    nothing = torch.full_like(read, IGNORE)
    parts = (read, asked.tokens), (nothing, asked.targets), (nothing, asked.stale)
    return Rows(*(torch.cat(pair, 1) for pair in parts))


@torch.no_grad()
def answers(model: CausalLM, state: Any, rng: np.random.Generator, keys: np.ndarray, values: np.ndarray) -> float:
    """Exact answers of a model that has read so far; the state is left as it was."""
    asked = questions(rng, keys, values)
    logits, _ = model(asked.tokens, state, select=asked.targets != IGNORE)
    return (logits.argmax(-1) == asked.targets[asked.targets != IGNORE]).float().mean().item()


def read_in_sequence(model: CausalLM, seed: int, rows: int) -> np.ndarray:
    """R [TASKS, TASKS] of a model that reads the tasks one after the other."""
    rng = np.random.default_rng([seed, 1 << 33])
    keys, values = draw_tasks(rng, rows)
    R, state = np.full((TASKS, TASKS), np.nan), None
    for i in range(TASKS):
        with torch.no_grad():
            _, state = model(torch.from_numpy(lesson(rng, keys[:, i], values[:, i])), state)
        for j in range(i + 1):
            R[i, j] = answers(model, state, rng, keys[:, j], values[:, j])
    return R


def fine_tune_in_sequence(model: CausalLM, worlds: tuple[np.ndarray, np.ndarray], seed: int, lr: float) -> np.ndarray:
    """R of a model that is trained on each task when it comes. A row is a world of its own, with a model of its own."""
    keys, values = worlds
    rng, R = np.random.default_rng([seed, 1 << 35]), np.full((len(keys), TASKS, TASKS), np.nan)
    for row in range(len(keys)):
        own = copy.deepcopy(model)
        for i in range(TASKS):
            optimizer = torch.optim.AdamW(own.parameters(), lr=lr, weight_decay=0.0)
            for _ in range(STEPS_PER_TASK):
                loss = loss_of(own, questions(rng, keys[row : row + 1, i], values[row : row + 1, i]))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            for j in range(i + 1):
                R[row, i, j] = answers(own, None, rng, keys[row : row + 1, j], values[row : row + 1, j])
    return R.mean(0)


def fine_tuned(model: CausalLM, seed: int, rows: int) -> Row:
    """Measures at the learning rate that leaves the most known at the end, chosen on other worlds."""
    tried = draw_tasks(np.random.default_rng([seed, 1 << 36]), max(2, rows // 16))
    accuracy = {lr: measures(fine_tune_in_sequence(model, tried, seed, lr))["accuracy"] for lr in RATES}
    best = max(accuracy, key=lambda lr: accuracy[lr])
    worlds = draw_tasks(np.random.default_rng([seed, 1 << 33]), rows)
    few = max(2, rows // 8)  # the first of those that the others read
    found = measures(fine_tune_in_sequence(model, (worlds[0][:few], worlds[1][:few]), seed, best))
    return found | {"lr": best, "tried": {str(lr): x for lr, x in accuracy.items()}, "worlds": few}


def measures(R: np.ndarray) -> Row:
    """Accuracy, backward transfer and forgetting of R[i, j], task j after task i."""
    found = continual.measures([[math.nan] * TASKS, *R.tolist()])  # nothing was asked before the first task
    return {
        "R": [[None if math.isnan(x) else x for x in line] for line in R.tolist()],
        "accuracy": found.acc,
        "learned": found.learned,
        "backward_transfer": found.bwt,
        "forgetting": found.forgetting,
    }


def perplexity(member: Member, seed: int, settings: Row) -> list[Row]:
    """Bits per byte of prose, near a stream's start and far in it."""
    model, source = _fresh(member, seed), text("train")
    row = train(model, seed, settings, lambda rng, _: prose(rng, source, BATCH // CONTEXT, CONTEXT))
    if "failed" not in row:
        rows = prose(np.random.default_rng([seed, 1 << 34]), text("validation"), settings["rows"], 8 * CONTEXT)
        logits, targets = ask(model, rows)
        bits = F.cross_entropy(logits, targets, reduction="none") / math.log(2)
        per_context = bits.view(-1, settings["rows"] * CONTEXT // 4).mean(1)  # calls of 128 tokens
        row |= {"bits_per_byte": bits.mean().item(), "first": per_context[0].item(), "last": per_context[-1].item()}
    return [_described(member, seed, "perplexity", row)]


def sequence(member: Member, seed: int, settings: Row) -> list[Row]:
    """Tasks one after the other; a window Transformer is also fine-tuned on them."""
    model = _fresh(member, seed)
    row = train(model, seed, settings, stream)
    if "failed" in row:
        return [_described(member, seed, "sequence", row)]
    found = measures(read_in_sequence(model, seed, settings["rows"])) | {"worlds": settings["rows"]}
    rows = [_described(member, seed, "sequence", row | found)]
    if member.name == WINDOW_ONLY:
        for name, start in zip(STARTS, (model, _fresh(member, seed)), strict=True):
            seen = {} if start is model else {"tokens": 0, "loss": None}
            tuned = row | seen | fine_tuned(start, seed, settings["rows"])
            rows.append(_described(replace(member, name=FINE_TUNED.format(name)), seed, "sequence", tuned))
    return rows


CLAIMS = {"perplexity": perplexity, "sequence": sequence}


def job(claim: str, member: Member, seed: int, settings: Row) -> list[Row]:
    """The rows of one claim for one contender at one seed."""
    try:
        return CLAIMS[claim](member, seed, settings)
    except Exception as error:  # one failure is a result, and must not end the others'
        return [_described(member, seed, claim, {"failed": f"{type(error).__name__}: {error}"})]


def _fresh(member: Member, seed: int) -> CausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return build_model(member.config)


def _described(member: Member, seed: int, claim: str, row: Row) -> Row:
    size = {"parameters": parameters(member.config), "state_bytes": state_bytes(member.config)}
    row = {"claim": claim, "member": member.name, "seed": seed, "commit": machine()["commit"], **size, **row}
    return row | {"config": member.config.to_dict()}


def run(settings: Row, name: str) -> None:
    """Run what is missing, two at a time, writing after every one."""
    path = place(name)
    everybody = list(contenders())
    tuned = [replace(m, name=FINE_TUNED.format(start)) for m in everybody if m.name == WINDOW_ONLY for start in STARTS]
    rows = finished(path, settings, [*everybody, *tuned])
    there = {(row["claim"], row["member"], row["seed"]) for row in rows}
    jobs = [
        (claim, member, seed)
        for seed in range(settings["seeds"])
        for claim in CLAIMS
        for member in everybody
        if (claim, member.name, seed) not in there and not (claim == "perplexity" and member.name == "full attention")
    ]
    with (
        ProcessPoolExecutor(min(2, os.cpu_count() or 1), mp_context=get_context("spawn")) as pool,
        Ticker(len(jobs)).running() as ticker,
    ):
        waiting = [pool.submit(job, claim, member, seed, settings) for claim, member, seed in jobs]
        for done in as_completed(waiting):
            rows += done.result()
            write_rows(path, settings, rows)
            keys = ("bits_per_byte", "accuracy", "forgetting", "failed")
            shown = {key: rows[-1][key] for key in keys if key in rows[-1]}
            ticker.finish(f"{rows[-1]['claim']} {rows[-1]['member']} seed {rows[-1]['seed']}: {json.dumps(shown)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, seconds per member")
    parser.add_argument("--docs", action="store_true", help="only update docs/family.md")
    options = parser.parse_args()
    if not options.docs:
        run(QUICK if options.quick else FULL, "hope_quick" if options.quick else "hope")
    if not options.quick:
        update_hope()


if __name__ == "__main__":
    main()
