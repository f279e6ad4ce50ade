"""A MAC that begins as a trained MAG: the same weights, with attention within a segment in place of a window.

Almost the same function: a MAC writes norm(S + y) where a MAG writes norm(x), so the attention's y is made small
against S, which the gate's norm undoes. What is left to learn is the attention over what was recalled. `--init_from`
takes the folder.

Run: python benchmarks/mac_from_mag.py neuralmem/mag-tiny runs/checkpoints/mac-tiny-start
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from neuralmem.layers.titans_mac import TitansMAC
from neuralmem.models.causal_lm import CausalLM
from neuralmem.models.checkpoint import load, save

SMALL = 0.1  # y against S in what is written


def convert(mag: CausalLM, segment: int) -> CausalLM:
    """The same model with a MAC wherever there is a MAG."""
    pattern = ["titans_mac" if name == "titans_mag" else name for name in mag.config.pattern]
    mac = CausalLM(replace(mag.config, pattern=pattern, attention=replace(mag.config.attention, segment=segment)))
    new, lost = mac.load_state_dict(mag.state_dict(), strict=False)
    assert not lost, lost
    assert all(name.endswith("written_norm.gain") for name in new), new
    for layer in mac.layers:
        if isinstance(layer, TitansMAC):
            with torch.no_grad():
                layer.attention.output.weight.mul_(SMALL)
    return mac


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mag", help="a saved MAG: a folder or a model of the package")
    parser.add_argument("folder", type=Path, help="where the MAC is written")
    parser.add_argument("--segment", type=int, default=32, help="tokens in a segment (32)")
    options = parser.parse_args()
    mag, tokenizer = load(options.mag)
    if "titans_mag" not in mag.config.pattern:
        layers = ", ".join(mag.config.pattern)
        parser.error(f"mag is {options.mag!r}, whose layers are {layers}; one must be titans_mag")
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    save(options.folder, convert(mag, options.segment), tokenizer)


if __name__ == "__main__":
    main()
