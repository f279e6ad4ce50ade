"""What it costs to watch a run: a training step of the quickstart's model, plain, counted, with its memory recorded.

In every step the meter adds the counted operations and the gradient's norm; in the one that ends an interval of the log
(1 of 10) it records the health of all memories. Steps of the three kinds take turns; times are the processor's.

    python benchmarks/watching.py            # a minute; results/<machine>/watching.json

Expected before the first run: counting below 0.5% of a step; recording below 20% of the step that is recorded (the
native kernel does not show its surprise, which is computed once more), so about 2% of a run.
What came out: counting is within the noise, recording adds 27% to the step that is recorded, 2 to 4% of a run.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
import yaml
from record import write

from neuralmem import ModelConfig, build_model, probe
from neuralmem.data.batch import NO_LOSS, Batch
from neuralmem.training.loss import token_loss
from neuralmem.training.utilization import Utilization

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
VOCABULARY, ROWS, TOKENS, TEXT_SHARE = 2048, 16, 256, 0.25  # the last stage's batch
REPEATS, EVERY = 30, 10


def make_step() -> Callable[[str], None]:
    """A training step, watched as its argument says."""
    torch.manual_seed(0)
    config = ModelConfig.from_dict({**yaml.safe_load(CONFIG.read_text())["model"], "vocab_size": VOCABULARY})
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    tokens = torch.randint(VOCABULARY, (ROWS, TOKENS))
    targets = torch.where(torch.rand(ROWS, TOKENS) < TEXT_SHARE, tokens, NO_LOSS)
    batch, use = Batch(tokens, targets), Utilization(config, torch.device("cpu"))

    def step(kind: str) -> None:
        chosen = targets != NO_LOSS
        with probe.recording(model) if kind == "recorded" else nullcontext() as record:
            logits, _ = model(tokens, None, select=chosen)
            token_loss(logits, targets[chosen]).backward()
        if kind != "plain":
            use.of_batch(batch, torch.tensor(tokens.numel()))
            torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if record is not None:
            record.means()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure() -> list[dict[str, Any]]:
    """Rows of seconds per kind of step."""
    step, kinds = make_step(), ("plain", "counted", "recorded")
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(-2, REPEATS):
        for kind in kinds:
            start = process_time()
            step(kind)
            if number >= 0:
                times[kind].append(process_time() - start)
    plain = median(times["plain"])
    rows = [
        {"step": kind, "seconds": {"median": (middle := median(t)), "least": min(t), "most": max(t)}}
        | {"over_plain": middle / plain}
        for kind, t in times.items()
    ]
    mean = ((EVERY - 1) * median(times["counted"]) + median(times["recorded"])) / EVERY
    return [*rows, {"step": f"a run that logs every {EVERY} steps", "over_plain": mean / plain}]


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = measure()
    for row in rows:
        print(f"{row['step']:32} {row['over_plain'] - 1:+.1%}", row.get("seconds", ""))
    print(write("watching", rows, Path(sys.argv[1]) if len(sys.argv) > 1 else None))
