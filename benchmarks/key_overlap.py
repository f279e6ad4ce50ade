"""How well a memory tells the keys of facts of different words apart, and which words are the most alike to it.

Behind a line of text stands a fact of one word, "@word 4"; what is compared is the memory's key at the first digit,
which is all that tells one word's first digit from another's, and its query in front of that digit, which has to find
it. Both come out of a convolution over the last bytes. What the layer reads in front of the digit alone is measured
too: `width in use` is (sum s^2)^2 / sum s^4 of the singular values s of these vectors less their mean. Vectors of equal
width in random directions are the null model: cosines of a standard deviation of 1 / sqrt(width).

`by place`: the same of whole facts, "@word 4711" and a line's end, with random digits: how wide the cosines are between
the query in front of each of the five and the keys of each of another word's five.

Prediction, written before the first run: mag-tiny's errors are single digits of the keys told first, some of them
another key's (looked at once, rows not kept), so words that are written alike will have keys that are alike.
What came out: they have, but they are few. Between different places keys are what random directions are, and between
the same places not much more.
Run: python benchmarks/key_overlap.py neuralmem/mag-tiny [MODEL ...]
"""

import argparse
from random import Random
from typing import Any

import torch
from record import write
from torch import Tensor
from torch.nn import functional as F

import neuralmem as nm
from neuralmem.data.corpus import haystack_text
from neuralmem.evaluation.recall import read_training_data, training_keys
from neuralmem.memory.titans import Titans
from neuralmem.models.pretrained import locate
from neuralmem.models.weights import weights_of

WORDS, PLACED, SHOWN = 300, 100, 12
QUANTILES = (0.5, 0.9, 0.99, 0.999)


class Listening:
    """Keeps what a model's first layer with a memory reads, [1, T, width], and what that memory is asked and writes in
    each call, [1, tokens, H, D]; one to a model."""

    def __init__(self, model: nm.CausalLM) -> None:
        layer = next(layer for layer in model.layers if isinstance(getattr(layer, "memory", None), Titans))
        layer.norm.register_forward_hook(lambda module, given, out: self.read.append(out))
        self.memory = layer.memory
        self.plain, self.memory.update = self.memory.update, self  # type: ignore[method-assign]
        self.read: list[Tensor] = []
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []

    def of(self, model: nm.CausalLM, ids: list[int], rest: int) -> tuple[Tensor, Tensor, Tensor]:
        """What is read, [T, width], asked and written, [T, H, D], for a text and as many tokens `rest` as end its
        chunk, for else the end would be read apart."""
        self.read, self.queries, self.keys = [], [], []
        model(torch.tensor([ids + [rest] * (-len(ids) % model.config.memory.chunk_size)]))
        read, queries, keys = (torch.cat(kept, dim=1)[0] for kept in (self.read, self.queries, self.keys))
        return read, queries, keys

    def __call__(self, q: Tensor, written: Any, *rest: Any) -> Any:
        self.queries.append(q)  # a MAC calls for every segment
        self.keys.append(written[0])
        return self.plain(q, written, *rest)


@torch.no_grad()
def vectors(heard: Listening, model: nm.CausalLM, tokenizer: Any, words: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Of every word what is read in front of its first digit [words, width], the query there and the key at the digit,
    both of length 1 [words, H, D]."""
    text, (end,) = haystack_text(64).rsplit("\n", 1)[0], tokenizer.encode("\n")
    read, queries, keys = [], [], []
    for word in words:
        ids = tokenizer.encode(f"{text}\n@{word} 4")
        x, q, k = heard.of(model, ids, end)
        read.append(x[len(ids) - 2])
        queries.append(q[len(ids) - 2])
        keys.append(k[len(ids) - 1])
    return torch.stack(read), F.normalize(torch.stack(queries), dim=-1), F.normalize(torch.stack(keys), dim=-1)


@torch.no_grad()
def by_place(heard: Listening, model: nm.CausalLM, tokenizer: Any, words: list[str]) -> list[list[float]]:
    """The standard deviation of cosines between words, by place of the query and of the key: four digits, the end."""
    text, (end,), random = haystack_text(64).rsplit("\n", 1)[0], tokenizer.encode("\n"), Random(2)
    queries, keys = [], []
    for word in words:
        ids = tokenizer.encode(f"{text}\n@{word} {random.randrange(10000):04d}\n")
        _, q, k = heard.of(model, ids, end)
        queries.append(q[len(ids) - 6 : len(ids) - 1])  # each in front of its key
        keys.append(k[len(ids) - 5 : len(ids)])
    q, k = (F.normalize(torch.stack(x), dim=-1) for x in (queries, keys))  # [words, places, H, D]
    cosines = torch.einsum("aihd,bjhd->ijhab", q, k)
    others = cosines[..., ~torch.eye(len(words), dtype=torch.bool)]  # [places, places, H, pairs]
    return others.std(-1).mean(-1).tolist()


def most_alike(cosines: Tensor, words: list[str]) -> list[list[Any]]:
    """Pairs of words with the largest cosines [words, words]."""
    value, place = cosines.triu(1).flatten().topk(SHOWN)
    return [
        [words[i // WORDS], words[i % WORDS], round(x, 3)] for x, i in zip(value.tolist(), place.tolist(), strict=True)
    ]


def measure(name: str) -> dict[str, Any]:
    """Quantiles of cosines between a word's query and the keys of the others, per head, and the words most alike."""
    model, tokenizer = nm.load(name)
    words = Random(1).sample(training_keys(read_training_data(locate(name)), tokenizer, 1), WORDS)
    heard = Listening(model)
    read, queries, keys = vectors(heard, model, tokenizer, words)
    cosines = torch.einsum("ahd,bhd->hab", queries, keys)  # [H, words, words]
    own = cosines.diagonal(dim1=1, dim2=2)
    others = cosines[:, ~torch.eye(WORDS, dtype=torch.bool)]
    chance = F.normalize(torch.randn(4096, keys.shape[-1], generator=torch.Generator().manual_seed(0)), dim=-1)
    random = (chance[:2048] @ chance[2048:].T).flatten()[: others[0].numel()]
    levels = torch.tensor(QUANTILES)
    read = read - read.mean(0)
    power = torch.linalg.svdvals(read) ** 2
    unit = F.normalize(read, dim=-1)
    alike = unit @ unit.T
    between = alike[~torch.eye(WORDS, dtype=torch.bool)]
    found = cosines.mean(0)
    return {
        "model": name,
        "weights_sha256": weights_of(locate(name)),
        "words": WORDS,
        "width": keys.shape[-1],
        "read": {
            "width": read.shape[-1],
            "width in use": float(power.sum() ** 2 / (power**2).sum()),
            "std": float(between.std()),
            "quantiles": dict(zip(map(str, QUANTILES), between.quantile(levels).tolist(), strict=True)),
        },
        "own": {"mean": own.mean(1).tolist(), "least": own.amin(1).tolist()},
        "others": {"mean": others.mean(1).tolist(), "std": others.std(1).tolist()},
        "quantiles": dict(zip(map(str, QUANTILES), others.quantile(levels, dim=1).tolist(), strict=True)),
        "by place": by_place(heard, model, tokenizer, words[:PLACED]),
        "random": dict(zip(map(str, QUANTILES), random.quantile(levels).tolist(), strict=True)),
        "most alike, read": most_alike(alike, words),
        "most alike, query and key": most_alike((found + found.T) / 2, words),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="with a titans memory, trained on facts: folders or names")
    torch.set_num_threads(1)
    rows = [measure(name) for name in parser.parse_args().models]
    for row in rows:
        print(*(f"{name}: {value}" for name, value in row.items()), sep="\n  ")
    print(write("key_overlap", rows))


if __name__ == "__main__":
    main()
