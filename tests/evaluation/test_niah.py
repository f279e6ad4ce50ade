"""A whole run against an oracle whose scores are known beforehand, and what is written."""

import csv
import io
import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest

from neuralmem.errors import UserError
from neuralmem.evaluation import rows as store
from neuralmem.evaluation.cell import Cell
from neuralmem.evaluation.cli import parse
from neuralmem.evaluation.commands.niah import make_settings
from neuralmem.evaluation.haystack import open_haystack
from neuralmem.evaluation.niah import Settings, cells, run
from neuralmem.evaluation.prompts import TASKS, find_task
from neuralmem.evaluation.reader import Reader
from neuralmem.evaluation.recall import (
    DISTRACTORS,
    TrainingData,
    recall_prompts,
    tokenise_lines,
    training_keys,
)
from neuralmem.evaluation.rows import Row, Subject
from neuralmem.evaluation.summary import CONTROLS, by_depth, summarise
from neuralmem.evaluation.tables import to_csv
from tests.evaluation.fake import Oracle

FIELDS = (
    "task protocol nominal_len prompt_tokens context_tokens needle_spans distance_to_query farthest_distance reach "
    "null beyond_window depth_pct key answers pred official strict answer_nll rank_of_10 seed sample_id prompt_sha256 "
    "tokenizer_sha256 haystack_id ckpt_sha256 state_bytes chunk_size_train chunk_size_eval dtype device wall_s "
    "ablation partner baseline text_bytes index_bytes read_s"
)
ONE_ANSWER = [name for name, task in TASKS.items() if task.kind in ("numbers", "words", "uuids") and not task.many]


def ask(
    settings: Settings, oracle: Oracle, subject: Subject, out: Path, training: TrainingData, chunk: int = 500
) -> list[Row]:
    return run(settings, Reader(oracle, oracle.tokenizer, chunk), subject, out, training)


@pytest.mark.parametrize("task", [name for name in ONE_ANSWER if name != "recall"])
def test_oracle_finds_all_and_its_controls_only_what_is_in_reach(
    task: str, settings: Settings, oracle: Oracle, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, tasks=(find_task(task),), max_new_tokens=60)
    found = ask(settings, oracle, subject, tmp_path, training)
    assert len(found) == 10 * 2 * 5
    for row in found:
        # While it answers, the oracle moves on: a needle that is only just in reach goes out of it again.
        in_reach = row.prompt_tokens + 60 - row.needle_spans[0][0] <= row.reach
        if row.ablation in ("none", "reset", "shuffled") or row.beyond_window or in_reach:
            expected = {"none": 1, "reset": 0, "shuffled": 0}.get(row.ablation, int(in_reach))
            assert (row.official, row.strict) == (expected, expected), row
            assert (row.rank_of_10 == 1) >= expected
        assert row.beyond_window == (row.distance_to_query > 300)
        assert row.prompt_tokens == row.nominal_len
    for line in summarise(found):
        assert line.accuracy.share == 1.0
        assert 6 <= line.beyond.n <= 8, "all but depth 100%, and in 1,024 bytes some at 75%"
        assert {name: share.share for name, share in line.controls.items()} == dict.fromkeys(CONTROLS, 0.0)
        assert line.null == pytest.approx(1 - line.beyond.n / line.accuracy.n)


@pytest.mark.parametrize("task", ["mv-niah", "mq-niah", "vt"])
def test_several_needles_are_found_in_part_where_some_are_in_reach(
    task: str, settings: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, tasks=(find_task(task),), lengths=(3000,), samples=(6,), depths=None)
    found = ask(replace(settings, max_new_tokens=50), Oracle(900), replace(subject, reach=900), tmp_path, training)
    parts = set()
    for row in found:
        if row.ablation in ("none", "reset", "shuffled"):
            expected = float(row.ablation == "none")
            assert (row.official, row.strict) == (expected, expected), row
            continue
        # While it answers, the oracle moves on by up to 50 bytes.
        certain = [row.prompt_tokens + 50 - start <= 900 for start, _ in row.needle_spans]
        possible = [row.prompt_tokens - stop <= 900 for _, stop in row.needle_spans]
        assert sum(certain) <= row.official * len(row.answers) <= sum(possible), row
        assert row.beyond_window == (not any(possible))
        parts.add(row.official)
    assert parts - {0.0, 1.0}, "a share of the answers is a score"
    assert {row.rank_of_10 for row in found} == {row.answer_nll for row in found} == {None}


@pytest.mark.parametrize(("task", "reach"), [("cwe", 400), ("fwe", 700)])
def test_counting_in_a_window_is_the_null_model(
    task: str, reach: int, settings: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, tasks=(find_task(task),), lengths=(6000,), samples=(6,), max_new_tokens=140)
    settings = replace(settings, ablations=("none", "off", "shuffled"))
    found = ask(settings, Oracle(reach), replace(subject, reach=reach), tmp_path, training, chunk=6000)
    means = {}
    for name in settings.ablations:
        some = [row for row in found if row.ablation == name]
        means[name] = sum(row.official for row in some) / len(some)
    null = sum(row.null for row in found) / len(found)
    assert means["none"] == 1.0
    assert means["off"] == pytest.approx(null, abs=0.1), "ties, and a word that is cut"
    assert 0.2 < null < 0.95
    assert means["shuffled"] < 0.2, "words of another list"
    assert not any(row.beyond_window for row in found)
    (line,) = summarise(found)
    assert line.null == pytest.approx(null)
    assert line.first.n == 0
    table = list(csv.DictReader(io.StringIO(to_csv(by_depth(found, settings.grid)))))
    assert {row["depth_pct"] for row in table} == {"all"}, "there are no depths"


class Remembers(Oracle):
    """Keeps the texts of the state that it was last asked with."""

    def __call__(self, tokens, state=None, **options):
        logits, state = super().__call__(tokens, state, **options)
        self.texts = state.texts
        return logits, state


@pytest.mark.parametrize("count", [1, 3])
def test_shuffled_asks_the_state_of_another_haystack(
    count: int, settings: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    model = Remembers(300)
    settings = replace(settings, lengths=(1024,), samples=(count,), ablations=("shuffled",), max_new_tokens=1)
    found = ask(settings, model, subject, tmp_path, training)
    assert [row.sample_id for row in found] == list(range(count))
    partners = {row.sample_id: row.partner for row in found}
    assert all(partner is not None and partner != number for number, partner in partners.items())
    assert [row.official for row in found] == [0.0] * count
    by_question = {row.key: row for row in found}
    for text in model.texts:
        key = text.decode().rsplit("number for ", 1)[1].split(" mentioned")[0]
        row = by_question[key]
        assert f"for {key} is: {row.answers[0]}" not in text.decode(), "its own haystack was not read"
        assert text.count(b"One of the special magic numbers") == 1, "another's was"


def test_shuffled_of_one_sample_needs_a_partner(oracle: Oracle, settings: Settings, training: TrainingData) -> None:
    cell, build = next(iter(cells(settings, oracle.tokenizer, training)))
    sample, other = (build(i, 0.5, cell.random(i)) for i in range(2))
    reader = Reader(oracle, oracle.tokenizer)
    with pytest.raises(ValueError, match="give a partner"):
        list(reader.ask([sample], ["shuffled"], 1))
    ((name, (answer,)),) = reader.ask([sample], ["shuffled"], 9, lambda: other)
    assert (name, answer.partner) == ("shuffled", 1)
    assert sample.answers[0] not in answer.text


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A text of which short prompts need, and read, a part."""
    path = tmp_path_factory.mktemp("long") / "long.txt"
    path.write_text("".join(f"Line {i} of a text that is rather long ends here.\n" for i in range(30_000)))
    return f"file:{path}"


@pytest.mark.parametrize("haystack", ["builtin", "stdlib", "grammar", "noise", "file"])
@pytest.mark.parametrize(("task", "protocol"), [("s-niah-n", "exact"), ("recall", "exact"), ("s-niah-n", "ruler2024")])
def test_another_length_changes_no_prompt(
    task: str, protocol: str, haystack: str, long_file: str, oracle: Oracle, training: TrainingData
) -> None:
    """The longer one needs more text than a short one has of the grammar, of a file and, in tokens, of the library."""
    haystacks = (long_file if haystack == "file" else haystack,)
    prompts, ids = {}, set()
    for lengths in ((1024,), (1024, 4096), (1024, 1 << 18)):
        settings = Settings((find_task(task),), lengths, haystacks=haystacks, protocol=protocol)
        made = list(cells(settings, oracle.tokenizer, training))
        ids |= {cell.haystack_id for cell, _ in made}
        cell, build = made[0]
        prompts[lengths] = [build(i, 0.5, cell.random(i)).rope.sha256() for i in range(6)]
    assert prompts[1024, 4096] == prompts[1024, 1 << 18] == prompts[1024,]
    assert len(ids) == 1, "a picture and a table have all lengths of a haystack side by side"


def test_prompts_far_shorter_than_their_length_are_said_once(
    settings: Settings,
    oracle: Oracle,
    subject: Subject,
    tmp_path: Path,
    training: TrainingData,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "short.txt").write_text("It is a short text. It ends soon. " * 40)
    settings = replace(settings, haystacks=(f"file:{tmp_path / 'short.txt'}",), lengths=(8192,), samples=(4,))
    settings = replace(settings, ablations=("none",), max_new_tokens=1)
    ask(settings, oracle, subject, tmp_path / "exact", training)
    assert capsys.readouterr().err == ""
    settings = replace(settings, protocol="ruler2024")
    tokens = [row.prompt_tokens for row in ask(settings, oracle, subject, tmp_path / "rule", training)]
    assert max(tokens) < 2000, "RULER's text of 2024 is not repeated"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("warning: --lengths holds 8192; prompts of s-niah-n with --protocol ruler2024 in file:short")
    assert f"have {sum(tokens) / 4:,.0f} tokens on the mean, exact would fill them" in said
    ask(settings, oracle, subject, tmp_path / "rule", training)
    assert capsys.readouterr().err == ""


def test_more_numbers_of_samples_than_lengths(training: TrainingData) -> None:
    with pytest.raises(UserError, match=r"--samples is '1,2,3', with more numbers than the 1 of --lengths"):
        make_settings(parse("niah", ["--checkpoint", "x", "--lengths", "1k", "--samples", "1,2,3"]), training)
    assert make_settings(parse("niah", ["--checkpoint", "x", "--samples", "1,2,3"]), training).samples == (1, 2, 3)


def test_recall_finds_the_asked_fact_among_others(
    settings: Settings, oracle: Oracle, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, tasks=(find_task("recall"),), haystacks=(), lengths=(1024,), max_new_tokens=None)
    found = ask(settings, oracle, subject, tmp_path, replace(training, haystack=f"file:{training.source}"))
    assert {row.official for row in found if row.ablation == "none"} == {1}
    assert {row.strict for row in found if row.ablation == "none"} == {1}
    assert {row.strict for row in found if row.ablation == "reset"} == {0}
    assert all(len(row.answers[0]) == 3 for row in found)


def test_recall_prompts_hold_out_pairs_and_keys(training: TrainingData, oracle: Oracle) -> None:
    tokenizer, form = oracle.tokenizer, training.form
    text = open_haystack(f"file:{training.source}", 50_000).text
    lines = tokenise_lines(text, tokenizer)
    cell = Cell(find_task("recall"), "exact", 900, open_haystack("noise", 1), 5, tokenizer.encode)
    keys = training_keys(training, tokenizer, 5)
    build = recall_prompts(cell, lines, form, keys, 5)
    for number in range(20):
        sample = build(number, 0.5, cell.random(number))
        prompt = tokenizer.decode(sample.rope.slice(0, len(sample.rope)))
        assert len(sample.rope) == 900
        assert prompt.endswith(f"@{sample.key}=")
        facts = [line[1:].split("=") for line in prompt.split("\n") if line.startswith("@") and not line.endswith("=")]
        assert len(facts) == DISTRACTORS + 1
        assert len({key for key, _ in facts}) == len({value for _, value in facts}) == DISTRACTORS + 1
        assert dict(facts)[sample.key] == sample.answers[0]
        assert all(form.is_held_out(key, int(value)) and not form.is_key_held_out(key) for key, value in facts)
        assert tokenizer.decode(sample.rope.slice(*sample.needles[0])) == f"@{sample.key}={sample.answers[0]}\n"
        ranked = [tokenizer.decode(list(ids)) for ids in sample.candidates]
        assert ranked[0] == f"{sample.answers[0]}\n"
        assert {f"{value}\n" for _, value in facts} <= set(ranked)
        assert len(set(ranked)) == 10


def test_reset_empties_the_state_and_shares_the_reading(
    oracle: Oracle, settings: Settings, tmp_path: Path, subject: Subject, training: TrainingData
) -> None:
    settings = replace(settings, lengths=(1024,), samples=(4,), ablations=("none", "reset"), max_new_tokens=1)
    found = ask(settings, oracle, subject, tmp_path, training, chunk=4096)
    context = max(row.context_tokens for row in found)
    assert sum(tokens >= context for _, tokens, _ in oracle.reads) == 1, "the haystack was read once for both"
    assert {memory for _, _, memory in oracle.reads} == {"on"}


@pytest.mark.parametrize("chunk", [1, 7, 333, 5000])
def test_pieces_and_batches_change_nothing(
    chunk: int, settings: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    if chunk == 1:
        settings = replace(settings, lengths=(600,))
    settings = replace(settings, protocol="ruler2025", haystacks=("noise",), samples=(6,), ablations=("none", "frozen"))
    answers = []
    for folder, size, batch in (("a", 4096, 16), ("b", chunk, 4)):
        model = Oracle(300)
        found = ask(replace(settings, batch_size=batch), model, subject, tmp_path / folder, training, size)
        answers.append([(r.sample_id, r.ablation, r.pred, r.answer_nll, r.rank_of_10, r.prompt_sha256) for r in found])
        assert max(tokens for _, tokens, _ in model.reads) <= max(size, len(" 1234567") - 1)
    assert answers[0] == answers[1]


def test_prompts_of_different_lengths_are_read_side_by_side(oracle: Oracle) -> None:
    from neuralmem.evaluation.protocols import ruler

    cell = Cell(
        find_task("s-niah-w-words"), "ruler2025", 1500, open_haystack("grammar", 20_000), 0, oracle.tokenizer.encode
    )
    build = ruler(cell)
    samples = [build(i, None, cell.random(i)) for i in range(5)]
    assert len({len(s.rope) for s in samples}) > 1
    together = next(iter(Reader(oracle, oracle.tokenizer, 256).ask(samples, ["none"], 50)))[1]
    alone = [next(iter(Reader(oracle, oracle.tokenizer, 256).ask([s], ["none"], 50)))[1][0] for s in samples]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.log_likelihoods for a in together] == [a.log_likelihoods for a in alone]
    assert all(s.answers[0] in a.text for s, a in zip(samples, together, strict=True))


def test_rows_have_the_fields_of_the_protocol_page(
    settings: Settings, oracle: Oracle, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    ask(replace(settings, samples=(1,), lengths=(1024,)), oracle, subject, tmp_path, training)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) == set(FIELDS.split()) for line in lines)
    assert len(lines) == len(settings.ablations)
    assert [field.name for field in fields(Row)] == FIELDS.split()


def test_resume_reads_nothing_again(
    settings: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, samples=(4,), ablations=("none", "frozen"))
    first = ask(settings, Oracle(300), subject, tmp_path, training)
    again = Oracle(300)
    assert ask(settings, again, subject, tmp_path, training) == first
    assert again.reads == []
    path = tmp_path / "rows.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    after = ask(settings, again, subject, tmp_path, training)
    assert len(again.reads) > 0
    assert [r.prompt_sha256 for r in after] == [r.prompt_sha256 for r in first]
    assert len(path.read_text().splitlines()) == len(first)


def test_resume_knows_another_checkpoint_and_more_samples(
    settings: Settings, oracle: Oracle, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, samples=(2,), lengths=(1024,), ablations=("none",))
    ask(settings, oracle, subject, tmp_path, training)
    other = ask(settings, oracle, replace(subject, ckpt_sha256="d" * 64), tmp_path, training)
    assert {row.ckpt_sha256[0] for row in other} == {"d"}
    more = ask(replace(settings, samples=(5,), ablations=("none", "off")), oracle, subject, tmp_path, training)
    assert len(more) == 10
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2 + 2 + 8


def test_rows_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"rows.jsonl, whose line 1 is not a result row"):
        list(store.read(tmp_path / "rows.jsonl"))


def test_older_rows_are_read_and_gone_on_with(
    settings: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, samples=(2,), lengths=(1024,), ablations=("none",))
    now = ask(settings, Oracle(300), subject, tmp_path, training)
    path = tmp_path / "rows.jsonl"
    later = {field.name: field.default for field in fields(Row) if field.default is not MISSING}
    now = [replace(row, **later) for row in now]
    old = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        (span,), (answer,) = row.pop("needle_spans"), row.pop("answers")
        for name in ("farthest_distance", "null", "partner", *later):
            del row[name]
        old.append(row | {"needle_span": span, "answer": answer, "official": int(row["official"])})
    path.write_text("".join(json.dumps(row) + "\n" for row in old))
    assert list(store.read(path)) == now
    again = Oracle(300)
    assert ask(settings, again, subject, tmp_path, training) == now
    assert again.reads == []
    path.write_text(json.dumps(old[0] | {"more": 1}) + "\n")
    with pytest.raises(UserError, match="whose line 1 is not a result row"):
        list(store.read(path))


def test_a_model_that_says_nan_is_wrong_and_not_a_crash(
    settings: Settings, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    settings = replace(settings, samples=(2,), lengths=(1024,), ablations=("none",))
    found = ask(settings, Oracle(300, broken=True), subject, tmp_path, training)
    assert {(row.official, row.rank_of_10, row.answer_nll) for row in found} == {(0, 10, None)}
    assert "NaN" not in (tmp_path / "rows.jsonl").read_text()


def test_errors_come_before_reading(
    settings: Settings, oracle: Oracle, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    with pytest.raises(UserError, match="--lengths holds 100; it must be at least about"):
        ask(replace(settings, lengths=(100, 2048)), oracle, subject, tmp_path / "out", training)
    assert not (tmp_path / "out").exists()
    assert oracle.reads == []


def test_csv_has_a_line_per_depth_and_ablation(
    settings: Settings, oracle: Oracle, subject: Subject, tmp_path: Path, training: TrainingData
) -> None:
    found = ask(replace(settings, ablations=("none", "off")), oracle, subject, tmp_path, training)
    table = list(csv.DictReader(io.StringIO(to_csv(by_depth(found, settings.grid)))))
    assert len(table) == 2 * 2 * (1 + 5)
    assert {(line["depth_pct"], line["n"]) for line in table if line["ablation"] == "off"} == {
        ("all", "10"),
        *((str(d), "2") for d in (0.0, 25.0, 50.0, 75.0, 100.0)),
    }
    reached = [line for line in table if line["ablation"] == "off" and line["depth_pct"] == "100.0"]
    assert all(float(line["accuracy"]) == 1.0 and line["beyond"] == "" for line in reached)
