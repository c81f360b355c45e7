"""Datasets, batch sampler and loader of detection images.

A sample is a function of (seed, epoch, row), never of worker state, and the batches of an epoch are a
function of (seed, epoch), so that an interrupted training resumes with the very next batch.

Workers are forked and share the index and the image cache with the training process without a copy. A training
forks all of them once, at its start (`Loader.start`), before it has threads of communication or of MLflow's
uploader: a lock that another thread holds at the fork stays locked in the child forever. Python 3.12 and later
warn about forking beside other threads (OpenMP's); a worker decodes and resizes in one thread and uses none of them.

Letters: N images of the split, M objects of one image.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detection import distributed
from detection.data.loading.augment import is_square
from detection.data.loading.batch import Batch, Sample, collate, fill_color, padded_size
from detection.data.loading.batch_transfer import to_send
from detection.data.loading.compose import Labeled, Source, compose
from detection.data.loading.geometry import Geometry, result_size
from detection.data.loading.image_cache import ImageCache
from detection.data.loading.image_io import read_image
from detection.data.loading.index import Index, Record
from detection.device import available_cores
from detection.errors import DataError, ParamsError
from detection.params.augmentation import has
from detection.params.recipe import Recipe

T = TypeVar("T")
MAX_WORKERS = 32
"""Limit on `train.workers: auto` for each device."""
WORKER_TIMEOUT_S = 600
"""Longest time to wait for a batch; a worker that dies is noticed within seconds."""
LETTERBOX_FILL = (128, 128, 128)
ASPECT_RATIO_EDGES = 2 ** np.linspace(-1, 1, 7)
"""Bins of torchvision's references with `--aspect-ratio-group-factor 3`."""


class DetectionDataset(Dataset[Sample]):
    """Images of one split, indexed by `(epoch, row)`.

    Args:
        index: The split.
        root: Folder of the image files.
        recipe: Image size, augmentation, and whether difficult objects are trained on.
        train: Augment, and drop crowds and, unless the recipe trains on them, difficult objects.
        seed: Seed of augmentation and shuffling.
        cache_mb: Memory for decoded images in MiB; 0 disables the cache.
    """

    def __init__(self, index: Index, root: Path, recipe: Recipe, train: bool, seed: int = 0, cache_mb: int = 0) -> None:
        self.index, self.root, self.recipe, self.train, self.seed = index, root, recipe, train, seed
        self.fill = LETTERBOX_FILL if has(recipe.steps, "letterbox") else fill_color(recipe)
        epochs = recipe.epochs or (recipe.iterations or 0) * recipe.batch_size / max(1, len(index))
        self.epochs = max(1.0, epochs)
        """Length of training, for steps that end before it."""
        self._last: tuple[str, Tensor] | None = None
        """File and pixels of the last image of which a window was loaded."""
        self.cache = ImageCache(index.sizes, cache_mb) if cache_mb > 0 else None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, row = key
        if not self.train:
            record = self.index[row]
            return eval_sample(self._decoded(row, record), record.boxes, record.labels, row, self.recipe)
        rng = np.random.default_rng((self.seed, epoch, row))
        source = Source(self._labeled, len(self), self.fill)
        image, boxes, labels = compose(self.recipe, source, row, rng, epoch / self.epochs)
        height, width = self.index.sizes[row].tolist()
        return Sample(image, boxes, labels, (height, width), row)

    def _labeled(self, row: int) -> Labeled:
        """Decoded image with the objects that training learns."""
        record = self.index[row]
        trained = ~record.crowd & (self.recipe.train_difficult | ~record.difficult)
        return Labeled(self._decoded(row, record), record.boxes[trained], record.labels[trained])

    def _decoded(self, row: int, record: Record) -> Tensor:
        cached = self.cache.get(row) if self.cache is not None else None
        if cached is not None:
            return cached
        image = self._window(row, record) if len(self.index.windows) else self._whole(record)
        # channels last, as the JPEG decoder returns it: the layout in which resizing is fastest
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        if self.cache is not None:
            self.cache.put(row, image)
        return image

    def _whole(self, record: Record) -> Tensor:
        return read_image(self.root / record.file, (record.height, record.width), upright=record.upright)

    def _window(self, row: int, record: Record) -> Tensor:
        """Crop a window; its image is kept, since the next window is often of the same one."""
        _, left, top, height, width = self.index.windows[row].tolist()
        if self._last is None or self._last[0] != record.file:
            self._last = record.file, read_image(self.root / record.file, (height, width), upright=record.upright)
        return self._last[1][:, top : top + record.height, left : left + record.width]


def eval_sample(
    image: Tensor, boxes: NDArray[np.float32], labels: NDArray[np.int64], row: int, recipe: Recipe
) -> Sample:
    """Resize an image to the recipe's size, whole and without augmentation."""
    height, width = image.shape[1:]
    geometry = Geometry((0, 0, width, height), *eval_size(height, width, recipe), antialias=recipe.antialias)
    resized = geometry.image(image, fill_color(recipe))
    return Sample(resized, geometry.boxes(boxes), labels, (height, width), row)


def eval_size(height: int, width: int, recipe: Recipe) -> tuple[int, int]:
    """Height and width of an image after resizing to the recipe's size."""
    return result_size(height, width, recipe.resize, recipe.image_size, recipe.max_size, recipe.size_rounding)


def batches_of_equal_size(sizes: NDArray[np.int32], batch_size: int, recipe: Recipe) -> list[NDArray[np.int64]]:
    """Rows of all images, in batches of images that are padded to the same size alone and in the batch.

    An image's detections then do not depend on the batch size, and no pixel is computed that a batch of one
    image would not compute.

    Args:
        sizes: [N, 2] height and width of the image files.
        batch_size: Greatest number of images per batch.
        recipe: Recipe, for the sizes after resizing and padding.

    Returns:
        The batches in order of their size; the rows of a size ascend.
    """
    shapes, shape_of = np.unique(np.asarray(sizes).reshape(-1, 2), axis=0, return_inverse=True)
    padded = np.array([padded_size(eval_size(h, w, recipe), recipe) for h, w in shapes.tolist()], dtype=np.int64)
    _, group_of = np.unique(padded.reshape(-1, 2), axis=0, return_inverse=True)
    groups = group_of.reshape(-1)[shape_of.reshape(-1)]
    batches = []
    for group in range(int(groups.max(initial=-1)) + 1):
        rows = np.flatnonzero(groups == group)
        batches += np.split(rows, range(batch_size, len(rows), batch_size))
    return batches


class FixedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys `(epoch, row)` that are the same in every epoch, from batch `start` on.

    Args:
        batches: Rows of each batch.
    """

    def __init__(self, batches: list[NDArray[np.int64]]) -> None:
        self.batches, self.epoch, self.start = batches, 0, 0

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for rows in self.batches[self.start :]:
            yield [(self.epoch, row) for row in rows.tolist()]


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of keys `(epoch, row)` of one epoch from batch `start` on; of each batch this rank's share.

    Args:
        count: Number of images.
        batch_size: Images per batch over all ranks. A shuffled epoch drops an incomplete last batch, unless
            it is the only one.
        seed: Seed of the shuffling. None keeps order and incomplete batch, and every rank gets all images.
        groups: [count] group of each image. A shuffled batch has images of one group, except for a few
            batches that join the remainders of neighboring groups; no image is repeated, and the number of
            batches is the same as without groups.

    Raises:
        ParamsError: The batch size is not divisible by the number of ranks.
    """

    def __init__(self, count: int, batch_size: int, seed: int | None, groups: NDArray[np.int64] | None = None) -> None:
        self.count, self.batch_size, self.seed, self.groups = count, batch_size, seed, groups
        self.epoch, self.start = 0, 0
        self.rank, self.ranks = (distributed.rank(), distributed.world_size()) if seed is not None else (0, 1)
        if min(count, batch_size) % self.ranks:
            raise ParamsError(
                f"params.yaml: train.devices: a batch of {min(count, batch_size)} images cannot be divided "
                f"equally among {self.ranks} devices; change batch_size or devices"
            )

    def __len__(self) -> int:
        """Number of batches per epoch."""
        if self.seed is None:
            return -(-self.count // self.batch_size)
        return max(self.count // self.batch_size, min(self.count, 1))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rows = self._rows()
        for batch in range(self.start, len(self)):
            part = rows[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, int(row)) for row in part[self.rank :: self.ranks]]

    def _rows(self) -> NDArray[np.int64]:
        """Rows of the split in the order of this epoch."""
        if self.seed is None:
            return np.arange(self.count)
        rng = np.random.default_rng((self.seed, self.epoch))
        rows = rng.permutation(self.count)[: len(self) * self.batch_size]  # drops other images each epoch
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


def aspect_ratio_groups(dataset: DetectionDataset) -> NDArray[np.int64] | None:
    """[N] bins of width / height, which keep padding small; None for a single bin and for square results."""
    recipe = dataset.recipe
    if recipe.resize == "stretch" or is_square(recipe.steps):
        return None
    height, width = dataset.index.sizes.T
    ratios = width / np.maximum(height, 1)
    groups = np.searchsorted(ASPECT_RATIO_EDGES, ratios, side="right").astype(np.int64)
    return groups if len(np.unique(groups)) > 1 else None


class Loader:
    """Batches of a split, epoch by epoch.

    Args:
        dataset: The split.
        batch_size: Images per batch.
        workers: Number of worker processes; 0 loads in this process. See `loader_workers`.
        shuffle: Shuffle with the dataset's seed, grouping images of similar aspect ratio.
        equal_sizes: Make batches by `batches_of_equal_size` instead of in the order of the split.
    """

    def __init__(
        self, dataset: DetectionDataset, batch_size: int, workers: int, shuffle: bool, equal_sizes: bool = False
    ) -> None:
        self.dataset = dataset
        seed, groups = (dataset.seed, aspect_ratio_groups(dataset)) if shuffle else (None, None)
        self.sampler: BatchSampler | FixedBatches = (
            FixedBatches(batches_of_equal_size(dataset.index.sizes, batch_size, dataset.recipe))
            if equal_sizes
            else BatchSampler(len(dataset), batch_size, seed, groups)
        )
        self.batches: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=lambda samples: to_send(collate(samples, dataset.recipe, channels_last=dataset.train)),
            multiprocessing_context="fork" if workers else None,
            worker_init_fn=init_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=WORKER_TIMEOUT_S if workers else 0,
            # DataLoader draws a seed each epoch. Its own generator keeps it from advancing the global RNG
            # that the samplers of anchors and proposals use; otherwise a run resumed mid-epoch would diverge.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return len(self.sampler)

    def start(self) -> None:
        """Fork the workers now rather than at the first batch; without workers a no-op."""
        start_workers(self.batches, self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from number `start` on.

        Raises:
            DataError: The workers have not delivered a batch for 10 minutes.
        """
        self.sampler.epoch, self.sampler.start = epoch, start
        yield from in_time(self.batches)

    def of_rows(self, batches: list[NDArray[np.int64]]) -> Iterator[Batch]:
        """Batches of given rows, by a loader with `equal_sizes`."""
        assert isinstance(self.sampler, FixedBatches)
        self.sampler.batches = batches
        yield from self.epoch(0)


def in_order(rows: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Split rows into batches, of which the last may be smaller."""
    return np.split(rows, range(batch_size, len(rows), batch_size)) if len(rows) else []


def start_workers(batches: "DataLoader[Any]", sampler: BatchSampler | FixedBatches) -> None:
    """Fork the workers of a DataLoader that keeps them, without loading a batch."""
    if batches.num_workers:
        sampler.start = len(sampler)  # no batches: nothing is loaded yet
        iter(batches)


def in_time(batches: Iterable[T]) -> Iterator[T]:
    """Batches of a DataLoader with a timeout.

    Raises:
        DataError: The workers have not delivered a batch in time.
    """
    try:
        yield from batches
    except RuntimeError as error:
        if not str(error).startswith("DataLoader timed out"):
            raise
        raise DataError(
            f"the loader's workers have not delivered a batch for {WORKER_TIMEOUT_S // 60} minutes; check that the "
            "images' disk answers, and rerun the command to resume (train.workers: 0 loads without processes)"
        ) from None


def init_worker(_: int) -> None:
    """Put a worker into its own process group, so that Ctrl-C and SIGTERM reach only the training process."""
    os.setpgid(0, 0)


def loader_workers(workers: int | str, device: torch.device) -> int:
    """Number of worker processes; `auto` is one per core, at most `MAX_WORKERS`, for a GPU and none for a CPU."""
    if isinstance(workers, int):
        return workers
    return min(MAX_WORKERS, max(available_cores() // distributed.world_size(), 1)) if device.type == "cuda" else 0
