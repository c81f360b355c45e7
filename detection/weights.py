"""Weights from outside the pipeline: state dicts in files, and those that torchvision publishes.

Nothing in a file is executed: `weights_only=True` refuses everything but tensors and plain values.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from detection.errors import CheckpointError, reason
from detection.files import save_weights, sha256

EXPECTED = "expected a state dict saved with torch.save (.pth, .pt) or a .safetensors file"
NESTED_KEYS = ("state_dict", "model")
"""Keys under which checkpoints keep the state dict: this project's files and torchvision's references."""
PARALLEL_PREFIX = "module."
"""Prefix that `DistributedDataParallel` gives to every key."""
HASH = re.compile(r"-([a-f0-9]{8,})\.")
"""First digits of the sha256 in the name of a published file, such as `resnet18-f37072fd.pth`."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file of any origin.

    Args:
        path: A plain state dict, a checkpoint with a state dict under `state_dict` or `model`, or a
            `.safetensors` file.

    Returns:
        Tensors on the CPU by name, without the prefix of `DistributedDataParallel`; half precision is
        converted to float32.

    Raises:
        CheckpointError: The file is missing, a folder, damaged, holds other objects than tensors, or no tensors.
    """
    return _state_dict(_read(Path(path)), path)


def _read(path: Path) -> Any:
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; {EXPECTED}: give the path of the file in it")
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; {EXPECTED}: correct the path, or put the file there")
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)


def _state_dict(content: Any, path: str | Path) -> dict[str, Tensor]:
    candidates = [content, *(content.get(key) for key in NESTED_KEYS)] if isinstance(content, Mapping) else []
    state = next(filter(_is_state_dict, candidates), None)
    if state is None:
        raise CheckpointError(f"{path} holds no tensors by name; {EXPECTED}: torch.save(model.state_dict(), FILE)")
    if all(key.startswith(PARALLEL_PREFIX) for key in state):
        state = {key.removeprefix(PARALLEL_PREFIX): value for key, value in state.items()}
    half = (torch.float16, torch.bfloat16)
    return {key: value.float() if value.dtype in half else value for key, value in state.items()}


@dataclass(frozen=True, slots=True)
class StartWeights:
    """Weights that a training starts from, and what is known of their detector."""

    source: dict[str, Any]
    """Resolved `start.from`; its key `from` is the name that the user gave."""
    state_dict: dict[str, Tensor]
    """State dict of the whole detector, with torchvision's names."""
    classes: tuple[str, ...] | None = None
    """Class names of the output rows in order, with or without the background's; None: unknown."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Recipe of the detector as plain values; empty: unknown."""

    def save(self, path: Path) -> None:
        """Write the file that `train` reads."""
        save_weights(path, asdict(self))


def read_start(path: str | Path, source: dict[str, Any]) -> StartWeights:
    """Read a detector that a training starts from: a file of this project, or a state dict of any origin.

    Args:
        path: See `read_state_dict`.
        source: Resolved `start.from`; its `classes` go before those of the file.

    Raises:
        CheckpointError: See `read_state_dict`.
    """
    content = _read(Path(path))
    state, known = _state_dict(content, path), "recipe" in content and "classes" in content
    classes = source.get("classes") or (content["classes"] if known else None)
    recipe = content["recipe"] if known else {}
    return StartWeights(source, state, tuple(classes) if classes else None, recipe)


def load_start(path: Path) -> StartWeights | None:
    """Read the file that `pretrain` wrote; None if training starts from the backbone alone."""
    saved = _read(path)
    return StartWeights(**saved) if saved["state_dict"] else None


def published_state_dict(weights: WeightsEnum) -> dict[str, Tensor]:
    """Read weights that torchvision publishes from its cache, or download them; the hash is checked either way.

    Args:
        weights: Member of one of torchvision's enums, such as `ResNet50_Weights.IMAGENET1K_V1`.

    Raises:
        CheckpointError: The download failed, or the file's content is not what was published.
    """
    path = published_path(weights)
    expected = HASH.findall(path.name)[-1]
    if not path.exists():
        _download(weights, path, expected)
    elif not (found := sha256(path)).startswith(expected):
        raise CheckpointError(
            f"{path} is not the file published as {weights}: its sha256 begins with {found[: len(expected)]}, "
            f"expected {expected}; delete it to download it again"
        )
    return read_state_dict(path)


def published_path(weights: WeightsEnum) -> Path:
    """File of published weights in torch's cache, `$TORCH_HOME/hub/checkpoints`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(weights.url).path).name


def _download(weights: WeightsEnum, path: Path, expected: str) -> None:
    """Download to a temporary file, check its hash, and rename it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), hash_prefix=expected, progress=False)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise CheckpointError(
            f"{weights} cannot be downloaded ({reason(error)}); put {weights.url} at {path}"
        ) from None


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; the error follows
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise CheckpointError(
                f"{path} holds Python objects ({found[1]}), which could run code and are not loaded; {EXPECTED}: "
                "torch.save(model.state_dict(), FILE)"
            ) from None
        # an UnpicklingError's text advises to load the file unsafely
        cause = "" if isinstance(error, UnpicklingError) else f" ({reason(error).split('. ')[0]})"
        raise CheckpointError(
            f"{path} is damaged, truncated or not a weights file{cause}; {EXPECTED}: copy it again"
        ) from None


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged, truncated or not a .safetensors file ({reason(error)}); copy it again"
        ) from None
