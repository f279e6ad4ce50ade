"""The benchmark of the memory update: what it counts, how it writes tables, and that a tiny run of it works."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.scripts import run

ROOT = Path(__file__).parent.parent
SIZES = {"batch": 1, "total": 512, "heads": 4, "width": 64, "expansion": 4, "chunk": 64}


def row(contender: str, seconds: float, **more: Any) -> dict[str, Any]:
    times = {"median": seconds, "least": 0.9 * seconds, "most": 1.2 * seconds}
    fields = {"section": "layer", "mode": "forward", "threads": 1, "contender": contender, "device": "cpu"}
    return fields | SIZES | {"cpu": times, "wall": times, "rounds": 3, "gflops": 50.0, "of_gemm": 0.5} | more


def held(contender: str, **what: Any) -> dict[str, Any]:
    about = {"section": "memory", "level": "layer", "contender": contender, "threads": 1, "device": "cpu"}
    return about | SIZES | what


def test_operations_are_those_of_the_ops_readme(load: Any) -> None:
    """Counted one matrix product at a time, as chunk_step makes them: each 2 x rows x inner x columns."""
    C, d, h = 64, 32, 96
    products = [
        *[(C, d, h), (C, h, d), (C, d, h)],  # keys through both layers, the error back through one
        *[(C, d, h), (C, d, h), (C, h, d), (C, h, d)],  # queries through weights and momentum
        *[(C, d, C), (C, C, h), (C, h, C), (C, C, d)],  # and through the chunk's own gradients
        *[(h, C, d), (d, C, h), (h, C, d), (d, C, h)],  # what is written to weights and momentum
    ]
    counted = sum(2 * rows * inner * columns for rows, inner, columns in products)
    shape = load("contenders").Shape(batch=2, total=3 * C, heads=5, width=d, expansion=3, chunk=C)
    assert shape.flops(backward=False) == 2 * 3 * 5 * counted
    assert shape.flops(backward=True) == 3 * 2 * 3 * 5 * counted
    readme = (ROOT / "neuralmem" / "ops" / "neural_memory" / "README.md").read_text()
    assert "`22 e d^2 + 4 C d (1 + e)`" in readme


def test_both_sides_do_the_same_work(load: Any) -> None:
    """Equal memories, and projections that are equal but for the gates: per head there, per token and head here."""
    contenders = load("contenders")
    shape = contenders.Shape(1, 64, 4, 64, 4, 16)
    ours = contenders.build_layer(contenders.Contender("chunked"), shape)
    matrices = {name: tuple(p.shape) for name, p in ours.named_parameters() if p.ndim == 2 and p.shape[0] == 256}
    assert matrices == dict.fromkeys([f"{name}.weight" for name in ("query", "key", "value", "output")], (256, 256))
    assert sum(w.numel() for w in ours.weights) == 4 * 2 * 64 * 256
    pytest.importorskip("titans_pytorch", reason="titans-pytorch is installed for benchmarks only")
    theirs = contenders.build_layer(contenders.Contender("titans-pytorch"), shape)
    names = ("to_queries", "to_keys", "to_values", "combine_heads")
    assert [tuple(getattr(theirs, name).weight.shape) for name in names] == [(256, 256)] * 4
    assert sum(p.numel() for p in theirs.memory_model_parameters if p.ndim == 3) == 4 * 2 * 64 * 256
    assert theirs.batch_size == theirs.store_chunk_size == 16


def test_contenders_run_backward_to_all_that_learns(load: Any) -> None:
    contenders = load("contenders")
    shape = contenders.Shape(1, 64, 2, 16, 2, 16)
    for make in (contenders.bare, contenders.layer):
        job = make(contenders.Contender("chunked"), shape)
        assert all(gradient is not None for gradient in contenders.both(job)())
        assert not contenders.forward(job)().requires_grad


def test_rounds_go_in_turns_and_failures_are_told(load: Any) -> None:
    race, order = load("race"), []

    def fail() -> None:
        raise MemoryError

    found = race.race(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b"), "c": fail}, race.Ticker(1), rounds=(2, 2)
    )
    assert order == ["a", "b", *["a", "b"], *["b", "a"]]  # the first pair is the warm-up
    assert found["a"]["rounds"] == 2
    assert found["c"] == {"failed": "out of memory"}
    with pytest.raises(RuntimeError, match="a real fault"):
        race.race({"d": lambda: (_ for _ in ()).throw(RuntimeError("a real fault"))}, race.Ticker(1))


def test_a_slow_contender_is_run_once(load: Any) -> None:
    race, count = load("race"), []
    found = race.race({"slow": lambda: count.append(1)}, race.Ticker(1), patience=0.0)
    assert len(count) == found["slow"]["rounds"] == 1


def test_tables(load: Any) -> None:
    rows = [
        row("native", 0.1),
        row("titans-pytorch", 0.45),
        row("titans-pytorch", 2.0, mode="forward+backward"),
        row("native", 0.2, section="op", total=512),
        row("native", 0.4, section="op", total=2048),
        held("native", bytes=3 << 20),
        held("titans-pytorch", failed="more than 9 GiB"),
    ]
    text = "\n".join(load("op_table").tables(rows))
    assert "| native | 100 ms (4.5x) | - |" in text
    assert "| titans-pytorch | 450 ms | 2,000 ms |" in text
    assert "| chunk 64, native | 200 ms, 50% | 400 ms, 50% |" in text
    assert "| native | 3 MiB |" in text
    assert "| titans-pytorch | more than 9 GiB |" in text
    assert "usually 30%" in text


def test_docs_hold_what_the_results_say(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op_table: ModuleType = load("op_table")
    results, docs = tmp_path / "benchmarks" / "results", tmp_path / "docs.md"
    machine = {"gpu": None, "processor": "A processor", "torch": torch.__version__, "titans_pytorch": None}
    (results / "a").mkdir(parents=True)
    (results / "a" / "op.json").write_text(json.dumps({"machine": machine, "rows": [row("native", 0.1, commit="abc")]}))
    docs.write_text("before\n<!-- results:start -->\nold\n<!-- results:end -->\nafter\n")
    monkeypatch.setattr(op_table, "RESULTS", results)
    op_table.update_docs(docs)
    once = docs.read_text()
    assert once.startswith("before\n")
    assert once.endswith("<!-- results:end -->\nafter\n")
    assert "old" not in once
    assert "### A processor" in once
    assert "`benchmarks/results/a/op.json`" in once
    op_table.update_docs(docs)
    assert docs.read_text() == once


def test_the_docs_are_up_to_date(load: Any, tmp_path: Path) -> None:
    docs, page = tmp_path / "benchmarks.md", ROOT / "docs" / "benchmarks.md"
    docs.write_text(page.read_text())
    load("op_table").update_docs(docs)
    assert docs.read_text() == page.read_text()


def test_the_table_of_full_attention_is_that_of_its_results(load: Any) -> None:
    bench = load("cpu_attention")
    (path,) = (ROOT / "benchmarks" / "results").glob("*/cpu_attention.json")
    table = bench.table(json.loads(path.read_text())["rows"])
    assert f"start -->\n{table}\n<!-- cpu_attention:end" in (ROOT / "docs" / "benchmarks.md").read_text()


def test_help() -> None:
    done = run("op.py", "--help")
    assert done.returncode == 0
    assert "--sections" in done.stdout


def test_a_quick_run(tmp_path: Path) -> None:
    """Every backend that is here, the bare op and decode; what was in the file for other sections and threads stays."""
    out = tmp_path / "op.json"
    kept = [{"section": section, "threads": n, "commit": "old"} for section, n in (("layer", 1), ("op", 2))]
    out.write_text(json.dumps({"rows": [*kept, {"section": "op", "threads": 1, "commit": "old"}]}))
    done = run("op.py", "--quick", "--sections", "op", "decode", "--threads", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row for row in rows if row["commit"] == "old"] == kept
    rows = rows[len(kept) :]
    found = {(row["section"], row["contender"], row.get("mode")) for row in rows}
    assert {("op", "chunked", "forward"), ("op", "reference", "forward+backward"), ("op", "sgemm", "forward")} <= found
    assert {row["position"] for row in rows if row["section"] == "decode"} == {32, 64}
    assert all(row["of_gemm"] > 0 for row in rows if row["section"] == "op")
    assert "| chunked |" in done.stdout


@pytest.mark.soak  # what it checks is that the steps of a real run are found and timed: 13 s
def test_a_training_step_is_timed(tmp_path: Path) -> None:
    options = ("--backends", "chunked", "reference", "--steps", "3", "--turns", "2")
    done = run("training_step.py", "--stage", "first", *options, "--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [len(turns) for turns in found.values()] == [2, 2]
    for kind in ("cpu", "wall"):  # the reference is a loop over tokens
        assert 0 < max(turn[kind] for turn in found["chunked"]) < min(turn[kind] for turn in found["reference"])


def test_backends_take_steps_in_turns(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = load("training_step")
    clock, now = step.Clock(["native", "chunked"]), [0.0]
    monkeypatch.setenv("NEURALMEM_BACKEND", "")
    for module_clock in ("process_time", "perf_counter"):
        monkeypatch.setattr(step, module_clock, lambda: now[0])
    for i in range(2 * (step.FIRST_STEPS + 6)):
        clock.on_train_batch_start()
        slow = 100 if i < 2 * step.FIRST_STEPS else 0  # and not counted
        now[0] += slow + {"native": 2, "chunked": 3}[step.os.environ["NEURALMEM_BACKEND"]]
        clock.on_train_batch_end()
    for name, seconds in (("native", 2), ("chunked", 3)):
        assert clock.turns(name, 3) == [{"cpu": seconds, "wall": seconds}] * 3


def test_a_long_test_is_as_bad_as_its_worst_part_and_written_down_at_once(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    soak, written = load("soak"), []
    monkeypatch.setattr(soak, "write", lambda name, rows: written.append([dict(row) for row in rows]))
    recorder = soak.Recorder({"old": {"test": "old[1]", "outcome": "passed", "seconds": 5.0}}, {"commit": "c"})
    failing = [("setup", "passed"), ("call", "failed"), ("teardown", "passed")]
    skipped = [("setup", "skipped"), ("teardown", "passed")]
    for name, parts in (("a.py::test_it[one]", failing), ("a.py::test_it[two]", skipped)):
        for when, outcome in parts:
            reason = ("a.py", 1, "Skipped: why") if outcome == "skipped" else None
            given = (name, ("a.py", 1, ""), {}, outcome, reason, when)
            recorder.pytest_runtest_logreport(pytest.TestReport(*given, duration=1.0))  # type: ignore[arg-type]
    assert [len(rows) for rows in written] == [2, 3]
    one, two, old = written[-1]
    assert (one["outcome"], one["seconds"], one["commit"]) == ("failed", 3.0, "c")
    assert (two["outcome"], two["reason"], old["seconds"]) == ("skipped", "why", 5.0)
    line = soak.table([one, two]).splitlines()[-1]
    assert line == "| it (`a.py`) | 2 | 0 | failed: one; skipped: two why | 3 s |"
    died = ("b.py::test_that", ("b.py", 1, ""), {}, "failed", None, "???")  # all that xdist says of a worker that died
    recorder.pytest_runtest_logreport(pytest.TestReport(*died))  # type: ignore[arg-type]
    assert [(row["test"], row["outcome"]) for row in written[-1]][-2:] == [
        ("b.py::test_that", "failed"),
        ("old[1]", "passed"),
    ]
    recorder.forget()
    assert [row["test"] for row in written[-1]] == ["a.py::test_it[one]", "a.py::test_it[two]", "b.py::test_that"]


def test_what_the_long_tests_said_is_kept_and_told(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soak, file, docs = load("soak"), tmp_path / "a" / "soak.json", tmp_path / "training.md"
    docs.write_text("before\n<!-- soak:start -->\nold\n<!-- soak:end -->\nafter\n")
    for name, value in {"RESULTS": tmp_path, "DOCS": docs, "place": lambda name: file}.items():
        monkeypatch.setattr(soak, name, value)
    assert soak._before() == {}
    soak.update_docs()
    assert docs.read_text() == ("before\n<!-- soak:start -->\n\nNo run is recorded yet.\n\n<!-- soak:end -->\nafter\n")
    rows = [{"test": "a.py::test_it[1]", "outcome": "passed", "seconds": 90.0, "commit": "c", "ended": "2026-11-30"}]
    file.parent.mkdir()
    file.write_text(json.dumps({"machine": {"processor": "A processor", "torch": "2"}, "rows": rows}))
    assert soak._before() == {"a.py::test_it[1]": rows[0]}
    soak.update_docs()
    assert "A processor, torch 2, commit c: 1 cases, 2 minutes" in docs.read_text()
    assert "| it (`a.py`) | 1 | 1 |  | 90 s |" in docs.read_text()
    docs.write_text("<!-- soak:end -->\n<!-- soak:start -->\n")
    with pytest.raises(ValueError, match="does not have <!-- soak:start --> and <!-- soak:end --> once"):
        soak.update_docs()
