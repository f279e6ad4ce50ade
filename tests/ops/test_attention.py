"""The attention ladder on the CPU: the oracle against a loop, every rung against the oracle, and the choice of one."""

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops import attention
from neuralmem.ops.attention import attend, banded, rotary_table, rotate
from tests.ops.attention_cases import assert_same, documents_for, gradients, make

WINDOWS = (1, 4, 19)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def lengths(window: int) -> list[int]:
    several_blocks = 2 * banded.SHORTEST_BLOCK + 5
    return sorted({0, 1, window - 1, window, window + 1, 3 * window + 5, several_blocks})


def loop(q: Tensor, k: Tensor, v: Tensor, window: int | None, document: Tensor | None, prefix: Any) -> Tensor:
    """The definition, one query at a time."""
    batch, tokens, heads, width = q.shape
    cached, out = k.shape[1] - tokens, torch.zeros_like(q)
    table = rotary_table(torch.arange(k.shape[1]), width, 10000.0, q.dtype)
    key, query = rotate(k, table), rotate(q, tuple(x[cached:] for x in table))
    for b in range(batch):
        for t in range(tokens):
            here = cached + t
            seen = range(max(0, here - (window or here + 1) + 1), here + 1)
            if document is not None:
                seen = [j for j in seen if document[b, j] == document[b, here] != -1]
            for n in range(heads):
                scores = [query[b, t, n] @ key[b, j, n] for j in seen]
                values = [v[b, j, n] for j in seen]
                if prefix is not None:
                    scores += [q[b, t, n] @ x for x in prefix[0][:, n]]
                    values += list(prefix[1][:, n])
                if scores:
                    out[b, t, n] = (torch.stack(scores) / width**0.5).softmax(0) @ torch.stack(values)
    return out


@pytest.mark.parametrize("window", [1, 4, None])
@pytest.mark.parametrize("cached", [0, 5])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("with_documents", [False, True])
def test_dense_is_the_definition(window: int | None, cached: int, prefix: int, with_documents: bool) -> None:
    arguments = make(9, cached, prefix=prefix)
    document = documents_for(9 + cached) if with_documents else None
    expected = loop(*(arguments[x] for x in "qkv"), window, document, arguments["prefix"])
    out = attend(**arguments, window=window, key_document=document, backend="dense")
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("with_documents", [False, True])
def test_banded_is_dense(window: int, prefix: int, heads: int, with_documents: bool) -> None:
    for tokens in lengths(window):
        for cached in (0, 1, window - 1, 2 * window + 3):
            arguments = make(tokens, cached, heads, prefix)
            document = documents_for(tokens + cached) if with_documents else None
            options = {"window": window, "key_document": document}
            ours = gradients(attend, arguments, **options, backend="banded")
            assert_same(ours, gradients(attend, arguments, **options, backend="dense"), 1e-12)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_mask_and_merge_are_dense(prefix: int, with_documents: bool) -> None:
    # The CPU runs flex uncompiled and forward only: this checks the mask function and the differentiable merge.
    for window, tokens, cached in ((1, 8, 0), (4, 17, 3), (None, 9, 6)):
        arguments = make(tokens, cached, prefix=prefix)
        options = {"window": window, "key_document": documents_for(tokens + cached) if with_documents else None}
        ours = attend(**arguments, **options, backend="flex")
        torch.testing.assert_close(ours, attend(**arguments, **options, backend="dense"), atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", ["dense", "banded"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_gradcheck_twice(backend: str, prefix: int) -> None:
    arguments = make(6, 3, heads=1, prefix=prefix)
    tensors = [arguments[name][:1].requires_grad_() for name in "qkv"]
    tensors += [x.requires_grad_() for x in arguments["prefix"] or ()]
    document = torch.tensor([[-1, 0, 0, 0, 0, 1, 1, 1, -1]])

    def function(q: Tensor, k: Tensor, v: Tensor, *pair: Tensor) -> Tensor:
        return attend(q, k, v, window=3, key_document=document, prefix=pair or None, backend=backend)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", ["dense", "banded"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_row_without_keys_gives_prefix_or_zeros(backend: str, prefix: int) -> None:
    arguments = make(9, 3, prefix=prefix)
    for name in "kv":
        arguments[name][0] = torch.nan  # what an empty slot holds must not matter
    document = torch.zeros(2, 12, dtype=torch.long)
    document[0] = -1
    out, grads = gradients(attend, arguments, window=4, key_document=document, backend=backend)
    assert all(torch.isfinite(x).all() for x in (out, *grads))
    if prefix:
        key, value = arguments["prefix"]
        weights = (torch.einsum("tnd,pnd->tnp", arguments["q"][0], key) / 2).softmax(-1)
        torch.testing.assert_close(out[0], torch.einsum("tnp,pnd->tnd", weights, value))
    else:
        assert (out[0] == 0).all()
    assert (grads[1][0] == 0).all()
    assert (out[1] != 0).all()


@pytest.mark.parametrize(("backend", "window"), [("dense", None), ("dense", 4), ("banded", 4)])
def test_causal_and_within_the_window(backend: str, window: int | None) -> None:
    arguments = make(21, 2, prefix=2)
    out = attend(**arguments, window=window, backend=backend)
    for token in (0, 3, 4, 16, 20):
        changed = {name: x.clone() if name in "qkv" else x for name, x in arguments.items()}
        changed["q"][:, token] += 1
        for name in "kv":
            changed[name][:, 2 + token] += 1
        after = attend(**changed, window=window, backend=backend)
        moved = (after != out).flatten(2).any(2).any(0)
        last = 20 if window is None else min(20, token + window - 1)
        assert moved.nonzero().flatten().tolist() == list(range(token, last + 1))


@pytest.mark.parametrize("backend", ["dense", "banded"])
def test_reading_in_pieces_is_reading_at_once(backend: str) -> None:
    arguments = make(30, 0, prefix=2)
    whole = attend(**arguments, window=5, backend=backend)
    pieces, start = [], 0
    for size in (1, 1, 7, 3, 18):
        keys = slice(max(0, start - 4), start + size)
        q, (k, v) = arguments["q"][:, start : start + size], (arguments[name][:, keys] for name in "kv")
        pieces.append(attend(q, k, v, window=5, prefix=arguments["prefix"], backend=backend))
        start += size
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", ["dense", "banded"])
def test_half_precision_is_as_close_as_its_inputs(backend: str) -> None:
    exact = make(40, 6, prefix=2)
    half = {name: tuple(y.bfloat16() for y in x) if name == "prefix" else x.bfloat16() for name, x in exact.items()}
    wide = {name: tuple(y.float() for y in x) if name == "prefix" else x.float() for name, x in half.items()}
    out = attend(**half, window=5, backend=backend)
    assert out.dtype == torch.bfloat16
    expected = attend(**wide, window=5, backend=backend)
    assert expected.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.02)


def test_autocast_keeps_scores_in_float32() -> None:
    arguments = make(40, 0, prefix=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(**arguments, window=5)
    half = {name: tuple(y.bfloat16() for y in x) if name == "prefix" else x.bfloat16() for name, x in arguments.items()}
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attend(**half, window=5))


def test_compiles_without_a_break() -> None:
    arguments = make(21, 2, prefix=2)
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**arguments, window=4), attend(**arguments, window=4))


def test_auto_on_the_cpu(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_announced", set())
    arguments = make(9)
    with caplog.at_level(logging.INFO, logger="neuralmem"):
        for window in (4, 4, 9, None):
            attend(**arguments, window=window)
    assert [x.getMessage().split()[1] for x in caplog.records] == ["banded", "dense", "dense"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"backend": "banded", "window": None},
            r"attention\.backend is 'banded', which cannot serve this call: it needs a window",
        ),
        ({"backend": "torch_flash"}, r"attention\.backend is 'torch_flash', .* needs a CUDA device, got cpu"),
        ({"backend": "flash_attn"}, r"attention\.backend is 'flash_attn', .*(not installed|CUDA|load)"),
        ({"backend": "band"}, r"attention\.backend is 'band'; it must be one of auto, .*; did you mean 'banded'"),
        ({"window": 0}, r"attention\.window is 0; it must be at least 1 or None"),
        ({"k": torch.zeros(2, 8, 3, 4)}, r"k has shape \[2, 8, 3, 4\]; it must be \[2, K >= 9, 3, 4\]"),
        ({"v": torch.zeros(2, 9, 3, 2)}, r"v has shape \[2, 9, 3, 2\]; it must be \[2, 9, 3, 4\]"),
        ({"k": torch.zeros(2, 9, 3, 4)}, r"k has dtype torch.float32; it must be torch.float64 like q"),
        ({"prefix": (torch.zeros(2, 3, 5),) * 2}, r"prefix key has shape \[2, 3, 5\]; it must be \[P, 3, 4\]"),
        ({"key_document": torch.zeros(2, 8)}, r"key_document has shape \[2, 8\]; it must be \[2, 9\]"),
        ({"query_document": torch.zeros(2, 9)}, r"query_document is given without key_document"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        attend(**{**make(9), "window": 4, **options})


def test_flex_with_gradients_on_the_cpu_is_refused() -> None:
    arguments = make(9)
    arguments["q"].requires_grad_()
    with pytest.raises(UserError, match="no backward on the CPU"):
        attend(**arguments, window=4, backend="flex")
