"""`newton_schulz` is the same polynomial on the singular values of an SVD, with a gradient everywhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from neuralmem.errors import UserError
from neuralmem.ops import newton_schulz

MUON = [(3.4445, -4.7750, 2.0315)] * 5
LACT = [  # papers.md 11.2
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
KINDS = {"quintic": MUON, "five": LACT}
each_kind = pytest.mark.parametrize("kind", KINDS)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polynomial(s: Tensor, triples: list[tuple[float, float, float]]) -> Tensor:
    for a, b, c in triples:
        s = a * s + b * s**3 + c * s**5
    return s


def by_svd(x: Tensor, triples: list[tuple[float, float, float]]) -> Tensor:
    """The definition: the polynomials, one after the other, of the singular values over the Frobenius norm."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = polynomial(s / s.norm(dim=-1, keepdim=True), triples)
    return u @ torch.diag_embed(s) @ vh


@each_kind
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 7), (7, 3), (1, 5), (2, 3, 4, 6), (2, 0, 3, 2)])
def test_it_is_the_polynomial_of_the_singular_values(kind: str, shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    torch.testing.assert_close(newton_schulz(x, kind), by_svd(x, KINDS[kind]), atol=1e-12, rtol=1e-12)


@each_kind
@pytest.mark.parametrize("steps", [1, 3])
def test_fewer_steps_are_the_first_ones(kind: str, steps: int) -> None:
    x = draw(3, 5)
    expected = by_svd(x, KINDS[kind][:steps])
    torch.testing.assert_close(newton_schulz(x, kind, steps), expected, atol=1e-12, rtol=1e-12)


@each_kind
def test_gradients_are_those_of_the_svd_and_of_finite_differences(kind: str) -> None:
    x = draw(2, 3, 4).requires_grad_()
    weight = draw(2, 3, 4, seed=1)
    ours, theirs = (
        torch.autograd.grad((weight * y).sum(), x)[0] for y in (newton_schulz(x, kind), by_svd(x, KINDS[kind]))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)

    def run(x: Tensor) -> Tensor:
        return newton_schulz(x, kind)

    tall = draw(4, 2).requires_grad_()
    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradcheck(run, (tall,))
    assert torch.autograd.gradgradcheck(run, (tall,))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_zero_gives_zero_and_a_gradient_of_zero_beside_what_is_not(kind: str, dtype: torch.dtype) -> None:
    x = draw(2, 3, 4).to(dtype)
    alone, x[1] = newton_schulz(x[0], kind), 0
    x.requires_grad_()
    y = newton_schulz(x, kind)
    torch.testing.assert_close(y[0], alone)
    assert not y[1].any()
    (first,) = torch.autograd.grad(y.square().sum() + y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    for gradient in (first, second):
        assert gradient.isfinite().all()
        assert gradient[0].any()
        assert not gradient[1].any()


def test_what_is_not_above_eps_counts_as_zero_and_what_is_does_not() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[0, 0] = 1e-3
    assert newton_schulz(x, eps=1e-4).norm() > 0.6
    assert not newton_schulz(x, eps=1e-3).any()
    assert newton_schulz(1e-30 * x, eps=0.0).norm() > 0.6
    assert not newton_schulz(0 * x, eps=0.0).any()


@each_kind
def test_equal_and_missing_singular_values_have_finite_gradients(kind: str) -> None:
    one = torch.outer(draw(3), draw(5, seed=1))
    for x in (one, torch.eye(4, dtype=torch.float64), torch.eye(3, 5, dtype=torch.float64)):
        x = x.clone().requires_grad_()
        y = newton_schulz(x, kind)
        (gradient,) = torch.autograd.grad((y * draw(*x.shape, seed=2)).sum(), x)
        assert gradient.isfinite().all()
        assert gradient.any()
        assert torch.autograd.gradcheck(lambda x: newton_schulz(x, kind), (x,), atol=1e-4)


@each_kind
@pytest.mark.parametrize("scale", [1e-5, 1e-2, 3.0, 1e8])
def test_the_scale_does_not_matter(kind: str, scale: float) -> None:
    x = draw(2, 4, 6)
    torch.testing.assert_close(newton_schulz(scale * x, kind), newton_schulz(x, kind), atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(newton_schulz(scale * x[:1], kind), newton_schulz(x[:1], kind), atol=1e-11, rtol=1e-11)


@each_kind
def test_a_matrix_knows_nothing_of_its_batch_and_is_transposed_with_its_input(kind: str) -> None:
    x = draw(2, 3, 5, 2)
    y = newton_schulz(x, kind)
    torch.testing.assert_close(y[1, 2], newton_schulz(1e3 * x[1, 2], kind), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(y.mT, newton_schulz(x.mT, kind), atol=1e-12, rtol=1e-12)


MEASURED = {  # README.md: least and largest over five matrices
    "quintic": {
        "median": (0.79, 0.86),
        "largest": (1.14, 1.20),
        "smallest": (0.04, 0.38),
        "cosine": (0.978, 0.983),
        "size": (0.87, 0.88),
    },
    "five": {
        "median": (0.99, 1.00),
        "largest": (1.10, 1.14),
        "smallest": (0.04, 0.38),
        "cosine": (0.993, 0.997),
        "size": (0.99, 1.00),
    },
}


@each_kind
def test_the_spectra_of_the_readme(kind: str) -> None:
    measures: dict[str, Callable[[Tensor], float]] = {
        "median": lambda s: float(s.median()),
        "largest": lambda s: float(s.max()),
        "smallest": lambda s: float(s.min()),
        "size": lambda s: float(s.norm() / 8),
    }
    found: dict[str, list[float]] = {name: [] for name in MEASURED[kind]}
    for seed in range(5):
        x = draw(64, 64, seed=seed)
        u, _, vh = torch.linalg.svd(x)
        y = newton_schulz(x, kind)
        for name, measure in measures.items():
            found[name].append(measure(torch.linalg.svdvals(y)))
        found["cosine"].append(float((y * (u @ vh)).sum() / y.norm() / 8))
    digits = {name: 3 if name == "cosine" else 2 for name in found}
    rounded = {name: (round(min(x), digits[name]), round(max(x), digits[name])) for name, x in found.items()}
    assert rounded == MEASURED[kind]


@pytest.mark.parametrize(("kind", "low", "high", "one"), [("quintic", 0.68, 1.21, 0.70), ("five", 0.97, 1.15, 0.98)])
def test_the_range_of_the_docstring(kind: str, low: float, high: float, one: float) -> None:
    s = torch.logspace(-2.52, 0, 2001, dtype=torch.float64)  # from 3/1000
    y = polynomial(s, KINDS[kind])
    assert low < y.min()
    assert y.max() < high
    rank_one = newton_schulz(torch.outer(draw(6), draw(4, seed=1)), kind)
    assert abs(rank_one.norm() - one) < 0.005
    tiny = torch.diag(torch.tensor([1.0, 1e-6], dtype=torch.float64))
    assert abs(newton_schulz(tiny, kind)[1, 1] / 1e-6 - 490) < 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrow_inputs_are_iterated_in_float32(dtype: torch.dtype) -> None:
    x = draw(2, 5, 3).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = newton_schulz(x)
    assert y.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), newton_schulz(x.double()), atol=max(rounding, 1e-5), rtol=rounding)


def test_no_number_is_not_taken_for_zero() -> None:
    x = draw(2, 3, 4)
    x[0, 0, 0] = torch.nan
    y = newton_schulz(x)
    assert y[0].isnan().all()
    assert y[1].isfinite().all()


def test_it_compiles_without_a_break_in_the_graph() -> None:
    x = draw(2, 4, 3).float()
    compiled = torch.compile(newton_schulz, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, "five"), newton_schulz(x, "five"))
    torch._dynamo.reset()


WRONG = {
    "x has shape [3]; it must be [..., m, n]": {"x": torch.zeros(3)},
    "x has dtype torch.int64; it must be a floating-point tensor": {"x": torch.zeros(3, 3, dtype=torch.long)},
    "coefficients is 'quintik'; it must be one of quintic, five; did you mean 'quintic'?": {"coefficients": "quintik"},
    "steps is 0; it must be at least 1": {"steps": 0},
    "steps is 6; with coefficients='five' it must be at most 5": {"coefficients": "five", "steps": 6},
    "eps is -1.0; it must not be negative": {"eps": -1.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_the_message_names_the_argument(message: str) -> None:
    with pytest.raises(UserError) as error:
        newton_schulz(**{"x": torch.zeros(3, 3), **WRONG[message]})
    assert str(error.value) == message
