"""What a probe is: something that is asked of a model again and again while it trains, and what it answers.

Special: training runs probes that a YAML file names by class path, and evaluation has some, so that neither imports the
other; this file is all that both know.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from neuralmem.generation.protocol import LanguageModel, TokenizerLike

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Reading:
    """What a probe found.

    Args:
        values: numbers for the log, by name
        axes: what the curves' x and y are, with units
        curves: (x, y) points by the name of the curve, for the report
    """

    values: dict[str, float]
    axes: tuple[str, str] = ("", "")
    curves: dict[str, Points] = field(default_factory=dict)


class Probe(ABC):
    """Asks a model something; the same every time, without a random number of the run's.

    Attributes:
        name: what log and report call it
    """

    name = "probe"

    @abstractmethod
    def __call__(self, model: LanguageModel, tokenizer: TokenizerLike | None, data: Mapping[str, Any]) -> Reading:
        """Ask.

        Args:
            model: in eval mode, without gradients
            tokenizer: of the training data; None where its tokens are no text
            data: the arguments of the training data, as in data.json

        Raises:
            UserError: this probe cannot be used with these data.
        """
