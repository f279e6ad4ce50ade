"""Nested values as JSON and tensors: the same value comes back, and what would not is refused where it is saved."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch

from neuralmem.errors import UserError
from neuralmem.training.plain import pack, unpack


def again(value: object) -> object:
    tree, tensors = pack(value)
    return unpack(json.loads(json.dumps(tree)), tensors)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(2**80),
        0.1 + 0.2,
        float("inf"),
        "text",
        [],
        (),
        {},
        {1: {"a": (1, [2, (3,)])}, "b": None, 2.5: [], False: ()},
        {"$tensor": "a", "$tuple": [1]},
        {"dtype": torch.bfloat16},
        [[[{"a.b": 1}, {"a": {"b": 2}}]]],
    ],
)
def test_plain_values_come_back(value: object) -> None:
    found = again(value)
    assert found == value
    assert str(found) == str(value)


def test_tensors_come_back_to_the_bit() -> None:
    x = torch.randn(4, 6)
    given = {
        "a.b": x,
        "a": {"b": x.T, "c": x[:, 1]},
        "same": [x, x],
        "kinds": [x.bfloat16(), x > 0, torch.tensor(3), torch.zeros(0, 2), torch.get_rng_state()],
        "nan": torch.tensor([float("nan")]).view(torch.int32),
    }
    tree, tensors = pack(given)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel()}) == 10
    found = unpack(tree, tensors)
    pairs = [
        (found["a.b"], x),
        (found["a"]["b"], x.T),
        (found["a"]["c"], x[:, 1]),
        *((same, x) for same in found["same"]),
    ]
    for one, other in [*pairs, *zip(found["kinds"], given["kinds"], strict=True), (found["nan"], given["nan"])]:
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_kinds_of_mappings_and_numbers_become_plain() -> None:
    assert again(OrderedDict(a=np.float64(0.5), b=np.int64(3))) == {"a": 0.5, "b": 3}


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", lambda: 0, np.zeros(2)])
def test_what_would_not_come_back_is_refused(value: object) -> None:
    with pytest.raises(UserError, match=r"^callbacks\.odd\.0 of the run's state is a \w+; it must be"):
        pack({"callbacks": {"odd": [value]}})
    with pytest.raises(UserError, match="has a tuple as a key"):
        pack({"a": {(1, 2): 3}})


def test_a_tensor_that_is_missing_is_named() -> None:
    tree, _ = pack({"a": torch.ones(1)})
    with pytest.raises(UserError, match="tensor 'a' is missing"):
        unpack(tree, {})
    with pytest.raises(UserError, match="'load' is no dtype"):
        unpack({"$dtype": "load"}, {})
