"""A trained model as a folder that can be pushed to the Hugging Face hub: files, settings, and a card of plain facts.

Special: it stays a checkpoint. `neuralmem.load` reads the folder too, with its manifest; what people edit (the card,
the settings of generation) is no part of that. One file is Python, an import of neuralmem.hf, and runs only where
`trust_remote_code=True` is given; after `import neuralmem.hf` everything works without it.
"""

import json
import sys
from pathlib import Path

from transformers import GenerationConfig

from neuralmem.durable import whole_folder, write_file
from neuralmem.errors import UserError
from neuralmem.hf.tokenizer import hf_tokenizer
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import ARCHITECTURE, FORMAT, load, refuse_file, write_model
from neuralmem.tokenizer import Tokenizer

CODE = "modeling_neuralmem"
AUTO_MAP = {"AutoConfig": f"{CODE}.NeuralMemConfig", "AutoModelForCausalLM": f"{CODE}.{ARCHITECTURE}"}
PYTHON = f'''"""Where transformers finds the classes with trust_remote_code=True. Needs pip install "neuralmem[hf]"."""

from neuralmem.hf import NeuralMemConfig, {ARCHITECTURE}  # noqa: F401
'''


def export(run: str | Path, folder: str | Path) -> None:
    """Write a checkpoint as a folder for the hub.

    Args:
        run: written by `neuralmem.save` or by training, or the name of a model in the package: "neuralmem/mag-tiny"
        folder: made if it does not exist; a model there is replaced, a README.md there is kept

    Raises:
        UserError: no checkpoint, a damaged one, one without a tokenizer, or the folder is the run itself.

    Example:
        >>> export("runs/quickstart", "hub/quickstart")  # doctest: +SKIP
    """
    folder = Path(folder)
    refuse_file("folder", folder)
    if folder.resolve() == Path(run).resolve():
        raise UserError(f"folder is {str(folder)!r}, the checkpoint itself; it must be another one")
    model, tokenizer = load(run)
    if tokenizer is None:
        raise UserError(f"checkpoint {run} has no tokenizer.json; save the model with its tokenizer")
    tokenizer = _without_post_processor(tokenizer)
    with whole_folder(folder, FORMAT) as new:
        write_model(new, model.config, model.state_dict(), tokenizer, hub={"auto_map": AUTO_MAP})
    _write_beside(folder, model, tokenizer)


def _without_post_processor(tokenizer: Tokenizer) -> Tokenizer:
    """The same ids also where transformers reads the file, which would put what it says around every text."""
    definition = json.loads(tokenizer.definition)
    if definition.get("post_processor") is None:
        return tokenizer
    return Tokenizer(json.dumps(definition | {"post_processor": None}, ensure_ascii=False, indent=1))


def _write_beside(folder: Path, model: CausalLM, tokenizer: Tokenizer) -> None:
    """What transformers reads beside a checkpoint's own files."""
    generation = GenerationConfig(eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.eos_id)
    write_file(folder / "generation_config.json", generation.to_json_string())
    write_file(folder / f"{CODE}.py", PYTHON)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **hf_tokenizer(tokenizer).init_kwargs}
    write_file(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
    if not (folder / "README.md").exists():
        write_file(folder / "README.md", card(model, tokenizer))


def card(model: CausalLM, tokenizer: Tokenizer) -> str:
    """A model card: what config and weights say, and nothing that they do not.

    Args:
        model: with its weights
        tokenizer: of the model
    """
    config, state = model.config, model.init_state(1)
    parameters = sum(p.numel() for p in model.parameters())
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    reach = f"{model.reach:,} tokens" if model.reach < sys.maxsize else "everything"
    rows = {
        "model": config.model,
        "layers": ", ".join(config.layer_names),
        "memory rule": config.memory.rule if model.has_memory else "none",
        "width": config.width,
        "parameters": f"{parameters:,}, {dtype}",
        "vocabulary": f"{config.vocab_size:,} ({type(tokenizer).__name__})",
        "attention and convolutions see back": reach,
        "memory of one sequence before it reads": f"{state.nbytes:,} bytes",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return CARD.format(table=table)


CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [neuralmem]
---

# A neuralmem model

A language model with a neural memory: weights per sequence that are updated while the model reads.

| | |
|---|---|
{table}

## Use

```
pip install "neuralmem[hf]"
```

```python
import neuralmem.hf
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this folder, or its name on the hub
tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModelForCausalLM.from_pretrained(name)
tokens = model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=32)
print(tokenizer.decode(tokens[0]))
```

Instead of `import neuralmem.hf`, `trust_remote_code=True` works too. In Python without transformers:
`neuralmem.load(folder)`.

## To be written by whoever publishes it

Training data, evaluation, intended use, and the licence of the weights.
"""
