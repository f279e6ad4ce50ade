"""The long tests, run and written down: which there are, how each case ended and how long it took.

`make soak` is this, with one thread per process. A case is written down when it is over, so what ran before the run was
stopped is kept; those that did not run stay as they were, until a whole run has ended without them. Every row names its
commit.

Run: make soak                                                    all of them: half an hour to hours on two cores
     OMP_NUM_THREADS=1 python benchmarks/soak.py -- -k kill       what pytest selects
     python benchmarks/soak.py --docs                             only the table in docs/training.md
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from record import RESULTS, fill, machine, place, write

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs" / "training.md"
DIED = "???"  # the one report of xdist when a test took its process down
WORST = ("passed", "skipped", "failed")  # of set-up, call and tear-down

Row = dict[str, Any]


class Recorder:
    """A plugin of pytest that writes down what became of every case as soon as it is over.

    Args:
        rows: of earlier runs, by test
        about: what every new row says: commit and day
    """

    def __init__(self, rows: dict[str, Row], about: Row) -> None:
        self.rows, self.about = rows, about
        self.seen: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when in ("setup", DIED):
            self.seen.add(report.nodeid)
            self.rows[report.nodeid] = {"test": report.nodeid, "outcome": "passed", "seconds": 0.0, **self.about}
        case = self.rows[report.nodeid]
        case["outcome"] = max(case["outcome"], report.outcome, key=WORST.index)
        case["seconds"] = round(case["seconds"] + report.duration, 2)
        if report.when == "call" and report.user_properties:
            case["measured"] = dict(report.user_properties)
        if report.skipped and isinstance(report.longrepr, tuple):
            case["reason"] = report.longrepr[-1].removeprefix("Skipped: ")
        if report.when in ("teardown", DIED):
            self.save()

    def forget(self) -> None:
        """Drop what this run has not seen: tests that are no more."""
        self.rows = {name: row for name, row in self.rows.items() if name in self.seen}
        self.save()

    def save(self) -> None:
        write("soak", [self.rows[name] for name in sorted(self.rows)])


def run(jobs: int, selection: Sequence[str]) -> int:
    """Run them; -> pytest's exit code."""
    os.chdir(ROOT)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    recorder = Recorder(_before(), {"commit": machine()["commit"], "ended": today})
    arguments = ["-q", "-m", "soak", "-n", str(jobs), "--dist", "worksteal", *selection]
    code = pytest.main(arguments, plugins=[recorder])
    if not selection and code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        recorder.forget()
    print(place("soak"))
    return int(code)


def _before() -> dict[str, Row]:
    path = place("soak")
    return {row["test"]: row for row in json.loads(path.read_text())["rows"]} if path.is_file() else {}


def update_docs() -> None:
    """Write the table between the markers of docs/training.md: a line per test, of each machine."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/soak.json"))]
    text = "\n".join(f"{_title(one)}\n\n{table(one['rows'])}\n" for one in found) or "No run is recorded yet.\n"
    fill(DOCS, "soak", f"\n{text}\n")


def _title(found: dict[str, Any]) -> str:
    rows, about = found["rows"], found["machine"]
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    minutes = sum(row["seconds"] for row in rows) / 60
    return (
        f"{about['processor']}, torch {about['torch']}, commit {commits}: {len(rows)} cases, "
        f"{minutes:.0f} minutes of them one after another."
    )


def table(rows: Sequence[Row]) -> str:
    """A line per test: cases, how they ended, seconds."""
    tests = defaultdict(list)
    for row in rows:
        tests[row["test"].partition("[")[0]].append(row)
    lines = ["| test | cases | passed | else | longest |", "|---|--:|--:|---|--:|"]
    for name, cases in tests.items():
        file, _, test = name.partition("::")
        passed = sum(case["outcome"] == "passed" for case in cases)
        other = "; ".join(
            f"{case['outcome']}: {case['test'].partition('[')[2].rstrip(']')} {case.get('reason', '')}".strip()
            for case in cases
            if case["outcome"] != "passed"
        )
        longest = max(case["seconds"] for case in cases)
        title = test.removeprefix("test_").replace("_", " ")
        lines.append(f"| {title} (`{file}`) | {len(cases)} | {passed} | {other} | {longest:,.0f} s |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (2)")
    parser.add_argument("--docs", action="store_true", help="only write the table in docs/training.md")
    parser.add_argument("selection", nargs="*", help="options of pytest, behind --")
    options = parser.parse_args()
    code = 0 if options.docs else run(options.jobs, options.selection)
    update_docs()
    return code


if __name__ == "__main__":
    sys.exit(main())
