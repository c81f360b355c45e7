"""What a classifier learns from: crops that lie in memory, or the pictures of a folder."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from detection import distributed
from detection.data.loading.loader import BatchSampler, init_worker
from detection.params.stages import Crops
from detection.training.pretrain.classifier import Batches
from detection.training.pretrain.crops import CropSet, augment, centre
from detection.training.pretrain.imagefolder import FolderPictures, collate

CHECK_BATCH = 256  # pictures that are scored at once


class CropExamples:
    """Crops in memory, shuffled, shifted and mirrored; a batch is a function of (seed, epoch, batch)."""

    def __init__(self, crops: CropSet, settings: Crops, seed: int) -> None:
        self.crops, self.settings = crops, settings
        self.order = BatchSampler(len(crops), settings.batch_size, seed)

    def __len__(self) -> int:
        """See `Examples`."""
        return len(self.order)

    def epoch(self, epoch: int, start: int) -> Batches:
        """See `Examples`."""
        self.order.epoch, self.order.start = epoch, start
        for number, batch in enumerate(self.order, start):
            rows = torch.tensor([row for _, row in batch])
            rng = np.random.default_rng((self.order.seed or 0, epoch, number, distributed.rank()))
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            yield (
                augment(self.crops.pixels[rows], self.settings.image_size, generator),
                self.crops.labels[rows],
            )


class CropCheck:
    """The middle of each crop."""

    def __init__(self, crops: CropSet, side: int) -> None:
        self.crops, self.side = crops, side

    def batches(self) -> Batches:
        """See `Check`."""
        rows = torch.arange(distributed.rank(), len(self.crops), distributed.world_size())
        for first in range(0, len(rows), CHECK_BATCH):
            part = rows[first : first + CHECK_BATCH]
            yield centre(self.crops.pixels[part], self.side), self.crops.labels[part]


class FolderExamples:
    """The pictures of a folder, decoded and augmented by loader processes."""

    def __init__(self, pictures: FolderPictures, batch_size: int, workers: int) -> None:
        self.order = BatchSampler(len(pictures), batch_size, pictures.seed)
        self.loader = DataLoader(
            pictures,
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=collate,
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=init_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        """See `Examples`."""
        return len(self.order)

    def epoch(self, epoch: int, start: int) -> Batches:
        """See `Examples`."""
        self.order.epoch, self.order.start = epoch, start
        yield from self.loader


class FolderCheck:
    """The middle of each picture of a folder."""

    def __init__(self, pictures: FolderPictures, workers: int) -> None:
        self.pictures, self.workers = pictures, workers

    def batches(self) -> Batches:
        """See `Check`."""
        rows = [(0, row) for row in range(distributed.rank(), len(self.pictures), distributed.world_size())]
        parts = [rows[first : first + CHECK_BATCH] for first in range(0, len(rows), CHECK_BATCH)]
        yield from DataLoader(
            self.pictures,
            batch_sampler=parts,
            num_workers=self.workers,
            collate_fn=collate,
            multiprocessing_context="fork" if self.workers else None,
            worker_init_fn=init_worker,
        )
