"""Published scores: that they are what the sources say, and that nothing is compared without its reasons."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest

from neuralmem.errors import UserError
from neuralmem.evaluation import rows as store
from neuralmem.evaluation.cli import main
from neuralmem.evaluation.compare_paper import SOURCE_COLOURS, compare, draw, table_rows
from neuralmem.evaluation.prompts import TASKS
from neuralmem.evaluation.published import published
from neuralmem.evaluation.recall import TrainingData, from_arguments, read_training_data
from neuralmem.evaluation.rows import Row
from neuralmem.evaluation.tables import to_csv
from neuralmem.tokenizer import ByteTokenizer
from tests.evaluation.test_report import PLAIN


def rows(count: int = 20, **changes: object) -> list[Row]:
    """Rows of one table line, half of them right."""
    plain = replace(PLAIN, nominal_len=16384, prompt_tokens=16384, haystack_id="builtin-held-out:abc", **changes)
    return [replace(plain, sample_id=i, official=float(i % 2)) for i in range(count)]


def test_cells_as_the_sources_have_them() -> None:
    known = {(cell.source.name, cell.model, cell.task, cell.length): cell for cell in published()}
    for place, score in {
        ("Titans", "Titans LMM", "s-niah-w", 16384): 80.6,
        ("Titans", "Titans MAL", "s-niah-n", 4096): 98.1,
        ("Titans", "Mamba2", "s-niah-pk", 2048): 98.6,
        ("Gated DeltaNet", "Gated DeltaNet", "s-niah-pk", 8192): 91.8,
        ("GDN-2", "KDA", "mk-niah-1", 4096): 28.0,
        ("Proteus", "Titans", "mv-niah", 16384): 8.8,
        ("TTT-E2E", "full attention", "s-niah-w", 65536): 83.0,
        ("RWKV-X", "RWKV-7 0.19B", "s-niah-n", 8192): 3.2,
        ("Nested Learning", "HOPE", "mv-niah", 4096): None,
        ("Nested Learning", "DLA", "mq-niah", 8192): 22.0,
        ("Nested Learning", "Transformer", "mv-niah", 16384): 21.5,
        ("ATLAS", "Atlas (MAG)", "s-niah-n", 8192): 97.4,
    }.items():
        assert known[place].score == score, place
    assert len(known) == len(list(published())), "no cell twice"
    assert {cell.task for cell in published()} <= set(TASKS)
    assert {cell.source.name for cell in published()} == set(SOURCE_COLOURS)
    assert ("Gated DeltaNet", "Mamba2", "s-niah-w", 8192) not in known, "the source has none"


def test_cells_have_the_steps_of_500_samples() -> None:
    """A slip of typing would show: all but one are multiples of 0.2 where the source has 500 samples."""
    odd = [cell for cell in published() if cell.source.samples == 500 and round(10 * (cell.score or 0)) % 2]
    assert [(cell.model, cell.task, cell.length) for cell in odd] == [("Titans MAL", "s-niah-n", 4096)]


def test_a_published_sliding_window_is_the_null_model() -> None:
    for cell in published():
        if cell.model == "sliding window":
            assert cell.score == pytest.approx(100 * min(1, 8192 / cell.length), abs=1.01)


def test_uncertain_cells_are_marked() -> None:
    marks = {(c.source.name, c.model, c.task, c.length): c.unverified for c in published()}
    assert marks["Nested Learning", "HOPE", "mk-niah-1", 4096] == "one source only"
    assert all(mark for (source, *_), mark in marks.items() if source in ("GDN-2", "Nested Learning", "ATLAS"))
    assert not any(mark for (source, *_), mark in marks.items() if source in ("Titans", "Gated DeltaNet"))
    (comparison,) = compare(rows(task="mq-niah"))
    table = to_csv(table_rows(comparison)).splitlines()
    assert any("HOPE" in line and line.endswith("one source only") for line in table)


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({}, "Protocol: exact fills the prompt to the token"),
        ({}, "Haystack: builtin-held-out:abc is not the essays of RULER."),
        ({}, "Samples: n = 20, fewer than the 500"),
        ({"protocol": "ruler2025"}, "Protocol: ATLAS, Titans used the rule from before June 2025"),
        ({"protocol": "ruler2024"}, "do not say which length rule they used"),
        ({"task": "s-niah-w"}, "W-kind: the values are uuids"),
        ({"task": "s-niah-w-words"}, "W-kind: the values are words; the published third task has uuids"),
        ({"task": "vt"}, "None of the published tables kept here has this task."),
        ({"null": 1.0}, "Memory: every needle is within reach of attention"),
    ],
)
def test_reasons_why_scores_cannot_be_compared(changes: dict[str, object], remark: str) -> None:
    (comparison,) = compare(rows(**changes))
    assert any(remark in said for said in comparison.remarks), comparison.remarks


def test_sources_have_an_arxiv_number_that_tells_whether_they_are_older_than_the_rule() -> None:
    for source in {cell.source for cell in published()}:
        number = re.match(r"(\d{4})\.\d{5}\b", source.paper)
        assert number, source
        assert source.before_2025 == (number[1] < "2506"), source


def test_training_and_tokens_that_part_them_are_said() -> None:
    def said(training: TrainingData | None, **changes: object) -> str:
        return " ".join(compare([replace(row, **changes) for row in rows()], training)[0].remarks)  # type: ignore[arg-type]

    assert "Training: not known" in said(None)
    assert "Training: the checkpoint learned to answer questions about facts" in said(TrainingData(facts=True))
    assert "Training: not known" in said(TrainingData())
    assert "Training" not in said(TrainingData(facts=False))
    assert "here a token is a byte" in said(None, tokenizer_sha256=ByteTokenizer().fingerprint)
    assert "here a token is a byte" not in said(None, tokenizer_sha256="0" * 64)
    assert read_training_data("neuralmem/mag-tiny").facts
    assert from_arguments({"sequence_length": 512, "source": "stdlib"}).facts is False


def test_words_and_uuids_are_never_in_one_table() -> None:
    (words,), (uuids,) = compare(rows(task="s-niah-w-words")), compare(rows(task="s-niah-w"))
    assert words.cells == ()
    assert {cell.source.name for cell in uuids.cells} >= {"Titans", "Proteus", "Nested Learning"}


def test_lengths_that_differ_are_said() -> None:
    (comparison,) = compare([replace(row, nominal_len=1000, prompt_tokens=900) for row in rows()])
    assert comparison.cells == ()
    said = " ".join(comparison.remarks)
    assert "no table kept here has 1,000 tokens, only 1k, 2k, 4k, 8k, 16k" in said
    assert "the prompts have 900 tokens on average, not 1,000" in said


def test_enough_samples_are_not_called_few() -> None:
    (comparison,) = compare(rows(500))
    (said,) = [remark for remark in comparison.remarks if remark.startswith("Samples")]
    assert said == "Samples: n = 500; half of the interval is 4.4 points, smaller differences are ties."


def test_rows_of_two_checkpoints_are_not_mixed() -> None:
    with pytest.raises(UserError, match="--out has rows of 2 checkpoints"):
        compare([*rows(3), *rows(3, ckpt_sha256="other")])


def test_runs_of_other_depths_or_seeds_are_not_one_score() -> None:
    with pytest.raises(UserError, match="--out has rows of several runs of s-niah-n at 16,384 tokens"):
        compare([*rows(3), *rows(3, seed=7)])
    compare([*rows(3), *rows(3, ablation="off")])


def test_files_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.append(tmp_path / "rows.jsonl", [*rows(4), *rows(4, task="mv-niah"), *rows(4, task="vt")])
    assert main(["compare-paper", "--out", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "this checkpoint",
        "50.0",
        "Titans LMM",
        "80.2",
        "not available",
        "unverified",
        "Not stated: which size",
    ):
        assert part in shown, part
    folder = tmp_path / "compare_paper"
    table = list(csv.DictReader(io.StringIO((folder / "compare_paper.csv").read_text())))
    assert [row["score"] for row in table if row["model"] == "Titans MAC"] == ["97.4"]
    assert [row["score"] for row in table if row["model"] == "HOPE" and row["task"] == "mv-niah"] == [""]
    assert len((folder / "compare_paper.jsonl").read_text().splitlines()) == len(table)
    assert (folder / "compare_paper.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare_paper", "rows.jsonl"], "results are left alone"
    assert not list(folder.glob("*.partial"))


def test_the_picture_leaves_out_tasks_without_published_scores() -> None:
    figure = draw(compare([*rows(4), *rows(4, task="vt")]), "run")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["s-niah-n"]
    assert not draw(compare(rows(4, task="vt")), "run").axes


def test_a_folder_without_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-paper", "--out", str(tmp_path)]) == 2
    assert "which has no rows.jsonl" in capsys.readouterr().err


def test_what_a_baseline_kept_is_not_set_beside_a_models_memory() -> None:
    with pytest.raises(UserError, match="--out has rows of baseline bm25; it must have those of the checkpoint"):
        compare([*rows(), *rows(baseline="bm25")])
