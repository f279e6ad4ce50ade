"""Flash attention with a persistent prefix: the merge on the CPU's flash kernel, and the GPU rungs if there is one."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops.attention import _choose, attend, torch_flash
from neuralmem.ops.attention.call import prepare
from neuralmem.ops.attention.dense import visible
from neuralmem.ops.attention.merge import Kernel, merge, merged_attention
from tests.ops.attention_cases import assert_same, gradients, make

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: no CPU form of its kernels")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def masked_kernel(window: int | None, tokens: int, keys: int, dtype: torch.dtype) -> Kernel:
    """Torch's CPU flash attention as a Kernel: like the GPU's it returns a log-sum-exp that has no gradient."""
    blank = torch.zeros(1, keys, 1, 4, dtype=dtype)
    seen = visible(prepare(blank[:, keys - tokens :], blank, blank, window, (None, None), None, 10000.0))
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)
    aten = torch.ops.aten

    def forward(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        heads_first = (x.transpose(1, 2) for x in (q, k, v))
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(*heads_first, attn_mask=mask)
        return out.transpose(1, 2), lse

    def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, window: int | None) -> Any:
        heads_first = (x.transpose(1, 2) for x in (grad, q, k, v, out))
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(*heads_first, lse, 0.0, False, attn_mask=mask)
        return tuple(x.transpose(1, 2) for x in grads)

    return Kernel(forward, backward)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize(("window", "tokens", "cached"), [(4, 17, 0), (4, 9, 6), (None, 12, 3), (1, 5, 0)])
def test_merged_flash_is_dense(
    dtype: torch.dtype, atol: float, prefix: int, window: int | None, tokens: int, cached: int
) -> None:
    arguments = make(tokens, cached, prefix=prefix, dtype=dtype)
    kernel = masked_kernel(window, tokens, tokens + cached, dtype)

    def flash(q: Tensor, k: Tensor, v: Tensor, prefix: Any) -> Tensor:
        return merged_attention(kernel, prepare(q, k, v, window, (None, None), prefix, 10000.0))

    oracle = gradients(attend, arguments, window=window, backend="dense")
    assert_same(gradients(flash, arguments), oracle, atol)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize(("tokens", "cached"), [(1, 0), (17, 0), (300, 0), (1, 40), (64, 200), (300, 1)])
def test_cpu_flash_is_dense(prefix: int, tokens: int, cached: int) -> None:
    arguments = make(tokens, cached, prefix=prefix)
    ours = gradients(attend, arguments, window=None, backend="cpu_flash")
    assert_same(ours, gradients(attend, arguments, window=None, backend="dense"), 1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cpu_flash_is_dense_in_half_precision_too(dtype: torch.dtype) -> None:
    arguments = make(200, 30, prefix=2, dtype=dtype)
    ours = gradients(attend, arguments, window=None, backend="cpu_flash")
    theirs = gradients(attend, arguments, window=None, backend="dense")
    for mine, other in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, other, atol=2 * torch.finfo(dtype).eps, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("prefix", [0, 2])
def test_second_derivatives_of_cpu_flash_are_those_of_dense(prefix: int) -> None:
    arguments = make(6, 3, heads=1, prefix=prefix)
    tensors = [arguments[name][:1].requires_grad_() for name in "qkv"]
    tensors += [x.requires_grad_() for x in arguments["prefix"] or ()]

    def function(q: Tensor, k: Tensor, v: Tensor, *pair: Tensor) -> Tensor:
        return attend(q, k, v, window=None, prefix=pair or None, backend="cpu_flash")

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)
    q, k, v = (torch.randn(1, 130, 1, 2, dtype=torch.float64) for _ in range(3))

    def loss(k: Tensor, backend: str) -> Tensor:
        return attend(q, k, v, window=None, backend=backend).square().sum()

    found, true = (torch.autograd.functional.hvp(partial(loss, backend=name), k, v)[1] for name in ("auto", "dense"))
    torch.testing.assert_close(found, true)
    assert true.abs().max() > 0
    found, true = (torch.func.grad(partial(loss, backend=name))(k) for name in ("auto", "dense"))
    torch.testing.assert_close(found, true)


def test_cpu_flash_compiles_without_a_break() -> None:
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    arguments = make(140, 5, prefix=2)
    ours = gradients(compiled, arguments, window=None, backend="cpu_flash")
    assert_same(ours, gradients(attend, arguments, window=None, backend="dense"), 1e-11)


def test_full_attention_on_a_cpu_is_flash_where_it_can_be() -> None:
    def chosen(tokens: int, cached: int = 0, document: Tensor | None = None, window: int | None = None) -> str:
        call = prepare(*(make(tokens, cached)[name] for name in "qkv"), window, (None, document), None, 10000.0)
        return _choose(call, "auto")

    assert chosen(128) == "cpu_flash"
    assert chosen(127) == "dense"  # few scores
    assert chosen(1, 128 * 128) == "cpu_flash"
    assert chosen(128, document=torch.zeros(2, 128, dtype=torch.long)) == "dense"
    assert chosen(128, window=128) == "dense"
    assert chosen(129, window=128) == "banded"


def test_merge_is_softmax_over_the_union() -> None:
    scores, values = torch.randn(2, 3, 7, 11, dtype=torch.float64), torch.randn(2, 3, 11, 4, dtype=torch.float64)
    scores[0, 0, 0, :5] = -torch.inf  # an empty first set

    def part(keys: slice) -> tuple[Tensor, Tensor]:
        out = scores[..., keys].softmax(-1).nan_to_num() @ values[:, :, keys]
        return out.transpose(1, 2), scores[..., keys].logsumexp(-1)

    out, lse = merge(*part(slice(0, 5)), *part(slice(5, 11)))
    torch.testing.assert_close(out.transpose(1, 2), scores.softmax(-1) @ values)
    torch.testing.assert_close(lse, scores.logsumexp(-1))
    nothing = torch.full((1, 1, 1), -torch.inf), torch.zeros(1, 1, 1, 2)
    assert (merge(nothing[1], nothing[0], nothing[1], nothing[0])[0] == 0).all()


def test_torch_flash_fits_the_operators_of_this_torch() -> None:
    # The meta device has the operators' signatures and shapes: all that can be checked of them without a GPU.
    q, k = torch.empty(2, 5, 3, 8, device="meta"), torch.empty(2, 9, 3, 8, device="meta")
    out, lse = torch_flash.KERNEL.forward(q, k, k, 4)
    assert (out.shape, lse.shape) == (q.shape, (2, 3, 5))
    grads = torch_flash.KERNEL.backward(out, q, k, k, out, lse, 4)
    assert [x.shape for x in grads] == [q.shape, k.shape, k.shape]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("backend", ["flash_attn", "torch_flash", "flex"])
@pytest.mark.parametrize("window", [1, 64, None])
@pytest.mark.parametrize("prefix", [0, 4])
def test_gpu_rung_errs_like_half_precision(backend: str, window: int | None, prefix: int) -> None:
    shape, keys = (2, 300, 4, 64), (2, 340, 4, 64)
    exact = [torch.randn(s, device="cuda").bfloat16().double() for s in (shape, keys, keys)]
    pair = tuple(torch.randn(prefix, 4, 64, device="cuda").bfloat16().double() for _ in range(2)) if prefix else None

    def run(dtype: torch.dtype, backend: str) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in (*exact, *(pair or ()))]
        q, k, v, *rest = leaves
        out = attend(q, k, v, window=window, prefix=tuple(rest) or None, backend=backend)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
        return [out, *torch.autograd.grad((out * weight).sum(), leaves)]

    try:
        ours = run(torch.bfloat16, backend)
    except UserError as error:
        pytest.skip(reason=f"{backend} is not on this machine or cannot serve the call: {error}")
    for mine, plain, true in zip(ours, run(torch.bfloat16, "dense"), run(torch.float64, "dense"), strict=True):
        allowed = 3 * (plain.double() - true).abs().max() + 1e-3
        assert (mine.double() - true).abs().max() <= allowed


@pytest.mark.gpu
@needs_gpu
def test_gpu_flex_with_documents_and_holes() -> None:
    document = torch.cat([torch.full((2, 20), -1), torch.zeros(2, 100), torch.ones(2, 180)], 1).long().cuda()
    leaves = [torch.randn(2, 300, 4, 32, device="cuda", requires_grad=True) for _ in range(3)]
    leaves += [torch.randn(4, 4, 32, device="cuda", requires_grad=True) for _ in range(2)]
    results = []
    for backend in ("flex", "dense"):
        q, k, v, *pair = leaves
        out = attend(q, k, v, window=64, key_document=document, prefix=tuple(pair), backend=backend)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=0.02, rtol=0.02)
