"""Several optimizers that act as one: matrices learn by one rule, everything else by AdamW.

Special: the groups and the state are the parts' own objects, not copies. A schedule, clipping, a checkpoint or a hook
that knows one optimizer therefore reaches all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer


class Together(Optimizer):
    """One optimizer made of several over different parameters.

    Args:
        parts: the optimizers, before their first step

    Example:
        >>> matrix, bias = torch.nn.Linear(4, 4).parameters()
        >>> both = Together([torch.optim.Muon([matrix], lr=1e-3), torch.optim.AdamW([bias], lr=2e-3)])
        >>> [group["lr"] for group in both.param_groups]
        [0.001, 0.002]
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = list(parts)
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state, first = self.param_groups[first:last], self.state, last

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every part; closure, where there is one, computes the loss and the gradients before them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state that `state_dict` returned; groups and state become new objects, so share them again."""
        super().load_state_dict(state_dict)
        self._share()
