"""Who reads which part of a data set, and how long an endless one says it is."""

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
