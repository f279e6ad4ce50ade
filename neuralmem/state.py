"""What a model has read, as a value: passed in, returned, never stored on a module, never changed in place.

Special: a state is a frozen dataclass of tensors with the batch first, so that cloning, moving, selecting rows and
saving are written once, here, for every layer and rule. Files are safetensors with a sha256; nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from neuralmem import durable
from neuralmem.errors import UserError
from neuralmem.typing import Tensor

FORMAT = "neuralmem-state-1"
S = TypeVar("S", bound="State")


@dataclass(frozen=True)
class State:
    """Base of every state. Fields are tensors [B, ...], tuples of them, other states, tuples of states, or None.

    The state of a model also has `position` Int[B], the tokens its document has had so far, and can be saved.
    """

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same state with `change` applied to every tensor."""
        return replace(self, **{f.name: _map(getattr(self, f.name), change) for f in self._data()})

    def items(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its dotted name, in a fixed order."""
        for f in self._data():
            yield from _items(getattr(self, f.name), f"{prefix}{f.name}")

    @classmethod
    def _data(cls) -> list[Any]:
        return [f for f in fields(cls) if not f.metadata.get("identity")]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(x.numel() * x.element_size() for _, x in self.items())

    def clone(self) -> Self:
        """A copy that shares no memory: reading on in one does not touch the other."""
        return self.map(torch.clone)

    def detach(self) -> Self:
        """The same values without their history: truncated backpropagation through time."""
        return self.map(torch.Tensor.detach)

    def to(self, device: torch.device | str) -> Self:
        """The same values on another device."""
        return self.map(lambda x: x.to(device))

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """Samples `rows` in the given order, repeats allowed (beam search)."""
        return self.map(lambda x: x[torch.as_tensor(rows, device=x.device)])

    def without_context(self) -> Self:
        """The same state without attention windows and convolution tails, which are those of a fresh state.

        What a memory has learned stays, and so do its writes that wait for the end of a chunk. Of a whole model ask
        `CausalLM.memory_only`, which also ends what only its layers can end.
        """
        return replace(self, **{f.name: _without_context(getattr(self, f.name)) for f in self._data()})

    def save(self, path: str | Path) -> None:
        """Write the state of a model to a safetensors file, whole or not at all.

        Raises:
            UserError: the state is that of a layer, not of a model, or its model no longer exists.
        """
        identity = self.identity() if hasattr(self, "identity") else None
        if identity is None:
            raise UserError("state has no model to be saved with; save the state that the model returned")
        tensors = {name: x.detach().cpu().contiguous().clone() for name, x in self.items()}
        metadata = {"format": FORMAT, "sha256": _digest(tensors, identity), **identity}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_by(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path, model: Any) -> "State":
        """Read a state that `model` can go on from.

        Args:
            path: a file written by `save`
            model: the model that wrote it, or one with the same config and weights

        Raises:
            UserError: no such file, a damaged file, or the state of another model; it says what differs.
        """
        tensors, metadata = _read(Path(path))
        _same_model(path, metadata, model.identity())
        template = model.init_state(len(tensors.get("position", ())))
        check_layout(f"state {path}", tensors, template)
        found = iter([tensors[name].to(x.device) for name, x in template.items()])
        return template.map(lambda _: next(found))


def check_layout(source: str, tensors: Mapping[str, Tensor], template: State) -> None:
    """Refuse tensors that are not named, shaped and typed like a fresh state of the same batch size.

    Raises:
        UserError: naming the source and the first tensor that does not fit.
    """
    expected = dict(template.items())
    if names := sorted(expected.keys() ^ tensors.keys()):
        raise UserError(f"{source}: tensor {names[0]!r} is {'missing' if names[0] in expected else 'unknown'}")
    for name, x in expected.items():
        given = tensors[name]
        # An axis that is empty in a fresh state is one that grows: the cache of full attention.
        same = given.ndim == x.ndim and all(a in (b, 0) for a, b in zip(x.shape, given.shape, strict=True))
        if not same or given.dtype != x.dtype:
            raise UserError(
                f"{source}: {name} is {given.dtype}{list(given.shape)}; the model has {x.dtype}{list(x.shape)}"
            )


def choose(rows: Tensor, yes: S, no: S) -> S:
    """Per sample one of two states. rows: Bool [B]."""
    other = iter([x for _, x in no.items()])
    return yes.map(lambda x: torch.where(rows.view(-1, *[1] * (x.ndim - 1)), x, next(other)))


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, State):
        return value.map(change)
    if isinstance(value, tuple):
        return tuple(_map(x, change) for x in value)
    return value


def _without_context(value: Any) -> Any:
    if isinstance(value, State):
        return value.without_context()
    if isinstance(value, tuple):
        return tuple(map(_without_context, value))
    return value


def _items(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, State):
        yield from value.items(f"{name}.")
    elif isinstance(value, tuple):
        for i, x in enumerate(value):
            yield from _items(x, f"{name}.{i}")


def _digest(tensors: dict[str, Tensor], identity: Mapping[str, str | None]) -> str:
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        digest.update(x.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise UserError(f"state {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"state {path} cannot be read as safetensors: {error}") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a neuralmem state: format is {metadata.get('format')!r}, not {FORMAT!r}")
    identity = {name: text for name, text in metadata.items() if name not in ("format", "sha256")}
    if _digest(tensors, identity) != metadata.get("sha256"):
        raise UserError(f"state {path} is damaged: its content does not match its sha256")
    return tensors, metadata


def _same_model(path: str | Path, theirs: dict[str, str], ours: dict[str, str]) -> None:
    if theirs.get("config") != ours["config"]:
        a, b = (_flat(json.loads(x or "{}")) for x in (theirs.get("config"), ours["config"]))
        differences = [
            f"{k} {a.get(k)!r} instead of {b.get(k)!r}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)
        ]
        raise UserError(f"state {path} is of another model: {', '.join(differences)}")
    if theirs.get("weights") != ours["weights"]:
        raise UserError(f"state {path} is of another model: same config, other weights")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
