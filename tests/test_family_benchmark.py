"""The benchmarks of the family and of HOPE's claims: that their questions have the answers they are scored by."""

import json
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralmem.models.causal_lm import build_model

ROOT = Path(__file__).parent.parent
SMALL = {"seeds": 1, "seconds": 60.0, "steps": 2, "rows": 2, "gaps": [1, 8]}


def stated(tokens: list[int], tasks: Any) -> dict[int, list[int]]:
    """What a row says of every key, in order."""
    said: dict[int, list[int]] = {}
    for key, value in pairwise(tokens):
        if tasks.FIRST_KEY <= key < tasks.FIRST_VALUE:
            assert tasks.FIRST_VALUE <= value < tasks.FIRST_FILLER
            said.setdefault(key, []).append(value)
    return said


@pytest.mark.parametrize("rule", ["delta", "ttt_linear"])
def test_a_member_sets_no_field_that_its_rule_ignores(load: Any, rule: str) -> None:
    members = load("family_members")
    config = replace(members.BASE, memory=replace(members.BASE.memory, rule=rule))
    with warnings.catch_warnings(action="error"):
        assert len({fitted.memory.head_width for fitted in members._sizes(config) if build_model(fitted)}) == 5


@pytest.mark.parametrize("changed", [0, 3])
@pytest.mark.parametrize("spread", [1, 4])
def test_a_question_has_the_latest_value_of_its_key_as_answer(load: Any, changed: int, spread: int) -> None:
    tasks = load("family_tasks")
    rows = tasks.pairs(np.random.default_rng(1), 20, facts=6, gap=40, changed=changed, spread=spread)
    for tokens, targets, stale in zip(rows.tokens.tolist(), rows.targets.tolist(), rows.stale.tolist(), strict=True):
        asked = [t for t, target in enumerate(targets) if target != tasks.IGNORE]
        known = stated(tokens[: asked[0]], tasks)
        assert len(asked) == len(known) == len({tokens[t] for t in asked}) == 6
        assert [targets[t] for t in asked] == [known[tokens[t]][-1] for t in asked]
        before = [known[tokens[t]][-2] if len(known[tokens[t]]) > 1 else tasks.IGNORE for t in asked]
        assert [stale[t] for t in asked] == before
        assert sum(x != tasks.IGNORE for x in before) == changed
        last = max(t for t in range(asked[0]) if tokens[t] in known)
        assert asked[0] - last > 40, "the last fact is farther back than the gap"


def test_a_batch_is_a_third_of_each_task_and_depends_on_its_draw_alone(load: Any) -> None:
    tasks = load("family_tasks")
    source = tasks.text("train")
    one, same, other = (tasks.mixture(np.random.default_rng(seed), source, 960, 128, 32) for seed in (4, 4, 5))
    assert one.tokens.shape == (6, 128)
    assert torch.equal(one.tokens, same.tokens)
    assert not torch.equal(one.tokens, other.tokens)
    kinds = [(row < tasks.BYTES).all().item() for row in one.tokens]
    assert kinds == [False] * 4 + [True] * 2
    assert one.tokens[:4][one.tokens[:4] < tasks.FIRST_VALUE].max() < tasks.FIRST_KEY + 32, "only keys in use"


def test_little_of_the_held_out_prose_is_in_training_too(load: Any) -> None:
    """Documents are held out whole, but the library's text repeats itself: 4% of pieces of 100 bytes."""
    tasks = load("family_tasks")
    training, held_out = (bytes(tasks.text(side).tolist()) for side in ("train", "validation"))
    pieces = [held_out[i : i + 100] for i in range(0, len(held_out) - 100, 997)]
    assert sum(piece in training for piece in pieces) < 0.1 * len(pieces)


def test_members_are_matched_in_size_by_their_widest_heads(load: Any) -> None:
    members = load("family_members")
    for rule in ("titans", "delta"):
        memory = members.replace(members.BASE.memory, rule=rule)
        config = members.fit(members.replace(members.BASE, memory=memory))
        assert members.parameters(config) == pytest.approx(members.PARAMETERS, rel=0.01)
        assert members.state_bytes(config) == pytest.approx(members.STATE, rel=0.2)
    near = members.replace(config, memory=members.replace(config.memory, rule="titans", head_width=32, expansion=1.5))
    narrow = members.replace(near, memory=members.replace(near.memory, head_width=24, expansion=3.0))
    sizes = [members.state_bytes(x) for x in (near, narrow)]
    assert members._widest(iter([narrow, near]), sum(sizes) // 2) == near


def test_a_job_trains_and_asks_and_is_kept_while_its_member_is_the_same(load: Any, tmp_path: Path) -> None:
    family, members = load("family"), load("family_members")
    config = members.replace(members.BASE, width=16, memory=members.replace(members.BASE.memory, head_width=8))
    member = members.Member("titans", config)
    row = family.job(member, 0, SMALL)
    assert "failed" not in row, row
    assert row["tokens"] == 2 * row["tokens"] // 2 == 2 * 30 * 128
    assert set(row["recall"]) == set(row["frozen"]) == {1, 8}
    assert row["bits_per_byte"] > 0
    path = tmp_path / "family.json"
    family.write_rows(path, SMALL, [row, row | {"seed": 1, "failed": "out of memory"}])
    assert [found["seed"] for found in family.finished(path, SMALL, [member])] == [0]
    assert not family.finished(path, SMALL | {"steps": 3}, [member])
    assert not family.finished(path, SMALL, [members.Member("titans", members.replace(config, depth=3))])
    kept = json.loads(path.read_text())
    found = family.costs([member], family.text("train"))
    family.write_result(path, kept | {"costs": found})
    family.write_rows(path, SMALL, [row])
    result = json.loads(path.read_text())
    assert result["costs"]["us_per_token"]["titans"]["train"]["median"] > 0
    line = load("family_table").table(result).splitlines()[-1]
    assert line.startswith("| titans | ")
    assert line.count("|") == len(load("family_table").COLUMNS) + 2


def test_what_went_wrong_is_a_row(load: Any) -> None:
    family, members = load("family"), load("family_members")
    broken = members.Member("broken", members.replace(members.BASE, pattern=["transformer", "titans_magg"]))
    with pytest.raises(Exception, match="titans_magg"):  # nothing was measured: the member itself is wrong
        family.job(broken, 0, SMALL)


@pytest.mark.parametrize(
    ("R", "expected"),
    [
        ([[1.0, 0, 0], [0.5, 0.8, 0], [0.25, 0.9, 0.6]], (0.583, 0.8, -0.325, 0.375)),  # falls by .75 and 0, rises .1
        ([[1.0, 0, 0], [1, 1, 0], [1, 1, 1]], (1.0, 1.0, 0.0, 0.0)),
    ],
)
def test_measures_of_tasks_in_sequence(
    load: Any, R: list[list[float]], expected: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hope = load("hope")
    monkeypatch.setattr(hope, "TASKS", 3)
    matrix = np.array(R)
    matrix[np.triu_indices(3, 1)] = np.nan
    found = hope.measures(matrix)
    names = ("accuracy", "learned", "backward_transfer", "forgetting")
    assert tuple(found[name] for name in names) == pytest.approx(expected, abs=1e-3)
    assert found["R"][0][1] is None


def test_lessons_show_every_pair_and_questions_ask_for_it(load: Any) -> None:
    hope, tasks = load("hope"), load("family_tasks")
    rng = np.random.default_rng(2)
    keys, values = hope.draw_tasks(rng, 3)
    assert all(len(set(row.ravel())) == hope.TASKS * hope.PER_TASK for row in keys)
    tokens = hope.lesson(rng, keys[:, 0], values[:, 0])
    asked = hope.questions(rng, keys[:, 0], values[:, 0])
    for row in range(3):
        right = dict(zip(keys[row, 0] + tasks.FIRST_KEY, values[row, 0] + tasks.FIRST_VALUE, strict=True))
        said = stated(tokens[row].tolist(), tasks)
        assert said == {key: [value] * hope.SHOWN for key, value in right.items()}
        places = asked.targets[row] != tasks.IGNORE
        assert {
            int(k): int(v) for k, v in zip(asked.tokens[row][places], asked.targets[row][places], strict=True)
        } == right


def test_a_model_that_reads_tasks_is_asked_without_changing_what_it_read(load: Any) -> None:
    hope, members = load("hope"), load("family_members")
    model = build_model(members.replace(members.BASE, pattern=["titans_mag"], depth=1))
    keys, values = hope.draw_tasks(np.random.default_rng(0), 2)
    _, state = model(torch.from_numpy(hope.lesson(np.random.default_rng(0), keys[:, 0], values[:, 0])))
    before = {name: x.clone() for name, x in state.items()}
    hope.answers(model, state, np.random.default_rng(1), keys[:, 0], values[:, 0])
    assert all(torch.equal(x, before[name]) for name, x in state.items())
    R = hope.read_in_sequence(model, 0, 2)
    assert np.isnan(R[np.triu_indices(hope.TASKS, 1)]).all()
    assert ((R >= 0) | np.isnan(R)).all()
