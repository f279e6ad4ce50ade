"""The update by the compiled kernels of cuda/: `chunked`'s function in one call of torch.ops.neuralmem.

Special: backward recomputes every chunk from the states that forward kept, one per `checkpoint_every` chunks (None: one
per chunk), so there is no graph inside the op and no second derivative. Which calls the kernels run, and which of those
"auto" gives them, is decided here; what torch has to know of the ops is in registration.py.
"""

import functools
import logging
import os
from collections.abc import Callable
from operator import index
from typing import Any, TypeVar

import torch

from neuralmem import probe
from neuralmem.backends import conformance_recorded, cpu_error, cuda_error, library_error
from neuralmem.ops.checks import choose_backend, other_derivatives
from neuralmem.ops.neural_memory.attentional_bias import L2
from neuralmem.ops.neural_memory.call import Call
from neuralmem.ops.neural_memory.chunked import chunked
from neuralmem.ops.neural_memory.decode import decode
from neuralmem.ops.neural_memory.mlp import ACTIVATIONS
from neuralmem.ops.neural_memory.registration import register
from neuralmem.typing import Tensor, Tensors

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # in the order of nm_dtype
LAYERS = 8  # NM_MAX_LAYERS
LIBRARY_ERROR, CPU_ERROR = library_error(), cpu_error()
Answer = TypeVar("Answer", bound=Callable[..., Any])
_announced: set[tuple[int, str]] = set()


def native(call: Call) -> tuple[Tensor, Tensors, Tensors]:
    """The update by the kernels: y [B, T, H, D], weights and momentum after the last token."""
    _observe(chunked, call)
    if not call.q.numel():
        return chunked(call)
    keep_every = (call.checkpoint_every or 1) if wants_gradient(call) else 0
    y, weights, momentum, _ = torch.ops.neuralmem.neural_memory(
        *_update_arguments(call), call.chunk_size, *_form(call), keep_every
    )
    return y, tuple(weights), tuple(momentum)


def native_decode(call: Call) -> Tensor:
    """y [B, 1, H, D] of the one query. Its gradient is that of `decode`, which backward runs again."""
    _observe(decode, call)
    if not call.q.numel():
        return decode(call)
    q, k, v, theta, eta, alpha, weights, momentum, _, _, gain, bias, write_mask, _ = _update_arguments(call)
    return torch.ops.neuralmem.neural_memory_decode(
        q, k, v, theta, eta, alpha, weights, momentum, gain, bias, write_mask, *_form(call)
    )


def _observe(run: Callable[[Call], Any], call: Call) -> None:
    """Let `run` show the surprise, which the kernels do not return, beside them: so looking at it moves no bit."""
    if probe.active("surprise"):
        with torch.set_grad_enabled(torch.is_grad_enabled() and probe.active("surprise", attached=True)):
            run(call)


def choose(call: Call, backend: str) -> str:
    """Which backend runs the call: a name of BACKENDS.

    "auto" is native on a CPU, and on a GPU whose conformance run is recorded in the repository. Sizes that the CUDA
    kernels do not have go to chunked, with one line in the log: a warning when native was asked for by name.
    """
    reason = refuses(call)
    available = ["chunked", "reference"]
    if not reason:
        available.insert(0 if _preferred(call) else 1, "native")
    chosen = choose_backend(backend, available, {"native": reason})
    if chosen == "native" and call.q.is_cuda and (missing := _missing_on_cuda(call)):
        named = backend == "native" or os.environ.get("NEURALMEM_BACKEND") == "native"
        _announce(missing, logging.WARNING if named else logging.INFO)
        return "chunked"
    return chosen


def refuses(call: Call) -> str:
    """Why the kernels cannot run this call; empty if they can."""
    if not isinstance(call.bias, L2):
        return f"the kernels know the squared error only, not the bias {type(call.bias).__name__}"
    if call.omega is not None:
        return "the kernels know steps of one gradient only, not those of omega"
    if LIBRARY_ERROR:
        return LIBRARY_ERROR
    if other_derivatives():
        return "the kernels know backward only, not torch.func or forward-mode derivatives"
    if call.q.device.type not in ("cpu", "cuda"):
        return f"the kernels are for cpu and cuda, and q is on {call.q.device}"
    if call.q.device.type == "cpu" and CPU_ERROR:
        return CPU_ERROR
    if call.q.is_cuda and (error := _cuda_error(call.q.device.index)):
        return error
    if call.q.dtype not in DTYPES:
        return f"the kernels have no {call.q.dtype}"
    if len(call.weights) > LAYERS:
        return f"weights has {len(call.weights)} tensors, and the kernels take at most {LAYERS}"
    if not all(w.numel() for w in call.weights) and call.q.numel():
        return f"weights of {[list(w.shape[2:]) for w in call.weights]} have a dimension of size 0"
    return ""


def _preferred(call: Call) -> bool:
    """Whether "auto" takes the kernels where they can run."""
    if probe.active("surprise", attached=True):
        return False  # a gradient through the surprise takes the whole of `chunked`, so nothing would be saved
    return not call.q.is_cuda or _recorded_for(call.q.device.index)


def _missing_on_cuda(call: Call) -> str:
    """What the CUDA kernels do not have and this call needs; empty if nothing."""
    form = _form(call)[0], call.eta is not None, call.form.gain is not None
    # index: sizes that torch.compile keeps open become numbers.
    widths = tuple(index(n) for n in (call.q.shape[3], *(w.shape[2] for w in call.weights)))

    def refused(tokens: int) -> str:
        kind = DTYPES.index(call.q.dtype), widths, _rounded_up(tokens), *form
        return _cuda_refuses(call.q.device.index, *kind)

    # The kernels' limit is for the longest chunk that there is. Its length is looked at only where that may help.
    missing, tokens = refused(call.chunk_size), call.k.shape[1]
    return refused(tokens) if missing and tokens < call.chunk_size else missing


def _rounded_up(tokens: int) -> int:
    """The next power of two, which the kernels' limit is: torch.compile then knows a length only so far."""
    size = 16
    while size < tokens:
        size *= 2
    return size


def _constant(function: Answer) -> Answer:
    """torch.compiler.assume_constant_result, which would import the compiler: do not trace, take what it returns."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant
def _cuda_refuses(device: int, *kind: Any) -> str:
    return _ask_the_library(*kind, _capability(device))


@functools.cache  # not on top of the mark, which torch.compile would not see; torch leaks with every string returned
def _ask_the_library(*kind: Any) -> str:
    return torch.ops.neuralmem.cuda_refuses(*kind)


@_constant
def _cuda_error(device: int) -> str:
    return cuda_error(_capability(device))


@_constant
def _recorded_for(device: int) -> bool:
    return conformance_recorded(_capability(device))


def _capability(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _announce(missing: str, level: int) -> None:
    """Log a fallback the first time it is taken."""
    if not torch.compiler.is_compiling() and (level, missing) not in _announced:
        _announced.add((level, missing))
        logging.getLogger("neuralmem").log(level, "neural_memory: chunked instead of native: %s", missing)


def wants_gradient(call: Call) -> bool:
    """Whether autograd would record this call."""
    if not torch.is_grad_enabled():
        return False
    single = (call.q, call.k, call.v, call.theta, call.eta, call.alpha, call.form.gain, call.form.bias)
    lists = (*call.weights, *call.momentum, *call.first_weights, *call.first_momentum)
    return any(x is not None and x.requires_grad for x in (*single, *lists))


def _update_arguments(call: Call) -> list[Any]:
    """The tensors in the order of the ops' schemas, contiguous."""

    def whole(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.contiguous()

    def each(state: Tensors) -> list[Tensor]:
        return [x.contiguous() for x in state]

    gain, bias = (None if x is None else x[:, 0] for x in (call.form.gain, call.form.bias))
    first = (call.first_weights, call.first_momentum) if call.reset is not None else ((), ())
    return [
        *map(whole, (call.q, call.k, call.v, call.theta, call.eta, call.alpha)),
        *map(each, (call.weights, call.momentum, *first)),
        *map(whole, (gain, bias, call.write_mask, call.reset)),
    ]


def _form(call: Call) -> tuple[int, bool]:
    return list(ACTIVATIONS).index(call.form.activation), call.form.residual


if not LIBRARY_ERROR:
    register()
