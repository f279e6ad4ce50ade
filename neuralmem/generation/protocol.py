"""What generation and evaluation ask of a model, a state and a tokenizer: nothing else of them is used.

Special: any object of this shape can be generated from and evaluated, an oracle in a test as well as `CausalLM`.
"""

from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from neuralmem.typing import MemoryMode


@runtime_checkable
class StateLike(Protocol):
    """What a model has read so far, as a value: passing it to a model never changes it."""

    @property
    def position(self) -> Tensor:
        """Int[B]: tokens read so far."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held for all rows together."""
        ...

    def select(self, rows: Any) -> Self:
        """The state of some rows, in the order given; a row may be taken more than once."""
        ...


@runtime_checkable
class LanguageModel(Protocol):
    """A causal language model with a state."""

    @property
    def reach(self) -> int:
        """Tokens that attention windows and convolutions alone can see."""
        ...

    def init_state(self, batch_size: int) -> Any:
        """The state of a model that has read nothing."""
        ...

    def __call__(
        self,
        tokens: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        memory: MemoryMode = "on",
        select: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """tokens Int[B, T] -> logits Float[B, T, V] and the state after them.

        With select Bool[B, T] there are logits for its n tokens only, Float[n, V], row by row: a prompt's last token
        is all that is looked at, and logits of the others would cost more than the reading of a small model.
        """
        ...


@runtime_checkable
class TokenizerLike(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 to vocab_size - 1."""
        ...

    @property
    def eos_id(self) -> int:
        """The document separator."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any special token."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of token ids."""
        ...


def device_of(model: Any) -> torch.device:
    """The device of a model's parameters; the CPU for a model without any."""
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if parameters else None
    return first.device if first is not None else torch.device("cpu")
