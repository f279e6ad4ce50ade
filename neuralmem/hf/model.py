"""A neuralmem model as a transformers model: forward, generate, save and load by Hugging Face's rules.

Special: nothing is computed here. The wrapper and the `CausalLM` in it share one table of modules, so that weights have
the names that `neuralmem.save` gives them, and whatever replaces a module replaces it in both. Padding goes through the
model's mask, so it is never written to a memory, wherever it stands. The names of the cache are those before and after
transformers 5.24.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from neuralmem import durable
from neuralmem.errors import UserError
from neuralmem.hf.cache import MemoryCache
from neuralmem.hf.config import NeuralMemConfig
from neuralmem.models.causal_lm import CausalLM, build_model
from neuralmem.models.checkpoint import FORMAT, REQUIRED
from neuralmem.models.weights import FILE as WEIGHTS
from neuralmem.typing import MemoryMode, Tensor

CACHE = "cache" if "cache" in {f.name for f in fields(CausalLMOutputWithPast)} else "past_key_values"
REFUSED = {
    "inputs_embeds": "tokens are read, not embeddings",
    "position_ids": "every row's tokens are counted by the model",
    "output_attentions": "attention is not written down",
    "output_hidden_states": "use neuralmem.probe",
}


class NeuralMemForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model whose cache is its memory.

    Args:
        config: sizes and layers

    Attributes:
        causal_lm: the `CausalLM` with the same weights, for everything that neuralmem does: `neuralmem.save(folder,
            model.causal_lm, tokenizer)`

    Example:
        >>> model = NeuralMemForCausalLM(NeuralMemConfig(vocab_size=257, width=32, depth=1, pattern=["titans_lmm"]))
        >>> model(input_ids=torch.randint(257, (2, 40))).logits.shape
        torch.Size([2, 40, 257])
    """

    config_class = NeuralMemConfig
    _is_stateful = True  # generate() then refuses what has to roll the cache back
    _tied_weights_keys = {"head.weight": "embedding.weight"}
    causal_lm: CausalLM

    def __init__(self, config: NeuralMemConfig) -> None:
        super().__init__(config)
        model = build_model(config.model_config)
        self.__dict__["causal_lm"] = model  # not a child: weights would get names of their own here
        for table in ("_modules", "_parameters", "_buffers"):
            self.__dict__[table] = model.__dict__[table]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: modules initialise themselves, and loading refuses files that lack a weight."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Load a folder of `neuralmem.save`, `export` or `save_pretrained`, or a model of the hub.

        A folder with a manifest is compared with it first. Options are those of transformers.

        Raises:
            UserError: a file that differs from the manifest; a weight that is missing, unknown or of another shape.
        """
        wanted = options.pop("output_loading_info", False)
        options["ignore_mismatched_sizes"] = True  # they are reported like missing ones then, and refused

        def read(files: Mapping[str, Path] | None = None) -> Any:
            if files is not None and WEIGHTS not in files and (folder / WEIGHTS).exists():
                # neuralmem looks at the manifest, transformers at this file first.
                raise UserError(f"{folder / WEIGHTS} is left from an older checkpoint; remove it")
            loaded = super(NeuralMemForCausalLM, cls).from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **options
            )
            _fits(pretrained_model_name_or_path, loaded[1])
            return loaded if wanted else loaded[0]

        folder = Path(pretrained_model_name_or_path or "", options.get("subfolder") or "")
        if pretrained_model_name_or_path is None or durable.manifest(folder) is None:
            return read()
        if (folder / durable.COMMITTED).exists():
            raise UserError(f"{folder} holds a save that was interrupted; save into it again, or use neuralmem.load")
        return durable.read_whole(folder, FORMAT, REQUIRED, read)

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> None:
        """Write config.json, weights and generation_config.json, as transformers does.

        Raises:
            UserError: a folder that `neuralmem.save` or `export` wrote, whose manifest would no longer be true.
        """
        if durable.manifest(save_directory) is not None:
            raise UserError(
                f"save_directory is {str(save_directory)!r}, a checkpoint of neuralmem; it must be another folder "
                "(neuralmem.save(folder, model.causal_lm, tokenizer) replaces a checkpoint)"
            )
        super().save_pretrained(save_directory, *args, **options)

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **options: Any) -> Any:
        """Other vocabulary size, as transformers does it; new rows are not trained."""
        embeddings = super().resize_token_embeddings(*args, **options)
        self.causal_lm.config = self.config.model_config
        return embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: MemoryCache | None = None,
        past_key_values: MemoryCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        memory: MemoryMode = "on",
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Read tokens and predict the next one at each.

        Args:
            input_ids: Int [B, T], tokens that the cache has not read
            attention_mask: [B, T], or longer with these T places last; 0 is padding, which may stand anywhere, changes
                nothing and gets logits of zero
            cache, past_key_values: what was read before, under either name; it is not changed
            labels: Int [B, T], the tokens themselves, -100 where there is no loss; they are shifted here
            use_cache: return what was read; None: outside of training
            logits_to_keep: only the last so many places, or those at these indices; 0 is all
            memory: "on"; "frozen": nothing is written; "off": the memory is silent
            options: others of transformers

        Returns:
            loss (with labels), logits [B, T, V], and a new cache.

        Raises:
            UserError: what does not fit, or is not supported.
        """
        for name, reason in REFUSED.items():
            if options.get(name) is not None and options[name] is not False:
                raise UserError(f"{name} is not supported: {reason}")
        if input_ids is None:
            raise UserError("input_ids is None; it must be token ids [B, T]")
        before = _same(cache, past_key_values)
        mask = _real(attention_mask, input_ids)
        few = logits_to_keep if isinstance(logits_to_keep, int) else 0
        select = None
        if 0 < few < input_ids.shape[1]:
            select = torch.zeros_like(input_ids, dtype=torch.bool)
            select[:, -few:] = True
        logits, state = self.causal_lm(input_ids, before and before.state, mask=mask, memory=memory, select=select)
        if select is not None:
            logits = logits.view(len(input_ids), few, -1)
        elif isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
        wanted = not self.training if use_cache is None else use_cache
        return CausalLMOutputWithPast(loss=loss, logits=logits, **({CACHE: MemoryCache(state)} if wanted else {}))

    def _prepare_model_inputs(self, *args: Any, **options: Any) -> Any:
        """What generate() goes on from, refused where a row has nothing in its last column."""
        inputs, name, model_kwargs = super()._prepare_model_inputs(*args, **options)
        if name == "input_ids":
            _ends_with_a_token(inputs, model_kwargs.get("attention_mask"))
        return inputs, name, model_kwargs

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, *_: Any
    ) -> None:
        """What generate() starts from: what was read before, a row for every beam, and never the caller's own cache.

        transformers would make an attention cache for a model that it does not know.
        """
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise UserError(f"cache_implementation is {generation_config.cache_implementation!r}; leave it out")
        if getattr(generation_config, "is_assistant", False):
            raise UserError("assistant_model is a neuralmem model, whose memory cannot be rolled back; use another")
        given = _same(*(model_kwargs.pop(name, None) for name in ("cache", "past_key_values")))
        if given is None and generation_config.use_cache is False:
            return
        cache = MemoryCache(given and given.state)
        rows = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        if rows > 1 and cache.batch_size == batch_size:
            cache.batch_repeat_interleave(rows)
        model_kwargs[CACHE] = cache


def _same(cache: Any, past_key_values: Any) -> MemoryCache | None:
    """The cache, whichever name it came under."""
    given = past_key_values if cache is None else cache
    if given is not None and not isinstance(given, MemoryCache):
        raise UserError(f"{CACHE} is a {type(given).__name__}; it must be a MemoryCache, as the model returns it")
    return given


def _real(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor | None:
    """Bool [B, T], real tokens among those of the call; None where all are."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2:
        raise UserError(f"attention_mask has shape {list(attention_mask.shape)}; it must be [B, T]")
    if attention_mask.shape[1] < input_ids.shape[1]:
        raise UserError(
            f"attention_mask has {attention_mask.shape[1]} columns; it must have at least the {input_ids.shape[1]} of "
            "input_ids, one for every new token"
        )
    mask = attention_mask[:, -input_ids.shape[1] :].bool()
    return None if mask.all() else mask


def _ends_with_a_token(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Refuse rows that are empty, or padded behind their end."""
    mask = _real(attention_mask, input_ids)
    if mask is None or mask[:, -1].all():
        return
    if not (read := mask.any(dim=1)).all():
        row = int((~read).nonzero()[0])
        raise UserError(f"input_ids row {row} is an empty prompt; it must have at least one token to go on from")
    row = int((~mask[:, -1]).nonzero()[0])
    raise UserError(
        f"attention_mask ends with padding in row {row}; generate() goes on behind the last column, so it must "
        "stand on the left: padding_side='left', which is this tokenizer's own"
    )


def _fits(source: Any, info: Any) -> None:
    """Refuse weights that transformers would only warn of, and fill in at random."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info[kind])):
            raise UserError(f"{source}: {kind.replace('_keys', '')} weight {names[0]}; it must fit config.json")
