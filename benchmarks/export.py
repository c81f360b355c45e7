"""Exported ONNX files of every family: agreement with the detector, and time beside it on the CPU.

    python -m benchmarks.export IMAGES [MODEL...] [--weights MODEL=FILE...] [--repetitions 3]

Weights are random, with heads wide enough that detections differ, unless a file is given. Detector and ONNX Runtime
take turns in one process with the same number of threads, on the same prepared image; times are medians in ms.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from detection.data.loading.batch import collate
from detection.data.loading.image_io import read_image
from detection.errors import DetectionError
from detection.export import agreement, onnx_file, torch_program
from detection.input_files import find_inputs
from detection.models.build import LoadedDetector, build_detector, load_detector, without_weights
from detection.params import load

MODELS = ["fasterrcnn_resnet18", "retinanet_resnet18", "fasterrcnn", "fasterrcnn_v2", "fasterrcnn_mobilenet"]
MODELS += ["fasterrcnn_mobilenet_320", "fasterrcnn_vgg16", "fasterrcnn_resnet50_c4", "retinanet", "retinanet_v2"]
MODELS += ["retinanet_257", "fcos", "ssd300", "ssdlite320"]


def random_detector(model: str) -> LoadedDetector:
    """Detector with random weights whose detections differ from place to place."""
    recipe = replace(without_weights(load(model=model, dataset="bccd").recipe), score_threshold=0.05)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).eval()
    for name, layer in detector.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not name.startswith("backbone"):
            nn.init.kaiming_normal_(layer.weight)
            if "bbox" in name or "regression" in name:
                layer.weight.data *= 0.1
    return LoadedDetector(detector, recipe, ("Platelets", "RBC", "WBC"), model)


def milliseconds(run: Callable[[], object]) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def measure(loaded: LoadedDetector, images: list[torch.Tensor], repetitions: int) -> str:
    """Row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        start = time.perf_counter()
        onnx_file.write_network(torch_program.trace(loaded, plain=False), path)
        seconds = time.perf_counter() - start
        runtime = agreement.OnnxDetector(path, threads=torch.get_num_threads())
        try:
            found = agreement.check(loaded, runtime, images)
            result = f"{found.detections} | {found.box:.4f} | {found.score:.0e}"
        except DetectionError as error:
            result = f"{error} | – | –"
        batch = collate([agreement.sample(images[0], loaded)], loaded.recipe)
        times: tuple[list[float], list[float]] = ([], [])
        with torch.inference_mode():
            for _ in range(repetitions + 1):
                for detector, own in zip((loaded.detector, runtime), times, strict=True):
                    own.append(milliseconds(lambda detector=detector: detector.detect(batch.images, batch.sizes)))  # type: ignore[misc]
        ours, theirs = (statistics.median(own[1:]) for own in times)
        size = "×".join(str(side) for side in batch.images.shape[2:])
        megabytes = path.stat().st_size / 1e6
    return (
        f"| `{loaded.model}` | {size} | {megabytes:.0f} | {seconds:.0f} | {result} | {ours:.0f} | {theirs:.0f} | "
        f"{ours / theirs:.2f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--weights", action="append", default=[], metavar="MODEL=FILE")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    files = dict(one.split("=", 1) for one in args.weights)
    images = [read_image(file, upright=True) for file in find_inputs([args.images]).images[:4]]
    print("| model | input | MB | export s | detections | box px | score | PyTorch ms | ONNX Runtime ms | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for model in args.models:
        loaded = load_detector(files[model]) if model in files else random_detector(model)
        print(measure(loaded, images, args.repetitions), flush=True)


if __name__ == "__main__":
    main()
