"""How fast data comes: loaders against what training takes, `prepare` against the library it uses, and bytes.

loader    tokens per second of each loader, in one process, over what the quickstart's training step takes
prepare   `build_shards` with a BPE, from a jsonl file to shards on disk, over `tokenizers`' own `encode_batch_fast` on
          the same texts in memory (one thread, without reading the ids); and several processes over one
bytes     `build_shards` with the byte tokenizer, from text and jsonl files

Predicted before the first run: the quickstart's loader 15 times what it takes, packed bytes 200, shards 300, BPE on the
fly 20; prepare 93% of encode_batch_fast; two processes 1.9 times one; bytes 400 MB/s to encode, 150 from text files
to shards, 110 from jsonl.
What came out, in four runs on two processors with nothing beside: 28 to 76 times, 730 to 1,000, 580 to 830 and 29 to
37; 89 to 102%; 1.7 to 2.6 by the clock, measured wrongly (see `prepared`); 780 to 1,150, 133 to 162 and 92 to 105.
A fifth run, after json lines came to be parsed without a look for white space: 94%, 2.01, 1,460, 173 and 126.
The machine itself varies as much.

CPU seconds decide, of rounds in which the contenders take turns, because others may use the machine too; `load` in the
result is how many processes wanted to run meanwhile. Clock times stand beside them.
Run: python benchmarks/data.py [--rounds 5] [--sections loader,prepare,bytes]
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
import yaml
from lightning.pytorch.cli import LightningArgumentParser
from record import machine, place, write

from neuralmem.data.build_shards import Done, Settings, build_shards
from neuralmem.data.module import DataModule, TextData
from neuralmem.data.sources import open_source
from neuralmem.tokenizer import ByteTokenizer, train_bpe

ROOT = Path(__file__).parent.parent
QUICKSTART = ROOT / "configs" / "quickstart.yaml"
STEADY = 40  # pieces of work that a rate is of, at least
COPIES = 8  # of the standard library's sources, for what is too fast to time on one
VOCABULARY = 8192
PIECE = 4000  # characters of a document of the jsonl file, about a web page


def children() -> float:
    """CPU seconds of child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(run: Callable[[], Any]) -> dict[str, float]:
    """CPU seconds of this process and of its children, and seconds on the clock, of one call."""
    cpu, below, clock = process_time(), children(), perf_counter()
    run()
    return {"cpu": process_time() - cpu, "children": children() - below, "wall": perf_counter() - clock}


def turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over rounds in which all take turns, after one that is not counted, and the least CPU seconds."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, run in contenders.items():
            seen[name].append(timed(run))
    medians = {name: {key: median(t[key] for t in times[1:]) for key in times[0]} for name, times in seen.items()}
    return {name: medians[name] | {"least_cpu": min(t["cpu"] for t in times[1:])} for name, times in seen.items()}


def load() -> float:
    """Processes that wanted to run during the last minute, on how many processors."""
    return os.getloadavg()[0]


class Texts:
    """The standard library's sources in files of a temporary folder.

    Attributes:
        texts: pieces of the length of a web page
        some: every third of them, which a BPE takes seconds for
        lines, many: jsonl files of some, and of all `COPIES` times
        files: a folder of the sources, `COPIES` times
    """

    def __init__(self, folder: Path) -> None:
        whole = [document.text for document in open_source("stdlib", share=0).read()]
        self.texts = [text[i : i + PIECE] for text in whole for i in range(0, len(text), PIECE)]
        self.bpe = train_bpe(whole[::3], VOCABULARY)
        self.folder, self.lines, self.many, self.files = (
            folder,
            folder / "1.jsonl",
            folder / "n.jsonl",
            folder / "files",
        )
        self.some = self.texts[::3]
        self.lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.some))
        self.many.write_text("".join(json.dumps({"text": text}) + "\n" for text in self.texts) * COPIES)
        self.files.mkdir()
        for copy in range(COPIES):
            for number, text in enumerate(whole):
                (self.files / f"{copy}-{number:04d}.txt").write_text(text, encoding="utf-8")
        self.bytes, self.some_bytes = (
            sum(len(t.encode("utf-8", "replace")) for t in x) for x in (self.texts, self.some)
        )


def prepared(texts: Texts, source: Path, tokenizer: Any, processes: int = 1, limit: int | None = None) -> float:
    """Shards of a source in a folder that is removed; -> tokens per second on the clock, NaN for a short source.

    From when every process has delivered twice to when nothing more is handed out: before that processes start, and
    what was finished while the first piece was waited for would count as made in no time. That is how two processes
    once seemed 2.6 times as fast as one.
    """
    seen: list[tuple[float, int]] = []

    def note(done: Done) -> None:
        seen.append((perf_counter(), done.tokens))

    with tempfile.TemporaryDirectory(dir=texts.folder) as out:
        settings = Settings(limit=limit)
        opened = open_source(str(source), share=0)
        build_shards(opened, tokenizer, out, about={}, settings=settings, processes=processes, progress=note)
    steady = seen[4 * processes : len(seen) - 2 * processes]
    if len(steady) < STEADY:
        return math.nan
    (start, first), (end, last) = steady[0], steady[-1]
    return (last - first) / (end - start)


def training(stage: str, folder: Path) -> dict[str, float]:
    """Tokens per second that the quickstart's training step takes, on one thread: of CPU and of the clock."""
    command = [sys.executable, str(ROOT / "benchmarks" / "training_step.py"), "--stage", stage, "--steps", "24"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--run", str(folder / stage)], capture_output=True, text=True, check=True, env=environment
    )
    (seconds,) = json.loads(done.stdout.splitlines()[-1])["auto"]
    tokens = yaml.safe_load(QUICKSTART.read_text())["data"]["init_args"]["batch_tokens"]
    return {name: tokens / seconds[name] for name in ("cpu", "wall")}


def module(settings: dict[str, Any]) -> DataModule:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(DataModule, "data", subclass_mode=True)
    return parser.instantiate(parser.parse_object({"data": settings})).data


def batches(data: DataModule, count: int) -> Callable[[], int]:
    """-> a function that takes the next batches of a loader and counts their tokens."""
    batch: Iterator[Any] = iter(chain.from_iterable(iter(data.train_dataloader, None)))
    next(batch)
    return lambda: sum(one.tokens.numel() for one in islice(batch, count))


def loaders(texts: Texts, rounds: int) -> list[dict[str, Any]]:
    """Every loader against the training step of the quickstart."""
    shards = texts.folder / "shards"
    build_shards(open_source(str(texts.lines), share=0), texts.bpe, shards, about={})
    quickstart = yaml.safe_load(QUICKSTART.read_text())["data"]
    first, last = ({**quickstart["init_args"], "stages": [quickstart["init_args"]["stages"][i]]} for i in (0, -1))
    how: dict[str, Any] = {"sequence_length": 1024, "batch_size": 4, "align": 32}
    makers = {
        "needles, first stage": (module(quickstart | {"init_args": first}), 20),
        "needles, last stage": (module(quickstart | {"init_args": last}), 20),
        "packed bytes": (TextData("bytes", str(texts.lines), **how), 200),
        "packed BPE": (TextData(str(shards), str(texts.lines), **how), 40),
        "packed shards": (TextData(str(shards), f"shards:{shards}", **how), 200),
    }
    takes = {stage: training(stage, texts.folder) for stage in ("first", "last")}
    tokens = {name: 4096 * count for name, (_, count) in makers.items()}
    times = turns({name: batches(data, count) for name, (data, count) in makers.items()}, rounds)
    most = max(one["cpu"] for one in takes.values())
    return [
        {
            "section": "loader",
            "loader": name,
            "tokens_per_cpu_second": tokens[name] / t["cpu"],
            "tokens_per_second": tokens[name] / t["wall"],
            "training_step": takes,
            "times_training": tokens[name] / t["cpu"] / most,
        }
        for name, t in times.items()
    ]


def preparing(texts: Texts, rounds: int) -> list[dict[str, Any]]:
    """`build_shards` against `encode_batch_fast`, and two processes against one."""
    count = 0

    def library(at_once: int) -> None:
        nonlocal count
        count, parts = 0, range(0, len(texts.some), at_once)
        for start in parts:
            ids = texts.bpe._hf.encode_batch_fast(texts.some[start : start + at_once], add_special_tokens=False)
            count += sum(len(one) for one in ids)

    def build(processes: int) -> None:
        prepared(texts, texts.lines, texts.bpe, processes)

    contenders: dict[str, Callable[[], Any]] = {
        "encode_batch_fast, all at once": lambda: library(len(texts.some)),
        "encode_batch_fast, 128 at a time": lambda: library(128),
        "prepare, 1 process": lambda: build(1),
        "prepare, 2 processes": lambda: build(2),
    }
    times = turns(contenders, rounds)
    one, two = times["prepare, 1 process"], times["prepare, 2 processes"]
    library_times = [time for name, time in times.items() if name.startswith("encode")]
    row: dict[str, Any] = {"section": "prepare", "vocabulary": VOCABULARY, "tokens": count, "bytes": texts.some_bytes}
    row |= {"times": times, "tokens_per_cpu_second": count / one["cpu"]}
    row["of_encode_batch_fast"] = min(time["cpu"] for time in library_times) / one["cpu"]
    row["of_encode_batch_fast_at_best"] = min(time["least_cpu"] for time in library_times) / one["least_cpu"]
    rates: dict[int, list[float]] = {n: [] for n in (1, 2, 4, 8) if n <= (os.cpu_count() or 1)}
    for _ in range(rounds):
        for processes, found in rates.items():
            found.append(prepared(texts, texts.many, texts.bpe, processes))
    row["clock_rate_over_one"] = {str(n): median(found) / median(rates[1]) for n, found in rates.items()}
    row["clock_rates"] = {str(n): found for n, found in rates.items()}
    # What is done in one place however many work: it bounds how many can be kept busy.
    row["workers_that_one_process_can_feed"] = one["cpu"] / two["cpu"]
    return [row]


def of_bytes(texts: Texts, rounds: int) -> list[dict[str, Any]]:
    """The byte tokenizer."""
    tokenizer = ByteTokenizer()
    times = turns(
        {
            "encode": lambda: [tokenizer.encode_batch(texts.texts) for _ in range(COPIES)],
            "json.loads": lambda: [json.loads(line) for line in texts.many.open()],
            "prepare, text files": lambda: prepared(texts, texts.files, tokenizer),
            "prepare, jsonl": lambda: prepared(texts, texts.many, tokenizer),
        },
        rounds,
    )
    total = texts.bytes * COPIES
    return [
        {
            "section": "bytes",
            "what": name,
            "megabytes_per_cpu_second": total / t["cpu"] / 1e6,
            "at_best": total / t["least_cpu"] / 1e6,
            "megabytes_per_second": total / t["wall"] / 1e6,
        }
        for name, t in times.items()
    ]


SECTIONS = {"loader": loaders, "prepare": preparing, "bytes": of_bytes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="of " + ", ".join(SECTIONS))
    parser.add_argument("--out", type=Path, help="else results/<machine>/data.json; rows of other sections stay")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    path, sections = options.out or place("data"), options.sections.split(",")
    earlier = json.loads(path.read_text())["rows"] if path.exists() else []
    rows: list[dict[str, Any]] = [row for row in earlier if row["section"] not in sections]
    with tempfile.TemporaryDirectory() as folder:
        texts = Texts(Path(folder))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        for name in sections:
            before = load()
            found = SECTIONS[name](texts, options.rounds)
            beside = {"load": [before, load()], "processors": os.cpu_count(), "rounds": options.rounds}
            beside["commit"] = machine()["commit"]
            rows += [row | beside for row in found]
            for row in found:
                print(json.dumps(row), flush=True)
    print(write("data", rows, path))


if __name__ == "__main__":
    main()
