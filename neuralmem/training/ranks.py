"""What differs from rank to rank, kept for every rank: random numbers, the place in the data, carried memory.

Special: Lightning saves no random numbers, and of the data loader only rank 0's place; with either missing, a resumed
run is another run. Where the number of ranks or loader processes has changed, data that can (`take_over`) hand the
places over to the new ones, and others are refused: documents would be skipped or read again, without a word.
"""

import hashlib
import random
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import distributed
from torch.utils._pytree import tree_map_only

from neuralmem.data.handover import positions
from neuralmem.durable import manifest
from neuralmem.errors import UserError
from neuralmem.training.meter import Meter

_plain_groups: dict[Any, Any] = {}


def gather(trainer: L.Trainer, mine: Any) -> list[Any]:
    """Every rank's value, on every rank."""
    everyone = [mine] * trainer.world_size
    if trainer.world_size > 1:
        distributed.all_gather_object(everyone, _on_cpu(mine), group=_plain_group())
    return everyone


def gather_to_first(trainer: L.Trainer, mine: Any) -> list[Any]:
    """Every rank's value on the first, nothing on the others: for what is large, and only written down."""
    if trainer.world_size == 1:
        return [mine]
    everyone: list[Any] = [None] * trainer.world_size if trainer.is_global_zero else []
    distributed.gather_object(_on_cpu(mine), everyone or None, dst=0, group=_plain_group())
    return everyone


def _on_cpu(value: Any) -> Any:
    """Tensors of a GPU would arrive on that rank's, and all of them on every one."""
    return tree_map_only(torch.Tensor, lambda x: x.cpu(), value)


def _plain_group() -> Any:
    """All ranks, exchanging on the CPU: with NCCL every GPU would hold the values of all. Asked for by all at once."""
    world = distributed.group.WORLD
    if distributed.get_backend() != "gloo" and world not in _plain_groups:
        _plain_groups[world] = distributed.new_group(backend="gloo")
    return _plain_groups.get(world, world)


def started_by_lightning(trainer: L.Trainer) -> bool:
    """Whether Lightning's launcher started this process beside the first of this machine (or a user in its manner, by
    setting LOCAL_RANK).

    Where all stop together such a process has to end with 0: of anything else the launcher hears within seconds, and
    kills the first, which may be saving or saying why.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


def own(trainer: L.Trainer, everyone: list[Any] | None) -> Any:
    """This rank's value; where there were fewer ranks, another's."""
    return everyone[trainer.global_rank % len(everyone)] if everyone else None


class RankState(L.Callback):
    """Put into the checkpoint, and take out again, every rank's random state, loader position and unfinished log line.

    Random state is restored right before the first training batch: building loaders draws random numbers on the way.

    Args:
        meter: what collects the values of the next line of the log
        checkpoint: what this rank is about to go on from
    """

    def __init__(self, meter: Meter, checkpoint: Path | None = None) -> None:
        self.meter, self.checkpoint = meter, checkpoint
        self.pending: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse to go on from different checkpoints: a rank may see another folder, or a broken copy.

        Before one is read, for a rank that has none would not take part in what follows.
        """
        found = gather(trainer, _described(self.checkpoint))
        if len(set(found)) > 1:
            ranks = ", ".join(f"rank {rank}: {one}" for rank, one in enumerate(found))
            raise UserError(
                f"the ranks go on from different checkpoints ({ranks}); the run's folder must be one that all machines "
                "share, with the same content"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["readers"] = _readers(trainer)
        checkpoint["random_state"] = gather(trainer, random_state())
        checkpoint["loader_state"] = gather(trainer, _fit_loop(checkpoint).get("combined_loader"))
        checkpoint["log_line"] = gather(trainer, {"sums": self.meter.sums, "steps": self.meter.steps})

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self.pending = {"random_state": own(trainer, checkpoint["random_state"])}
        if same := same_readers(trainer, checkpoint):
            self.pending["log_line"] = own(trainer, checkpoint["log_line"])
        else:
            _hand_over(trainer, checkpoint)
        # An epoch that was saved at its last batch ends anew, without a batch; told so, Lightning would count it twice.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        if same and (place := own(trainer, checkpoint.get("loader_state"))):
            _fit_loop(checkpoint)["combined_loader"] = place  # Lightning restores its loops after the callbacks

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._restore(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._restore(pl_module)  # an epoch without a batch: the loader of the next one draws random numbers

    def _restore(self, pl_module: Any) -> None:
        if self.pending is not None:
            set_random_state(self.pending["random_state"])
            if line := self.pending.get("log_line"):
                self.meter.sums = {name: value.to(pl_module.device) for name, value in line["sums"].items()}
                self.meter.steps = line["steps"]
            self.pending = None


def place_of(trainer: L.Trainer) -> dict[str, Any]:
    """Loops, place in the data and generators of a run on one device, as they are now. Asked for after every step."""
    return {"epoch": trainer.current_epoch, "fit_loop": trainer.fit_loop.state_dict(), "generators": _generators()}


def put_back(checkpoint: dict[str, Any], place: dict[str, Any]) -> None:
    """Make a checkpoint go on from an earlier place: Lightning and the loader have counted a batch that never came."""
    checkpoint["epoch"], checkpoint["loops"]["fit_loop"] = place["epoch"], place["fit_loop"]
    checkpoint["loader_state"] = [_fit_loop(checkpoint).get("combined_loader")]
    checkpoint["random_state"] = [_plain(place["generators"])]


def same_readers(trainer: L.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Whether as many ranks and loader processes read the data as when the checkpoint was saved."""
    return checkpoint.get("readers") == _readers(trainer)


def _hand_over(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Give the places of all readers to the data, and leave Lightning no place to go to.

    Raises:
        UserError: these data cannot go on with another number of readers.
    """
    theirs, ours = _words(checkpoint.get("readers")), _words(_readers(trainer))
    take_over = getattr(trainer.datamodule, "take_over", None)  # type: ignore[attr-defined]
    places = positions(checkpoint.get("loader_state"))
    if take_over is None or not places:
        raise UserError(
            f"the checkpoint is of a run with {theirs}, this run has {ours}; places in these data are kept per reader, "
            "so trainer.devices, trainer.num_nodes and data.num_workers must be as they were"
        )
    take_over(places)
    _fit_loop(checkpoint).pop("combined_loader")
    if trainer.is_global_zero:
        print(f"the data go on with {ours}, after {theirs}; no document is skipped or repeated", file=sys.stderr)


def _described(checkpoint: Path | None) -> str:
    """Name of a checkpoint, and the beginning of its manifest's sha256, which stands for all of its content."""
    if checkpoint is None:
        return "none"
    listed = hashlib.sha256(manifest(checkpoint) or b"").hexdigest()
    return f"{checkpoint.name} of manifest {listed[:12]}"


def _readers(trainer: L.Trainer) -> dict[str, int]:
    """How many read the data: devices, and loader processes of each."""
    return {"devices": trainer.world_size, "workers": getattr(trainer.datamodule, "num_workers", 0)}  # type: ignore[attr-defined]


def _words(readers: dict[str, int] | None) -> str:
    readers = readers or {}
    return f"{readers.get('devices')} device(s) and {readers.get('workers')} loader process(es) on each"


def _fit_loop(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return checkpoint["loops"]["fit_loop"]["state_dict"]


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's generators as plain values: nothing to unpickle."""
    return _plain(_generators())


def _generators() -> dict[str, Any]:
    """The state of all generators as their libraries give it."""
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _plain(generators: dict[str, Any]) -> dict[str, Any]:
    version, words, gauss = generators["python"]
    kind, keys, *rest = generators["numpy"]
    plain = {"python": [version, list(words), gauss], "numpy": [kind, [int(k) for k in keys], *rest]}
    return {**generators, **plain}


def set_random_state(state: dict[str, Any]) -> None:
    """Go on where `random_state` was called."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
