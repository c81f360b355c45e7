"""Network files for other runtimes: up to the raw outputs of the heads, without decoding and suppression.

`core.onnx` takes uint8 RGB `images` [B, 3, H, W], resized and padded, and gives the outputs of `Detector.core` and
`anchors` [A, 4]. Two-stage detectors have `box_head.onnx` besides, from RoI features to class logits and deltas.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detection.data.loading.batch import collate
from detection.errors import VerificationError
from detection.export import agreement, onnx_file, torch_program
from detection.export.detector_graph import BoxHead, CoreGraph
from detection.models.build import LoadedDetector
from detection.models.faster_rcnn import FasterRCNN

FILES = ("core.onnx", "box_head.onnx")
MAX_DIFFERENCE = 1e-3
"""Accepted difference of an output, as a share of its greatest value."""


def write(loaded: LoadedDetector, folder: Path, images: Sequence[Tensor], metadata: Mapping[str, Any]) -> str:
    """Write `core.onnx` and, for two stages, `box_head.onnx`.

    Args:
        loaded: Detector on the CPU.
        folder: Folder of the files.
        images: Tensor[3, H, W], uint8 RGB, for the check.
        metadata: Metadata of the files.

    Returns:
        What the check found.

    Raises:
        VerificationError: An output differs.
    """
    program, names = torch_program.trace_core(loaded)
    feeds = [collate([agreement.sample(image, loaded)], loaded.recipe).images for image in images]
    _write(program, folder / "core.onnx", ("images",), names, metadata)
    worst = _check(folder / "core.onnx", CoreGraph(loaded.detector), "images", feeds)
    if isinstance(loaded.detector, FasterRCNN):
        program = torch_program.trace_box_head(loaded.detector)
        (pooled,) = program.example_inputs[0]
        _write(program, folder / "box_head.onnx", ("pooled",), ("logits", "deltas"), metadata)
        random = torch.rand(5, *pooled.shape[1:], generator=torch.Generator().manual_seed(0))
        worst = max(worst, _check(folder / "box_head.onnx", BoxHead(loaded.detector), "pooled", [random]))
    return f"core.onnx: {', '.join(names)} agree to {worst:.0e} of their greatest values"


def _write(
    program: torch.export.ExportedProgram,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    metadata: Mapping[str, Any],
) -> None:
    onnx_file.write_network(program, path, inputs, outputs)
    onnx_file.save(onnx_file.read_network(path), path, metadata)


def _check(path: Path, module: torch.nn.Module, name: str, feeds: Sequence[Tensor]) -> float:
    """Greatest difference between a file's outputs and the module's, as a share of the output's greatest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for feed in feeds:
        with torch.inference_mode():
            expected = module(feed)
        actual = session.run(None, {name: feed.numpy()})
        for output, ours, theirs in zip(session.get_outputs(), expected, actual, strict=True):
            off = float((ours - torch.from_numpy(theirs)).abs().max() / ours.abs().max().clamp(min=1e-9))
            if off > MAX_DIFFERENCE:
                raise VerificationError(f"{output.name} of {path.name.replace('.keep', '')} differs by {off:.1e}")
            worst = max(worst, off)
    return worst
