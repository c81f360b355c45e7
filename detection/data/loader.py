"""From the index to batches on the device.

What a sample looks like is a function of (seed, epoch, index) and never of a worker's state, and an epoch's
batches are a function of (seed, epoch): a training that is cut off goes on with the very next batch.

Letters: B pictures in a batch, M most objects of one picture.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detection.data.augment import change_colours, draw_window, inside
from detection.data.batch import Batch, Sizes, Targets
from detection.data.geometry import Geometry, result_size
from detection.data.index import Index
from detection.data.pictures import read_picture
from detection.params.recipe import Recipe

STRIDE = 32  # batches are padded to whole cells of the coarsest backbone level


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, ready for a batch."""

    picture: Tensor
    """Tensor[3, h, w], uint8."""
    boxes: NDArray[np.float32]
    """[M, 4] in pixels of `picture`."""
    labels: NDArray[np.int64]
    """[M]."""
    original: tuple[int, int]
    """Height and width of the file."""
    row: int
    """Which picture of the index."""


class Pictures(Dataset[Sample]):
    """The pictures of one split, indexed by `(epoch, row)`.

    Args:
        index: The split.
        root: Folder that its files are relative to.
        recipe: Size, augmentation, and whether to train on difficult objects.
        train: Augment, and drop crowds and, unless the recipe wants them, difficult objects.
        seed: Of the augmentation.
    """

    def __init__(self, index: Index, root: Path, recipe: Recipe, train: bool, seed: int = 0) -> None:
        self.index, self.root, self.recipe, self.train, self.seed = index, root, recipe, train, seed
        red, green, blue = recipe.image_mean
        self.fill = round(255 * red), round(255 * green), round(255 * blue)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, row = key
        recipe, record = self.recipe, self.index[row]
        picture = read_picture(self.root / record.file)
        height, width = picture.shape[1:]
        boxes, labels = record.boxes, record.labels
        policy = recipe.augmentation if self.train else "none"
        rng = np.random.default_rng((self.seed, epoch, row))
        if self.train:
            kept = ~record.crowd & (recipe.train_difficult | ~record.difficult)
            boxes, labels = boxes[kept], labels[kept]
        window = draw_window(policy, rng, height, width, boxes)
        kept = inside(window, boxes)
        shown = (window[3] - window[1], window[2] - window[0])
        size = result_size(*shown, recipe.resize, recipe.image_size, recipe.max_size)
        flip = policy != "none" and rng.random() < 0.5
        geometry = Geometry(window, *size, flip)
        pixels = change_colours(policy, rng, geometry.picture(picture, self.fill))
        return Sample(pixels, geometry.boxes(boxes[kept]), labels[kept], (height, width), row)


def collate(samples: list[Sample], fill: tuple[int, ...]) -> Batch:
    """Pad pictures with `fill` and boxes with zeros to a batch."""
    inside_sizes = torch.tensor([sample.picture.shape[1:] for sample in samples])
    tallest, widest = (-(-int(side) // STRIDE) * STRIDE for side in inside_sizes.amax(0))
    if len({sample.picture.shape for sample in samples}) == 1 and _is_square(samples[0]):
        images = torch.stack([sample.picture for sample in samples])  # a fixed size is never padded
    else:
        images = (
            torch.tensor(fill, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(samples), 1, tallest, widest)
        )
        for image, sample in zip(images, samples, strict=True):
            image[:, : sample.picture.shape[1], : sample.picture.shape[2]] = sample.picture
    most = max((len(sample.boxes) for sample in samples), default=0)
    boxes = torch.zeros(len(samples), most, 4)
    labels = torch.zeros(len(samples), most, dtype=torch.int64)
    mask = torch.zeros(len(samples), most, dtype=torch.bool)
    for i, sample in enumerate(samples):
        count = len(sample.boxes)
        boxes[i, :count] = torch.from_numpy(sample.boxes)
        labels[i, :count] = torch.from_numpy(sample.labels)
        mask[i, :count] = True
    originals = torch.tensor([sample.original for sample in samples])
    return Batch(
        images,
        Targets(boxes, labels, mask, inside_sizes),
        Sizes(inside_sizes, originals),
        [sample.row for sample in samples],
    )


def _is_square(sample: Sample) -> bool:
    return sample.picture.shape[1] == sample.picture.shape[2]


class Order(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch, from some batch on.

    Args:
        count: Pictures.
        batch_size: Pictures in a batch. In training an incomplete last batch is dropped, unless it is
            the only one.
        seed: Of the shuffling; None keeps the order and the incomplete batch.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        if self.seed is None:
            return -(-self.count // self.batch_size)
        return max(self.count // self.batch_size, min(self.count, 1))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = np.arange(self.count)
        if self.seed is not None:
            rows = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for batch in range(self.start, len(self)):
            part = rows[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in part]


class Loader:
    """Batches of a split, epoch by epoch.

    Args:
        pictures: The split.
        batch_size: Pictures in a batch.
        workers: Loader processes; 0 loads here. See `loader_workers`.
        shuffle: A training's order, by the pictures' seed.
    """

    def __init__(self, pictures: Pictures, batch_size: int, workers: int, shuffle: bool) -> None:
        self.pictures = pictures
        self.order = Order(len(pictures), batch_size, pictures.seed if shuffle else None)
        self.batches: DataLoader[Sample] = DataLoader(
            pictures,
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=lambda samples: collate(samples, pictures.fill),
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, the first `start` of them left out."""
        self.order.epoch, self.order.start = epoch, start
        yield from self.batches


def loader_workers(workers: int | str, device: torch.device) -> int:
    """How many loader processes: `auto` is one a core up to 8 beside a GPU, none where the CPU trains."""
    if isinstance(workers, int):
        return workers
    return min(8, os.cpu_count() or 1) if device.type == "cuda" else 0
