"""full attention: a checkpoint with window null reads the whole prompt in one call"""

import sys

from neuralmem.errors import UserError
from neuralmem.evaluation.baseline import Choices
from neuralmem.evaluation.reader import Reader

USES = ()


def make(reader: Reader, choices: Choices) -> Reader:
    """The reader with calls of any length.

    Raises:
        UserError: the model's reach is bounded.
    """
    if reader.model.reach < sys.maxsize:
        raise UserError(
            f"--baseline is 'full', but --checkpoint has a reach of {reader.model.reach} tokens; it must be a model "
            "trained with attention.window null and a pattern of transformer"
        )
    return Reader(reader.model, reader.tokenizer, sys.maxsize, reader.progress, reader.segment)
