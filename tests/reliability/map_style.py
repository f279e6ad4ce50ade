"""A user's own data: rows in memory, shuffled, with an end, so that a run sees several epochs."""

import lightning.pytorch as L
import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from neuralmem.data.batch import Batch


class Rows(Dataset[Batch]):
    """12 rows of random tokens."""

    def __init__(self) -> None:
        self.rows = torch.randint(50, (12, 33), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Batch:
        return Batch(self.rows[number, :-1], self.rows[number, 1:])


def collate(rows: list[Batch]) -> Batch:
    return Batch(torch.stack([row.tokens for row in rows]), torch.stack([row.targets for row in rows]))


class MapData(L.LightningDataModule):
    """Three batches of four rows per epoch."""

    vocab_size = 50
    batch_size, length = 4, 32

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self) -> StatefulDataLoader:
        return StatefulDataLoader(Rows(), batch_size=4, shuffle=True, num_workers=self.num_workers, collate_fn=collate)
