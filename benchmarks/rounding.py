"""How far float32 drifts from float64, by position, for every layer and every rule at default settings.

Prediction, written before the first run with the last matrix at full scale: below 1e-4 up to 4,096 tokens for every
layer (with that matrix at a tenth, MAC reached 0.6 by 1,024 tokens, the size of the logits). Before the first run of
rules, each in the layer that is the memory alone: the same, but for atlas and lact, whose Newton-Schulz makes small
singular values large (1e-3), and self_modifying, whose targets are its own answers (1e-3).
Run: python benchmarks/rounding.py
"""

import torch
from record import write

import neuralmem as nm
from neuralmem import registry

ENDS = (64, 256, 1024, 4096)
SEEDS = range(3)


def drift(layer: str, rule: str, seed: int) -> list[float]:
    """The largest difference of logits up to each of ENDS, of an untrained model on random bytes."""
    torch.manual_seed(seed)
    memory = nm.MemoryConfig(rule=rule)
    model = nm.CausalLM(nm.ModelConfig(vocab_size=257, width=64, depth=2, pattern=[layer], memory=memory))
    tokens = torch.randint(256, (1, ENDS[-1]))
    with torch.no_grad():
        single = model(tokens)[0].double()
        difference = (single - model.double()(tokens)[0]).abs().amax((0, 2))  # [T]
    return [float(difference[:end].max()) for end in ENDS]


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    first = nm.MemoryConfig().rule
    subjects = [(layer, first) for layer in registry.names("layer")]
    subjects += [("titans_lmm", rule) for rule in registry.names("rule") if rule != first]
    for layer, rule in subjects:
        worst = [max(column) for column in zip(*(drift(layer, rule, seed) for seed in SEEDS), strict=True)]
        rows.append({"layer": layer, "rule": rule, "up_to": ENDS, "worst_of_seeds": worst})
        print(f"| `{layer if rule == first else rule}` | {' | '.join(f'{x:.0e}' for x in worst)} |", flush=True)
    print(write("rounding", rows))


if __name__ == "__main__":
    main()
