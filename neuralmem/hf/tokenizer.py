"""A neuralmem tokenizer as a Hugging Face one: the same ids for any text, and the same text for any ids.

Special: documents are text. As in `neuralmem.Tokenizer`, no text becomes a control token and nothing is put in front of
it; the separator of documents both ends a text and pads it. Padding is on the left, where generation needs it.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from neuralmem.tokenizer import Tokenizer, load_tokenizer


def hf_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same tokenizer for Hugging Face; what its `save_pretrained` writes needs no neuralmem to be loaded.

    Args:
        tokenizer: of bytes, trained here or from any tokenizer.json

    Example:
        >>> from neuralmem import ByteTokenizer
        >>> hf_tokenizer(ByteTokenizer())("né<|endoftext|>").input_ids[:5]
        [110, 195, 169, 60, 124]
    """
    backend = Backend.from_str(tokenizer.definition)
    return _plain(PreTrainedTokenizerFast(tokenizer_object=backend, **_settings(tokenizer, backend)))


class NeuralMemTokenizer(PreTrainedTokenizerFast):
    """What AutoTokenizer takes for a folder of `neuralmem.save`, which has a tokenizer.json and no settings."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Load the tokenizer of a folder of `neuralmem.save`, or any other as transformers does."""
        folder = Path(pretrained_model_name_or_path)
        if not (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").exists():
            return super().from_pretrained(pretrained_model_name_or_path, *args, **options)
        tokenizer = load_tokenizer(folder)
        settings = _settings(tokenizer, Backend.from_str(tokenizer.definition)) | options
        return _plain(PreTrainedTokenizerFast.from_pretrained(pretrained_model_name_or_path, *args, **settings))


def _settings(tokenizer: Tokenizer, backend: Backend) -> dict[str, Any]:
    end = backend.id_to_token(tokenizer.eos_id)
    settings = {"eos_token": end, "pad_token": end, "padding_side": "left"}
    return settings | {"split_special_tokens": True, "clean_up_tokenization_spaces": False}


def _plain(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Without what would put tokens around every text."""
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer
