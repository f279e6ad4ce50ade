"""A program that saves and is killed while it does: `python -m tests.reliability.saving FOLDER TRIALS SEED [STRIDE]`.

Special: torch is imported once; every trial forks a child that saves generation after generation (a checkpoint folder,
the model in the run's folder, then retention) and reports each that is done, until SIGKILL. Then what is on the disk
must be whole, one and the same generation in every tensor, and not older than the last reported one. Prints one JSON
line: kills, what was unusable, what is left over. With STRIDE, the i-th child kills itself right before its
(i * STRIDE)-th call that changes the disk, until these lie behind its first generation.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import torch

import neuralmem as nm
from neuralmem.errors import UserError
from neuralmem.models import weights
from neuralmem.training import folder_io
from neuralmem.training.checkpoints import Checkpoints
from neuralmem.training.folder_io import FolderIO, read_checkpoint
from neuralmem.training.resume import found, newest, remove_leftovers

MODEL = nm.ModelConfig(
    vocab_size=257,
    width=16,
    depth=1,
    pattern=["titans_mag"],
    attention=nm.AttentionConfig(heads=2, window=8),
    memory=nm.MemoryConfig(heads=2, chunk_size=4),
)


class Run:
    """A run's folder and its generations, whose number is the value of every tensor."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        self.io = FolderIO(folder, "seed: 0\n", {"class_path": "TextData"})
        self.io.describe(MODEL, nm.ByteTokenizer())
        self.keeper = Checkpoints(keep=2)
        self.names = {f"model.{name}": x.shape for name, x in nm.build_model(MODEL).state_dict().items()}

    def save(self, number: int) -> None:
        tensors = {name: torch.full(shape, float(number)) for name, shape in self.names.items()}
        state = {"state_dict": tensors, "global_step": number, "optimizer_states": [torch.full((1000,), float(number))]}
        path = self.checkpoints / f"step={number}"
        self.io.save_checkpoint(state, path)
        trainer: Any = SimpleNamespace(default_root_dir=str(self.folder), progress_bar_callback=None)
        self.keeper._tidy(trainer, path)

    def check(self, reported: int, newest_before: int) -> str | None:
        """What is wrong; None: nothing. Generation `reported` was reported as saved, or a later one."""
        try:
            path = newest(self.checkpoints)
            if path is None or list(self.checkpoints.glob("*.broken")):
                return f"no checkpoint, or a broken one: {sorted(p.name for p in self.checkpoints.iterdir())}"
            state = read_checkpoint(path)
            values = {
                x for w in (*state["state_dict"].values(), *state["optimizer_states"]) for x in w.unique().tolist()
            }
            model = {x for w in nm.load(self.folder)[0].state_dict().values() for x in w.unique().tolist()}
        except (UserError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        step = state["global_step"]
        if values != {step} or step < max(reported, newest_before) or step > max(reported, newest_before) + 1:
            return f"the checkpoint of step {step} holds {values} after {reported} of {newest_before}"
        whole = len(model) == 1 and reported <= max(model) <= step  # the model is saved after its checkpoint
        return None if whole else f"the model holds {model} after {reported} of {step}"

    def newest_step(self) -> int:
        return max(step for step, _ in found(self.checkpoints))


def trial(run: Run, first: int, seconds: float, point: int | None) -> int:
    """Save from generation `first` on in a child until it is killed. Returns the last generation it reported, or 0."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        if point is not None:
            die_at(point)
        number = first
        while True:
            run.save(number)
            os.write(writer, number.to_bytes(8, "big"))
            number += 1
    os.close(writer)
    if point is None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    else:
        select.select([reader], [], [], 60)  # one generation was saved before the point, or the pipe has closed
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise RuntimeError("a child ended by itself: see its traceback")
    reports = b"".join(iter(lambda: os.read(reader, 1 << 16), b""))
    os.close(reader)
    return int.from_bytes(reports[-8:], "big") if reports else 0


def die_at(point: int) -> None:
    """Kill this process right before its `point`-th call that changes the disk."""
    left = iter(range(point))

    def deadly(call: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return run

    for name in ("fsync", "replace", "rename", "mkdir", "rmdir", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))
    Path.write_text = deadly(Path.write_text)  # type: ignore[method-assign]
    Path.write_bytes = deadly(Path.write_bytes)  # type: ignore[method-assign]
    for module in (safetensors.torch, folder_io, weights):
        module.save_file = deadly(module.save_file)  # type: ignore[attr-defined]


def main(folder: str, trials: str, seed: str, stride: str = "") -> None:
    torch.set_num_threads(1)
    run, chance, problems = Run(Path(folder)), random.Random(int(seed)), []
    if stride:
        os.fsync = lambda descriptor: None  # a call to die at; to outlive a process, nothing has to reach the disk
    began = time.perf_counter()
    run.save(1)
    took, reported = time.perf_counter() - began, 1
    for number in range(int(trials)):
        before = run.newest_step()
        now = trial(run, before + 1, chance.uniform(0, 1.5) * took, int(stride) * number if stride else None)
        reported = max(reported, now)
        if problem := run.check(reported, before):
            problems.append(problem)
        if number % 5 == 4:  # not after every one: a save has to cope with what the last one left
            remove_leftovers(run.folder)
    last = run.newest_step() + 1
    run.save(last)
    if problem := run.check(last, last):
        problems.append(problem)
    remove_leftovers(run.folder)
    names = sorted(path.relative_to(run.folder).as_posix() for path in run.folder.rglob(".*"))
    print(json.dumps({"kills": int(trials), "generations": last, "unusable": problems, "left": names}))


if __name__ == "__main__":
    main(*sys.argv[1:])
