"""neuralmem models inside Hugging Face transformers: `import neuralmem.hf`, and the Auto classes know them.

    import neuralmem.hf
    model = AutoModelForCausalLM.from_pretrained("runs/quickstart")

Needs `pip install neuralmem[hf]`. What is supported and what is refused: docs/huggingface.md.
"""

import importlib.util

if importlib.util.find_spec("transformers") is None:
    raise ImportError("neuralmem.hf needs transformers: pip install 'neuralmem[hf]'")

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from neuralmem.hf.cache import MemoryCache
from neuralmem.hf.config import NeuralMemConfig
from neuralmem.hf.export import export
from neuralmem.hf.model import NeuralMemForCausalLM
from neuralmem.hf.tokenizer import NeuralMemTokenizer

__all__ = ["MemoryCache", "NeuralMemConfig", "NeuralMemForCausalLM", "NeuralMemTokenizer", "export"]

AutoConfig.register(NeuralMemConfig.model_type, NeuralMemConfig)
AutoModelForCausalLM.register(NeuralMemConfig, NeuralMemForCausalLM)
AutoTokenizer.register(NeuralMemConfig, fast_tokenizer_class=NeuralMemTokenizer)
