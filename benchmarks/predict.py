"""Images per second of `detection predict` beside a plain torchvision loop, and an evaluation by batch size.

    python -m benchmarks.predict FOLDER            # the detector models/detector.pt on a folder and its sub-folders
    python -m benchmarks.predict --evaluate        # on data/prepared: AP, time and pixels at batch 1, 4 and 16

The plain loop decodes with torchvision, resizes, pads and calls the same detector on one image after the other; it
writes nothing. All sides run in this process, alternating; the figures are medians. Files that torchvision cannot
decode are left out on both sides. `file order` is an evaluation in batches of neighbors, padded to the largest.
"""

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchvision.io import ImageReadMode, decode_image, read_file
from torchvision.transforms.functional import resize

from detection.commands.predict import predict
from detection.data.loading.batch import ImageSizes, padded_size
from detection.data.loading.loader import DetectionDataset, Loader, batches_of_equal_size, eval_size, in_order
from detection.data.loading.prepared import Prepared
from detection.evaluation.protocol import coco_metrics
from detection.files import DETECTOR
from detection.inference import run_on_batches
from detection.input_files import image_files
from detection.models.build import load_detector
from detection.params.recipe import Recipe

BATCH_SIZES = (1, 4, 16)
Side = Callable[[], object]


def decode(file: Path) -> Tensor:
    """Decode a file as in torchvision's examples, the right way up."""
    image: Tensor = decode_image(read_file(str(file)), mode=ImageReadMode.RGB, apply_exif_orientation=True)
    return image


def plain_loop(files: list[Path], weights: Path) -> int:
    """Detect on one image after the other; return the number of detections."""
    loaded, count = load_detector(weights), 0
    for file in files:
        image = decode(file)
        height, width = image.shape[1:]
        size = eval_size(height, width, loaded.recipe)
        high, wide = padded_size(size, loaded.recipe)
        padded = pad(resize(image, list(size), antialias=True), (0, wide - size[1], 0, high - size[0]), value=114)
        sizes = ImageSizes(torch.tensor([size]), torch.tensor([(height, width)]))
        with torch.inference_mode():
            count += len(loaded.detector.detect(padded[None], sizes)[0].scores)
    return count


def beside_plain_loop(files: list[Path], weights: Path, rounds: int) -> None:
    """Print images per second of `predict` and of the plain loop."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        sides: dict[str, Side] = {"plain torchvision loop": lambda: plain_loop(files, weights)}
        for batch in BATCH_SIZES:
            run = partial(predict, files, weights, out, device="cpu", draw=False, batch_size=batch)
            sides[f"predict --batch-size {batch} --no-images"] = run
        sides["predict (batch size 8, drawn images)"] = partial(predict, files, weights, out, device="cpu")
        seconds = measure(sides, rounds)
    print("| | images per second | CPU s per 1,000 images |\n|---|---|---|")
    for side, (wall, cpu) in seconds.items():
        print(f"| {side} | {len(files) / wall:.1f} | {1000 * cpu / len(files):.1f} |")


def by_batch_size(weights: Path, split: str, rounds: int) -> None:
    """Print AP, time and computed pixels of an evaluation by batch size, and of batches in file order."""
    prepared, loaded = Prepared.load(), load_detector(weights)
    index, recipe = prepared.index(split), loaded.recipe
    rows = np.arange(len(index))
    batches = {f"equal sizes, at most {size}": batches_of_equal_size(index.sizes, size, recipe) for size in BATCH_SIZES}
    batches["file order, 16"] = in_order(rows, 16)
    dataset = DetectionDataset(index, prepared.root, recipe, train=False)
    ap: dict[str, float] = {}

    def evaluate(name: str) -> None:
        loader = Loader(dataset, 1, 0, shuffle=False, equal_sizes=True)
        found = run_on_batches(loaded.detector, loader.of_rows(batches[name]), "fp32", None, "batch_size")
        ap[name] = coco_metrics.score(index, found, prepared.classes).stats["AP"]

    seconds = measure({name: partial(evaluate, name) for name in batches}, rounds)
    print(f"{len(index)} images of {len(np.unique(index.sizes, axis=0))} sizes, {recipe.image_size} px")
    print("| batches | number | AP | s | CPU s | pixels |\n|---|---|---|---|---|---|")
    for name, (wall, cpu) in seconds.items():
        pixels = pixels_computed(batches[name], index.sizes, recipe)
        print(f"| {name} | {len(batches[name])} | {ap[name]:.6f} | {wall:.2f} | {cpu:.2f} | {pixels:.3f} |")


def pixels_computed(batches: list[NDArray[np.int64]], sizes: NDArray[np.int32], recipe: Recipe) -> float:
    """Pixels of all batches per pixel of the resized images."""
    resized = np.array([eval_size(height, width, recipe) for height, width in sizes.tolist()])
    padded = (padded_size(tuple(resized[rows].max(axis=0).tolist()), recipe) for rows in batches)
    computed = sum(high * wide * len(rows) for (high, wide), rows in zip(padded, batches, strict=True))
    return float(computed / resized.prod(axis=1).sum())


def measure(sides: dict[str, Side], rounds: int) -> dict[str, tuple[float, float]]:
    """Return the median of elapsed and of CPU seconds of each side; the sides alternate."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            wall, cpu = time.monotonic(), time.process_time()
            work()
            seconds[name].append((time.monotonic() - wall, time.process_time() - cpu))
    medians = {}
    for name, measured in seconds.items():
        walls, cpus = zip(*measured, strict=True)
        medians[name] = statistics.median(walls), statistics.median(cpus)
    return medians


def _decodable(file: Path) -> bool:
    try:
        return decode(file).shape[0] == 3
    except RuntimeError:
        return False


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--evaluate", action="store_true", help="evaluate data/prepared by batch size")
    parser.add_argument("--split", default="test")
    parser.add_argument("--weights", type=Path, default=DETECTOR)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.INFO)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()}")
    if options.evaluate:
        by_batch_size(options.weights, options.split, options.rounds)
    if options.folder is not None:
        files = [file for file in image_files(options.folder, recursive=True) if _decodable(file)]
        files = files[:: max(1, len(files) // options.images)][: options.images]
        print(f"{len(files)} images")
        beside_plain_loop(files, options.weights, options.rounds)
    print(f"load at the end {os.getloadavg()}")


if __name__ == "__main__":
    main()
