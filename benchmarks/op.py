"""The memory update, timed: neuralmem's backends and titans-pytorch side by side, in one run.

Sections: `layer`, whole memory layers; `op`, the bare update; `decode`, one token at a time after a long text;
`memory`, what forward and backward need; `quickstart`, steps of the demo's real training loop. Who races and what was
done for equal work: contenders.py. All run in turns (race.py), so the machine's noise hits all alike; a large matrix
product is in every race, and shares are of its rate (float32; bfloat16 on a GPU). GFLOP/s are of neuralmem's algorithm
for all: 22 e d^2 + 4 C d (1 + e) per token and head forward, backward counted as twice that, recomputation not
counted. Rates are per CPU second with one thread, per second of the clock with more (there CPU seconds include
waiting), and per second between events on a GPU. `grouped` is checkpoint_every = sqrt(chunks).

Memory is measured in a process of its own per contender, of whole layers and of the bare update: the peak of resident
memory over one forward and backward less what was resident before (inputs and parameters were; gradients and outputs
were not), after a short run that loads libraries. glibc is told to give freed blocks back at once, or its caching
would be measured; on a GPU it is torch's count of allocated bytes.

Run: python benchmarks/op.py                           everything; results/<machine>/op.json and docs/benchmarks.md
     python benchmarks/op.py --sections layer op       these; results of other sections and threads stay
     python benchmarks/op.py --quick                   tiny sizes, to see that it runs; writes only what --out names
     python benchmarks/op.py --docs                    only update the docs from the results
Needs `pip install 'neuralmem[bench]'` for titans-pytorch; without it, or without the native op, the others run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import DEVICE, Contender, Job, Shape, bare, both, forward, layer, matmul, runnable
from decode import decode
from op_table import tables, update_docs
from peak import peak
from race import Ticker, limit_memory, race
from record import machine, place, write

from neuralmem.backends import cpu_error, library_error

ROOT = Path(__file__).parent.parent
SECTIONS = ("layer", "op", "decode", "memory", "quickstart")
CUDA = DEVICE.type == "cuda"
TITANS, TITANS_DEFAULT = Contender("titans-pytorch"), Contender("titans-pytorch", anchored=False)
# On a GPU in bfloat16 only: its kernels have no other operands.
OURS = [Contender(kind, bf16=bf16) for kind in ("native", "chunked") for bf16 in ((True,) if CUDA else (False, True))]
PLAIN = [contender for contender in OURS if contender.bf16 == CUDA]
GROUPED = [replace(contender, grouped=True) for contender in PLAIN]
# B1 width 256 with 4 heads of 64 on a CPU; 128 heads in all on a GPU, which idles with fewer.
MAIN = Shape(16, 4096, 8, 64, 4, 64) if CUDA else Shape(1, 2048, 4, 64, 4, 64)
OTHERS = [(64, 1), (64, 2), (128, 1), (128, 2), (128, 4)]  # head width, expansion: kernels of their own on a GPU
CHUNKS = (16, 64, 128) if CUDA else (16, 64, 256)
GEMM, GEMM_BF16 = "sgemm", "bf16 gemm"
BASE = GEMM_BF16 if CUDA else GEMM  # what shares are of
QUICK: dict[str, Any] = {"total": 64, "gemm": 256, "held": (64,), "positions": (32, 64), "steps": 4}
FULL: dict[str, Any] = {
    "total": MAIN.total,
    "gemm": 8192 if CUDA else 2048,
    "lengths": (512, 2048, 8192, 32768),
    "held": (2048, 8192, 32768),
    "positions": tuple(1024 * 4**i for i in range(6)),  # 1K to 1M
    "steps": 20,
}
REFERENCE = 512  # tokens: the reference backend is a Python loop over tokens
PEER_CHUNKS = 512  # with batch_size=chunk_size titans-pytorch copies all weights so far at every chunk
PEER_POSITION = 16384  # how far it reads before it decodes; it reads an order of magnitude slower

Row = dict[str, Any]


class Bench:
    """What the sections share.

    Args:
        quick: tiny sizes
        ticker: shows what runs
    """

    def __init__(self, quick: bool, ticker: Ticker) -> None:
        self.quick, self.ticker = quick, ticker
        self.size: dict[str, Any] = QUICK if quick else FULL
        self.main = replace(MAIN, batch=1, total=QUICK["total"], chunk=16) if quick else MAIN
        self.rounds: dict[str, Any] = {"rounds": (1, 1)} if quick else {}

    def race(
        self, section: str, shape: Shape, contenders: list[Contender], make: Callable[..., Job], **options: float
    ) -> Iterator[Row]:
        """Forward, then forward and backward, with a matrix product; a row per contender and mode."""
        able, _ = runnable(contenders)
        for backward in (False, True):
            jobs = {c.name: make(c, shape) for c in able if backward or not c.grouped}
            runs = {name: (both if backward else forward)(job) for name, job in jobs.items()}
            runs[GEMM] = matmul(self.size["gemm"], torch.float32)
            if any(c.bf16 for c in able):
                runs[GEMM_BF16] = matmul(self.size["gemm"], torch.bfloat16)
            times, threads = race(runs, self.ticker, **options, **self.rounds), torch.get_num_threads()
            kind = "cpu" if threads == 1 else "wall"
            flops = dict.fromkeys(jobs, shape.flops(backward)) | dict.fromkeys(
                runs.keys() - jobs, 2 * self.size["gemm"] ** 3
            )
            rates = {n: flops[n] / t[kind]["median"] / 1e9 for n, t in times.items() if "failed" not in t}
            mode = "forward+backward" if backward else "forward"
            for name, found in times.items():
                rate = {"gflops": rates[name], "of_gemm": rates[name] / rates[BASE]} if name in rates else {}
                yield {
                    "section": section,
                    "mode": mode,
                    "contender": name,
                    "threads": threads,
                    **asdict(shape),
                    **found,
                    **rate,
                }
            shares = ", ".join(f"{name} {100 * rates[name] / rates[BASE]:.0f}%" for name in jobs if name in rates)
            self.ticker.finish(f"{section} {mode}, {shape}, {threads} threads: {shares} of {rates[BASE]:.0f} GFLOP/s")

    def layer(self) -> Iterator[Row]:
        for chunk in (16,) if self.quick else (64, 16):
            contenders = [*OURS, *GROUPED, TITANS, TITANS_DEFAULT]
            yield from self.race("layer", replace(self.main, chunk=chunk), contenders, layer)

    def op(self) -> Iterator[Row]:
        for shape in self.op_shapes():
            contenders = [*OURS, *GROUPED, TITANS_DEFAULT]
            if shape.total // shape.chunk <= PEER_CHUNKS:
                contenders.append(TITANS)
            if shape.total <= REFERENCE and not CUDA:
                contenders.append(Contender("reference"))
            yield from self.race("op", shape, contenders, bare, seconds=8.0, patience=5.0)

    def op_shapes(self) -> list[Shape]:
        """The main sizes at every length and chunk, then the other heads and expansions at one of each."""
        if self.quick:
            return [self.main]
        model = MAIN.heads * MAIN.width
        grid = [replace(of_length(MAIN, total), chunk=c) for total in FULL["lengths"] for c in CHUNKS]
        return [*grid, *(replace(MAIN, heads=model // d, width=d, expansion=e) for d, e in OTHERS)]

    def decode(self) -> Iterator[Row]:
        able, _ = runnable([*PLAIN, TITANS])
        far = {TITANS.name: PEER_POSITION}
        yield from decode(replace(self.main, batch=1), able, self.size["positions"], far, self.ticker, self.rounds)
        self.ticker.finish(f"decode, {torch.get_num_threads()} threads")

    def memory(self) -> Iterator[Row]:
        able, _ = runnable([*PLAIN, *GROUPED, TITANS, TITANS_DEFAULT])
        for level in ("layer", "op"):
            for total in self.size["held"]:
                shape = of_length(self.main, total)
                for contender in able:
                    self.ticker.say(f"memory, {level}, {total} tokens, {contender.name}")
                    found = alone(peak, level, contender, shape)
                    about = {"level": level, "contender": contender.name, "threads": 1}
                    yield {"section": "memory", **about, **asdict(shape), **found}
                self.ticker.finish(f"memory, {level}, {total} tokens")

    def quickstart(self) -> Iterator[Row]:
        """The backends in turns within one process, on a CPU; the curriculum's first stage and its last, with longer
        rows. Where one fails so does the other.
        """
        threads, rounds = torch.get_num_threads(), 1 if self.quick else 3
        without = library_error() or cpu_error()
        names = ["chunked"] if without else ["native", "chunked"]
        for stage in ("first", "last"):
            self.ticker.say(f"training steps, {stage} stage")
            with tempfile.TemporaryDirectory() as folder:
                options = ("--stage", stage, "--steps", str(self.size["steps"]), "--turns", str(rounds))
                command = [sys.executable, str(ROOT / "benchmarks" / "training_step.py"), *options]
                command += ["--run", f"{folder}/run", "--backends", *names]
                given = {"OMP_NUM_THREADS": str(threads)}
                done = subprocess.run(command, cwd=ROOT, env=os.environ | given, capture_output=True, text=True)
            failed = (done.stderr.strip().splitlines() or ["?"])[-1] if done.returncode else ""
            found = {} if failed else json.loads(done.stdout.splitlines()[-1])
            for name in names:
                row = {"section": "quickstart", "stage": stage, "contender": name, "threads": threads}
                yield row | ({"failed": failed} if failed else together(found[name]))
            if without:
                row = {"section": "quickstart", "stage": stage, "contender": "native", "threads": threads}
                yield row | {"failed": without}
            self.ticker.finish(f"quickstart, {stage} stage, {threads} threads")

    def races(self, section: str) -> int:
        """How often a section calls `finish`, per number of threads."""
        return {
            "layer": 2 if self.quick else 4,
            "op": 2 * len(self.op_shapes()),
            "memory": 2 * len(self.size["held"]),
            "quickstart": 2,
        }.get(section, 1)


def of_length(shape: Shape, total: int) -> Shape:
    """Texts of another length; where there are several, as many tokens in all."""
    return replace(shape, total=total, batch=max(1, shape.batch * shape.total // total) if shape.batch > 1 else 1)


def together(turns: list[dict[str, float]]) -> Row:
    """Median of the turns, each the median of its steps, with the least and the most."""
    kinds = ("cpu", "wall")
    found = {kind: [turn[kind] for turn in turns] for kind in kinds}
    return {k: {"median": median(x), "least": min(x), "most": max(x)} for k, x in found.items()} | {
        "rounds": len(turns)
    }


def alone(function: Callable[..., Row], *arguments: Any) -> Row:
    """Call a function in a process of its own, which gives freed memory back at once."""
    given = {"MALLOC_MMAP_THRESHOLD_": "4096", "MALLOC_TRIM_THRESHOLD_": "4096"}
    os.environ |= given
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool:
        return {"failed": "the system ended the process"}
    finally:
        for name in given:
            del os.environ[name]


def run(sections: list[str], threads: list[int], quick: bool) -> list[Row]:
    """The rows of these sections. Memory does not depend on the number of threads and is measured with one."""
    bench = Bench(quick, Ticker(0))
    turns = [(n, s) for n in threads for s in sections if s != "memory" or n == threads[0]]
    bench.ticker.races = sum(bench.races(section) for _, section in turns)
    rows, commit = [], machine()["commit"]
    with bench.ticker.running():
        for count, section in turns:
            torch.set_num_threads(count)
            rows += [row | {"device": DEVICE.type, "commit": commit} for row in getattr(bench, section)()]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS[:-1] if CUDA else SECTIONS), metavar="NAME"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1] if CUDA else [1, 2], metavar="N")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; nothing is written unless --out says where")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results here and leave the docs alone")
    parser.add_argument("--docs", action="store_true", help="only update docs/benchmarks.md; nothing is run")
    options = parser.parse_args()
    if options.docs:
        return update_docs()
    warnings.filterwarnings("ignore")  # titans-pytorch and its dependencies
    for kind, reason in runnable([*OURS, TITANS])[1].items():
        print(f"without {kind}: {reason}", file=sys.stderr)
    if limit := limit_memory():
        print(f"each process may take {limit / 2**30:.1f} GiB", file=sys.stderr)
    rows = run(options.sections, options.threads, options.quick)
    print("\n".join(tables(rows)))
    path = options.out or place("op")
    if options.out or not options.quick:
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        measured = {(row["section"], row["threads"]) for row in rows}
        kept = [row for row in before if (row["section"], row["threads"]) not in measured]
        print(write("op", [*kept, *rows], path))
    if not options.out and not options.quick:
        update_docs()


if __name__ == "__main__":
    main()
