"""Which of torchvision's detectors torch's ONNX exporters can write with dynamic image sides, and whether they agree.

    python -m benchmarks.torchvision_export IMAGES [MODEL...]

Each is exported in its own process from one image, with random weights that spread the scores
(`benchmarks.export.spread`), and compared on that image and on another one of another size.
"""

import argparse
import subprocess
import sys
import tempfile
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
SIZES = (256, 352), (320, 256)
TIMEOUT_S = 240


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


def export(name: str, dynamo: bool, folder: Path) -> str:
    """Export a model and compare it; returns the row's cell."""
    import onnxruntime

    files = find_inputs([folder]).images[:2]
    images = [read_image(file, upright=True) for file in files]
    model = build(name, images)
    inputs = [
        nn.functional.interpolate(image[None].float() / 255, size)[0] for image, size in zip(images, SIZES, strict=True)
    ]
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad(), quiet():
        path = f"{temporary}/model.onnx"
        sides: Any = {1: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
        shapes: Any = {"dynamic_shapes": ([sides],)} if dynamo else {"dynamic_axes": {"image": {1: "h", 2: "w"}}}
        try:
            torch.onnx.export(
                model, ([inputs[0]],), path, dynamo=dynamo, input_names=["image"], opset_version=18, **shapes
            )
        except Exception as error:
            root: BaseException = error
            while root.__cause__ is not None:
                root = root.__cause__
            return f"not exported: {type(root).__name__}: {str(root).strip().splitlines()[0][:90]}"
        cells = []
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for image in inputs:
            ours = result(model([image])[0])
            try:
                theirs = result(session.run(None, {session.get_inputs()[0].name: image.numpy()}))
            except Exception as error:
                cells.append(f"does not run: {str(error).strip().splitlines()[0][:90]}")
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
    parser.add_argument("--exporter", choices=("legacy", "dynamo"), help="export here, in this process")
    args = parser.parse_args()
    if args.exporter:
        print(export(args.models[0], args.exporter == "dynamo", args.images))
        return
    print("| model | legacy exporter: that image \\| another size | dynamo |\n|---|---|---|")
    for name in args.models:
        cells = []
        for exporter in ("legacy", "dynamo"):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.torchvision_export", str(args.images), name]
            try:
                done = subprocess.run(
                    [*command, "--exporter", exporter], capture_output=True, text=True, timeout=TIMEOUT_S
                )
                lines = (done.stdout or done.stderr).strip().splitlines()
                cells.append(lines[-1] if lines else f"ended with {done.returncode}")
            except subprocess.TimeoutExpired:
                cells.append(f"not exported within {TIMEOUT_S} s")
        print(f"| `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
