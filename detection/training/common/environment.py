"""Record of what a training ran with (`environment.json`, `code.diff`), and its level of determinism."""

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import torch

from detection import distributed
from detection.device import device_name
from detection.errors import ParamsError
from detection.files import write_json
from detection.pipeline import commit, run_quiet

NO_DIFF = "# no uncommitted change, or no git repository\n"  # DVC warns about an empty output
PACKAGES = ("detection-pipeline", "torch", "torchvision", "numpy", "mlflow", "dvc")
NONDETERMINISTIC = re.compile(
    r"(\S+) does not have a deterministic implementation|(Deterministic behavior was enabled)"
)
"""torch's messages for an operation that `use_deterministic_algorithms` refuses."""


def write_environment(
    folder: Path, training_id: str, device: torch.device, precision: torch.dtype, determinism: str
) -> dict[str, str]:
    """Write `environment.json`, and `code.diff`, the working tree's changes since the commit.

    Args:
        folder: Reports of the training.
        training_id: Id from `Checkpoints.training_id`.
        device: Device of the training.
        precision: Precision of the forward passes.
        determinism: Value of `train.determinism`.

    Returns:
        Content of `environment.json`.
    """
    values = {
        "training_id": training_id,
        "device": device_name(device),
        "devices": str(distributed.world_size()),
        "threads": str(torch.get_num_threads()),
        "precision": str(precision).removeprefix("torch."),
        "determinism": determinism,
        "system": platform.platform(),
        "python": platform.python_version(),
        **_package_versions(),
        **_driver_versions(device),
        "commit": commit(),
    }
    environment = {key: value for key, value in values.items() if value}
    write_json(folder / "environment.json", environment)
    (folder / "code.diff").write_text(code_diff() or NO_DIFF, encoding="utf-8")
    return environment


def code_diff() -> str:
    """Return the uncommitted code, new files included, as a patch; empty if there is none, or no git."""
    paths = ("--", "detection", "stages", "dvc.yaml")
    new = run_quiet("git", "ls-files", "--others", "--exclude-standard", *paths).splitlines()
    added = [run_quiet("git", "diff", "--no-index", "--", os.devnull, path, codes=(0, 1)) for path in new]
    return run_quiet("git", "diff", "HEAD", *paths) + "".join(added)


def _driver_versions(device: torch.device) -> dict[str, str]:
    """Versions of an NVIDIA GPU's driver, CUDA and cuDNN."""
    if device.type != "cuda" or torch.version.cuda is None:
        return {}
    driver = run_quiet("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "driver": driver.splitlines()[0].strip() if driver else "",
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
    }


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@contextmanager
def determinism(mode: str) -> Iterator[None]:
    """Context of a `fast`, `seeded` or `bitwise` training; enter it before the GPU is used.

    With `bitwise` PyTorch also fills new memory with NaN. An operation that reads memory before it is written
    (oneDNN has one) then always gives NaN, which stops the training, instead of a result that varies.

    Raises:
        ParamsError: An operation of a bitwise training has no deterministic implementation; names it.
    """
    fast, bitwise = mode == "fast", mode == "bitwise"
    torch.backends.cudnn.benchmark = fast
    torch.set_float32_matmul_precision("high" if fast else "highest")
    torch.backends.cudnn.allow_tf32 = fast
    if bitwise:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS, read at its start
    previous = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(bitwise)
    try:
        yield
    except RuntimeError as error:
        match = NONDETERMINISTIC.search(str(error)) if bitwise else None
        if match is None:
            raise
        operation = match[1] or str(error).splitlines()[0]
        raise ParamsError(
            f"params.yaml: train.determinism: bitwise is not possible: {operation} has no deterministic "
            "implementation on this device; set seeded, or choose another model"
        ) from None
    finally:
        torch.use_deterministic_algorithms(previous)
