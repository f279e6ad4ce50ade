"""A loss or a gradient that is not finite, made on purpose: nothing of it stays, it is counted, many stop the run."""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from safetensors import safe_open

from neuralmem.errors import UserError
from neuralmem.models.checkpoint import load
from neuralmem.training.checkpoints import Checkpoints
from neuralmem.training.cli import main
from neuralmem.training.faults import Faults
from neuralmem.training.logs import read_metrics
from neuralmem.training.module import LanguageModel

TINY = Path(__file__).parents[2] / "configs" / "tiny"
Break = Callable[[LanguageModel, dict[str, torch.Tensor]], None]


def break_loss(module: LanguageModel, outputs: dict[str, torch.Tensor]) -> None:
    outputs["loss"] = outputs["loss"] + torch.nan  # with a gradient that is finite


def break_gradient(module: LanguageModel, outputs: dict[str, torch.Tensor]) -> None:
    weight = module.model.head.weight[0, 0]
    outputs["loss"] = outputs["loss"] + (weight - weight.detach()).sqrt()  # the same loss


def train(monkeypatch: pytest.MonkeyPatch, run: Path, broken: dict[int, Break], *options: str) -> int:
    """Train a tiny model, of which the given batches, counted from 0, are broken."""
    step, batches = LanguageModel.training_step, iter(range(10**6))

    def training_step(module: LanguageModel, *given: object) -> dict[str, torch.Tensor]:
        outputs = step(module, *given)
        if (number := next(batches)) in broken:
            broken[number](module, outputs)
        return outputs

    monkeypatch.setattr(LanguageModel, "training_step", training_step)
    quick = ["--model.depth", "1", "--report.at_end", "false"]
    return main(["--config", str(TINY / "lmm.yaml"), "--run", str(run), *quick, *options])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load(run)[0].state_dict()


@pytest.mark.parametrize("optimizer", ["adamw", "m3"])
@pytest.mark.parametrize("break_it", [break_loss, break_gradient])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, break_it: Break, optimizer: str
) -> None:
    seen = {}

    def look(trainer: lightning.pytorch.Trainer, *rest: object) -> None:
        moments = [x.clone() for s in trainer.optimizers[0].state.values() for x in s.values() if torch.is_tensor(x)]
        seen[trainer.global_step] = [*(p.detach().clone() for p in trainer.lightning_module.parameters()), *moments]

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", lambda _, *given: look(*given))
    options = ["--trainer.max_steps", "4", "--optimizer.name", optimizer]
    assert train(monkeypatch, tmp_path, {2: break_it}, *options) == 0
    assert all(torch.equal(a, b) for a, b in zip(seen[2], seen[3], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[3], seen[4], strict=True))
    assert all(x.isfinite().all() for x in seen[4])


def test_it_is_counted_in_the_logs_whose_means_stay_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--trainer.max_steps", "4", "--trainer.log_every_n_steps", "2"]
    assert train(monkeypatch, tmp_path, {0: break_loss, 3: break_gradient}, *options) == 0
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["skipped_steps"] for row in rows] == [1, 2]
    assert all(torch.tensor([row["loss"], row["gradient_norm"]]).isfinite().all() for row in rows)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_with_accumulation_the_whole_step_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    options = ["--trainer.max_steps", "3", "--tokens_per_step", "384", "--trainer.precision", precision]
    assert train(monkeypatch, tmp_path, {2: break_gradient}, *options) == 0
    assert read_metrics(tmp_path / "metrics.csv")[-1]["skipped_steps"] == 1
    assert all(x.isfinite().all() for x in weights(tmp_path).values())


def test_memory_that_is_not_finite_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LanguageModel._predict

    def predict(module: LanguageModel, batch: object, state: object) -> tuple:
        chosen, logits, new = forward(module, batch, state)
        if module.training and module.trainer.global_step == 1:
            new = new.map(lambda x: torch.cat([x[:1] * torch.inf, x[1:]]) if x.is_floating_point() else x)
        return chosen, logits, new

    monkeypatch.setattr(LanguageModel, "_predict", predict)
    assert train(monkeypatch, tmp_path, {}, "--trainer.max_steps", "4", "--data.carry", "true") == 0
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row.get("restarted_memories") for row in rows] == [None, None, 1, None]
    assert not any("skipped_steps" in row for row in rows)


def test_so_many_in_a_row_stop_the_run_and_keep_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    broken = {2: break_loss, 4: break_gradient, 5: break_loss, 6: break_loss}
    assert train(monkeypatch, tmp_path, broken, "--faults.patience", "3") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: stopped at step 7: the loss is not finite, 3 steps in a row")
    with safe_open(tmp_path / "faults" / "step=7-rank=0.safetensors", framework="pt") as file:
        assert file.metadata() == {"step": "7", "rank": "0", "loss": "nan", "reason": "the loss is not finite"}
        assert file.get_tensor("0.tokens").shape == file.get_tensor("0.targets").shape == (2, 96)
    assert all(x.isfinite().all() for x in weights(tmp_path).values())
    monkeypatch.undo()
    assert main(["--config", str(tmp_path / "config.yaml"), "--run", str(tmp_path), "--ckpt_path", "last"]) == 0
    assert read_metrics(tmp_path / "metrics.csv")[-1]["skipped_steps"] == 4


def test_a_batch_that_cannot_be_kept_costs_neither_the_checkpoint_nor_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "faults").write_text("in the way")
    assert train(monkeypatch, tmp_path, {2: break_loss}, "--faults.patience", "1") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: stopped at step 3: the loss is not finite, 1 steps in a row")
    assert "the last batch was not kept" in last
    assert (tmp_path / "checkpoints" / "step=3" / "manifest.json").is_file()


def test_what_stands_in_a_row_goes_into_the_checkpoint() -> None:
    one, other = Faults(), Faults()
    one.in_a_row, one.spikes_in_a_row = 2, 3
    other.load_state_dict(one.state_dict())
    assert (other.in_a_row, other.spikes_in_a_row) == (2, 3)


def spike(module: LanguageModel, outputs: dict[str, torch.Tensor]) -> None:
    outputs["loss"] = outputs["loss"] * 3


def test_a_spike_is_skipped_if_asked_and_a_new_level_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    higher, seen = {18: spike, **dict.fromkeys(range(20, 23), spike)}, {}

    def look(_: Checkpoints, trainer: lightning.pytorch.Trainer, module: LanguageModel, *rest: object) -> None:
        seen[trainer.global_step] = torch.cat([p.detach().flatten() for p in module.parameters()])

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", look)
    options = ["--trainer.max_steps", "23", "--faults.spike", "20", "--faults.patience", "2"]
    assert train(monkeypatch, tmp_path, higher, *options) == 0
    spikes = {int(row["step"]): int(row.get("loss_spikes", 0)) for row in read_metrics(tmp_path / "metrics.csv")}
    assert [spikes[step] for step in (18, 19, 20, 21, 22, 23)] == [0, 1, 1, 2, 3, 3]
    moved = {step for step in seen if step > 17 and not torch.equal(seen[step], seen[step - 1])}
    assert moved == {18, 20, 23}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patience": 0}, "faults.patience is 0"),
        ({"spike": 0.0}, "faults.spike is 0.0"),
        ({"window": 2}, "faults.window is 2"),
    ],
)
def test_a_wrong_value_is_named(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Faults(**wrong)
