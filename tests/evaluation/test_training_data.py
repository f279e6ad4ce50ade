"""What an evaluation learns of a run's training data: used as it is, or refused in a line that names the field."""

import json
from pathlib import Path

import pytest

from neuralmem.config import ModelConfig
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.errors import UserError
from neuralmem.evaluation.recall import TrainingData, read_training_data
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import save


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A checkpoint without a data.json."""
    save(tmp_path / "run", CausalLM(ModelConfig(vocab_size=257, width=8, depth=1, pattern=["titans_lmm"])))
    return tmp_path / "run"


def test_training_data_from_a_run_folder(run_folder: Path) -> None:
    form = {"fact": "@{key}={value}\n", "digits": 4, "key_tokens": 1, "pairs_held_out": 0.5, "keys_held_out": 0.0}
    arguments = {
        "stages": [{"length": 64}, {"length": 320, "facts": 7, "keys": 99}],
        "source": ["stdlib"],
        "form": form,
    }
    (run_folder / "data.json").write_text(
        json.dumps({"class_path": "neuralmem.data.module.NeedleData", "init_args": arguments})
    )
    found = read_training_data(run_folder)
    assert (found.length, found.keys, found.haystack) == (320, 99, "stdlib")
    assert found.form == NeedleFormat(**form)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Expecting property name"),
        ("[1]", r"its content is \[1\]; it must be an object"),
        ('{"init_args": 3}', "init_args is 3; it must be an object"),
        ('{"init_args": {"stages": [{"length": "x"}]}}', "length is 'x'; it must be an integer of at least 1"),
        ('{"init_args": {"stages": [{"length": -1}]}}', "length is -1; it must be an integer of at least 1"),
        ('{"init_args": {"stages": {"length": 3}}}', "stages is {'length': 3}; it must be a list"),
        ('{"init_args": {"stages": [3]}}', r"stages\[0\] is 3; it must be an object"),
        ('{"init_args": {"stages": [{"keys": 1.5}]}}', "keys is 1.5; it must be an integer of at least 0"),
        ('{"sequence_length": true}', "length is True; it must be an integer"),
        ('{"source": 7}', "source is 7; it must be a text, a list of texts, or texts with their weights"),
        ('{"source": [7]}', r"source is \[7\]; it must be a text"),
        ('{"validation": {"share": "much"}}', "validation.share is 'much'; it must be a number"),
        ('{"form": {"digits": "3"}}', "form.digits is '3'; it must be an integer of at least 1"),
        ('{"form": {"fact": 3}}', "form.fact is 3; it must be a text"),
        ('{"form": {"pairs_held_out": []}}', r"form.pairs_held_out is \[\]; it must be a number"),
    ],
)
def test_training_data_that_cannot_be_used(content: str, message: str, run_folder: Path) -> None:
    (run_folder / "data.json").write_text(content)
    with pytest.raises(UserError, match=rf"data\.json, which cannot be used: {message}") as caught:
        read_training_data(run_folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_folder_is_refused_before_its_data_is_read(run_folder: Path) -> None:
    assert read_training_data(run_folder) == TrainingData()
    (run_folder / "data.json").write_text("{")
    (run_folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        read_training_data(run_folder)
    with pytest.raises(UserError, match="no manifest"):
        read_training_data(run_folder.parent)
