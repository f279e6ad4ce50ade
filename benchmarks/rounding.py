"""How far float32 drifts from float64, by position, for every layer at default settings.

Prediction, written before the first run with the last matrix at full scale: below 1e-4 up to 4,096 tokens for every
layer (with that matrix at a tenth, MAC reached 0.6 by 1,024 tokens, the size of the logits).
Run: python benchmarks/rounding.py
"""

import torch
from record import write

import neuralmem as nm
from neuralmem import registry

ENDS = (64, 256, 1024, 4096)
SEEDS = range(3)


def drift(layer: str, seed: int) -> list[float]:
    """The largest difference of logits up to each of ENDS, of an untrained model on random bytes."""
    torch.manual_seed(seed)
    model = nm.CausalLM(nm.ModelConfig(vocab_size=257, width=64, depth=2, pattern=[layer]))
    tokens = torch.randint(256, (1, ENDS[-1]))
    with torch.no_grad():
        single = model(tokens)[0].double()
        difference = (single - model.double()(tokens)[0]).abs().amax((0, 2))  # [T]
    return [float(difference[:end].max()) for end in ENDS]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for layer in registry.names("layer"):
        worst = [max(column) for column in zip(*(drift(layer, seed) for seed in SEEDS), strict=True)]
        rows.append({"layer": layer, "up_to": ENDS, "worst_of_seeds": worst})
        print(f"| `{layer}` | {' | '.join(f'{x:.0e}' for x in worst)} |")
    print(write("rounding", rows))


if __name__ == "__main__":
    main()
