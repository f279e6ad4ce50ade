"""Lightning data modules: text, and synthetic tasks. The only file below training that imports Lightning.

What is special: loaders save their exact position in Lightning's checkpoints, validation draws nothing from the global
random state, devices and loader processes read different documents, and `vocab_size` is known before training starts,
so that a configuration file can link it to the model.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from neuralmem.data.batch import Batch
from neuralmem.data.document import limited
from neuralmem.data.faults import texts_of
from neuralmem.data.needle_format import NeedleFormat
from neuralmem.data.needles import HAYSTACK_CHARACTERS, Needles, find_keys
from neuralmem.data.packing import PackedText
from neuralmem.data.readers import leave_signals_to_the_parent
from neuralmem.data.sources import DOCUMENT_BYTES, Side, Source, open_source
from neuralmem.data.synthetic import Part, Recall, Stage
from neuralmem.data.tokenizers import make_tokenizer
from neuralmem.errors import UserError
from neuralmem.tokenizer import Tokenizer


@dataclass(frozen=True)
class Validation:
    """What is kept for validation.

    Args:
        share: part of the documents; of a single document, its last part
        batches: batches per validation at most
        source: documents of its own, as in TextData; None: a share of those of training
    """

    share: float = 0.1
    batches: int = 20
    source: str | list[str] | dict[str, float] | None = None


@dataclass(frozen=True)
class Files:
    """How files are read.

    Args:
        text_field: the field of jsonl, parquet and hub records that holds the text
        document_bytes: a text file larger than this is read as several documents
    """

    text_field: str = "text"
    document_bytes: int = DOCUMENT_BYTES


class DataModule(L.LightningDataModule, ABC):
    """Loaders for the data sets that a subclass builds.

    Attributes:
        batch_size, length: rows per device, tokens per row; where these vary, those of the last stage
        carry_memory: the state of one training batch is handed to the next
    """

    batch_size: int
    length: int
    carry_memory = False
    num_workers: int
    _positions: Sequence[dict[str, Any]] = ()

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turned text into tokens; None where the tokens are no text."""
        return None

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.tokenizer.vocab_size if self.tokenizer else 0

    @abstractmethod
    def build(self, part: Part, shard: tuple[int, int] = (0, 1)) -> IterableDataset[Batch]:
        """-> the data set of one part, for one of several devices given as (index, count)."""

    def train_dataloader(self) -> StatefulDataLoader:
        data = self.build("train", self._shard())
        if self._positions:
            data.take_over(self._positions)  # type: ignore[attr-defined]
        return StatefulDataLoader(
            data, batch_size=None, num_workers=self.num_workers, worker_init_fn=leave_signals_to_the_parent
        )

    def take_over(self, positions: Sequence[dict[str, Any]]) -> None:
        """Let training go on where readers of another number have stopped.

        Args:
            positions: of their data sets, loader process by loader process, device by device
        """
        self._positions = positions

    def val_dataloader(self) -> DataLoader:
        # Its own generator: otherwise the start of a validation would draw from the global random state.
        generator = torch.Generator().manual_seed(0)
        return DataLoader(self.build("validation", self._shard()), batch_size=None, generator=generator)

    def _shard(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


class TextData(DataModule):
    """Text for language modelling, packed into rows.

    Args:
        tokenizer: "bytes", "bpe:NUMBER" or "words:NUMBER" (trained on the source and kept in a cache; "words" keeps
            spaces apart from words), or the path of a tokenizer.json
        source: "builtin" (prose of the Python library), "stdlib" (its sources), a path, folder or glob of text, jsonl
            and parquet files, a dataset by name ("fineweb-edu", or any as "hf:NAME"), or "shards:FOLDER"; a list of
            these, or a mapping of them to weights
        sequence_length: tokens per row
        batch_size: rows per device
        align: documents start on multiples of this many tokens: the memory's chunk_size, or the segment of titans_mac
        carry: a row continues the row of the batch before, with the memory carried along
        num_workers: loader processes; 0 reads in the training process
        seed: order of the documents
        validation: what is kept for validation
        files: how files are read
    """

    def __init__(
        self,
        tokenizer: str = "bytes",
        source: str | list[str] | dict[str, float] = "builtin",
        sequence_length: int = 1024,
        batch_size: int = 8,
        align: int = 32,
        carry: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        validation: Validation = Validation(),
        files: Files = Files(),
    ) -> None:
        super().__init__()
        self.source, self.length, self.batch_size, self.align = source, sequence_length, batch_size, align
        self.carry_memory, self.num_workers, self.seed = carry, num_workers, seed
        self.validation, self.files = validation, files
        self._tokenizer_spec = tokenizer
        self._tokenizer: Tokenizer | None = None
        self._opened: dict[Side, Source] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, trained or loaded on first use."""
        if self._tokenizer is None:
            source = self.open("train")
            tokenizer = make_tokenizer(self._tokenizer_spec, texts_of(source))
            source.accept(tokenizer)
            self._tokenizer = tokenizer
        return self._tokenizer

    def open(self, side: Side) -> Source:
        """-> the documents of one side."""
        if side not in self._opened:
            spec, part, share = self.source, side, self.validation.share
            if self.validation.source is not None:
                spec, part, share = (self.validation.source if side == "validation" else self.source), "all", 0.0
            how = {"text_field": self.files.text_field, "document_bytes": self.files.document_bytes}
            self._opened[side] = open_source(spec, side=part, share=share, **how)  # type: ignore[arg-type]
        return self._opened[side]

    def build(self, part: Part, shard: tuple[int, int] = (0, 1)) -> PackedText:
        training = part == "train"  # validation reads every row from a fresh memory, in the order of the documents
        return PackedText(
            self.open(part),
            self.tokenizer,
            length=self.length,
            batch_size=self.batch_size,
            align=self.align,
            carry=self.carry_memory and training,
            seed=self.seed if training else None,
            batches=None if training else self.validation.batches,
            shard=shard,
        )


class _Synthetic:
    """What the synthetic tasks have in common; not a DataModule itself, because command lines list those."""

    def _set(
        self, stages: list[Stage], batch_tokens: int, num_workers: int, seed: int, validation_batches: int
    ) -> None:
        if not stages:
            raise UserError("stages is []; it must hold at least one stage")
        self.stages, self.batch_tokens, self.num_workers = stages, batch_tokens, num_workers
        self.seed, self.validation_batches = seed, validation_batches
        self.length, self.batch_size = stages[-1].length, max(1, batch_tokens // stages[-1].length)

    def _curriculum(self, part: Part, shard: tuple[int, int]) -> dict[str, Any]:
        """Validation is the last stage without the lengths mixed in."""
        training = part == "train"
        stages = self.stages if training else [replace(self.stages[-1], longer=())]
        batches = None if training else self.validation_batches
        common: dict[str, Any] = {"batch_tokens": self.batch_tokens, "seed": self.seed, "part": part}
        return common | {"stages": stages, "batches": batches, "shard": shard}


class RecallData(_Synthetic, DataModule):
    """Recall of token pairs beyond the attention window.

    Args:
        stages: the curriculum
        keys: number of key tokens
        values: number of value tokens
        noise: number of noise tokens
        scattered: pairs stand apart, with noise between them
        held_out: share of all (key, value) pairs that only validation uses
        batch_tokens: tokens per batch and device
        num_workers: loader processes
        seed: of all that is drawn
        validation_batches: batches per validation
    """

    def __init__(
        self,
        stages: list[Stage],
        keys: int = 64,
        values: int = 64,
        noise: int = 16,
        scattered: bool = False,
        held_out: float = 0.25,
        batch_tokens: int = 4096,
        num_workers: int = 0,
        seed: int = 0,
        validation_batches: int = 20,
    ) -> None:
        super().__init__()
        self._set(stages, batch_tokens, num_workers, seed, validation_batches)
        self.options: dict[str, Any] = {
            "keys": keys,
            "values": values,
            "noise": noise,
            "scattered": scattered,
            "held_out": held_out,
        }

    @property
    def vocab_size(self) -> int:
        """Key, value and noise tokens."""
        return sum(int(self.options[name]) for name in ("keys", "values", "noise"))

    def build(self, part: Part, shard: tuple[int, int] = (0, 1)) -> Recall:
        return Recall(**self._curriculum(part, shard), **self.options)


class NeedleData(_Synthetic, DataModule):
    """Facts in real text and questions about them.

    Args:
        stages: the curriculum
        tokenizer: "words:NUMBER", "bpe:NUMBER" (trained on the source and kept in a cache), "bytes", or the path of a
            tokenizer.json
        source: where the text comes from, as in TextData but for shards; validation uses documents of its own
        form: format of facts and questions, and which keys and pairs are kept for validation
        other_forms: further formats; each row is written in one of those that its stage uses
        placing: "scattered" through the row, or facts in "front" and questions behind
        text_weight: loss weight of the text relative to that of the answers
        text_share: part of the text tokens, chosen at random, that are targets; fewer make a step cheaper
        decoys: lines of a word and a number that are never asked for, per thousand tokens of text on average
        alike: share of a row's keys that end as a key before, which a memory mixes up
        batch_tokens: tokens per batch and device
        num_workers: loader processes
        seed: of all that is drawn
        validation_batches: batches per validation
    """

    def __init__(
        self,
        stages: list[Stage],
        tokenizer: str = "words:1024",
        source: str | list[str] | dict[str, float] = "builtin",
        form: NeedleFormat = NeedleFormat(),
        other_forms: list[NeedleFormat] | None = None,
        placing: Literal["scattered", "front"] = "scattered",
        text_weight: float = 0.05,
        text_share: float = 1.0,
        decoys: float = 0.0,
        alike: float = 0.0,
        batch_tokens: int = 4096,
        num_workers: int = 0,
        seed: int = 0,
        validation_batches: int = 20,
    ) -> None:
        super().__init__()
        self._set(stages, batch_tokens, num_workers, seed, validation_batches)
        self.options: dict[str, Any] = {
            "form": form,
            "other_forms": other_forms or (),
            "placing": placing,
            "text_weight": text_weight,
            "text_share": text_share,
            "decoys": decoys,
            "alike": alike,
        }
        self.source = source
        self._tokenizer_spec = tokenizer
        self._tokenizer: Tokenizer | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, trained or loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = make_tokenizer(self._tokenizer_spec, self._training_texts())
        return self._tokenizer

    @cached_property
    def keys(self) -> list[str]:
        """All words that can be keys, those kept for validation included."""
        return find_keys(limited(self._training_texts(), HAYSTACK_CHARACTERS), self.tokenizer, self.options["form"])

    def build(self, part: Part, shard: tuple[int, int] = (0, 1)) -> Needles:
        haystack = open_source(self.source, side=part)
        common = self._curriculum(part, shard)
        return Needles(**common, **self.options, tokenizer=self.tokenizer, haystack=haystack, keys=self.keys)

    def _training_texts(self) -> Iterator[str]:
        return texts_of(open_source(self.source, side="train"))
