"""neuralmem: language models whose memory is a neural network that keeps learning while it reads.

model, tokenizer = nm.load("runs/quickstart")
state = model.init_state(batch_size=1)
with torch.no_grad():
    for tokens in tokenizer.stream("war_and_peace.txt", length=4096):
        logits, state = model(tokens, state)
"""

from neuralmem import ops
from neuralmem.backends import backends
from neuralmem.config import AttentionConfig, ContinuumConfig, EndToEndConfig, MemoryConfig, ModelConfig
from neuralmem.errors import UserError
from neuralmem.generation.generate import generate, generate_stream
from neuralmem.models.causal_lm import CausalLM, build_model
from neuralmem.models.checkpoint import load, save
from neuralmem.models.convert import with_continuum_memory
from neuralmem.state import State
from neuralmem.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer, train_bpe

__version__ = "0.1.0"

__all__ = [
    "AttentionConfig",
    "ByteTokenizer",
    "CausalLM",
    "ContinuumConfig",
    "EndToEndConfig",
    "MemoryConfig",
    "ModelConfig",
    "State",
    "Tokenizer",
    "UserError",
    "backends",
    "build_model",
    "generate",
    "generate_stream",
    "load",
    "load_tokenizer",
    "ops",
    "save",
    "train_bpe",
    "with_continuum_memory",
]
