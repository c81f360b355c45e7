"""Pictures sorted into one folder a class, `train/n01440764/*.JPEG`: ImageNet's layout.

What a picture looks like is a function of (seed, epoch, row). As in detection the geometry is drawn first and
pixels are touched by one crop and one uint8 resize. A crop of random area and shape is the same share of the
picture whatever size the picture was scaled to before, so the original's `Resize(480)` needs no work.

Letters: N pictures, B pictures of a batch, S side of the square result in pixels.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from detection.data.loading.geometry import Geometry
from detection.data.loading.image_io import read_image
from detection.data.sources.digest import listing_hash
from detection.errors import DataError
from detection.files import IMAGE_SUFFIXES
from detection.params.stages import ImageFolder

RATIOS = (3 / 4, 4 / 3)  # width over height of a crop
TRIALS = 10
FILL = (124, 116, 104)  # never seen: no crop leaves the picture
Window = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Folder:
    """One split: its files and what they show, packed, so that loader processes share them."""

    root: Path
    """Folder of the split."""
    files: NDArray[np.bytes_]
    """[N], relative to `root`, in order of name."""
    labels: NDArray[np.int64]
    """[N], index of the class folder among those of train."""
    classes: tuple[str, ...]
    """Names of the class folders."""
    digest: str
    """Hash over names and sizes of the files."""

    def __len__(self) -> int:
        return len(self.files)


def list_folder(root: Path, classes: tuple[str, ...] | None = None) -> Folder:
    """List the pictures of a split.

    Args:
        root: `DATA_ROOT/imagenet/train`, say.
        classes: Those of the training split, for another one; None: whatever is there.

    Raises:
        DataError: There is no such folder, no picture in it, or a class that train has not.
    """
    if not root.is_dir():
        raise DataError(
            f"pretrain.imagefolder: {root.resolve()} is not there; put one folder of pictures a class there "
            f"(train and val side by side), or set pretrain.imagefolder.path, or pretrain.method: crops"
        )
    names = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir()))
    classes = names if classes is None else classes
    if unknown := sorted(set(names) - set(classes)):
        raise DataError(f"{root.resolve()}: train has no class {unknown[0]}; remove it, or add it to train")
    sizes: dict[str, int] = {}
    labels: list[int] = []
    for name in names:
        found = [file for file in os.scandir(root / name) if file.name.lower().endswith(IMAGE_SUFFIXES)]
        sizes |= {f"{name}/{file.name}": file.stat().st_size for file in sorted(found, key=lambda f: f.name)}
        labels += [classes.index(name)] * len(found)
    if not sizes:
        raise DataError(
            f"{root.resolve()} holds no picture in folders of classes ({', '.join(IMAGE_SUFFIXES)})"
        )
    files = np.array([name.encode() for name in sizes])
    return Folder(root, files, np.array(labels, np.int64), classes, listing_hash(sizes))


class FolderPictures(Dataset[tuple[Tensor, int]]):
    """Pictures Tensor[3, S, S] uint8 and their labels, indexed by `(epoch, row)`.

    Args:
        folder: The split.
        settings: Size, crop and colours.
        train: Augment; else the middle of each picture.
        seed: Of the augmentation.
    """

    def __init__(self, folder: Folder, settings: ImageFolder, train: bool, seed: int = 0) -> None:
        self.folder, self.settings, self.train, self.seed = folder, settings, train, seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, row = key
        picture = read_image(self.folder.root / self.folder.files[row].decode())
        height, width = picture.shape[1:]
        side, label = self.settings.image_size, int(self.folder.labels[row])
        if not self.train:
            window = middle(height, width, side / self.settings.eval_resize)
            return Geometry(window, side, side).image(picture, FILL), label
        rng = np.random.default_rng((self.seed, epoch, row))
        window = random_window(rng, height, width, self.settings.scale)
        pixels = Geometry(window, side, side, flip=rng.random() < 0.5).image(picture, FILL)
        return jitter(rng, pixels, self.settings.jitter), label


def random_window(rng: np.random.Generator, height: int, width: int, scale: tuple[float, float]) -> Window:
    """A part of random area and shape (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    Args:
        rng: Source of randomness.
        height: Of the picture.
        width: Of the picture.
        scale: Least and largest share of the picture's area.

    Returns:
        `x1, y1, x2, y2` in pixels, inside the picture; where ten draws do not fit, the largest middle part of
        an allowed shape.
    """
    for _ in range(TRIALS):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(round(height * RATIOS[1]), 1))
    h = min(height, max(round(width / RATIOS[0]), 1))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def middle(height: int, width: int, share: float) -> Window:
    """The middle square whose side is a share (at most 1) of the picture's short side."""
    side = max(round(min(height, width) * min(share, 1)), 1)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def jitter(rng: np.random.Generator, pixels: Tensor, amount: float) -> Tensor:
    """Brightness, contrast, saturation and hue, in random order, each changed by up to `amount`.

    Args:
        rng: Source of randomness.
        pixels: Tensor[3, S, S], uint8.
        amount: Share of the value; of the whole circle for hue.
    """
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for which in rng.permutation(len(changes)):
        by = float(rng.uniform(-amount, amount))
        pixels = changes[which](pixels, by if changes[which] is F.adjust_hue else 1 + by)
    return pixels


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """Pictures Tensor[B, 3, S, S] uint8 and labels Tensor[B] int64."""
    pictures, labels = zip(*samples, strict=True)
    return torch.stack(pictures), torch.tensor(labels)
