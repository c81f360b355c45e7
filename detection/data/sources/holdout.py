"""Splits cut from the training split, where a dataset has none of its own."""

import hashlib
from collections.abc import Collection

import numpy as np

from detection.data.index import Index


def is_held_out(name: str, share: float) -> bool:
    """Whether a picture belongs to the share held out for val.

    A function of the picture's id alone: a picture added to or taken from the dataset moves no other.
    """
    return _position(name) < share


def is_tested(name: str, share: float) -> bool:
    """Whether a picture belongs to the share held out for test, which never overlaps val's up to a half."""
    return _position(name) >= 1 - share


def cut(splits: dict[str, Index], missing: Collection[str], share: float) -> dict[str, Index]:
    """Cut a share of `train` for `val` and as much again for `test`, whichever is missing.

    Args:
        splits: `train`, `val` and `test`.
        missing: Those of `val` and `test` that the dataset names no pictures for.
        share: Share of the pictures of train, 0 to below 1, below a half where both are cut.

    Returns:
        The splits, each in the order of `train`.
    """
    train, cut_out = splits["train"], dict(splits)
    names = [name.decode() for name in train.ids.tolist()]
    left = np.ones(len(train), dtype=np.bool_)
    for split, belongs in (("val", is_held_out), ("test", is_tested)):
        if split in missing:
            held = np.array([belongs(name, share) for name in names], dtype=np.bool_)
            cut_out[split] = train.select(np.flatnonzero(held))
            left &= ~held
    return cut_out | {"train": train.select(np.flatnonzero(left))}


def _position(name: str) -> float:
    """Where a hash puts a name between 0 and 1."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
