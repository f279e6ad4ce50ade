"""a linear memory: a checkpoint whose rule is delta reads as every checkpoint does"""

from neuralmem.errors import UserError
from neuralmem.evaluation.baseline import Choices
from neuralmem.evaluation.reader import Reader

USES = ()


def make(reader: Reader, choices: Choices) -> Reader:
    """The reader itself.

    Raises:
        UserError: the model has another memory, or none.
    """
    config = getattr(reader.model, "config", None)
    rule = config.memory.rule if config is not None and getattr(reader.model, "has_memory", False) else None
    if rule != "delta":
        raise UserError(
            f"--baseline is 'linear', but --checkpoint has {f'the rule {rule!r}' if rule else 'no memory'}; it must be "
            "a model trained with memory.rule delta, as configs/quickstart_linear.yaml"
        )
    return reader
