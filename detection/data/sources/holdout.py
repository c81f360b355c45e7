"""Hold-out of val and test: a cut of train by file names that keeps copies of an image on one side."""

import hashlib
import posixpath
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from detection.data.loading.index import Index
from detection.data.sources.image_headers import Header

AUGMENTED = re.compile(r"[._](?:jpe?g|png|bmp|webp|tiff?)\.rf\.[0-9A-Za-z]+$", re.IGNORECASE)
"""End of the names that Roboflow gives the copies of an image."""
BURST = re.compile(r"[_-]?burst[_-]?\d*.*$", re.IGNORECASE)
"""End of the names that phones give the images of a burst."""


def group_name(file: str) -> str:
    """Name that all copies of an image share: its file's stem, without the marks of augmentation and burst."""
    stem = posixpath.splitext(posixpath.basename(file))[0]
    return BURST.sub("", AUGMENTED.sub("", stem)) or stem


def split_keys(root: Path, train: Index, headers: Mapping[str, Header]) -> dict[str, str]:
    """Return the group of each image by file name; byte-identical images are in the group of the first name."""
    keys = {file: group_name(file) for file in map(bytes.decode, train.files.tolist())}
    candidates: dict[tuple[int, bytes], list[str]] = {}
    for file in keys:
        if headers[file].length:
            candidates.setdefault((headers[file].length, headers[file].tail), []).append(file)
    first_of: dict[bytes, str] = {}
    for files in candidates.values():
        for file in sorted(files, key=lambda one: keys[one]) if len(files) > 1 else ():
            content = hashlib.blake2b((root / file).read_bytes(), digest_size=16).digest()
            keys[file] = first_of.setdefault(content, keys[file])
    return keys


def hold_out(
    splits: dict[str, Index], missing: Collection[str], fraction: float, keys: Mapping[str, str] | None = None
) -> dict[str, Index]:
    """Move a fraction of `train` to `val` and the same fraction to `test`, where these are missing.

    Args:
        splits: `train`, `val` and `test`.
        missing: Which of `val` and `test` the dataset does not define.
        fraction: Fraction of the training images, below 1, or below 0.5 if both are missing.
        keys: Group of each training image, which stays together; None: `group_name`.

    Returns:
        The splits, each in the order of `train`.
    """
    train = splits["train"]
    files = [file.decode() for file in train.files.tolist()]
    groups = [keys[file] if keys else group_name(file) for file in files]
    position = np.array([_hash_position(group) for group in groups], dtype=np.float64)
    held_out = {"val": position < fraction, "test": position >= 1 - fraction}
    left = np.ones(len(train), dtype=np.bool_)
    for split in missing:
        splits = splits | {split: train.select(np.flatnonzero(held_out[split]))}
        left &= ~held_out[split]
    return splits | {"train": train.select(np.flatnonzero(left))}


def _hash_position(key: str) -> float:
    """Map a group to [0, 1), so that adding or removing an image never moves another one."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
