"""A detector traced by torch.export: for ONNX, and as a `.pt2` file that runs with torch and torchvision alone.

The file is loaded by `torch.export.load(path).module()`, after `import torchvision`; its extra file `detection` is the
metadata. Inputs and outputs are those of `DetectorGraph`.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detection.data.loading.batch import STRIDE, ImageSizes, padded_size, pads_to_stride
from detection.errors import VerificationError
from detection.export.detector_graph import BoxHead, CoreGraph, DetectorGraph
from detection.export.operators import plain_operators
from detection.models.build import LoadedDetector
from detection.models.detector import Detections, Detector, Targets
from detection.models.faster_rcnn import FasterRCNN
from detection.ops.roi_align import PyramidRoIAlign, RoIPool
from detection.params.recipe import Recipe

METADATA = "detection"
"""Key of an exported file's metadata: a JSON object."""
MIN_SIDE, MAX_SIDE, MAX_BATCH = 32, 4096, 1024
"""Bounds of a batch's sides in pixels, after resizing, and of its number of images."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and messages of the exporters about their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def has_fixed_size(recipe: Recipe) -> bool:
    """Return True if every image is stretched to one size."""
    return recipe.resize == "stretch"


def trace(loaded: LoadedDetector, *, plain: bool) -> ExportedProgram:
    """Trace a detector with a dynamic number of images, and dynamic sides unless the recipe stretches images.

    Args:
        loaded: Detector on the CPU.
        plain: Use torchvision's operators instead of those that `operators.translations` knows.
    """
    images, dims = _example(loaded.recipe)
    sizes = torch.tensor([images.shape[2:]] * 2)
    batch = {0: dims[0]}
    graph = DetectorGraph(loaded.detector).eval()
    with torch.no_grad(), quiet(), plain_operators() if plain else nullcontext():
        program = torch.export.export(
            graph, (images, sizes, sizes.clone()), dynamic_shapes=(dims, batch, batch), strict=False
        )
    # Guards on feature maps of one cell, as small images have: torch asks only to record strides of intermediate
    # values, the operators are the same.
    program._guards_code = [guard for guard in program._guards_code if "//" not in guard]
    return program


def trace_core(loaded: LoadedDetector) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Trace the network up to the raw outputs of its heads.

    Returns:
        The program, and the names of its outputs.
    """
    images, dims = _example(loaded.recipe)
    graph = CoreGraph(loaded.detector).eval()
    with torch.no_grad(), quiet():
        program = torch.export.export(graph, (images,), dynamic_shapes=(dims,), strict=False)
        return program, tuple(graph.outputs(images))


def trace_box_head(detector: FasterRCNN) -> ExportedProgram:
    """Trace the second stage, with a dynamic number of proposals."""
    side = cast(PyramidRoIAlign | RoIPool, detector.roi_heads.pool).output_size
    with torch.no_grad(), quiet():
        channels = detector.features(torch.zeros(1, 3, 4 * STRIDE, 4 * STRIDE))[0].shape[1]
        pooled = torch.zeros(7, channels, side, side)
        rows = Dim("proposals", min=1)
        return torch.export.export(BoxHead(detector).eval(), (pooled,), dynamic_shapes=({0: rows},), strict=False)


def _example(recipe: Recipe) -> tuple[Tensor, dict[int, Any]]:
    """Images to trace with, and the dynamic dimensions."""
    if has_fixed_size(recipe):
        height, width = padded_size((recipe.image_size, recipe.image_size), recipe)
    else:
        height, width = 8 * STRIDE, 10 * STRIDE
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    dims: dict[int, Any] = {0: Dim("batch", min=1, max=MAX_BATCH)}
    if not has_fixed_size(recipe):
        step = STRIDE if pads_to_stride(recipe) else 1
        for axis, name in ((2, "h"), (3, "w")):
            side = Dim(name, min=MIN_SIDE // step, max=MAX_SIDE // step)
            dims[axis] = STRIDE * side if step == STRIDE else side
    return images, dims


def write(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a program as a `.pt2` file."""
    content = io.BytesIO()  # torch's writer to a file aborts the process where the disk is full
    with quiet():
        torch.export.save(program, content, extra_files={METADATA: json.dumps(metadata)})
    path.write_bytes(content.getbuffer())


class ExportedDetector(Detector):
    """An exported file in place of a detector, for `run_detector` and `Predictor`; it detects only."""

    def __init__(self) -> None:
        super().__init__()
        self.placeholder = nn.Parameter(torch.zeros(0), requires_grad=False)  # its device is the detector's

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Not available."""
        raise AssertionError("an exported detector detects only")

    def core(self, images: Tensor) -> dict[str, Tensor]:
        """Not available."""
        raise AssertionError("an exported detector detects only")


class ProgramDetector(ExportedDetector):
    """A `.pt2` file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        with quiet():
            self.program = torch.export.load(path).module()

    def train(self, mode: bool = True) -> "ProgramDetector":
        """Do nothing: the program detects only."""
        return self

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        """See `Detector.detect`.

        Raises:
            VerificationError: The program refuses the batch, of a side above `MAX_SIDE` for example.
        """
        try:
            boxes, scores, labels, counts = self.program(images, sizes.resized, sizes.original)
        except (AssertionError, RuntimeError) as error:  # guards and checks of torch.export
            shape, reason = "×".join(map(str, images.shape)), str(error).strip().partition("\n")[0]
            raise VerificationError(f"the exported program fails on a batch of {shape}: {reason}") from error
        return [Detections(boxes[i, :n], scores[i, :n], labels[i, :n]) for i, n in enumerate(counts.tolist())]
