"""Who reads which part of a data set, and how long an endless one says it is."""

import signal

from torch.utils.data import get_worker_info

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


def leave_signals_to_the_parent(worker: int) -> None:
    """For a loader process: a signal that reaches the whole group is for the trainer, which needs the batches until its
    step is done and then ends its readers."""
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
