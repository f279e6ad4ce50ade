"""A model whose memories see more bytes through their convolutions, and which begins as a trained one.

The taps for bytes farther back are new. A query's are numbers of random signs, as large as its channel's others times
`--scale`, and a key's are the query's one byte later, as where induction starts (neuralmem/memory/_ways.py): a memory
that is asked at the byte before what it keeps then finds it. With zeros on both sides neither would have a reason to
grow. A value's are zero. `--init_from` takes the folder.

Run: python benchmarks/longer_convolution.py neuralmem/mag-tiny runs/checkpoints/mag-tiny-start --taps 8
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from neuralmem.memory._ways import Ways
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import load, save


def lengthen(query: Tensor, key: Tensor, value: Tensor, taps: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """More taps [taps, channels] for what is convolved, [fewer, channels] each."""
    generator = torch.Generator().manual_seed(0)
    old = len(query)
    sign = torch.randint(2, (taps - old, query.shape[1]), generator=generator) * 2.0 - 1
    new = scale * query[1:].square().mean(0).sqrt() * sign
    longer = [torch.cat([x, x.new_zeros(taps - old, x.shape[1])]) for x in (query, key, value)]
    longer[0][old:-1] = new[:-1]  # the farthest has no room one byte later
    longer[1][old + 1 :] = new[:-1]
    return longer[0], longer[1], longer[2]


def convert(model: CausalLM, taps: int, scale: float) -> CausalLM:
    """The same model with so many taps in every memory."""
    longer = CausalLM(replace(model.config, memory=replace(model.config.memory, convolution=taps)))
    weights = model.state_dict()
    for name, memory in model.named_modules():
        if isinstance(memory, Ways):
            convolutions = [f"{name}.convolutions.{i}.weight" for i in range(3)]
            found = lengthen(*(weights[key] for key in convolutions), taps, scale)
            weights |= dict(zip(convolutions, found, strict=True))
    longer.load_state_dict(weights)
    return longer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved model: a folder or one of the package")
    parser.add_argument("folder", type=Path, help="where the longer one is written")
    parser.add_argument("--taps", type=int, default=8, help="bytes that a convolution sees (8)")
    parser.add_argument("--scale", type=float, default=0.5, help="new taps against the others of their channel (0.5)")
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    if options.taps <= model.config.memory.convolution:
        parser.error(f"--taps is {options.taps}; the model has {model.config.memory.convolution}, it must be more")
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    save(options.folder, convert(model, options.taps, options.scale), tokenizer)


if __name__ == "__main__":
    main()
