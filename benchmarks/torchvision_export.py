"""Which of torchvision's detectors torch can export with dynamic image sides, and whether the files agree.

    python -m benchmarks.torchvision_export IMAGES [MODEL...] [--exporters dynamo program]

`legacy` is `torch.onnx.export(dynamo=False)`, `dynamo` is `torch.onnx.export(dynamo=True)`, and `program` is
`torch.export.export`, which writes `.pt2` files and is the first step of `dynamo`.

Each is exported in its own process from one image, with random weights that spread the scores
(`benchmarks.export.spread`), and compared on that image and on another one of another size.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.export import CLASSES, spread
from detection.data.loading.batch import ImageSizes
from detection.data.loading.image_io import read_image
from detection.export.agreement import compare
from detection.export.torch_program import quiet
from detection.input_files import find_inputs
from detection.models.build import LoadedDetector, without_weights
from detection.models.detector import Detections
from detection.params import load

MODELS = ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn"]
MODELS += ["fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"]
MODELS += ["fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large"]
FILES = {"legacy": "model.onnx", "dynamo": "model.onnx", "program": "model.pt2"}
SIZES = (256, 352), (320, 256)
TIMEOUT_S = 400


class Spread(nn.Module):
    """A torchvision detector with the `detect` that `spread` calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def detect(self, images: Tensor, sizes: ImageSizes) -> Any:
        """Detections of torchvision's form."""
        return self.model(list(images.float() / 255))


def build(name: str, images: list[Tensor]) -> nn.Module:
    """A detector with weights that spread the scores, for images of 256 pixels."""
    from torchvision.models import get_model

    sides = {} if name.startswith("ssd") else {"min_size": 256, "max_size": 448}
    torch.manual_seed(0)
    model: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=4, **sides).eval()
    recipe = replace(without_weights(load(model="fasterrcnn_resnet18", dataset="bccd").recipe), image_size=256)
    spread(LoadedDetector(Spread(model), recipe, CLASSES, name), images)  # type: ignore[arg-type]
    return model


def result(found: Any) -> Detections:
    """Detections of torchvision's dict, or of a file's outputs in any order."""
    values = found.values() if isinstance(found, dict) else map(torch.from_numpy, found)
    boxes, scores, labels = None, None, None
    for value in values:
        if value.dim() == 2:
            boxes = value
        elif value.dtype == torch.int64:
            labels = value
        else:
            scores = value
    assert boxes is not None
    assert scores is not None
    assert labels is not None
    return Detections(boxes, scores, labels)


def exported(model: nn.Module, exporter: str, image: Tensor, path: str) -> Callable[[Tensor], Any]:
    """Export a model from an image, and return what runs the file."""
    sides: Any = {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    if exporter == "program":
        torch.export.save(torch.export.export(model, ([image],), dynamic_shapes=([sides],), strict=False), path)
        program = torch.export.load(path).module()
        return lambda one: program([one])[0]
    import onnxruntime

    dynamo = exporter == "dynamo"
    shapes: Any = {"dynamic_shapes": ([sides],)} if dynamo else {"dynamic_axes": {"image": {1: "h", 2: "w"}}}
    torch.onnx.export(model, ([image],), path, dynamo=dynamo, input_names=["image"], opset_version=18, **shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda one: session.run(None, {session.get_inputs()[0].name: one.numpy()})


def message(error: BaseException) -> str:
    """Type and first line of the first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:120]}"


def export(name: str, exporter: str, folder: Path) -> str:
    """Export a model and compare it; returns the row's cell."""
    files = find_inputs([folder]).images[:2]
    images = [read_image(file, upright=True) for file in files]
    model = build(name, images)
    inputs = [
        nn.functional.interpolate(image[None].float() / 255, size)[0] for image, size in zip(images, SIZES, strict=True)
    ]
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad(), quiet():
        try:
            run = exported(model, exporter, inputs[0], f"{temporary}/{FILES[exporter]}")
        except Exception as error:
            return f"not exported: {message(error)}"
        cells = []
        for image in inputs:
            ours = result(model([image])[0])
            try:
                theirs = result(run(image))
            except Exception as error:
                cells.append(f"does not run: {message(error)}")
                continue
            found = compare(ours, theirs)
            same = f"{found.matched} of {len(ours.scores)} agree to {found.box:.4f} px"
            cells.append("detections differ" if found.problem else same)
        return " \\| ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--exporters", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--here", action="store_true", help="export the first model in this process")
    args = parser.parse_args()
    if args.here:
        print(export(args.models[0], args.exporters[0], args.images))
        return
    print(f"| model | {' | '.join(args.exporters)} |\n|---|{'---|' * len(args.exporters)}")
    for name in args.models:
        cells = []
        for exporter in args.exporters:
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.torchvision_export", str(args.images), name]
            try:
                done = subprocess.run(
                    [*command, "--here", "--exporters", exporter], capture_output=True, text=True, timeout=TIMEOUT_S
                )
                lines = (done.stdout or done.stderr).strip().splitlines()
                cells.append(lines[-1] if lines else f"ended with {done.returncode}")
            except subprocess.TimeoutExpired:
                cells.append(f"not exported within {TIMEOUT_S} s")
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
