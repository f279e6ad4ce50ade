"""The places of readers in a source, handed over to another number of readers: nothing is skipped, nothing read twice.

What is special: reader r of R reads documents r, r + R, r + 2R, ... of an epoch's order, so all that R readers have
left is known from where each of them is. From the farthest of them on, the new readers share the documents in the same
way; the documents before it that nobody has read, and those that were being read, are dealt out first.
"""

from collections.abc import Sequence
from typing import Any

from neuralmem.data.faults import Faults
from neuralmem.errors import UserError


def hand_over(states: Sequence[dict[str, Any]], index: int, count: int, total: int | None) -> dict[str, Any]:
    """-> the position from which reader `index` of `count` goes on.

    Args:
        states: positions of all readers until now, in their order, as `PackedText.state_dict` gives them
        index: of the new reader
        count: of the new readers
        total: documents of the source; None: not known, as of a stream

    Raises:
        UserError: readers of a stream are in different passes, so that what is left of the earlier one is not known.

    Example:
        >>> faults = Faults().to_dict()
        >>> rest = {"yielded": 0, "cursors": [None], "faults": faults, "settings": {}}
        >>> two = [{"epoch": 0, "next": 6} | rest, {"epoch": 0, "next": 3} | rest]  # 0, 2, 4 and 1 are read
        >>> position = hand_over(two, 0, 1, total=9)
        >>> [number for _, number, _ in position["left"]], position["next"]
        ([3, 5], 6)
    """
    readers = len(states)
    nexts = [number if state["next"] is None else state["next"] for number, state in enumerate(states)]
    epoch = max(state["epoch"] for state in states)
    frontier = max(place for place, state in zip(nexts, states, strict=True) if state["epoch"] == epoch)
    left = [cursor for state in states for cursor in state["cursors"] if cursor is not None]
    left += [one for state in states for one in state.get("left", ())]
    for number, state in enumerate(states):
        for past in range(state["epoch"], epoch + 1):
            stop = frontier if past == epoch else total
            if stop is None:
                raise UserError(
                    f"the checkpoint is of {readers} readers (devices x num_workers) that are in different passes over "
                    "a stream; go on with as many"
                )
            start = nexts[number] if past == state["epoch"] else number
            left += [[past, place, 0] for place in range(start, stop, readers)]
    faults = Faults()
    for state in states if index == 0 else ():  # counted once
        faults.add(Faults.from_dict(state["faults"]))
    return {
        "epoch": epoch,
        "next": frontier + index,
        "yielded": sum(state["yielded"] for state in states) // count,
        "cursors": [],
        "left": sorted(left)[index::count],
        "faults": faults.to_dict(),
        "settings": states[0]["settings"],
    }


def positions(place: Any) -> list[dict[str, Any]]:
    """-> the positions of the data sets in the state of a `StatefulDataLoader`, a loader process after the other."""
    if isinstance(place, dict):
        if isinstance(found := place.get("dataset_state"), dict):
            return [found]
        workers = place.get("_worker_snapshots")
        keys = sorted(workers, key=lambda name: int(name.rpartition("_")[2])) if workers else list(place)
        return [one for key in keys for one in positions((workers or place)[key])]
    return [one for part in place for one in positions(part)] if isinstance(place, list) else []
