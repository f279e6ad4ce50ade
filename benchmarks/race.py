"""Several ways of doing one thing, timed in turns, so that whatever else the machine does hits all of them alike.

Special: every round runs each contender once, in an order that moves on by one per round; medians and spread are over
rounds. A contender that runs out of memory, or is too slow to repeat, says so instead of stopping the others.
"""

import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

Times = dict[str, Any]
"""Of one contender: {"cpu": stats, "wall": stats, "rounds": n}, or {"failed": reason}."""


class Ticker:
    """A progress bar over races where rich is installed and there is a terminal; a line per race in any case."""

    def __init__(self, races: int) -> None:
        self.races, self.done, self.start = races, 0, perf_counter()
        self.bar: Any = None

    @contextmanager
    def running(self) -> Iterator["Ticker"]:
        try:
            from rich.console import Console
            from rich.progress import Progress, TimeElapsedColumn
        except ImportError:  # a machine with torch only
            yield self
            return
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as self.bar:
            self.task = self.bar.add_task("", total=self.races)
            yield self
        self.bar = None

    def say(self, what: str) -> None:
        """What runs now."""
        if self.bar is not None:
            self.bar.update(self.task, description=what)

    def finish(self, line: str) -> None:
        """A race is over; `line` tells how it went."""
        self.done += 1
        line = f"[{self.done}/{self.races} {perf_counter() - self.start:.0f} s] {line}"
        if self.bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self.bar.update(self.task, completed=self.done)
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def race(
    contenders: dict[str, Callable[[], Any]],
    ticker: Ticker,
    *,
    rounds: tuple[int, int] = (3, 9),
    seconds: float = 20.0,
    patience: float = 60.0,
) -> dict[str, Times]:
    """Time the contenders in turns, each once beforehand.

    Args:
        contenders: name -> what to run
        ticker: shows who runs
        rounds: fewest and most
        seconds: stop after a round once this much time is spent
        patience: who takes longer than this the first time is not repeated: that run is its measurement
    """
    found: dict[str, Times] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    for name, run in contenders.items():
        ticker.say(f"{name}, warming up")
        try:
            first = timed(run)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            found[name] = {"failed": "out of memory"}
        else:
            if first[1] > patience:
                found[name] = summary([first])
            else:
                times[name] = []
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    start, names = perf_counter(), list(times)
    for i in range(rounds[1]):
        for name in (*names[i % len(names) :], *names[: i % len(names)]) if names else ():
            ticker.say(f"{name}, round {i + 1}")
            times[name].append(timed(contenders[name]))
        if i + 1 >= rounds[0] and perf_counter() - start > seconds:
            break
    return {name: found.get(name) or summary(times[name]) for name in contenders}


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds of the process and wall seconds of one call; on a GPU both are the seconds between two events."""
    if not torch.cuda.is_available():
        start = process_time(), perf_counter()
        run()
        return process_time() - start[0], perf_counter() - start[1]
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    run()
    after.record()
    torch.cuda.synchronize()
    return (before.elapsed_time(after) / 1000,) * 2


def summary(times: list[tuple[float, float]]) -> Times:
    """Median, least and most of (CPU, wall) seconds."""
    shown = {
        kind: {"median": median(x), "least": min(x), "most": max(x)}
        for kind, x in zip(("cpu", "wall"), zip(*times, strict=True), strict=True)
    }
    return {**shown, "rounds": len(times)}


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of torch's CPU or CUDA allocator or of C++."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory", "bad_alloc"))


def status(field: str) -> int:
    """Bytes that /proc/self/status names, for example VmRSS."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def limit_memory(share: float = 0.85) -> int:
    """Let this process take no more than a share of what is free, so that an allocation fails and nothing is killed.

    Returns:
        The bytes it may take, or 0 where no limit was set: CUDA reserves more addresses than there is memory.
    """
    if torch.cuda.is_available() or not Path("/proc/meminfo").exists():
        return 0
    free = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    room = int(share * int(free.split()[1]) * 1024)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + room, hard))
    return room
