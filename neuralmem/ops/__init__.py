"""Mathematics on tensors: one folder per op, each with its reference, its fast form and the derivation between them."""

from neuralmem.ops.delta_descent import delta_descent
from neuralmem.ops.muon_memory import decode_muon, evaluate_polynomial, muon_memory
from neuralmem.ops.neural_memory import (
    L2,
    AttentionalBias,
    History,
    Huber,
    Lp,
    decode_memory,
    decode_omega,
    evaluate_memory,
    neural_memory,
    omega_memory,
)
from neuralmem.ops.neural_memory.call import where_rows
from neuralmem.ops.newton_schulz import newton_schulz
from neuralmem.ops.query_projection import query_projection
from neuralmem.ops.swiglu_memory import evaluate_swiglu, swiglu_memory

__all__ = [
    "L2",
    "AttentionalBias",
    "History",
    "Huber",
    "Lp",
    "decode_memory",
    "decode_muon",
    "decode_omega",
    "delta_descent",
    "evaluate_memory",
    "evaluate_polynomial",
    "evaluate_swiglu",
    "muon_memory",
    "neural_memory",
    "newton_schulz",
    "omega_memory",
    "query_projection",
    "swiglu_memory",
    "where_rows",
]
