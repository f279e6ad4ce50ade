"""What reading and writing a memory costs, rule by rule: products of matrices over a row, as the chunked ops do them.

Derivations of the chunked forms are in the ops' README.md; for Titans the formula is that of `ops/neural_memory`. C is
the tokens of a chunk, P the numbers of a memory's weights, per head.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from neuralmem.errors import UserError
from neuralmem.memory._continuum import LevelledMemory
from neuralmem.memory._memory import Memory
from neuralmem.memory.omega import Omega
from neuralmem.memory.self_modifying import SelfModifying
from neuralmem.memory.titans import Titans
from neuralmem.memory.tnt import TNT

Cost = tuple[float, float]
"""Operations of products and of triangular solves, per sample."""
STEPS = 5  # of Newton-Schulz


def update_cost(memory: Memory, tokens: int) -> Cost:
    """Reading and writing a row of tokens from a chunk start on.

    Raises:
        UserError: there is no formula for this kind of memory.
    """
    count = _formula(memory)[0]
    size = memory.config.chunk_size
    costs = [count(memory, part) for part in _chunks(tokens, size)]
    return memory.heads * sum(c[0] for c in costs), memory.heads * sum(c[1] for c in costs)


def read_cost(memory: Memory) -> float:
    """Asking fixed weights, per token."""
    return memory.heads * _formula(memory)[1](memory)


def _chunks(tokens: int, size: int) -> Iterator[int]:
    yield from [size] * (tokens // size)
    if tokens % size:
        yield tokens % size


def _shapes(weights: Sequence[nn.Parameter] | nn.ParameterList) -> list[tuple[int, int]]:
    """(out, in) of each matrix."""
    return [(w.shape[-2], w.shape[-1]) for w in weights]


def _size(shapes: Sequence[tuple[int, int]]) -> int:
    return sum(out * into for out, into in shapes)


def _gradients(shapes: Sequence[tuple[int, int]], members: int) -> float:
    """Keys forward, errors back; the first matrix needs no gradient of its input."""
    size = _size(shapes)
    return 2.0 * members * (2 * size - _size(shapes[:1]))


def _mlp(shapes: Sequence[tuple[int, int]], momentum: bool, tokens: int, before: int = 0) -> float:
    """A chunk of `neural_memory`; `before`: tokens that windows reach in front of it."""
    size, members, states = _size(shapes), tokens + before, 1 + momentum
    masked = 2.0 * tokens * members * sum(out + into for out, into in shapes)
    state = 2.0 * states * (tokens + members) * size
    coefficients = 2.0 * tokens**3 + 2.0 * tokens**2 if momentum else 0.0
    if before:
        coefficients += 2.0 * tokens * members * (tokens + momentum)
    return _gradients(shapes, members) + masked + state + coefficients


def _titans(memory: Titans, tokens: int) -> Cost:
    before = memory.window - 1 if isinstance(memory, Omega) else 0
    return _mlp(_shapes(memory.weights), memory.config.momentum, tokens, before), 0.0


def _newton_schulz(shapes: Sequence[tuple[int, int]]) -> float:
    """Of one matrix each, on its shorter side."""
    sides = [(min(shape), max(shape)) for shape in shapes]
    return STEPS * sum(4.0 * a * a * b + 2.0 * a**3 for a, b in sides)


def _atlas(memory: Omega, tokens: int) -> Cost:
    """Every token has a surprise and weights of its own."""
    shapes, members = _shapes(memory.weights), tokens + memory.window - 1
    each = 2.0 * members * _size(shapes) + 2.0 * tokens * _size(shapes) + 2.0 * _size(shapes)
    each += _newton_schulz(shapes) if memory.config.muon else 0.0
    push = 2.0 * tokens**2 * members if memory.config.momentum else 0.0
    return _gradients(shapes, members) + push + tokens * each, 0.0


def _delta(memory: Memory, tokens: int) -> Cost:
    width = memory.head_width
    return 6.0 * tokens * width**2 + 6.0 * tokens**2 * width, float(tokens**2 * width)


def _lact(memory: Memory, tokens: int) -> Cost:
    shapes = _shapes(memory.weights)  # type: ignore[arg-type]
    muon = _newton_schulz(shapes) if memory.config.muon else 0.0
    return 6.0 * tokens * _size(shapes) + muon, 0.0  # read; three products forward and back, three to write


def _tnt(memory: TNT, tokens: int) -> Cost:
    shapes, width = _shapes(memory.weights), memory.head_width
    total = _gradients(shapes, tokens) + 4.0 * tokens * _size(shapes)
    total += 4.0 * tokens * width**2 + 4.0 * tokens**2 * width  # the query's projection
    for size in memory.local_chunks:
        total += sum(_mlp(shapes, False, part) for part in _chunks(tokens, size))
    return total, 0.0


def _self_modifying(memory: SelfModifying, tokens: int) -> Cost:
    """Five memories: four make keys, values and gates, all have a target, are written, and the last is read."""
    shapes, boxes = _shapes(memory.weights), 5
    size, inner = _size(shapes), memory.dgd
    total = 2.0 * tokens * size * (boxes - 1 + boxes) + boxes * _gradients(shapes, tokens)
    solves = 0.0
    for i, (out, into) in enumerate(shapes):
        if inner:
            total += 2.0 * tokens**2 * into * (boxes if i else 1) + 2.0 * boxes * tokens * out * into
            solves += float(boxes * tokens**2 * out)
        total += 2.0 * tokens**2 * (into + out) + 2.0 * tokens * out * into  # read
        total += 2.0 * boxes * tokens * out * into  # write
    return total, solves


def _continuum(memory: LevelledMemory, tokens: int) -> Cost:
    """Keys and queries through every level; a level that learns goes back, is written, and compares its tokens."""
    levels = memory.levels
    hidden = levels.down[0].shape[-1]
    matrix = hidden * memory.head_width
    if not levels.learning:
        return _read_levels(memory) * tokens, 0.0
    through = tokens * matrix * (12.0 * len(levels.periods) + 8.0 * len(levels.learning))
    return through + 2.0 * tokens**2 * (hidden + memory.head_width) * len(levels.learning), 0.0


def _read_mlp(memory: Memory) -> float:
    return 2.0 * _size(_shapes(memory.weights))  # type: ignore[arg-type]


def _read_tnt(memory: TNT) -> float:
    return _read_mlp(memory) * (1 + len(memory.local_chunks)) + 2.0 * memory.head_width**2


def _read_levels(memory: LevelledMemory) -> float:
    levels = memory.levels
    return 6.0 * len(levels.periods) * levels.down[0].shape[-1] * memory.head_width


def _read_delta(memory: Memory) -> float:
    return 2.0 * memory.head_width**2


_MLP = (_titans, _read_mlp)
_FORMULAS: dict[str, tuple[Callable[..., Cost], Callable[..., float]]] = {
    **dict.fromkeys(("titans", "ttt_linear", "ttt_mlp", "moneta", "memora", "yaad", "omega"), _MLP),
    "atlas": (_atlas, _read_mlp),
    "delta": (_delta, _read_delta),
    "lact": (_lact, _read_mlp),
    "tnt": (_tnt, _read_tnt),
    "self_modifying": (_self_modifying, _read_mlp),
    "continuum": (_continuum, _read_levels),
    "_continuum": (_continuum, _read_levels),
}
"""By the file of the memory's class, which is the rule's name: update of a chunk, read of a token, both per head."""


def _formula(memory: Memory) -> tuple[Callable[..., Cost], Callable[..., float]]:
    name = type(memory).__module__.rpartition(".")[2]
    if name not in _FORMULAS:
        raise UserError(f"memory.rule is {name!r}, whose operations nobody has counted: add it to flops_memory.py")
    return _FORMULAS[name]
