"""Nested values as JSON and tensors: what lets a checkpoint be read without running anything from it.

Special: tuples, dictionaries with keys other than text, and dtypes come back as what they were, tensors to the bit.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralmem.errors import UserError

TENSOR, TUPLE, ITEMS, DTYPE = "$tensor", "$tuple", "$items", "$dtype"


def pack(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """Split a value into a tree that JSON can hold and the tensors that it names.

    Args:
        value: nested mappings, lists and tuples of tensors, numbers, texts, dtypes and None

    Raises:
        UserError: it holds something else; the message says where.

    Example:
        >>> tree, tensors = pack({"step": 3, "state": {0: {"m": torch.ones(2)}}, "betas": (0.9, 0.95)})
        >>> tree["betas"], tree["state"]
        ({'$tuple': [0.9, 0.95]}, {'$items': [[0, {'m': {'$tensor': 'state.0.m'}}]]})
        >>> unpack(tree, tensors)
        {'step': 3, 'state': {0: {'m': tensor([1., 1.])}}, 'betas': (0.9, 0.95)}
    """
    tensors: dict[str, Tensor] = {}
    return _pack(value, "", tensors), tensors


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `pack` was given.

    Raises:
        UserError: the tree names a tensor or a dtype that is not there.
    """
    if isinstance(tree, list):
        return [unpack(x, tensors) for x in tree]
    if not isinstance(tree, dict):
        return tree
    kind: str
    inner: Any
    kind, inner = next(iter(tree.items()), ("", ()))
    if kind == TENSOR:
        if inner not in tensors:
            raise UserError(f"tensor {inner!r} is missing")
        return tensors[inner]
    if kind == TUPLE:
        return tuple(unpack(x, tensors) for x in inner)
    if kind == ITEMS:
        return {key: unpack(x, tensors) for key, x in inner}
    if kind == DTYPE:
        dtype = getattr(torch, inner, None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"{inner!r} is no dtype")
        return dtype
    return {key: unpack(x, tensors) for key, x in tree.items()}


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()  # a file has no two tensors in one memory
        return {TENSOR: name}
    if isinstance(value, Mapping):
        return _pack_mapping(value, path, tensors)
    if isinstance(value, list | tuple):
        items = [_pack(x, f"{path}.{i}", tensors) for i, x in enumerate(value)]
        return items if isinstance(value, list) else {TUPLE: items}
    if isinstance(value, torch.dtype):
        return {DTYPE: str(value).removeprefix("torch.")}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"{path} of the run's state is a {type(value).__name__}; it must be a tensor or a plain value")


def _pack_mapping(value: Mapping[Any, Any], path: str, tensors: dict[str, Tensor]) -> Any:
    items = [(key, _pack(x, f"{path}.{key}" if path else str(key), tensors)) for key, x in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
        return dict(items)
    if odd := [key for key, _ in items if not isinstance(key, str | int | float | bool)]:
        raise UserError(f"{path} of the run's state has a {type(odd[0]).__name__} as a key; it must be a plain value")
    return {ITEMS: [[key, x] for key, x in items]}
