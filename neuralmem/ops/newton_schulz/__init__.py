"""Newton-Schulz: the singular values of a matrix all pushed towards 1, by matrix products alone.

Muon's iteration, which ATLAS (2505.23735), LaCT (2505.23884) and M3 (Nested Learning, 2512.24695, algorithm 1)
apply to a memory's surprise or a momentum. Special: inside the model, so it is differentiable as often as wanted and a
matrix of zeros, which a masked or empty chunk leaves, gives zeros with a gradient of zero. README.md derives it.
"""

import torch

from neuralmem.errors import UserError, nearest
from neuralmem.ops.autocast import without_autocast
from neuralmem.ops.checks import check_count, check_floating
from neuralmem.typing import Tensor

# (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, one triple per step.
QUINTIC = (3.4445, -4.7750, 2.0315)  # Muon's, the same at every step
FIVE = (  # of LaCT's code, each made for the spectrum that the one before it leaves
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
KINDS = ("quintic", "five")


def newton_schulz(x: Tensor, coefficients: str = "quintic", steps: int = 5, eps: float = 1e-7) -> Tensor:
    """Replace the singular values of each matrix by about 1: U S V^T -> U f(S / |S|) V^T, |S| the Frobenius norm.

    The result does not depend on the scale of x. f is within 0.68 and 1.21 ("quintic") or 0.97 and 1.15 ("five") for
    singular values of at least 3/1000 of the norm, and about 490 times what they are of it for smaller ones. Computed
    in promote_types(dtype, float32), on the shorter side.

    Args:
        x: [..., m, n], each matrix for itself
        coefficients: "quintic", Muon's triple at every step, or "five", the five triples of LaCT's code
        steps: iterations; of "five" the first ones, at most 5
        eps: a matrix whose Frobenius norm is not above this counts as zero and gives zero, with gradient zero

    Returns:
        [..., m, n] in x's dtype.

    Raises:
        UserError: a shape, dtype or value that does not fit, naming the argument.

    Example:
        >>> x = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> newton_schulz(x, "five").round(decimals=2)
        tensor([[1.0200, 0.0000, 0.0000],
                [0.0000, 1.0100, 0.0000]])
    """
    triples = _triples(coefficients, steps)
    check_floating(x=x)
    if x.ndim < 2:
        raise UserError(f"x has shape {list(x.shape)}; it must be [..., m, n]")
    if eps < 0:
        raise UserError(f"eps is {eps}; it must not be negative")
    tall = x.shape[-2] > x.shape[-1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    with without_autocast(x.device.type):
        y = _iterate(_normalise(wide.mT if tall else wide, eps), triples)
    return (y.mT if tall else y).to(x.dtype)


def _triples(coefficients: str, steps: int) -> tuple[tuple[float, float, float], ...]:
    check_count("steps", steps)
    if coefficients not in KINDS:
        hint = nearest(coefficients, KINDS)
        raise UserError(f"coefficients is {coefficients!r}; it must be one of {', '.join(KINDS)}{hint}")
    if coefficients == "quintic":
        return (QUINTIC,) * steps
    if steps > len(FIVE):
        raise UserError(f"steps is {steps}; with coefficients='five' it must be at most {len(FIVE)}")
    return FIVE[:steps]


def _normalise(x: Tensor, eps: float) -> Tensor:
    """x over its Frobenius norm, or zero. No branch divides by zero: the gradient of the one not taken is added too."""
    square = x.square().sum((-2, -1), keepdim=True)
    zero = square <= eps**2
    return torch.where(zero, 0, x / torch.where(zero, 1, square).sqrt())


def _iterate(x: Tensor, triples: tuple[tuple[float, float, float], ...]) -> Tensor:
    for a, b, c in triples:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
