"""Shapes and dtypes of everything public, checked by jaxtyping and beartype at calls with axes that all differ.

The package does not depend on them: signatures are stated once more here, in the alphabet of neuralmem/typing.py.
"""

import pytest
import torch
from beartype import beartype
from jaxtyping import Bool, Float, Float32, Int, jaxtyped
from torch import Tensor

from neuralmem.ops import (
    History,
    delta_descent,
    evaluate_memory,
    neural_memory,
    newton_schulz,
    omega_memory,
    query_projection,
    swiglu_memory,
)
from neuralmem.state import State
from tests.conformance.subjects import MODELS, SUBJECTS, Subject, each

B, T, H, D = 2, 7, 3, 4

Weights = tuple[Float32[Tensor, "B H M D"], Float32[Tensor, "B H D M"]]
Vectors = Float[Tensor, "B T H D"]
Gates = Float[Tensor, "B T H"]


@jaxtyped(typechecker=beartype)
def typed_neural_memory(
    q: Vectors,
    k: Vectors,
    v: Vectors,
    theta: Gates,
    eta: Gates,
    alpha: Gates,
    weights: Weights,
    momentum: Weights,
    norm: tuple[Float[Tensor, "H D"], Float[Tensor, "H D"]],
    write_mask: Bool[Tensor, "B T"],
    backend: str,
) -> tuple[Vectors, Weights, Weights]:
    return neural_memory(
        q, k, v, theta, eta, alpha, weights, momentum, norm=norm, write_mask=write_mask, backend=backend, chunk_size=3
    )


@jaxtyped(typechecker=beartype)
def typed_evaluate_memory(x: Vectors, weights: Weights) -> Vectors:
    return evaluate_memory(x, weights)


@jaxtyped(typechecker=beartype)
def typed_delta_descent(
    q: Vectors,
    k: Vectors,
    v: Float[Tensor, "B T H E"],
    theta: Gates,
    alpha: Gates,
    weights: Float[Tensor, "B H E D"],
    backend: str,
) -> tuple[Float[Tensor, "B T H E"], Float32[Tensor, "B H E D"]]:
    return delta_descent(q, k, v, theta, alpha, weights, chunk_size=3, backend=backend)


@jaxtyped(typechecker=beartype)
def typed_omega_memory(
    q: Vectors, k: Vectors, v: Vectors, theta: Gates, weights: Weights, omega: Float[Tensor, "B T H c"], backend: str
) -> tuple[Vectors, Weights, None, History, Float[Tensor, "B c-1 H D"], Bool[Tensor, "B c-1"]]:
    y, after, momentum, history = omega_memory(
        q, k, v, theta, None, theta, weights, None, omega, chunk_size=3, backend=backend
    )
    return y, after, momentum, history, history.k, history.valid


Swiglu = tuple[Float32[Tensor, "B H M D"], Float32[Tensor, "B H D M"], Float32[Tensor, "B H M D"]]


@jaxtyped(typechecker=beartype)
def typed_swiglu_memory(
    q: Vectors,
    k: Vectors,
    v: Vectors,
    theta: Float[Tensor, "B T H 3"],
    eta: Gates,
    weights: Swiglu,
    momentum: Swiglu,
    backend: str,
) -> tuple[Vectors, Swiglu, Swiglu]:
    return swiglu_memory(q, k, v, theta, eta, weights, momentum, chunk_size=3, backend=backend)


@jaxtyped(typechecker=beartype)
def typed_query_projection(
    q: Vectors, k: Vectors, carry: Float[Tensor, "B H D D"], backend: str
) -> tuple[Vectors, Float32[Tensor, "B H D D"]]:
    return query_projection(q, k, carry, chunk_size=3, backend=backend)


@jaxtyped(typechecker=beartype)
def typed_newton_schulz(x: Float[Tensor, "*rest m n"]) -> Float[Tensor, "*rest m n"]:
    return newton_schulz(x)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ops(backend: str, dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, B, T, H, D).to(dtype).unbind()
    theta, eta, alpha = torch.rand(3, B, T, H).unbind()
    weights = torch.randn(B, H, 5, D), torch.randn(B, H, D, 5)
    norm, mask = (torch.ones(H, D), torch.zeros(H, D)), torch.rand(B, T) > 0.5
    y, *_ = typed_neural_memory(q, k, v, theta, eta, alpha, weights, weights, norm, mask, backend)
    assert y.dtype == typed_evaluate_memory(q, weights).dtype == dtype
    y, _ = typed_delta_descent(q, k, torch.randn(B, T, H, 5).to(dtype), theta, alpha, torch.randn(B, H, 5, D), backend)
    assert y.dtype == dtype
    assert typed_omega_memory(q, k, v, theta, weights, torch.rand(B, T, H, 2), backend)[0].dtype == dtype
    gated = *weights, torch.randn(B, H, 5, D)
    assert typed_swiglu_memory(q, k, v, torch.rand(B, T, H, 3), eta, gated, gated, backend)[0].dtype == dtype
    assert typed_query_projection(q, k, torch.zeros(B, H, D, D), backend)[0].dtype == dtype
    assert typed_newton_schulz(q).dtype == dtype


@jaxtyped(typechecker=beartype)
def typed_stream(module: torch.nn.Module, x: Float[Tensor, "B T width"]) -> tuple[Float[Tensor, "B T width"], State]:
    return module(x)


@jaxtyped(typechecker=beartype)
def typed_model(
    model: torch.nn.Module, tokens: Int[Tensor, "B T"], select: Bool[Tensor, "B T"], vocabulary: int
) -> tuple[Float[Tensor, "B T {vocabulary}"], Float[Tensor, "n {vocabulary}"], Int[Tensor, " B"]]:
    logits, state = model(tokens)
    return logits, model(tokens, select=select)[0], state.position


@each([s for s in SUBJECTS if s.kind != "model"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rules_and_layers(subject: Subject, dtype: torch.dtype) -> None:
    y, _ = typed_stream(subject.build(dtype), subject.draw(3, 7, dtype))
    assert y.dtype == dtype


@each(MODELS)
def test_models(subject: Subject) -> None:
    typed_model(subject.build(), subject.draw(3, 7), torch.rand(3, 7) > 0.5, subject.config.vocab_size)
