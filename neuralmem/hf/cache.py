"""What a model has read, as the cache that transformers passes around.

Special: the cache of an attention model grows and is changed in place; this one holds one `neuralmem.State`, which does
neither. A forward pass returns a new cache, so that one that was read into can be continued any number of times.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from neuralmem.errors import UserError
from neuralmem.state import State


class StateLayer(CacheLayerMixin):
    """The state of a whole model as one layer of a cache, which is how transformers reorders and repeats its rows.

    Args:
        state: what was read; None is nothing
    """

    supports_early_init = False

    def __init__(self, state: State | None = None) -> None:
        super().__init__()
        self.state, self.is_initialized = state, True

    def _change(self, change: Callable[[State], State]) -> None:
        self.state = self.state and change(self.state)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order, repeats allowed: beam search."""
        self._change(lambda state: state.select(beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row several times, one after the other."""
        self._change(lambda state: state.map(lambda x: x.repeat_interleave(repeats, dim=0)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some rows."""
        self._change(lambda state: state.map(lambda x: x[indices]))

    def reset(self) -> None:
        """Nothing was read."""
        self.state = None

    def crop(self, *_: Any, **__: Any) -> None:
        """A memory has learned from what it read, and cannot unlearn the end of it."""
        raise UserError("cache cannot be rolled back: a memory cannot unlearn tokens; use greedy, sampling or beams")

    def get_seq_length(self) -> int:
        """How many of its first tokens generate() takes off `input_ids`, as read before: none.

        A text that was read into a memory need not be there any more, so input_ids are always new ones. How many tokens
        were read is `MemoryCache.state.position`.
        """
        return 0

    def get_mask_sizes(self, query_length: int, *_: Any) -> tuple[int, int]:
        """Length and offset of an attention mask; for the tokens of the call."""
        return query_length, 0

    def get_max_length(self) -> int:
        """Without limit."""
        return -1

    get_max_cache_shape = get_max_length

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        """Nothing to prepare."""

    def update(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Refused: there are no keys and values."""
        raise UserError("cache is a neuralmem state, which has no keys and values; pass it to a neuralmem model")

    def offload(self) -> None:
        """Stays where it is: it is small."""

    prefetch = offload


class MemoryCache(Cache):
    """What a model has read, for `past_key_values` (from transformers 5.24 on also `cache`).

    Args:
        state: from a model's output, or from a file: `State.load(path, model.causal_lm)`; None is nothing

    Example:
        >>> from neuralmem import CausalLM, ModelConfig
        >>> cache = MemoryCache(CausalLM(ModelConfig(vocab_size=5, width=8, depth=1)).init_state(2))
        >>> cache.batch_repeat_interleave(3)
        >>> cache.batch_size
        6
    """

    def __init__(self, state: State | None = None) -> None:
        super().__init__(layers=[StateLayer(state)])

    @property
    def state(self) -> Any:
        """The `neuralmem.State`, with `position` Int[B] and `save(path)`; None where nothing was read."""
        return self.layers[0].state

    @property
    def batch_size(self) -> int:
        """Rows; -1 where nothing was read."""
        return -1 if self.state is None else len(self.state.position)
