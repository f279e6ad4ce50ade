"""Who reads which part of a data set, and how long an endless one says it is."""

import signal
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from torch.utils.data import get_worker_info

from neuralmem.errors import UserError

ENDLESS = 10**12  # Lightning reads one batch ahead, and resumes wrongly, where a dataset has no length


def reader(shard: tuple[int, int]) -> tuple[int, int]:
    """(index, count) of this reader: devices times the loader processes of each.

    Args:
        shard: (index, count) of this device among all

    Example:
        >>> reader((2, 4))  # not in a loader process
        (2, 4)
    """
    worker = get_worker_info()
    index, count = (worker.id, worker.num_workers) if worker else (0, 1)
    return shard[0] * count + index, shard[1] * count


def refuse_changed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a saved place in data that are not what they were: documents would be read twice or never.

    Args:
        saved: what the place hangs on, by name, as it was; what was not saved counts as unchanged
        now: the same as it is; of a list of lines the first that differs is shown

    Example:
        >>> refuse_changed({"seed": 0}, {"seed": 1})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        neuralmem.errors.UserError: data.seed has changed since the checkpoint was saved: it was 0, it is 1; ...
    """
    for name, new in now.items():
        if (old := saved.get(name, new)) == new:
            continue
        if isinstance(old, list) and isinstance(new, list):
            old, new = next(pair for pair in zip_longest(old, new, fillvalue="nothing") if pair[0] != pair[1])
        raise UserError(
            f"data.{name} has changed since the checkpoint was saved: it was {old}, it is {new}; resume with what it "
            "was, or begin anew in another --run"
        )


def leave_signals_to_the_parent(worker: int) -> None:
    """For a loader process: a signal that reaches the whole group is for the trainer, which needs the batches until its
    step is done and then ends its readers."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
