"""Products of forget factors over every range of a chunk, which every chunked op needs."""

import torch

from neuralmem.typing import Tensor


def decay_products(x: Tensor) -> Tensor:
    """Products over a range: out[t, s] = x[s+1] ... x[t], 1 on the diagonal, 0 above. [..., C] -> [..., C, C].

    A masked cumulative product rather than a ratio of two: finite and exact when a factor is 0 or the product
    underflows. What is smaller than the root of the smallest normal number (1e-19 in float32) becomes 0: it has no
    weight beside the 1 on the diagonal, and its products would be denormal, which processors compute a hundred times
    slower.

    Example:
        >>> decay_products(torch.tensor([5.0, 0.0, 3.0]))
        tensor([[1., 0., 0.],
                [0., 1., 0.],
                [0., 3., 1.]])
    """
    below = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril(-1)
    products = torch.where(below, x[..., :, None], torch.ones_like(x[..., :1, None])).cumprod(-2).tril()
    tiny = torch.where(products.abs() < torch.finfo(x.dtype).tiny ** 0.5, products, 0)
    return products - tiny.detach()  # detached: a factor of exactly 0 still has a gradient
