"""A validation split cut from the training split, where a dataset has none of its own."""

import hashlib

import numpy as np

from detection.data.index import Index


def is_held_out(name: str, share: float) -> bool:
    """Whether a picture belongs to the held-out share.

    A function of the picture's id alone: a picture added to or taken from the dataset moves no other.
    """
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return value < share * 2**64


def cut(train: Index, share: float) -> tuple[Index, Index]:
    """Split `train` into what stays and what is held out.

    Args:
        train: The whole training split.
        share: Share of the pictures to hold out, 0 to below 1.

    Returns:
        The rest and the held-out part, each in the order of `train`.
    """
    held = np.array([is_held_out(name.decode(), share) for name in train.ids], dtype=np.bool_)
    return train.select(np.flatnonzero(~held)), train.select(np.flatnonzero(held))
