"""Exported files of every recipe beside the detector: agreement, speed, and lower precisions, on the CPU.

    python -m benchmarks.export agreement IMAGES [MODEL...]                  # differences and AP: ONNX and .pt2
    python -m benchmarks.export speed IMAGES [MODEL...] [--threads 1 2]      # images/s, p50, p95, peak memory
    python -m benchmarks.export precision IMAGES [MODEL...]                  # fp16, int8: AP, time and size
    python -m benchmarks.export trained IMAGES MODEL --weights MODEL=FILE    # the same on the prepared test split

Weights are random (`spread`) unless `--weights MODEL=FILE` names a detector. Objects are the detector's own best
detections, moved by up to a tenth of their sides, so that AP lies between 0 and 1 and depends on every box. With
`--folder` the exported files are kept and used again.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copy

import numpy as np
import torch
from torch import Tensor, nn

from detection.data.loading.batch import Batch, collate
from detection.data.loading.image_io import read_image
from detection.data.loading.index import Record, pack
from detection.errors import DetectionError
from detection.evaluation.protocol import coco_metrics
from detection.evaluation.protocol.results import SplitDetections
from detection.export import agreement, onnx_file, torch_program
from detection.export.checked import feeds
from detection.export.precision import convert
from detection.input_files import find_inputs
from detection.models.build import LoadedDetector, build_detector, load_detector, save_detector, without_weights
from detection.models.detector import Detections, Detector
from detection.params import load
from detection.params.recipe import Recipe

CLASSES = ("Platelets", "RBC", "WBC")
MODELS = ["fasterrcnn_resnet18", "retinanet_resnet18", "fasterrcnn", "fasterrcnn_v2", "fasterrcnn_mobilenet"]
MODELS += ["fasterrcnn_mobilenet_320", "fasterrcnn_resnet50_c4", "fasterrcnn_vgg16_600", "fasterrcnn_vgg16"]
MODELS += ["retinanet", "retinanet_v2", "retinanet_257", "fcos", "ssd300", "ssdlite320"]
OUTPUTS = {
    "head.classification_head.cls_logits": (1.5, -3.0),
    "cls_score": (1.5, 0.0),
    "classification_head.module_list": (1.5, 0.0),
    "bbox": (0.3, 0.0),
    "regression_head.module_list": (0.3, 0.0),
}
"""Standard deviation and mean of output layers; those of all others are 1 and 0."""
PEAK = """
import sys
import numpy as np
values = list(np.load(sys.argv[2]).values())
{setup}
for _ in range(3):
    {run}
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
TORCH_PEAK = PEAK.format(
    setup="import torch; from detection.models.build import load_detector; torch.set_num_threads(1)\n"
    "from detection.data.loading.batch import ImageSizes; detector = load_detector(sys.argv[1]).detector\n"
    "images, *sizes = map(torch.from_numpy, values); sizes = ImageSizes(*sizes); torch.inference_mode().__enter__()",
    run="detector.detect(images, sizes)",
)
ONNX_PEAK = PEAK.format(
    setup="import onnxruntime; options = onnxruntime.SessionOptions(); options.intra_op_num_threads = 1\n"
    "session = onnxruntime.InferenceSession(sys.argv[1], options, providers=['CPUExecutionProvider'])",
    run="session.run(None, dict(zip(('images', 'resized', 'original'), values)))",
)


def reduced(recipe: Recipe, size: int | None) -> Recipe:
    """A recipe on smaller images, unless it stretches them."""
    if size is None or recipe.resize == "stretch":
        return recipe
    return replace(recipe, image_size=size, max_size=3 * size // 2)


def random_detector(model: str, images: Sequence[Tensor], size: int | None = None) -> LoadedDetector:
    """Detector with random weights whose scores and boxes differ from place to place; see `spread`."""
    recipe = replace(without_weights(load(model=model, dataset="bccd").recipe), score_threshold=0.05)
    recipe = reduced(recipe, size)
    torch.manual_seed(0)
    loaded = LoadedDetector(build_detector(recipe, len(CLASSES), None).eval(), recipe, CLASSES, model)
    spread(loaded, images)
    return loaded


def spread(loaded: LoadedDetector, images: Sequence[Tensor], seed: int = 0) -> None:
    """Draw weights whose outputs vary, layer by layer on images (Mishkin & Matas 2015, arXiv:1511.06422).

    Initial weights are no test: activations of a random MobileNet fade to nothing, the scores of all anchors are equal
    to a few units in the last place, and the limit of detections keeps any of them.

    Args:
        loaded: Detector in evaluation mode, on the CPU; every BatchNorm has to be live.
        images: Tensor[3, H, W], uint8 RGB, two or more.
        seed: Seed of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    done: set[nn.Module] = set()

    def normalize(layer: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
        if layer not in done:
            done.add(layer)
            layer.running_mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
            layer.running_var = variance.nan_to_num(1.0).clamp(min=1e-3)
            residual = 1.0 if layer.weight.any() else 0.2  # last of a residual branch, initially zero
            layer.weight.copy_(residual * (torch.rand(layer.weight.shape, generator=generator) + 0.5))
            # with a mean of 0, sixty layers would amplify rounding ten thousand times
            layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.3 + 1)

    def scale(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor], output: Tensor, name: str) -> Tensor | None:
        if layer in done:
            return None
        done.add(layer)
        deviation, mean = next((value for part, value in OUTPUTS.items() if part in name), (1.0, 0.0))
        layer.weight.mul_(deviation / output.std())
        if layer.bias is not None:
            layer.bias.zero_()
            layer.bias.copy_(mean - layer(*inputs).transpose(0, 1).flatten(1).mean(1))
        result: Tensor = layer(*inputs)
        return result

    loaded.detector.requires_grad_(False)
    hooks = []
    for name, layer in loaded.detector.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            hooks.append(layer.register_forward_pre_hook(normalize))
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            hooks.append(layer.register_forward_hook(partial(scale, name=name)))
    batch = collate([agreement.sample(image, loaded) for image in images], loaded.recipe)
    with torch.no_grad():
        loaded.detector.detect(batch.images, batch.sizes)
    for hook in hooks:
        hook.remove()


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
    columns = (torch.cat([getattr(one, name) for one in found]).numpy() for name in ("boxes", "scores", "labels"))
    return float(coco_metrics.score(pack(records), SplitDetections.pack(rows, *columns), CLASSES).stats["AP"])


class Files:
    """A detector and its exported files in a folder; each is made once.

    Args:
        model: Name of the recipe.
        images: Images to draw random weights on.
        folder: Folder of the files.
        weights: A detector's file; None for random weights.
        size: See `reduced`.
    """

    def __init__(
        self, model: str, images: Sequence[Tensor], folder: Path, weights: str | None, size: int | None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.detector, self.images = folder, folder / "detector.pt", images
        if weights:
            copy(weights, self.detector)
        elif not self.detector.is_file():
            made = random_detector(model, images[:4], size)
            save_detector(self.detector, made.detector.state_dict(), made.recipe, made.classes, made.model)
        self.loaded = load_detector(self.detector)
        self.weights = "trained" if weights else "random"

    def onnx(self, precision: str = "fp32") -> Path:
        """The ONNX file without the resize."""
        path = self.folder / f"{precision}.onnx"
        if not path.is_file() and precision == "fp32":
            onnx_file.write_network(torch_program.trace(self.loaded, plain=False), path)
        elif not path.is_file():
            copy(self.onnx(), path)
            convert(path, precision, feeds(self.loaded, self.images))
        return path

    def program(self) -> Path:
        """The `.pt2` file."""
        path = self.folder / "detector.pt2"
        if not path.is_file():
            torch_program.write(torch_program.trace(self.loaded, plain=True), path, {})
        return path

    def batch(self, count: int) -> Batch:
        """The first images, prepared."""
        return collate([agreement.sample(image, self.loaded) for image in self.images[:count]], self.loaded.recipe)


def agreement_rows(files: Files) -> None:
    """Print the greatest differences, and both APs, of the ONNX and the `.pt2` file."""
    loaded, images = files.loaded, files.images
    ours = detect_all(loaded.detector, loaded, images)
    ap = average_precision(ours, ours, images)
    batches = [collate([agreement.sample(image, loaded)], loaded.recipe) for image in images]
    own = average_precision([agreement.rounded(loaded, batch)[0] for batch in batches], ours, images)
    makers: dict[str, Callable[[], torch_program.ExportedDetector]] = {
        "ONNX": lambda: agreement.OnnxDetector(files.onnx(), threads=torch.get_num_threads()),
        ".pt2": lambda: torch_program.ProgramDetector(files.program()),
    }
    for kind, make in makers.items():
        exported = make()
        try:
            found = agreement.check(loaded, exported, images[:4])
            result = f"{found.detections} / {found.tied} / {found.unstable} | {found.box:.4f} | {found.score:.0e}"
        except DetectionError as error:
            result = f"{error} | | "
        theirs = average_precision(detect_all(exported, loaded, images), ours, images)
        print(
            f"| `{loaded.model}` | {files.weights} | {kind} | {result} | {ap:.4f} | {theirs:.4f} | {own:.4f} |",
            flush=True,
        )


def milliseconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Duration of one call."""
    start = clock()
    run()
    return 1000 * (clock() - start)


def detect_bf16(detector: Detector, batch: Batch) -> list[Detections]:
    """Detect in bfloat16, as the CPU has it."""
    with torch.autocast("cpu", torch.bfloat16):
        return detector.detect(batch.images, batch.sizes)


def interleaved(
    runs: Sequence[Callable[[], object]], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Milliseconds of each call, taking turns, for that many seconds and at least five times."""
    times: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for run, own in zip(runs, times, strict=True):
            own.append(milliseconds(run, clock))
    return times


def peak_megabytes(script: str, path: Path, batch: Batch, folder: Path) -> float:
    """Peak resident set in MB of a process that loads a file and detects three times."""
    values = folder / "batch.npz"
    np.savez(values, images=batch.images, resized=batch.sizes.resized, original=batch.sizes.original)
    command = [sys.executable, "-c", script, str(path), str(values)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def speed_rows(files: Files, threads: Sequence[int], batches: Sequence[int], seconds: float) -> None:
    """Print images/s and latency of the detector and of ONNX Runtime, and the peak memory of each alone."""
    detector = files.loaded.detector
    for count in batches:
        batch = files.batch(count)
        shape = "×".join(str(side) for side in (count, *batch.images.shape[2:]))
        memory = [
            peak_megabytes(script, path, batch, files.folder)
            for script, path in ((TORCH_PEAK, files.detector), (ONNX_PEAK, files.onnx()))
        ]
        for number in threads:
            torch.set_num_threads(number)
            runtime = agreement.OnnxDetector(files.onnx(), threads=number)
            runs = [
                partial(detector.detect, batch.images, batch.sizes),
                partial(detect_bf16, detector, batch),
                partial(runtime.detect, batch.images, batch.sizes),
            ]
            with torch.inference_mode():
                times = interleaved(runs, seconds)
            median = [statistics.median(own) for own in times]
            cells = [
                f"{1000 * count / middle:.1f}, {middle:.0f} / {np.percentile(own, 95):.0f}"
                for middle, own in zip(median, times, strict=True)
            ]
            print(
                f"| `{files.loaded.model}` | {shape} | {number} | {' | '.join(cells)} | {median[0] / median[2]:.2f} "
                f"| {median[1] / median[2]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} |",
                flush=True,
            )


def precision_rows(files: Files, seconds: float) -> None:
    """Print AP, processor time and size in each precision, one thread, batch 1."""
    loaded, images, batch = files.loaded, files.images, files.batch(1)
    torch.set_num_threads(1)
    ours = detect_all(loaded.detector, loaded, images)
    precisions = ("fp32", "fp16", "int8")
    runtimes = [agreement.OnnxDetector(files.onnx(precision), threads=1) for precision in precisions]
    found = [detect_all(runtime, loaded, images) for runtime in runtimes]
    runs = [partial(runtime.detect, batch.images, batch.sizes) for runtime in runtimes]
    times = interleaved(runs, seconds, time.process_time)
    cells = []
    for precision, own, each in zip(precisions, times, found, strict=True):
        size = files.onnx(precision).stat().st_size / 1e6
        cells.append(f"{average_precision(each, ours, images):.4f}, {statistics.median(own):.0f} ms, {size:.0f} MB")
    print(f"| `{loaded.model}` | {files.weights} | {' | '.join(cells)} |", flush=True)


def trained_rows(files: Files) -> None:
    """Print AP on the prepared test split, processor time of all its images with reading, and size; one thread.

    The ranges of int8 are those of `files.images`.
    """
    from detection.inference import run_detector

    torch.set_num_threads(1)
    prepared, split = agreement.evaluated_split(files.loaded)
    index, recipe, cells = prepared.index(split), files.loaded.recipe, []
    for precision in (None, "fp32", "fp16", "int8"):
        detector = agreement.OnnxDetector(files.onnx(precision), threads=1) if precision else files.loaded.detector
        start = time.process_time()
        found = run_detector(detector, index, prepared.root, recipe, batch_size=4, workers=0, device="cpu")
        seconds = time.process_time() - start
        ap = coco_metrics.score(index, found, prepared.classes).stats["AP"]
        size = (files.onnx(precision) if precision else files.detector).stat().st_size / 1e6
        cells.append(f"{ap:.4f}, {seconds:.1f} s, {size:.0f} MB")
    print(f"| `{files.loaded.model}` | {len(index)} | {' | '.join(cells)} |", flush=True)


HEADERS = {
    "agreement": "model | weights | file | detections / tied / images left out | boxes, px | scores | AP"
    " | of the file | in channels_last",
    "speed": "model | input | threads | PyTorch, images/s, p50 / p95 ms | bf16 | ONNX Runtime | ratio | to bf16"
    " | MB, PyTorch | ONNX Runtime",
    "precision": "model | weights | fp32: AP, p50, size | fp16 | int8",
    "trained": "model | images | PyTorch: AP, time, size | ONNX fp32 | fp16 | int8",
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", choices=HEADERS)
    parser.add_argument("images", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--weights", action="append", default=[], metavar="MODEL=FILE")
    parser.add_argument("--folder", type=Path, help="folder for the exported files")
    parser.add_argument("--size", type=int, help="short side of the images, for recipes that do not stretch them")
    parser.add_argument(
        "--count", type=int, default=8, help="images for the AP and the ranges of int8; default: %(default)s"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--seconds", type=float, default=10, help="per timing; default: %(default)s")
    args = parser.parse_args()
    weights = dict(one.split("=", 1) for one in args.weights)
    images = [read_image(file, upright=True) for file in find_inputs([args.images]).images[: args.count]]
    columns = HEADERS[args.table]
    print(f"| {columns} |\n|{'---|' * len(columns.split(' | '))}")
    with tempfile.TemporaryDirectory() as temporary:
        for model in args.models:
            files = Files(model, images, (args.folder or Path(temporary)) / model, weights.get(model), args.size)
            if args.table == "agreement":
                agreement_rows(files)
            elif args.table == "speed":
                speed_rows(files, args.threads, args.batches, args.seconds)
            elif args.table == "trained":
                trained_rows(files)
            else:
                precision_rows(files, args.seconds)


if __name__ == "__main__":
    main()
