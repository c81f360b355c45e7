"""From the index to batches on the device.

What a sample looks like is a function of (seed, epoch, index) and never of a worker's state, and an epoch's
batches are a function of (seed, epoch): a training that is cut off goes on with the very next batch.

Loader processes are forked: they share the index and the cache with the training and copy neither. That other
threads run here meanwhile (OpenMP's, the tracking's), of which Python 3.12 and later warn, is no danger: a
loader process decodes and resizes in one thread, and uses no device, no connection and no lock of theirs.

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

from detection import distributed
from detection.data.index import Index, Record
from detection.data.loading.augment import draw_geometry, kept
from detection.data.loading.batch import Batch, ImageSizes, Targets
from detection.data.loading.color_jitter import jitter_colors
from detection.data.loading.geometry import Geometry, result_size
from detection.data.loading.image_cache import ImageCache
from detection.data.loading.image_io import read_image
from detection.errors import ParamsError
from detection.params.recipe import Recipe, SSDRecipe

STRIDE = 32  # batches are padded to whole cells of the coarsest backbone level
GREY = (128, 128, 128)  # of `letterbox`'s canvas
ASPECT_EDGES = 2 ** np.linspace(-1, 1, 7)  # torchvision's references: --aspect-ratio-group-factor 3


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


class DetectionDataset(Dataset[Sample]):
    """The pictures of one split, indexed by `(epoch, row)`.

    Args:
        index: The split.
        root: Folder that its files are relative to.
        recipe: Size, augmentation, and whether to train on difficult objects.
        train: Augment, and drop crowds and, unless the recipe wants them, difficult objects.
        seed: Of the augmentation.
        cache_mb: Memory in MiB that decoded pictures may take up; 0 keeps none.
    """

    def __init__(
        self, index: Index, root: Path, recipe: Recipe, train: bool, seed: int = 0, cache_mb: int = 0
    ) -> None:
        self.index, self.root, self.recipe, self.train, self.seed = index, root, recipe, train, seed
        self.fill = fill_of(recipe)
        self.cache = ImageCache(index.sizes, cache_mb) if cache_mb > 0 else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, row = key
        record = self.index[row]
        picture = self._decoded(row, record)
        if not self.train:
            return eval_sample(picture, record.boxes, record.labels, row, self.recipe)
        wanted = ~record.crowd & (self.recipe.train_difficult | ~record.difficult)
        return self._augmented(epoch, row, picture, record.boxes[wanted], record.labels[wanted])

    def _decoded(self, row: int, record: Record) -> Tensor:
        held = self.cache.get(row) if self.cache is not None else None
        if held is not None:
            return held
        picture = read_image(self.root / record.file, (record.height, record.width))
        # one memory layout, the JPEG decoder's own, whoever decoded it: resizing is fastest there
        picture = picture.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        if self.cache is not None:
            self.cache.put(row, picture)
        return picture

    def _augmented(
        self, epoch: int, row: int, picture: Tensor, boxes: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> Sample:
        policy = self.recipe.augmentation
        rng = np.random.default_rng((self.seed, epoch, row))
        height, width = picture.shape[1:]
        geometry = draw_geometry(self.recipe, rng, height, width, boxes)
        still = kept(policy, geometry, boxes)
        fill = GREY if policy == "letterbox" else self.fill
        pixels = geometry.picture(picture, fill, lambda part: jitter_colors(policy, rng, part))
        return Sample(pixels, geometry.boxes(boxes[still]), labels[still], (height, width), row)


def eval_sample(
    picture: Tensor, boxes: NDArray[np.float32], labels: NDArray[np.int64], row: int, recipe: Recipe
) -> Sample:
    """A picture as it is scored: all of it, at the recipe's size, not augmented."""
    height, width = picture.shape[1:]
    size = result_size(height, width, recipe.resize, recipe.image_size, recipe.max_size)
    geometry = Geometry((0, 0, width, height), *size)
    return Sample(
        geometry.picture(picture, fill_of(recipe)), geometry.boxes(boxes), labels, (height, width), row
    )


def fill_of(recipe: Recipe) -> tuple[int, int, int]:
    """RGB of what lies beyond a picture: the mean, which is 0 once it is normalised."""
    red, green, blue = recipe.image_mean
    return round(255 * red), round(255 * green), round(255 * blue)


def in_whole_cells(recipe: Recipe) -> bool:
    """Whether the sides of a batch must be multiples of `STRIDE`.

    They must where anchors take their strides from them: 100 pixels over 13 cells would be 7 and not 8.
    """
    return not isinstance(recipe, SSDRecipe) and getattr(recipe, "anchor_strides", None) is None


def collate(samples: list[Sample], recipe: Recipe) -> Batch:
    """Pad pictures with their fill and boxes with zeros to a batch."""
    inside_sizes = torch.tensor([sample.picture.shape[1:] for sample in samples])
    tallest, widest = (-(-int(side) // STRIDE) * STRIDE for side in inside_sizes.amax(0))
    sides = set(inside_sizes.flatten().tolist())
    if len(sides) == 1 and (sides == {tallest} or not in_whole_cells(recipe)):
        images = torch.stack([sample.picture for sample in samples])  # squares that need no padding
    else:
        fill = torch.tensor(fill_of(recipe), dtype=torch.uint8).view(1, 3, 1, 1)
        images = fill.repeat(len(samples), 1, tallest, widest)
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
        ImageSizes(inside_sizes, originals),
        [sample.row for sample in samples],
    )


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """The batches of one epoch, from some batch on; of each, this rank's share.

    Args:
        count: Pictures.
        batch_size: Pictures in a batch. In training an incomplete last batch is dropped, unless it is
            the only one.
        seed: Of the shuffling; None keeps the order and the incomplete batch, and leaves it unshared.
        groups: [count] a group of each picture. A shuffled batch holds one group alone, but for a few at the
            groups' ends, which mix neighbouring groups: nothing is repeated, as many batches as without.

    Raises:
        ParamsError: A batch cannot be shared equally by the ranks.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int | None, groups: NDArray[np.int64] | None = None
    ) -> None:
        self.count, self.batch_size, self.seed, self.groups = count, batch_size, seed, groups
        self.epoch, self.start = 0, 0
        self.rank, self.ranks = (distributed.rank(), distributed.world_size()) if seed is not None else (0, 1)
        if min(count, batch_size) % self.ranks:
            raise ParamsError(
                f"params.yaml: train.devices: {self.ranks} devices cannot share a batch of "
                f"{min(count, batch_size)} pictures equally; choose another batch_size or devices"
            )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        if self.seed is None:
            return -(-self.count // self.batch_size)
        return max(self.count // self.batch_size, min(self.count, 1))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = self._rows()
        for batch in range(self.start, len(self)):
            part = rows[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in part[self.rank :: self.ranks]]

    def _rows(self) -> NDArray[np.int64]:
        """Rows of the split in the epoch's order."""
        if self.seed is None:
            return np.arange(self.count)
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = rng.permutation(self.count)[: len(self) * self.batch_size]  # whom to drop is drawn too
        if self.groups is None or len(self) < 2:
            return rows
        full, rest = [], []
        for group in np.unique(self.groups):
            members = rows[self.groups[rows] == group]
            end = len(members) // self.batch_size * self.batch_size
            full.append(members[:end])
            rest.append(members[end:])
        batches = np.concatenate(full + rest).reshape(-1, self.batch_size)
        return batches[rng.permutation(len(batches))].reshape(-1)


def aspect_groups(pictures: DetectionDataset) -> NDArray[np.int64] | None:
    """[N] bins of width over height, so that a batch is padded little; None where all fall into one.

    Pictures that come out square, whatever they were, are all of one.
    """
    recipe = pictures.recipe
    if recipe.resize == "stretch" or recipe.augmentation in ("letterbox", "crop"):
        return None
    height, width = pictures.index.sizes.T
    groups = np.searchsorted(ASPECT_EDGES, width / np.maximum(height, 1), side="right").astype(np.int64)
    return groups if len(np.unique(groups)) > 1 else None


class Loader:
    """Batches of a split, epoch by epoch.

    Args:
        pictures: The split.
        batch_size: Pictures in a batch.
        workers: Loader processes; 0 loads here. See `loader_workers`.
        shuffle: A training's order, by the pictures' seed, like aspect ratios together.
    """

    def __init__(self, pictures: DetectionDataset, batch_size: int, workers: int, shuffle: bool) -> None:
        self.pictures = pictures
        seed, groups = (pictures.seed, aspect_groups(pictures)) if shuffle else (None, None)
        self.order = BatchSampler(len(pictures), batch_size, seed, groups)
        self.batches: DataLoader[Sample] = DataLoader(
            pictures,
            batch_sampler=self.order,
            num_workers=workers,
            collate_fn=lambda samples: collate(samples, pictures.recipe),
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=loader_process,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            # it draws a number at the start of each epoch: not from those that a detector's samples come of,
            # or a training that goes on amid an epoch would have others
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.order)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, the first `start` of them left out."""
        self.order.epoch, self.order.start = epoch, start
        yield from self.batches


def loader_process(_: int) -> None:
    """Begin a loader process.

    It leaves the process group: Ctrl-C and SIGTERM, which are sent to all of that, are for the training.
    """
    os.setpgid(0, 0)


def loader_workers(workers: int | str, device: torch.device) -> int:
    """How many loader processes: `auto` is one a core, up to 8 for a GPU, none where the CPU trains."""
    if isinstance(workers, int):
        return workers
    return min(8, max((os.cpu_count() or 1) // distributed.world_size(), 1)) if device.type == "cuda" else 0
