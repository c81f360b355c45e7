"""How far a training repeats itself: `train.determinism`."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from detection.errors import ParamsError

REFUSED = re.compile(
    r"(\S+) does not have a deterministic implementation|(Deterministic behavior was enabled)"
)


@contextmanager
def determinism(mode: str) -> Iterator[None]:
    """Train `fast`, `seeded` or `bitwise` from here on; open it before the GPU is used.

    In `bitwise` PyTorch also fills fresh memory, so that an operation that reads what it has not written
    (oneDNN has one) gives the same each time: a NaN, which stops the training.

    Raises:
        ParamsError: An operation of a bitwise training has no deterministic implementation; names it.
    """
    fast, bitwise = mode == "fast", mode == "bitwise"
    torch.backends.cudnn.benchmark = fast
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast
    if bitwise:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, and reads it once
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(bitwise)
    try:
        yield
    except RuntimeError as error:
        refused = REFUSED.search(str(error)) if bitwise else None
        if refused is None:
            raise
        operation = refused[1] or str(error).splitlines()[0]
        raise ParamsError(
            f"params.yaml: train.determinism: bitwise is not possible here: {operation} has no deterministic "
            "implementation on this device. Set seeded, or another model"
        ) from None
    finally:
        torch.use_deterministic_algorithms(before)
