"""Bounds of the numbers in the stages' sections: a training must not come to its end to hear of a slip."""

from collections.abc import Mapping
from typing import Any

from detection.errors import ParamsError

AT_LEAST = {
    "seed": 0,
    **dict.fromkeys((f"pretrain.crops.{key}" for key in ("image_size", "limit", "batch_size", "epochs")), 1),
    **dict.fromkeys(
        (f"pretrain.imagefolder.{key}" for key in ("image_size", "eval_resize", "batch_size")), 1
    ),
    **dict.fromkeys((f"pretrain.imagefolder.{key}" for key in ("iterations", "log_every")), 1),
    **dict.fromkeys((f"train.{key}" for key in ("devices", "threads", "accumulate", "validate_every")), 1),
    **dict.fromkeys((f"train.{key}" for key in ("log_every", "samples", "early_stop.patience")), 1),
    **dict.fromkeys((f"train.{key}" for key in ("workers", "cache_mb", "samples_every")), 0),
    "evaluate.batch_size": 1,
    "plots.samples": 0,
}
SHARES = ("train.ema", "evaluate.score_threshold", "plots.score_threshold", "plots.smoothing")  # from 0 to 1
POSITIVE = ("train.clip_gradients", "pretrain.crops.lr", "pretrain.imagefolder.lr")


def check_bounds(values: Mapping[str, Any], file: str) -> None:
    """Refuse numbers that no stage can work with.

    Args:
        values: By dotted key; what is no number (`auto`, null) is left alone.
        file: The params file, for messages.

    Raises:
        ParamsError: All of them at once, one a line.
    """
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    faults = [
        f"{key}: must be at least {least}, not {numbers[key]}"
        for key, least in AT_LEAST.items()
        if key in numbers and numbers[key] < least
    ]
    faults += [
        f"{key}: is a share from 0 to 1, not {numbers[key]}"
        for key in SHARES
        if key in numbers and not 0 <= numbers[key] <= 1
    ]
    faults += [
        f"{key}: must be above 0, not {numbers[key]}"
        for key in POSITIVE
        if key in numbers and not numbers[key] > 0
    ]
    if faults:
        raise ParamsError("\n".join(f"{file}: {fault}" for fault in faults))
