"""A model with larger memories that begins as a trained one: with convolutions over more bytes, or with more heads.

`--taps`: the taps for bytes farther back are new. A query's are numbers of random signs, half as large as its channel's
others (but the farthest's, zero), and a key's are the query's one byte later, as where induction starts
(neuralmem/memory/_ways.py): a memory that is asked at the byte before what it keeps then finds it. With zeros on both
sides neither would have a reason to grow. A value's are zero.
`--heads`: a new head is a copy of a trained one, but that its queries and keys are of other, random features, the same
for both, so that two words that one head mixes up are two to another. What both read is weighed 3 to 2.
`--init_from` takes the folder.

Run: python benchmarks/larger_memory.py --taps 8 neuralmem/mag-tiny runs/checkpoints/larger
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from neuralmem.memory.titans import Titans
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import load, save

SCALE = 0.5  # new taps against the others of their channel
SHARE = 0.4  # of what is read that comes from new heads


def lengthen(query: Tensor, key: Tensor, value: Tensor, taps: int) -> tuple[Tensor, ...]:
    """More taps [taps, channels] for what is convolved, [fewer, channels] each."""
    old, new = len(query), taps - len(query)
    signs = torch.randint(2, (new, query.shape[1]), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    farther = (SCALE * query[1:].square().mean(0).sqrt() * signs)[:-1]
    longer = tuple(torch.cat([x, x.new_zeros(new, x.shape[1])]) for x in (query, key, value))
    longer[0][old:-1] = farther  # the farthest has no room one byte later
    longer[1][old + 1 :] = farther
    return longer


def more_heads(weights: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """A memory's weights with so many times its heads."""
    heads = len(weights["weights.0"])
    generator = torch.Generator().manual_seed(0)
    shape = (times - 1, *weights["query.weight"].shape)
    features = torch.randn(shape, generator=generator).flatten(0, 1)
    found = {}
    for name, x in weights.items():
        if name in ("query.weight", "key.weight"):
            found[name] = torch.cat([x, features * x.std()])
        elif name.startswith("convolutions."):
            found[name] = x.repeat(1, times)
        elif name.startswith("gate_map."):  # gates before heads
            found[name] = x.unflatten(0, (-1, heads)).repeat(1, times, *[1] * (x.ndim - 1)).flatten(0, 1)
        elif name == "output.weight":
            found[name] = torch.cat([x * (1 - SHARE), *[x * SHARE / (times - 1)] * (times - 1)], 1)
        elif name == "read_norm.gain":
            found[name] = x
        else:  # values, the memory itself and its norm
            found[name] = x.repeat(times, *[1] * (x.ndim - 1))
    return found


def convert(model: CausalLM, taps: int, heads: int) -> CausalLM:
    """The same model with so many taps and heads in every memory."""
    config, weights = model.config.memory, model.state_dict()
    for name, memory in model.named_modules():
        if type(memory) is not Titans:  # rules that derive from it may have more
            continue
        own = memory.state_dict()
        if taps > config.convolution:
            names = [f"convolutions.{i}.weight" for i in range(3)]
            own |= zip(names, lengthen(*(own[key] for key in names), taps), strict=True)
        if heads > config.heads:
            own = more_heads(own, heads // config.heads)
        weights |= {f"{name}.{key}": x for key, x in own.items()}
    width = config.head_width or model.config.width // config.heads  # a head stays as wide as it was
    larger = CausalLM(replace(model.config, memory=replace(config, convolution=taps, heads=heads, head_width=width)))
    larger.load_state_dict(weights)
    return larger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a saved model with the memory of Titans: a folder or one of the package")
    parser.add_argument("folder", type=Path, help="where the larger one is written")
    parser.add_argument("--taps", type=int, metavar="N", help="bytes that a convolution sees (as many as now)")
    parser.add_argument("--heads", type=int, metavar="N", help="of the memory (as many as now)")
    options = parser.parse_args()
    model, tokenizer = load(options.model)
    memory = model.config.memory
    if not any(type(part) is Titans for part in model.modules()):
        parser.error(f"model is {options.model!r}, which has no memory of rule titans")
    taps = memory.convolution if options.taps is None else options.taps
    heads = memory.heads if options.heads is None else options.heads
    if taps < memory.convolution or taps > memory.convolution == 1:
        parser.error(f"--taps is {taps}; the model has {memory.convolution}, it must be at least that, and 1 stays 1")
    if heads < 1 or heads % memory.heads:
        parser.error(f"--heads is {heads}; the model has {memory.heads}, it must be a multiple of that")
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    save(options.folder, convert(model, taps, heads), tokenizer)


if __name__ == "__main__":
    main()
