"""The LightningModule: a causal language model, its loss, its optimizer, memory carried from batch to batch.

Special: the options under `model:` are `neuralmem.ModelConfig`'s fields, taken from its signature, so that YAML,
config.json and Python share one definition. Nothing of Lightning is needed to use what it trains.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from neuralmem import probe
from neuralmem.config import ModelConfig
from neuralmem.data.batch import NO_LOSS, Batch, exact_answers
from neuralmem.errors import UserError
from neuralmem.memory._memory import Memory
from neuralmem.models.causal_lm import CausalLM, build_model
from neuralmem.models.ttt_e2e import EndToEnd
from neuralmem.state import State
from neuralmem.training.faults import restart_broken
from neuralmem.training.loss import token_loss, write_price
from neuralmem.training.optim import LearningRate, OptimizerConfig, learning_rate, make_optimizer
from neuralmem.training.ranks import gather_to_first, own, same_readers
from neuralmem.training.sharding import gathered, shard

SPREAD = ("adamw", "muon")  # optimizers that work on parts of a matrix, or gather them


class LanguageModel(L.LightningModule):
    """A causal language model in training.

    Args:
        optimizer: optimizer and learning rate schedule
        model: the fields of `neuralmem.ModelConfig`

    Example:
        >>> module = LanguageModel(vocab_size=257, width=32, depth=1, pattern=["transformer"])
        >>> module.model.config.width
        32
    """

    def __init__(self, optimizer: OptimizerConfig = OptimizerConfig(), **model: Any) -> None:
        super().__init__()
        self.model = build_model(ModelConfig(**model))
        self.optimizer_config = optimizer
        self.carried: State | None = None

    def configure_model(self) -> None:
        """Spread the model over the devices, where the strategy asks for it."""
        if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            shard(self.model, self.device_mesh)

    def on_validation_start(self) -> None:
        """Validation steps must not wait for each other."""
        gathered(self.model, True)

    def on_validation_end(self) -> None:
        """Sharded again, where it was."""
        gathered(self.model, False)

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss of one batch; beside it what callbacks show: tokens, answers exact and asked, memories restarted."""
        carry = getattr(self.trainer.datamodule, "carry_memory", False)  # type: ignore[attr-defined]
        before, cost = self.carried if carry else None, self.optimizer_config.write_cost
        priced = partial(write_price, floor=self.optimizer_config.write_floor)
        watch = probe.recording(self.model, attached=True, only="write", seen_as=priced) if cost else nullcontext()
        restarted = torch.zeros((), dtype=torch.long, device=batch.tokens.device)
        if before is not None:
            before, batch, restarted = restart_broken(before, batch)
        with watch as record:
            chosen, logits, state = self._predict(batch, before)
        self.carried = state.detach() if carry else None
        loss = reading = _loss(logits, chosen, batch)
        if record is not None and (written := record.total("write")) is not None:
            loss = loss + cost * written
        if carry and self.trainer.world_size > 1 and self.device_mesh is None:
            loss = _with_first_weights(loss, self.model)
        self.log("loss", reading.detach(), logger=False, batch_size=len(batch.tokens))
        return {"loss": loss, "restarted": restarted, **_counts(logits, chosen, batch)}

    def _predict(self, batch: Batch, state: State | None) -> tuple[Tensor, Tensor, State]:
        """Logits [n, V] where there are targets, which the Bool [B, T] in front says, and the state."""
        chosen = batch.targets != NO_LOSS
        logits, state = self.model(batch.tokens, state, mask=batch.mask, reset=batch.reset, select=chosen)
        return chosen, logits, state

    def validation_step(self, batch: Batch, index: int) -> None:
        """Log `val_loss`, comparable with `loss`, and `val_answers` where the batch asks for any."""
        chosen, logits, _ = self._predict(batch, None)
        rows, counts = len(batch.tokens), _counts(logits, chosen, batch)
        options: dict[str, Any] = {"on_epoch": True, "on_step": False, "logger": False, "sync_dist": True}
        self.log("val_loss", _loss(logits, chosen, batch), batch_size=rows, **options)
        if "asked" in counts:
            self.log("val_answers", counts["exact"] / counts["asked"].clamp(min=1), batch_size=rows, **options)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule over the steps or the time that the trainer was given."""
        # A fused step would unscale gradients on its own, so under any mixed precision Lightning refuses to clip them.
        fused = "mixed" not in str(self.trainer.precision)
        if self.device_mesh is not None and self.optimizer_config.name not in SPREAD:
            raise UserError(
                f"optimizer.name is {self.optimizer_config.name!r}; with trainer.strategy fsdp2 it must be one of "
                f"{', '.join(SPREAD)}: the others work on whole matrices"
            )
        optimizer = make_optimizer(self.model, self.optimizer_config, fused=fused)
        schedule = LearningRate(optimizer, learning_rate(self.optimizer_config, self.progress))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def progress(self, step: int) -> float:
        """The share of the run that is done at `step`: of its steps or of its time, whichever is more."""
        trainer = self.trainer
        done = step / trainer.max_steps if trainer.max_steps > 0 else 0.0
        for timer in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(timer, Timer) and timer.time_remaining() is not None:
                elapsed = timer.time_elapsed()
                done = max(done, elapsed / (elapsed + max(0.0, timer.time_remaining() or 0.0) + 1e-9))
        return done

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the carried memory: without it a resumed run would forget the documents it is in the middle of."""
        mine = None if self.carried is None else dict(self.carried.items())
        checkpoint["carried"] = gather_to_first(self.trainer, mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the carried memory back; other readers begin the documents that were being read with a fresh memory."""
        tensors = own(self.trainer, checkpoint.get("carried"))
        if tensors and same_readers(self.trainer, checkpoint):
            gathered(self.model, True)
            template = self.model.init_state(len(tensors["position"]))
            gathered(self.model, False)
            found = iter([tensors[name].to(self.device) for name, _ in template.items()])
            self.carried = template.map(lambda _: next(found))


def _with_first_weights(loss: Tensor, model: CausalLM) -> Tensor:
    """The same loss, of which the memories' first weights have a gradient, if only of zero.

    Where no document starts in a batch, carried memory replaces them, and DDP wants a gradient of every parameter.
    Empty slices rather than 0 * weights, which is NaN once a weight is not finite.
    """
    memories = [module for module in model.modules() if isinstance(module, Memory)]
    weights = [weight for memory in memories for weight in memory.initial()[0]]
    if isinstance(model, EndToEnd):
        weights += [weight for level in model.first_weights() for weight in level]
    return sum((weight[:0].sum() for weight in weights), start=loss)


def _loss(logits: Tensor, chosen: Tensor, batch: Batch) -> Tensor:
    return token_loss(logits, batch.targets[chosen], None if batch.weights is None else batch.weights[chosen])


def _counts(logits: Tensor, chosen: Tensor, batch: Batch) -> dict[str, Tensor]:
    """How many tokens were read, and answers asked and exact. logits: [n, V] at the n places chosen, Bool [B, T]."""
    counts = {"tokens": torch.tensor(chosen.numel(), device=chosen.device) if batch.mask is None else batch.mask.sum()}
    if batch.answers is not None:
        predicted, asked = torch.full_like(batch.targets, NO_LOSS), batch.answers & chosen
        predicted[asked] = logits.detach()[asked[chosen]].argmax(-1)
        exact = exact_answers(batch, predicted)
        counts |= {"exact": exact.sum(), "asked": exact.new_tensor(len(exact), dtype=torch.long)}
    return counts
