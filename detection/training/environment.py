"""What a training was run with: versions, device, driver, threads, and the code beside its commit.

How far a training repeats itself: `train.determinism`.
"""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from detection import distributed
from detection.errors import ParamsError
from detection.pipeline import commit, run_quiet

NO_DIFF = "# no uncommitted change, or no git to see one\n"  # DVC warns of an output that is empty
PACKAGES = ("detection-pipeline", "torch", "torchvision", "numpy", "mlflow", "dvc")


def write_environment(
    folder: Path, training: str, device: torch.device, precision: torch.dtype, determinism: str
) -> dict[str, str]:
    """Write `environment.json`, and `code.diff`: what the working tree has that the commit has not.

    Args:
        folder: The training's reports.
        training: Its name, from `Checkpoints.training`.
        device: Where it runs.
        precision: Of the forward passes.
        determinism: As `train.determinism` has it.

    Returns:
        What `environment.json` says.
    """
    described = {
        "training_id": training,
        "device": _device(device),
        "devices": str(distributed.world_size()),
        "threads": str(torch.get_num_threads()),
        "precision": str(precision).removeprefix("torch."),
        "determinism": determinism,
        "system": platform.platform(),
        "python": platform.python_version(),
        **_versions(),
        **_driver(device),
        "commit": commit(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({key: value for key, value in described.items() if value}, indent=2)
    (folder / "environment.json").write_text(text + "\n", encoding="utf-8")
    (folder / "code.diff").write_text(code_diff() or NO_DIFF, encoding="utf-8")
    return {key: value for key, value in described.items() if value}


def code_diff() -> str:
    """The code that is not committed, new files included, as a patch; empty without such, or without git."""
    paths = ("--", "detection", "stages", "dvc.yaml")
    new = run_quiet("git", "ls-files", "--others", "--exclude-standard", *paths).splitlines()
    added = [run_quiet("git", "diff", "--no-index", "--", os.devnull, path, codes=(0, 1)) for path in new]
    return run_quiet("git", "diff", "HEAD", *paths) + "".join(added)


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or device.type
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _driver(device: torch.device) -> Mapping[str, str]:
    """Of an NVIDIA GPU: driver, CUDA and cuDNN."""
    if device.type != "cuda" or torch.version.cuda is None:
        return {}
    driver = run_quiet("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "driver": driver.splitlines()[0].strip() if driver else "",
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


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
