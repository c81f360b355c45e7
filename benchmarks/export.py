"""Exported ONNX files of every family: agreement with the detector, AP, and time beside it on the CPU.

    python -m benchmarks.export IMAGES [MODEL...] [--weights MODEL=FILE...] [--size 160] [--precisions fp32 fp16 int8]

Weights are random, with heads wide enough that detections differ, unless a file is given. Objects are the detector's
own best detections, moved by up to a tenth of their sides, so that AP lies between 0 and 1 and depends on every box.
Detector and ONNX Runtime take turns in one process with the same number of threads, on the same prepared image.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import copy

import numpy as np
import torch
from torch import Tensor, nn

from detection.data.loading.batch import collate
from detection.data.loading.image_io import read_image
from detection.data.loading.index import Record, pack
from detection.errors import DetectionError
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.results import SplitDetections
from detection.export import agreement, onnx_file, torch_program
from detection.export.checked import feeds
from detection.export.precision import convert
from detection.input_files import find_inputs
from detection.models.build import LoadedDetector, build_detector, load_detector, without_weights
from detection.models.detector import Detections, Detector
from detection.params import load
from detection.params.recipe import Recipe

MODELS = ["fasterrcnn_resnet18", "retinanet_resnet18", "fasterrcnn", "fasterrcnn_v2", "fasterrcnn_mobilenet"]
MODELS += ["fasterrcnn_mobilenet_320", "fasterrcnn_vgg16", "fasterrcnn_resnet50_c4", "retinanet", "retinanet_v2"]
MODELS += ["retinanet_257", "fcos", "ssd300", "ssdlite320"]


def reduced(recipe: Recipe, size: int | None) -> Recipe:
    """A recipe on smaller images, unless it stretches them."""
    if size is None or recipe.resize == "stretch":
        return recipe
    return replace(recipe, image_size=size, max_size=3 * size // 2)


def random_detector(model: str, size: int | None = None) -> LoadedDetector:
    """Detector with random weights whose detections differ from place to place."""
    recipe = replace(without_weights(load(model=model, dataset="bccd").recipe), score_threshold=0.05)
    recipe = reduced(recipe, size)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()
    for name, layer in detector.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.startswith("backbone"):
            nn.init.kaiming_normal_(layer.weight)
            if "bbox" in name or "regression" in name:
                layer.weight.data *= 0.1
    return LoadedDetector(detector, recipe, ("Platelets", "RBC", "WBC"), model)


def detect_all(detector: Detector, loaded: LoadedDetector, images: Sequence[Tensor]) -> list[Detections]:
    """Detections on each image."""
    found = []
    for image in images:
        batch = collate([agreement.sample(image, loaded)], loaded.recipe)
        with torch.inference_mode():
            found += detector.detect(batch.images, batch.sizes)
    return found


def average_precision(found: Sequence[Detections], objects: Sequence[Detections], images: Sequence[Tensor]) -> float:
    """COCO's AP, the 20 best of `objects` per image being the ground truth, moved by up to a tenth of their sides."""
    rng, records = np.random.default_rng(0), []
    for one, image in zip(objects, images, strict=True):
        boxes = one.boxes[:20].numpy()
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
        boxes = boxes + np.tile(sides * rng.uniform(-0.1, 0.1, sides.shape), 2).astype(np.float32)
        none, areas = np.zeros(len(boxes), np.bool_), sides.prod(1).astype(np.float32)
        height, width = image.shape[1:]
        records.append(Record("", "", height, width, boxes, one.labels[:20].numpy(), none, none, areas))
    rows = np.repeat(np.arange(len(found)), [len(one.scores) for one in found])
    boxes, scores, labels = (
        torch.cat([getattr(one, name) for one in found]).numpy() for name in ("boxes", "scores", "labels")
    )
    scores = scores.round(5)  # random weights give ties, which have no order: that of the boxes
    order = np.lexsort((*boxes.round(1).T, labels, -scores, rows))
    detections = SplitDetections.pack(rows[order], boxes[order], scores[order], labels[order])
    stats = coco_metrics.score(pack(records), detections, ("Platelets", "RBC", "WBC")).stats
    return float(stats["AP"])


def milliseconds(run: Callable[[], object]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def quantiles(times: list[float]) -> str:
    """Median and 95th percentile; the first call is left out."""
    return f"{statistics.median(times[1:]):.0f} / {np.percentile(times[1:], 95):.0f}"


def measure(
    loaded: LoadedDetector, images: list[Tensor], repetitions: int, precisions: Sequence[str], folder: Path
) -> None:
    """Print a row of the table per precision."""
    network, path = folder / "network.onnx", folder / "converted.onnx"
    start = time.process_time()
    onnx_file.write_network(torch_program.trace(loaded, plain=False), network)
    seconds = time.process_time() - start
    objects = detect_all(loaded.detector, loaded, images)
    ap = average_precision(objects, objects, images)
    batch = collate([agreement.sample(images[0], loaded)], loaded.recipe)
    size = "×".join(str(side) for side in batch.images.shape[2:])
    for precision in precisions:
        copy(network, path)
        if precision != "fp32":
            convert(path, precision, feeds(loaded, images))
        runtime = agreement.OnnxDetector(path, threads=torch.get_num_threads())
        result = "–"
        if precision == "fp32":
            try:
                found = agreement.check(loaded, runtime, images[:4])
                result = f"{found.detections}, {found.box:.4f} px, {found.score:.0e}"
            except DetectionError as error:
                result = str(error)
        theirs = average_precision(detect_all(runtime, loaded, images), objects, images)
        times: tuple[list[float], list[float]] = ([], [])
        with torch.inference_mode():
            for _ in range(repetitions + 1):
                for detector, own in zip((loaded.detector, runtime), times, strict=True):
                    own.append(milliseconds(lambda detector=detector: detector.detect(batch.images, batch.sizes)))  # type: ignore[misc]
        ratio = statistics.median(times[0][1:]) / statistics.median(times[1][1:])
        megabytes = path.stat().st_size / 1e6
        print(
            f"| `{loaded.model}` | {precision} | {size} | {megabytes:.0f} | {seconds:.0f} | {result} "
            f"| {ap:.4f} | {theirs:.4f} | {quantiles(times[0])} | {quantiles(times[1])} | {ratio:.2f} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--weights", action="append", default=[], metavar="MODEL=FILE")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--size", type=int, help="short side of the images, for recipes that do not stretch them")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "fp16", "int8"])
    args = parser.parse_args()
    files = dict(one.split("=", 1) for one in args.weights)
    images = [read_image(file, upright=True) for file in find_inputs([args.images]).images[:8]]
    print("| model | precision | input | MB | export, CPU s | detections, boxes, scores | AP | of the file |", end="")
    print(" PyTorch, ms p50 / p95 | ONNX Runtime | ratio |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for model in args.models:
        loaded = load_detector(files[model]) if model in files else random_detector(model, args.size)
        with tempfile.TemporaryDirectory() as folder:
            measure(loaded, images, args.repetitions, args.precisions, Path(folder))


if __name__ == "__main__":
    main()
