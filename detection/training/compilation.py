"""Compilation of a detector's training by `torch.compile`, with a fallback."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from detection.models.detector import Detector
from detection.models.faster_rcnn import FasterRCNN

log = logging.getLogger(__name__)


def is_compiled(setting: bool | str, determinism: str, device: torch.device) -> bool:
    """Return whether `train.compile` compiles: `auto` on a GPU, but not with `determinism: bitwise`.

    Kernels are chosen by their measured time, so that a resumed training may get others.
    """
    return setting is True or (setting == "auto" and device.type == "cuda" and determinism != "bitwise")


def compile_detector(detector: Detector) -> None:
    """Compile a detector's training in place, at its first step.

    One-stage detectors: the whole forward pass with its losses, one graph. Two-stage: the backbone and the heads, since
    proposals have shapes that depend on data. Parameters, state dict and `detect` stay as they are.

    Args:
        detector: Detector on its device.
    """
    parts: list[nn.Module] = [detector]
    if isinstance(detector, FasterRCNN):
        parts = [detector.backbone, detector.rpn.head, detector.roi_heads.box_head]
    compile_parts(parts)


def compile_parts(parts: Sequence[nn.Module]) -> None:
    """Compile modules in place, at their first calls; if the compiler fails for one, none is compiled any more."""
    state = _State()
    for part in parts:
        # as nn.Module.compile: deep copies, such as the moving average, are not compiled
        part._compiled_call_impl = _Compiled(part, state)


class _State:
    """State of the compiler, shared by all parts of a detector."""

    failed = False


class _Compiled:
    """Compiled call of a module; the module's own after the compiler has failed once."""

    def __init__(self, module: nn.Module, state: _State) -> None:
        self.eager: Callable[..., Any] = module._call_impl
        self.compiled = torch.compile(module._call_impl)
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.state.failed:
            try:
                return self.compiled(*args, **kwargs)
            except torch._dynamo.exc.TorchDynamoException as error:
                self.state.failed = True
                log.warning(
                    "warning: train.compile: the compiler failed, the training is not compiled: %s", _first_line(error)
                )
        return self.eager(*args, **kwargs)


def _first_line(error: BaseException) -> str:
    """First line of the message of an error's cause."""
    cause = getattr(error, "inner_exception", None) or error
    lines = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"
