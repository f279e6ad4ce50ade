"""What was wrong with the documents of a run, said when it ends or is stopped: how many were empty, unreadable, huge or
not UTF-8. With several devices an error of one of them alone ends the run without.

Special: counted by whoever reads, in loader processes too, kept with the place in the data, and so of the whole run,
however often it was resumed. Counts are of documents read, those read again in a later epoch included.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as L

from neuralmem.data.faults import KINDS, Faults
from neuralmem.training.ranks import gather


class Documents(L.Callback):
    """Add up all readers' counts at the end: a line where something was wrong, numbers in the log."""

    def __init__(self) -> None:
        self.began = self.said = False

    def on_train_batch_start(self, *args: Any) -> None:
        self.began = True  # before that there may be no readers, and asking for their places would start them

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = self._say(trainer, pl_module)
        found = {f"{kind}_documents": float(total.counts[kind]) for kind in KINDS if kind in total.counts}
        for logger in trainer.loggers if found else ():
            logger.log_metrics(found, step=trainer.global_step)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # All devices obey a signal together; what else goes wrong may have happened to one of them alone.
        if self.began and not self.said and (trainer.world_size == 1 or isinstance(exception, SystemExit)):
            self._say(trainer, pl_module)

    def _say(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Faults:
        self.said = True
        total, loader = Faults(), trainer.fit_loop._combined_loader
        for counts in gather(trainer, list(counted(loader and loader._state_dicts()))):
            for one in counts:
                total.add(Faults.from_dict(one))
        if line := total.line():
            pl_module.print(f"training data: {line}")
        return total


def counted(state: Any) -> Iterator[dict[str, Any]]:
    """Every reader's counts in the state of a loader.

    Example:
        >>> state = {"workers": [{"place": 3, "faults": {"documents": 9, "counts": {}, "first": {}}}, None]}
        >>> [one["documents"] for one in counted(state)]
        [9]
    """
    if isinstance(state, Mapping):
        for name, value in state.items():
            if name == "faults" and isinstance(value, Mapping):
                yield dict(value)
            else:
                yield from counted(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from counted(value)
