"""Look at numbers inside a model while it runs, without changing it.

Special: nothing is stored on a module. Code that has something worth seeing calls `observe`; outside a `recording` that
is one comparison. Names are the module's path in the model, a slash, and what was observed: "layers.0.memory/theta".
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token

import torch
from torch import Tensor, nn

SHUT = 0.01  # a gate below this, or as near to 1, is saturated
_recorders: ContextVar[tuple["Recorder", ...]] = ContextVar("neuralmem_recorders", default=())


class Recorder:
    """Collects means per name; `means()` returns them as plain floats. Values per token are kept where asked for."""

    def __init__(
        self,
        model: nn.Module,
        attached: bool = False,
        only: str | None = None,
        per_token: bool = False,
        seen_as: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.attached, self.only, self.per_token, self.seen_as = attached, only, per_token, seen_as
        self.paths = {module: path for path, module in model.named_modules()}
        self.scope: list[str] = []
        self.values: dict[str, list[Tensor]] = defaultdict(list)
        self.parts: dict[str, list[Tensor]] = defaultdict(list)

    def blank(self) -> "Recorder":
        """Another that looks at the same in the same place, and has seen nothing."""
        other = copy.copy(self)
        other.scope, other.values, other.parts = list(self.scope), defaultdict(list), defaultdict(list)
        return other

    def means(self) -> dict[str, float]:
        """The mean of everything observed under each name."""
        return {name: torch.stack(values).mean().item() for name, values in self.values.items()}

    def tokens(self) -> dict[str, Tensor]:
        """What was observed of every token, Float[B, T] under each name that is one of tokens; means over heads.

        A token has one value where the text was read in one call from a fresh state. Else it may have several: what an
        unfinished chunk would write is observed again when that chunk is read on. Memories of one name follow upon
        each other, [B, memories * T].
        """
        return {name: torch.cat(parts, dim=1) for name, parts in self.parts.items()}

    def total(self, name: str) -> Tensor | None:
        """The sum over all modules of the means of what they observed as `name`, or None if none did."""
        found = [torch.stack(values).mean() for path, values in self.values.items() if path.split("/")[-1] == name]
        return torch.stack(found).sum() if found else None


@contextmanager
def recording(
    model: nn.Module,
    attached: bool = False,
    only: str | None = None,
    per_token: bool = False,
    seen_as: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Recorder]:
    """Record what `model` observes about itself inside the block.

    Args:
        model: its modules give the names
        attached: keep the gradient, to make what is observed part of a loss
        only: the one name that is wanted, if not all are: what costs something to see is then not computed
        per_token: keep what is observed of every token too, for `Recorder.tokens`
        seen_as: what to make of every value before the mean is taken

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with recording(layer) as record, inside(layer):
        ...     observe("size", torch.tensor([1.0, 3.0]))
        >>> record.means()
        {'/size': 2.0}
    """
    recorder = Recorder(model, attached, only, per_token, seen_as)
    token = _recorders.set((*_recorders.get(), recorder))
    try:
        yield recorder
    finally:
        _recorders.reset(token)


class Repeating(AbstractContextManager):
    """A context in which what runs is observed as it is now, and what is seen is dropped: for computing again, also
    several times."""

    def __init__(self) -> None:
        self._as_now = tuple(r.blank() for r in _recorders.get())
        self._tokens: list[Token] = []

    def __enter__(self) -> None:
        self._tokens.append(_recorders.set(tuple(r.blank() for r in self._as_now)))

    def __exit__(self, *_: object) -> None:
        _recorders.reset(self._tokens.pop())


def twice() -> tuple[AbstractContextManager, AbstractContextManager]:
    """For `checkpoint(context_fn=...)`: what is observed is part of the graph, so the second time it has to be observed
    as well, by nobody."""
    return nullcontext(), Repeating()


@contextmanager
def inside(module: nn.Module) -> Iterator[None]:
    """Say which module the observations of this block belong to."""
    recorders = _recording()
    for recorder in recorders:
        recorder.scope.append(recorder.paths.get(module, type(module).__name__))
    try:
        yield
    finally:
        for recorder in recorders:
            recorder.scope.pop()


def active(name: str | None = None, *, attached: bool = False) -> bool:
    """Whether anybody is recording: worth asking before computing something only to observe it.

    Args:
        name: recording this
        attached: recording it with its gradient
    """
    return any((name is None or r.only in (None, name)) and (r.attached or not attached) for r in _recording())


def observe(name: str, value: Tensor, *, tokens: int | None = None) -> None:
    """Record the mean of `value` under `name`, for everybody who is recording.

    Args:
        name: what it is
        value: any shape; the batch first where there are tokens
        tokens: the axis of `value` that counts tokens, if one does
    """
    if not value.numel():
        return
    for recorder in _recording():
        # Outside every module is where a checkpointed chunk is computed again: it was seen before.
        if recorder.scope and recorder.only in (None, name):
            seen = value if recorder.attached else value.detach()
            seen = recorder.seen_as(seen) if recorder.seen_as else seen
            where = f"{recorder.scope[-1]}/{name}"
            recorder.values[where].append(seen.float().mean())
            if recorder.per_token and tokens is not None:
                recorder.parts[where].append(seen.float().movedim(tokens, 1).flatten(2).mean(-1))


def observe_saturation(name: str, gate: Tensor) -> None:
    """Record which share of a gate is so near 0 or 1 that it hardly learns, under the name with "_saturated" behind it.

    Args:
        name: of the gate
        gate: sigmoids, before anything else is done to them
    """
    if active(f"{name}_saturated"):
        gate = gate.detach()
        observe(f"{name}_saturated", ((gate < SHUT) | (gate > 1 - SHUT)).float())


def _recording() -> tuple[Recorder, ...]:
    """Who is recording; nobody while compiling, since a look at a ContextVar breaks the graph."""
    return () if torch.compiler.is_compiling() else _recorders.get()
