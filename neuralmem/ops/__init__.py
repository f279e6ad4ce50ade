"""Mathematics on tensors: one folder per op, each with its reference, its fast form and the derivation between them."""

from neuralmem.ops.delta_descent import delta_descent
from neuralmem.ops.neural_memory import decode_memory, evaluate_memory, neural_memory
from neuralmem.ops.neural_memory.call import where_rows

__all__ = ["decode_memory", "delta_descent", "evaluate_memory", "neural_memory", "where_rows"]
