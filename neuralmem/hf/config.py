"""A ModelConfig as Hugging Face sees it: the same fields under the same names, flat in config.json.

Special: one schema. What `neuralmem.save` writes is read here, and what is written here are the fields of `ModelConfig`
beside Hugging Face's own; their names for some of them (`hidden_size`, `tie_word_embeddings`) are aliases.
"""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from transformers import PreTrainedConfig

from neuralmem.config import ModelConfig
from neuralmem.errors import UserError
from neuralmem.models.checkpoint import MODEL_TYPE

FIELDS = [field.name for field in fields(ModelConfig)]


class NeuralMemConfig(PreTrainedConfig):
    """The config of a `NeuralMemForCausalLM`.

    Args:
        vocab_size: token ids, 0 to vocab_size - 1
        options: the other fields of `ModelConfig`, nested ones as mappings, and what Hugging Face configs have

    Raises:
        UserError: a value that `ModelConfig` refuses, or a name that is nearly one of its fields.

    Example:
        >>> config = NeuralMemConfig(vocab_size=257, width=64, depth=2, pattern=["titans_mag"], memory={"heads": 4})
        >>> config.hidden_size, config.model_config.memory.heads
        (64, 4)
    """

    model_type = MODEL_TYPE
    attribute_map = {
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "tie_word_embeddings": "tie_embeddings",
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values"]

    def __init__(self, vocab_size: int = 257, **options: Any) -> None:
        for theirs, ours in self.attribute_map.items():
            if theirs in options:
                options.setdefault(ours, options.pop(theirs))
        given = {name: options.pop(name) for name in FIELDS if name in options}
        for name, value in ModelConfig.from_dict({"vocab_size": vocab_size, **given}).to_dict().items():
            setattr(self, name, value)
        for name in ("format", "auto_map"):  # of the file: what is saved from here is no checkpoint, and has no code
            options.pop(name, None)
        for name in options:
            # Hugging Face keeps whatever it is given; a mistyped field would be one that nobody reads.
            if close := get_close_matches(name, FIELDS, n=1, cutoff=0.8):
                raise UserError(f"{name} is no field of the model's config; did you mean {close[0]!r}?")
        super().__init__(**options)

    @classmethod
    def of(cls, config: ModelConfig, **options: Any) -> "NeuralMemConfig":
        """The same config for Hugging Face. options: what their configs have, for example eos_token_id."""
        return cls(**config.to_dict(), **options)

    @property
    def model_config(self) -> ModelConfig:
        """What the model is built from."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in FIELDS})
