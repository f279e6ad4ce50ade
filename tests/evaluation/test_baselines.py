"""Baselines asked through the harness: an oracle answers from what they show it, so that their scores are known."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from neuralmem.config import AttentionConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.evaluation import rows as store
from neuralmem.evaluation.baseline import Choices, names, open_baseline
from neuralmem.evaluation.cli import main
from neuralmem.evaluation.comparison import Contender, compare, to_rows
from neuralmem.evaluation.comparison_figure import draw
from neuralmem.evaluation.niah import Settings, run
from neuralmem.evaluation.prompts import find_task
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.recall import TrainingData
from neuralmem.evaluation.rows import Row, Subject
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import save
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.fake import Oracle

BUDGET = 700
CHOICES = Choices(BUDGET, passage=120, capacity=300, stay=300)
TEXT = ("window", "recency", "bm25", "key-value")


def ask(
    name: str, settings: Settings, subject: Subject, out: Path, training: TrainingData, choices: Choices = CHOICES
) -> list[Row]:
    oracle = Oracle(300)
    reader, label = open_baseline(name, Reader(oracle, oracle.tokenizer, 500), choices)
    return run(settings, reader, replace(subject, baseline=label), out, training)


@pytest.fixture
def needles(settings: Settings) -> Settings:
    return replace(settings, lengths=(2048,), samples=(8,), depths=None, ablations=("none",), max_new_tokens=24)


@pytest.mark.parametrize("task", ["s-niah-pk", "s-niah-n", "s-niah-w", "s-niah-w-words"])
def test_search_finds_every_needle_and_only_through_what_it_shows(
    task: str, needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(needles, tasks=(find_task(task),), ablations=("none", "reset"), max_new_tokens=60)
    found = ask("bm25", settings, subject, tmp_path, training, replace(CHOICES, passage=240))
    assert sum(row.beyond_window for row in found) >= 10
    assert {(row.ablation, row.official) for row in found} == {("none", 1), ("reset", 0)}


@pytest.mark.parametrize("task", ["mk-niah-1", "mv-niah", "mq-niah"])
def test_search_finds_several_needles(
    task: str, needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(needles, tasks=(find_task(task),), lengths=(4096,), samples=(4,), max_new_tokens=60)
    choices = Choices(1600, passage=240, capacity=8192, stay=4096)
    for name, chosen in (("bm25", choices), ("key-value", replace(choices, find="key"))):
        found = ask(name, settings, subject, tmp_path, training, chosen)
        assert [row.official for row in found] == [1.0] * 4, name
    last = ask("recency", settings, subject, tmp_path, training, choices)
    assert min(row.official for row in last) < 1


@pytest.mark.parametrize("batch", [1, 8])
def test_shuffled_is_searched_in_another_text(
    batch: int, needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(needles, ablations=("none", "shuffled"), batch_size=batch, samples=(4,))
    found = ask("bm25", settings, subject, tmp_path, training)
    assert {(row.ablation, row.official) for row in found} == {("none", 1), ("shuffled", 0)}
    for row in found:
        assert (row.partner is None) == (row.ablation == "none")
        assert row.partner != row.sample_id
        assert row.text_bytes > 0
    if batch == 8:
        own = {row.sample_id: row.index_bytes for row in found if row.ablation == "none"}
        assert all(row.index_bytes == own[row.partner] for row in found if row.ablation == "shuffled")


def test_facts_of_the_recall_task_are_found_by_words_and_by_key(
    needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(needles, tasks=(find_task("recall"),), haystacks=(), max_new_tokens=None)
    training = replace(training, haystack=f"file:{training.source}")
    by_key = replace(CHOICES, find="key", capacity=4096, stay=2048)
    for name, choices in (("bm25", CHOICES), ("key-value", by_key)):
        found = ask(name, settings, subject, tmp_path, training, choices)
        assert {row.strict for row in found} == {1}, name
        assert len(found) == 8


def first_kept(row: Row, room: int) -> int:
    """The first token of a prompt that a memory of the last `room` tokens in front of the question still has."""
    question = len(f"\nWhat is the special magic number for {row.key} mentioned in the provided text? ")
    question += len(f"The special magic number for {row.key} mentioned in the provided text is")
    return row.prompt_tokens - question - room


@pytest.mark.parametrize("name", ["window", "recency"])
def test_the_last_of_the_text_holds_what_lies_in_it(
    name: str, needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    found = ask(name, replace(needles, samples=(24,)), subject, tmp_path, training)
    outcomes = set()
    for row in found:
        answer = len(" 1234567.")
        room = BUDGET - (row.prompt_tokens - first_kept(row, 0)) - answer
        begins = first_kept(row, room)
        if row.needle_spans[0][1] <= begins:
            assert row.official == 0, row
        elif row.needle_spans[0][0] >= begins + (120 if name == "recency" else 0):
            assert row.official == 1, row
        else:
            continue
        outcomes.add(row.official)
    assert outcomes == {0, 1}
    assert all(row.text_bytes <= 4 * (BUDGET + 120) and row.index_bytes == 0 for row in found)


def test_key_value_has_the_latest_and_what_fits_into_its_capacity(
    needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(needles, samples=(24,))
    found = ask("key-value", settings, subject, tmp_path, training)
    late = [row for row in found if row.needle_spans[0][0] >= first_kept(row, 300)]
    assert late
    assert {row.official for row in late} == {1}, "what was written lately is safe"
    assert sum(row.official for row in found) < len(found)
    assert all(row.text_bytes < 4 * 1200 for row in found)
    large = ask("key-value", settings, subject, tmp_path, training, replace(CHOICES, capacity=4096))
    assert {row.official for row in large} == {1}
    assert len(list(store.read(tmp_path / "rows.jsonl"))) == 48, "rows of other choices stand beside"


def test_rows_name_the_baseline_and_are_not_asked_again(
    needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(needles, samples=(2,))
    oracle = Oracle(300)
    plain = run(settings, Reader(oracle, oracle.tokenizer, 500), subject, tmp_path, training)
    found = ask("bm25", settings, subject, tmp_path, training)
    assert [row.prompt_sha256 for row in found] == [row.prompt_sha256 for row in plain]
    assert {row.baseline for row in plain} == {""}
    assert {row.baseline for row in found} == {"bm25 budget=700 passage=120 unit=line"}
    for row in found:
        assert row.text_bytes == 4 * first_kept(row, 0), "all in front of the question"
        assert row.index_bytes > 0
        assert 0 < row.read_s < row.wall_s
    assert ask("bm25", settings, subject, tmp_path, training) == found
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 4


def test_rows_from_before_there_were_baselines_are_read(
    needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    oracle = Oracle(300)
    settings = replace(needles, samples=(1,))
    (row,) = run(settings, Reader(oracle, oracle.tokenizer, 500), subject, tmp_path, training)
    path = tmp_path / "rows.jsonl"
    values = json.loads(path.read_text())
    for name in ("baseline", "text_bytes", "index_bytes", "read_s"):
        del values[name]
    path.write_text(json.dumps(values) + "\n")
    assert list(store.read(path)) == [replace(row, read_s=0.0)]


def test_comparison_is_about_the_same_needles(
    needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(needles, lengths=(1024, 2048))
    search = ask("bm25", settings, subject, tmp_path, training)
    everything = [
        replace(row, reach=10**9, beyond_window=False) for row in ask("window", settings, subject, tmp_path, training)
    ]
    outcomes = compare([Contender("bm25", search), Contender("window", everything)])
    assert [(o.group.length, o.name) for o in outcomes] == [
        (length, name) for length in (1024, 2048) for name in ("bm25", "window")
    ]
    for a, b in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert a.beyond.n == b.beyond.n == sum(row.beyond_window for row in search if row.nominal_len == a.group.length)
        assert a.beyond.share == 1.0 > b.beyond.share
        ran = [row for row in search if row.nominal_len == a.group.length]
        assert a.null == b.null == pytest.approx(1 - a.beyond.n / len(ran))
        assert a.kept_bytes == a.text_bytes + a.index_bytes > b.kept_bytes == b.text_bytes == 4 * BUDGET
    table = to_rows(outcomes)
    assert [table[2][name] for name in ("nominal_len", "memory", "beyond")] == [2048, "bm25", 1.0]
    axes = draw(outcomes, "title").axes
    assert [a.get_title(loc="left") for a in axes] == [
        "s-niah-n, 1k tokens, beyond reach",
        "s-niah-n, 2k tokens, beyond reach",
    ]


def test_a_budget_without_room_for_text_is_refused(
    needles: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    with pytest.raises(UserError, match=r"--budget is 100; it must be more than 1\d\d tokens, a question of s-niah-n"):
        ask("bm25", needles, subject, tmp_path, training, replace(CHOICES, budget=100))


def checkpoint(folder: Path, source: Path, window: int | None = 16, rule: str | None = "titans") -> Path:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=257,
        width=16,
        depth=1,
        pattern=["titans_mag" if rule else "transformer"],
        attention=AttentionConfig(heads=1, window=window),
        memory=MemoryConfig(rule=rule or "titans", heads=1, chunk_size=16),
    )
    save(folder, CausalLM(config), ByteTokenizer())
    data = {"stages": [{"length": 256, "facts": 5}], "source": str(source), "form": {"key_tokens": 0}}
    (folder / "data.json").write_text(json.dumps({"class_path": "NeedleData", "init_args": data}))
    return folder


def options(folder: Path, source: Path) -> list[str]:
    chosen = ["--lengths", "300", "--samples", "2", "--max-new-tokens", "3"]
    return ["--checkpoint", str(folder), "--haystack", f"file:{source}", *chosen]


def spoil_and_verify(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost answer of another checkpoint or of a baseline, and a changed table, are named; then all is put back."""
    rows, table = ((results / name).read_text() for name in ("rows.jsonl", "baselines.csv"))
    lines = [json.loads(line) for line in rows.splitlines()]
    others = [i for i, line in enumerate(lines) if line["ckpt_sha256"] != lines[0]["ckpt_sha256"]]
    bm25 = [i for i, line in enumerate(lines) if line["baseline"].startswith("bm25")]
    for lost, name in ((others[0], "linear"), (bm25[0], lines[bm25[0]]["baseline"])):
        kept = [line for i, line in enumerate(rows.splitlines(keepends=True)) if i != lost]
        (results / "rows.jsonl").write_text("".join(kept))
        assert main(["verify", "--out", str(results)]) == 1
        assert f"none with {name}: missing" in capsys.readouterr().out
    (results / "rows.jsonl").write_text(rows)
    (results / "baselines.csv").write_text(table.replace("recency", "recent"))
    assert main(["verify", "--out", str(results)]) == 1
    assert "baselines.csv line" in capsys.readouterr().out
    (results / "baselines.csv").write_text(table)


@pytest.mark.filterwarnings("ignore:rule .* does not use memory")
def test_all_side_by_side(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = checkpoint(tmp_path / "own", text_file)
    others = [
        checkpoint(tmp_path / "linear", text_file, rule="delta"),
        checkpoint(tmp_path / "full", text_file, None, None),
    ]
    given = ["baselines", *options(own, text_file), "--against", ",".join(map(str, others))]
    given += ["--budget", "120", "--capacities", "64,128"]
    assert main(given) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    found = sorted(path.name for path in (own / "baselines").iterdir())
    assert {"baselines.csv", "baselines.png", "report.html", "rows.jsonl", "settings.json"} <= set(found)
    lines = list(csv.DictReader(io.StringIO((own / "baselines" / "baselines.csv").read_text())))
    wanted = ["own", "own, memory off", "window", "recency", "bm25", "key-value 64", "key-value 128", "linear", "full"]
    assert [line["memory"] for line in lines] == wanted
    assert [line["text_bytes"] != "0.0" for line in lines] == [False, False, True, True, True, True, True, False, False]
    assert (own / "baselines" / "baselines.png").read_bytes()[:4] == b"\x89PNG"
    rows = (own / "baselines" / "rows.jsonl").read_bytes()
    assert main(given) == 0
    assert (own / "baselines" / "rows.jsonl").read_bytes() == rows
    assert main(["verify", "--out", str(own / "baselines")]) == 0
    capsys.readouterr()
    spoil_and_verify(own / "baselines", capsys)
    linear, full = others
    assert main(["niah", *options(linear, text_file), "--baseline", "linear"]) == 0
    assert main(["niah", *options(full, text_file), "--baseline", "full"]) == 0
    assert main(["niah", *options(full, text_file)]) == 0
    for results in (linear / "niah_linear", full / "niah_full", full / "niah"):
        assert main(["verify", "--out", str(results), "--checkpoint", str(results.parent)]) == 0
    whole, pieces = (list(store.read(full / name / "rows.jsonl")) for name in ("niah_full", "niah"))
    assert [(row.pred, row.rank_of_10, row.state_bytes) for row in whole] == [
        (row.pred, row.rank_of_10, row.state_bytes) for row in pieces
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "bm52"], "--baseline is 'bm52'; it must be one of .*; did you mean 'bm25'"),
        (["--baseline", "full"], "--baseline is 'full', but --checkpoint has a reach of 15 tokens; it must be"),
        (["--baseline", "linear"], "--baseline is 'linear', but --checkpoint has the rule 'titans'; it must be"),
        (
            ["--baseline", "bm25", "--unit", "lime"],
            "--unit is 'lime'; it must be one of line, chunk; did you mean 'line'",
        ),
        (
            ["--baseline", "key-value", "--find", "kee"],
            "--find is 'kee'; it must be one of bm25, key; did you mean 'key'",
        ),
        (["--baseline", "key-value", "--capacity", "0"], "--capacity is 0; it must be at least 1"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path / "run", text_file)
    assert main(["niah", *options(folder, text_file), *arguments]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert re.search(message, text), text
    assert not (folder / "niah").exists()


def test_other_errors(tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = checkpoint(tmp_path / "full", text_file, None, None)
    assert main(["niah", *options(full, text_file), "--baseline", "bm25"]) == 2
    assert "--budget is not given; a model with full attention needs one" in capsys.readouterr().err
    assert main(["baselines", *options(full, text_file), "--budget", "90", "--capacities", "many"]) == 2
    assert "--capacities holds 'many'" in capsys.readouterr().err
    assert main(["baselines", *options(full, text_file), "--budget", "5"]) == 2
    assert "--budget is 5; it must be more than" in capsys.readouterr().err
    assert not (full / "baselines" / "rows.jsonl").exists()  # said before the model itself was asked


def test_every_baseline_says_what_it_is() -> None:
    assert set(names()) == {"full", "linear", *TEXT}
    assert all(names().values())
