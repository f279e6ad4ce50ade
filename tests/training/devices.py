"""Training on one device and on two, from a test or as one of two processes: `python devices.py FOLDER CASE...`."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from neuralmem.config import AttentionConfig, MemoryConfig
from neuralmem.data.batch import Batch
from neuralmem.errors import UserError
from neuralmem.generation.scheduled import Probe, Reading
from neuralmem.training.command_line import quiet_lightning
from neuralmem.training.compute import Compute
from neuralmem.training.faults import Faults
from neuralmem.training.meter import Meter
from neuralmem.training.module import LanguageModel
from neuralmem.training.optim import OptimizerConfig
from neuralmem.training.probes import Probes
from neuralmem.training.ranks import RankState
from neuralmem.training.sharding import whole

STEPS, ROWS, LENGTH, VOCABULARY = 4, 4, 24, 19
MEMORY = MemoryConfig(rule="titans", heads=2, chunk_size=8)
ATTENTION = AttentionConfig(heads=2, window=8, persistent_tokens=2, segment=12)
LONG = OptimizerConfig(lr=1e-2, warmup=0)
CASES: dict[str, dict[str, Any]] = {
    "fresh rows": {"pattern": ["titans_mag"]},
    "carried memory": {"pattern": ["titans_lmm", "titans_mac"], "carry": True},
    "accumulation": {"pattern": ["titans_lmm"], "carry": True, "accumulate": 2},
    "NaN on one device": {"pattern": ["titans_lmm"], "carry": True, "broken": ("loss", 1)},
    "NaN in the gradient of one device": {"pattern": ["titans_lmm"], "carry": True, "broken": ("gradient", 1)},
    "uneven validation": {"pattern": ["titans_lmm"], "uneven": True},
    "tied embeddings": {"pattern": ["transformer"], "tie_embeddings": True},
    "probed": {"pattern": ["titans_mac"], "probed": True},
    "recomputed": {"pattern": ["titans_lmm", "titans_mac"], "carry": True, "compute": {"recompute": True}},
    "compiled": {"pattern": ["titans_mag"], "carry": True, "compute": {"compile": True}},
    # Long steps, so that weights move by far more than bf16 rounds.
    "bf16": {"pattern": ["titans_mag"], "carry": True, "precision": "bf16-mixed", "optimizer": LONG},
}


class Rows(IterableDataset[Batch]):
    """Four rows per batch, every device its own; a document starts in one of them."""

    def __init__(self, index: int, count: int, batches: int = 10**12) -> None:
        self.index, self.count, self.batches = index, count, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(0)
        for _ in range(self.batches):
            tokens = torch.randint(VOCABULARY, (ROWS, LENGTH + 1), generator=random)
            reset = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
            reset[0, 8] = True
            mine = slice(self.index, None, self.count)
            yield Batch(tokens[mine, :-1], tokens[mine, 1:], reset=reset[mine] if self.index == 0 else None)


class Data(L.LightningDataModule):
    """`Rows` for training and validation."""

    def __init__(self, carry: bool, uneven: bool) -> None:
        super().__init__()
        self.carry_memory, self.uneven = carry, uneven

    def train_dataloader(self) -> DataLoader:
        return self._loader(10**12)

    def val_dataloader(self) -> DataLoader:
        return self._loader(3 if self.uneven and self.trainer.global_rank == 0 else 1)

    def _loader(self, batches: int) -> DataLoader:
        rows = Rows(self.trainer.global_rank, self.trainer.world_size, batches)
        return DataLoader(rows, batch_size=None, generator=torch.Generator().manual_seed(0))


class Watched(LanguageModel):
    """Keeps the loss of every batch; that of the batch called broken, or its gradient, is NaN on the last device."""

    def __init__(self, broken: tuple[str, int] | None, **model: Any) -> None:
        super().__init__(**model)
        self.broken, self.losses = broken, []

    def training_step(self, batch: Batch, index: int) -> dict[str, torch.Tensor]:
        outputs = super().training_step(batch, index)
        self.losses.append(outputs["loss"].detach())
        what, batch_index = self.broken or ("", None)
        if index == batch_index and self.trainer.global_rank == self.trainer.world_size - 1:
            if what == "loss":
                outputs["loss"] = outputs["loss"] * torch.nan
            else:
                outputs["loss"] = outputs["loss"] + (0 * outputs["loss"]).sqrt()  # 0, whose gradient is 0 / 0
        return outputs


class Outputs(Probe):
    """Keeps what the model says to the same tokens: it changes with the weights, and needs all of them."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, model: Any, tokenizer: Any, data: Any) -> Reading:
        logits, _ = model(torch.arange(LENGTH)[None] % VOCABULARY)
        self.seen.append(logits)
        return Reading({})


def train(
    case: str,
    strategy: str,
    devices: int,
    callbacks: Callable[[], list[L.Callback]] = list,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Train the case, whose probes write into the folder. -> losses, the validation's, weights, how far these have
    moved, how many steps were skipped, what was probed; all as on one device."""
    options = dict(CASES[case])
    named = ("carry", "accumulate", "broken", "uneven", "probed", "compute", "precision")
    carry, accumulate, broken, uneven, probed, compute, precision = (options.pop(name, None) for name in named)
    quiet_lightning()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if precision else torch.float64)  # autocast leaves float64 as it is
    module = Watched(
        broken, vocab_size=VOCABULARY, width=16, depth=2, attention=ATTENTION, memory=MEMORY, **options
    )  # fmt: skip
    before = {name: x.detach().clone() for name, x in module.model.state_dict().items()}
    faults, asked = Faults(), Outputs()
    probes = [Probes(every=2, run=[asked])] if probed else []
    trainer = L.Trainer(
        accelerator="cpu",
        strategy=strategy,
        devices=devices,
        max_steps=STEPS,
        default_root_dir=folder,
        accumulate_grad_batches=accumulate or 1,
        gradient_clip_val=1.0,
        val_check_interval=STEPS * (accumulate or 1),
        num_sanity_val_steps=0,
        precision=precision,
        callbacks=[faults, Compute(**(compute or {})), *probes, *callbacks()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Data(bool(carry), bool(uneven)))
    weights = {name: whole(x.detach()).clone() for name, x in module.model.state_dict().items()}
    moved = torch.cat([(x - before[name]).flatten() for name, x in weights.items()])
    losses = trainer.strategy.reduce(torch.stack(module.losses), reduce_op="mean")
    validation = torch.zeros(()) if uneven else trainer.callback_metrics["val_loss"]
    torch.set_default_dtype(torch.float32)
    found = {"probed": torch.stack(asked.seen)} if probed else {}
    found |= {"losses": losses, "validation": validation, "skipped": torch.tensor(faults.skipped), "moved": moved}
    return found | weights


def going_on(step: int) -> str:
    """What this rank says when the first goes on from step 1 and the other from `step`."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / f"step={1 if torch.distributed.get_rank() == 0 else step}"
        place.mkdir()
        (place / "manifest.json").write_text(place.name)
        try:
            RankState(Meter(), place).setup(cast(L.Trainer, SimpleNamespace(world_size=2)), None, "fit")
        except UserError as error:
            return str(error)
    return ""


def main(folder: Path, runs: list[str]) -> None:
    """Each run is "strategy:case"; rank 0 writes what came of it."""
    torch.set_num_threads(1)
    for run in runs:
        strategy, _, case = run.partition(":")
        result = train(case, strategy, devices=2, folder=folder)
        if torch.distributed.get_rank() == 0:
            torch.save(result, folder / f"{run}.pt")
    said = [going_on(step) for step in (1, 2)]
    (folder / f"rank={torch.distributed.get_rank()}.txt").write_text("\n".join(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
