"""A run that begins with the weights of a saved model."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import neuralmem as nm
from neuralmem.tokenizer import train_bpe
from neuralmem.training.cli import main

Train = Callable[..., Path]
ONE = ("--trainer.max_steps", "1", "--optimizer.lr", "1e-30", "--optimizer.weight_decay", "0")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return nm.load(folder)[0].state_dict()


def same(one: Path, other: Path) -> bool:
    """Whether a step of almost no length has moved nothing: such steps leave the weights that a run began with."""
    first, second = weights(one), weights(other)
    return all(torch.allclose(x, second[name], rtol=0, atol=1e-12) for name, x in first.items())


def test_a_run_begins_with_the_weights_of_another(train: Train, capsys: pytest.CaptureFixture) -> None:
    first = train("lmm", "first", "--trainer.max_steps", "3")
    tuned = train("lmm", "tuned", *ONE, "--init_from", "first", "--seed_everything", "7")
    assert same(first, tuned)
    assert "starting with the weights of first" in capsys.readouterr().err
    assert not same(first, train("lmm", "fresh", *ONE, "--seed_everything", "7"))


def test_a_run_that_goes_on_keeps_its_own_weights(train: Train, capsys: pytest.CaptureFixture) -> None:
    train("lmm", "first", "--trainer.max_steps", "3")
    whole = train("lmm", "whole", "--trainer.max_steps", "4", "--init_from", "first", "--checkpoint.every", "2")
    half = train("lmm", "half", "--trainer.max_steps", "4", "--init_from", "first", "--checkpoint.every", "2")
    shutil.rmtree(half / "checkpoints" / "step=4")  # as if it had been killed behind step 2
    capsys.readouterr()
    train("lmm", "half", "--trainer.max_steps", "4", "--init_from", "first", "--resume", "auto")
    assert "starting with" not in capsys.readouterr().err
    kept = weights(half)
    assert all(torch.equal(x, kept[name]) for name, x in weights(whole).items())


def test_either_weights_or_a_checkpoint(train: Train, capsys: pytest.CaptureFixture) -> None:
    first = train("lmm", "first", "--trainer.max_steps", "1")
    config = Path(__file__).parents[2] / "configs" / "tiny" / "lmm.yaml"
    both = ("--init_from", "first", "--ckpt_path", str(first / "checkpoints" / "step=1"))
    capsys.readouterr()
    assert main(["--config", str(config), "--run", "second", *both]) == 2
    assert "init_from is 'first' and ckpt_path is" in capsys.readouterr().err


def test_what_the_weights_do_not_hold_comes_from_the_config(train: Train) -> None:
    train("lmm", "first", "--trainer.max_steps", "1")
    tuned = train("lmm", "tuned", *ONE, "--init_from", "first", "--model.memory.theta_max", "0.25")
    assert nm.load(tuned)[0].config.memory.theta_max == 0.25


def test_what_fits_of_another_model_is_taken(train: Train, capsys: pytest.CaptureFixture) -> None:
    first = train("lmm", "first", "--trainer.max_steps", "3")
    capsys.readouterr()
    tuned = train("mag", "tuned", *ONE, "--init_from", "first", "--init_strict", "false", "--seed_everything", "7")
    said = capsys.readouterr().err
    mine, theirs = weights(tuned), weights(first)
    fit = {name for name, x in mine.items() if name in theirs and theirs[name].shape == x.shape}
    assert {"embedding.weight", "layers.0.memory.query.weight"} <= fit < mine.keys()
    for name in fit:
        torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-12)
    (new,) = (line for line in said.splitlines() if line.startswith("not in first, so new: "))
    assert set(new.partition(": ")[2].split(", ")) == mine.keys() - fit


def test_all_is_taken_where_all_fits(train: Train, capsys: pytest.CaptureFixture) -> None:
    first = train("lmm", "first", "--trainer.max_steps", "3")
    tuned = train("lmm", "tuned", *ONE, "--init_from", "first", "--init_strict", "false", "--seed_everything", "7")
    assert same(first, tuned)
    assert "so new" not in capsys.readouterr().err


def test_something_has_to_fit(train: Train, capsys: pytest.CaptureFixture) -> None:
    train("lmm", "first", "--trainer.max_steps", "1")
    config = Path(__file__).parents[2] / "configs" / "tiny" / "lmm.yaml"
    other = ["--config", str(config), "--run", "second", "--init_strict", "false"]
    capsys.readouterr()
    assert main([*other, "--init_from", "first", "--model.width", "20"]) == 2
    assert capsys.readouterr().err == (
        "error: init_from is 'first': no matrix of it has name and shape of one of this model\n"
    )
    assert main(other) == 2
    assert "init_strict is false and init_from is not given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (["--init_from", "neuralmem/mag-tini"], "does not exist; did you mean 'neuralmem/mag-tiny'?"),
        (["--init_from", "first", "--model.width", "16"], "another model: its tensor embedding.weight has shape"),
        (
            ["--init_from", "untied", "--model.tie_embeddings", "true"],
            "whose head is not its embedding; set model.tie_embeddings to false",
        ),
        (
            ["--init_from", "other"],
            "whose tokenizer is not that of the data; set data.tokenizer to 'other/tokenizer.json'",
        ),
    ],
    ids=["none there", "other shapes", "untied", "other tokens"],
)
def test_what_does_not_fit_is_one_line(
    train: Train, options: list[str], wrong: str, capsys: pytest.CaptureFixture
) -> None:
    first = train("lmm", "first", "--trainer.max_steps", "1")
    model, tokenizer = nm.load(first)
    nm.save("untied", nm.CausalLM(replace(model.config, tie_embeddings=False)), tokenizer)
    nm.save("other", model, train_bpe(["low lower lowest"] * 9, vocab_size=model.config.vocab_size))
    capsys.readouterr()
    config = Path(__file__).parents[2] / "configs" / "tiny" / "lmm.yaml"
    assert main(["--config", str(config), "--run", "second", *options]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"error: init_from is {options[1]!r}")
    assert wrong in said
