"""Classification dataset of images in one folder per class, `train/n01440764/*.JPEG`: ImageNet's layout.

A sample is a function of (seed, epoch, row). As in detection the geometry is drawn first, and pixels are
touched by one crop and one uint8 resize. A random crop by area does not depend on the scale of the image, so
that the original recipe's `Resize(480)` before it is not needed.

Letters: N images, B images of a batch, S side of the square result in pixels.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as F

from detection import distributed
from detection.data.loading.augment import RATIOS, area_crop
from detection.data.loading.batch_transfer import batch_memory, to_send
from detection.data.loading.color_jitter import adjust_hue
from detection.data.loading.geometry import Geometry, Window
from detection.data.loading.image_io import read_image
from detection.data.loading.loader import (
    WORKER_TIMEOUT_S,
    BatchSampler,
    FixedBatches,
    in_order,
    in_time,
    init_worker,
    start_workers,
)
from detection.data.sources.digest import listing_hash
from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES
from detection.params.stages import ImageFolder
from detection.training.pretrain.classifier import VAL_BATCH_SIZE, Batches

FILL = (124, 116, 104)  # never visible: crops lie inside the image


@dataclass(frozen=True, slots=True)
class Folder:
    """Files and labels of one split, packed so that loader processes share them."""

    root: Path
    """Folder of the split."""
    files: NDArray[np.bytes_]
    """[N], relative to `root`, sorted by name."""
    labels: NDArray[np.int64]
    """[N], position of the class folder among those of train."""
    classes: tuple[str, ...]
    """Names of train's class folders."""
    digest: str
    """Hash of the files' names and sizes."""

    def __len__(self) -> int:
        return len(self.files)


def list_folder(root: Path, classes: tuple[str, ...] | None = None) -> Folder:
    """List the images of a split.

    Args:
        root: Folder of the split, such as `DATA_ROOT/imagenet/train`.
        classes: Classes of the training split if this is another one; None to take all subfolders.

    Raises:
        DataError: The folder does not exist, has no image, or has a class that is not in `classes`.
    """
    if not root.is_dir():
        raise DataError(
            f"pretrain.imagefolder: {root.resolve()} does not exist; put one folder of images per class "
            f"there (train and val side by side), or set pretrain.imagefolder.path or pretrain.method: crops"
        )
    names = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
    classes = names if classes is None else classes
    if unknown := sorted(set(names) - set(classes)):
        raise DataError(f"{root.resolve()}: train has no class {unknown[0]}; delete it, or add it to train")
    sizes: dict[str, int] = {}
    labels: list[int] = []
    for name in names:
        files = [file for file in os.scandir(root / name) if file.name.lower().endswith(IMAGE_SUFFIXES)]
        sizes |= {f"{name}/{file.name}": file.stat().st_size for file in sorted(files, key=lambda f: f.name)}
        labels += [classes.index(name)] * len(files)
    if not sizes:
        raise DataError(f"{root.resolve()} has no image in class folders ({', '.join(IMAGE_SUFFIXES)})")
    packed = np.array([name.encode() for name in sizes])
    return Folder(root, packed, np.array(labels, np.int64), classes, listing_hash(sizes))


class FolderDataset(Dataset[tuple[Tensor, int]]):
    """Images Tensor[3, S, S] uint8 with their labels, indexed by `(epoch, row)`.

    Args:
        folder: The split.
        settings: Size, crop and colors.
        train: Augment; otherwise cut the center of each image.
        seed: Seed of the augmentation.
    """

    def __init__(self, folder: Folder, settings: ImageFolder, train: bool, seed: int = 0) -> None:
        self.folder, self.settings, self.train, self.seed = folder, settings, train, seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, row = key
        image = read_image(self.folder.root / self.folder.files[row].decode())
        height, width = image.shape[1:]
        side, label = self.settings.image_size, int(self.folder.labels[row])
        if not self.train:
            window = center_window(height, width, side / self.settings.eval_resize)
            return Geometry(window, side, side).image(image, FILL), label
        rng = np.random.default_rng((self.seed, epoch, row))
        window = area_crop(rng, height, width, self.settings.scale, fallback_ratios=RATIOS)
        pixels = Geometry(window, side, side, flip=rng.random() < 0.5).image(image, FILL)
        return jitter(rng, pixels, self.settings.jitter), label


class FolderData:
    """Batches of two splits, decoded and augmented by loader processes.

    Args:
        train: Training split.
        val: Val split.
        settings: Size, augmentation and batch size.
        workers: Loader processes of this rank; 0 loads in this process.
        seed: Seed of the order and the augmentation.
    """

    def __init__(self, train: Folder, val: Folder, settings: ImageFolder, workers: int, seed: int) -> None:
        self.train, self.val = train, val
        self.sampler = BatchSampler(len(train), settings.batch_size, seed)
        self.loader = _loader(FolderDataset(train, settings, train=True, seed=seed), self.sampler, workers)
        rows = np.arange(distributed.rank(), len(val), distributed.world_size())
        self.val_sampler = FixedBatches(in_order(rows, VAL_BATCH_SIZE))
        self.val_loader = _loader(FolderDataset(val, settings, train=False), self.val_sampler, workers)

    def __len__(self) -> int:
        """Training batches per epoch."""
        return len(self.sampler)

    def start(self) -> None:
        """Fork the workers now; without workers a no-op."""
        start_workers(self.loader, self.sampler)
        start_workers(self.val_loader, self.val_sampler)

    def train_batches(self, epoch: int, skip: int) -> Batches:
        """See `ClassificationData`."""
        self.sampler.epoch, self.sampler.start = epoch, skip
        yield from in_time(self.loader)

    def val_batches(self) -> Batches:
        """See `ClassificationData`."""
        self.val_sampler.start = 0
        yield from in_time(self.val_loader)


def _loader(
    dataset: FolderDataset, batches: BatchSampler | FixedBatches, workers: int
) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=lambda samples: to_send(collate(samples)),
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=init_worker,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        timeout=WORKER_TIMEOUT_S if workers else 0,
    )


def center_window(height: int, width: int, fraction: float) -> Window:
    """Center square whose side is a fraction (at most 1) of the image's short side."""
    side = max(round(min(height, width) * min(fraction, 1)), 1)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def jitter(rng: np.random.Generator, pixels: Tensor, amount: float) -> Tensor:
    """Change brightness, contrast, saturation and hue, in random order, each by up to `amount`.

    Args:
        rng: Source of randomness.
        pixels: Tensor[3, S, S], uint8.
        amount: Fraction of the value; for hue, of the full circle.
    """
    if amount == 0:
        return pixels
    pixels = pixels.contiguous()  # resized images are channels last, where these transforms are slower
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, adjust_hue)
    for which in rng.permutation(len(changes)):
        by = float(rng.uniform(-amount, amount))
        pixels = changes[which](pixels, by if changes[which] is adjust_hue else 1 + by)
    return pixels


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Stack images to Tensor[B, 3, S, S] uint8, channels last if they are, and labels to Tensor[B] int64."""
    images, labels = zip(*samples, strict=True)
    batch = batch_memory((len(images), *images[0].shape), images[0].dtype, channels_last=images[0].stride(0) == 1)
    for slot, image in zip(batch, images, strict=True):
        slot.copy_(image)
    return batch, torch.tensor(labels)
