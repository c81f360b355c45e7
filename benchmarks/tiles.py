"""AP with and without `prepare.tiles` on generated 3,000-pixel images with small objects, at equal pixels of training.

    python -m benchmarks.tiles FOLDER              # three experiments by `dvc exp run --temp`, and a table
    python -m benchmarks.tiles FOLDER --rounds 1   # less training; FOLDER keeps the images

Images have 3,000 x 2,000 pixels and 10 to 20 shapes of 20 to 48 pixels, beside as many distractors that are no objects.
The default detector is trained on windows of 320 pixels, on whole images of 1,200 x 800 (torchvision's published size)
and of 600 x 400; each time about `rounds` times the pixels of all windows with objects go through training. Run it in
a clone without local changes.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from detection.data.sources import shapes_render as render
from detection.files import write_json

WIDTH, HEIGHT = 3000, 2000
WINDOW, OVERLAP = 320, 0.2
SPLITS = {"train": 40, "val": 4, "test": 20}
SIDES = (20, 48)
ANCHORS = (16, 24, 32, 48, 64)
VARIANTS = {"tiles": (WINDOW, 8), "whole at 800": (800, 2), "whole at 400": (400, 4)}
"""Shorter side of what the network sees, and the batch."""
SCORES = ("AP", "AP50", "AP75", "AP_small")


def draw(rng: Generator) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """One RGB image, and class and `[x, y, width, height]` of its objects, which do not overlap."""
    image = render.background(WIDTH, rng).crop((0, 0, WIDTH, HEIGHT))
    taken: list[tuple[int, int]] = []
    objects: list[tuple[str, list[int]]] = []
    count = int(rng.integers(10, 21))
    while len(taken) < 2 * count:
        corner = int(rng.integers(WIDTH - SIDES[1])), int(rng.integers(HEIGHT - SIDES[1]))
        if any(max(abs(corner[0] - x), abs(corner[1] - y)) < 1.5 * SIDES[1] for x, y in taken):
            continue
        taken.append(corner)
        shape, side = str(rng.choice(render.CLASSES)), int(rng.integers(SIDES[0], SIDES[1] + 1))
        if len(taken) % 2:
            mask = render.silhouette(shape, side, rng)
            image.paste(render.shaded_fill(mask, render.object_color(shape, rng), rng), corner, mask)
            x1, y1, x2, y2 = mask.point([0] * 128 + [255] * 128).getbbox() or (0, 0, *mask.size)
            objects.append((shape, [corner[0] + x1, corner[1] + y1, x2 - x1, y2 - y1]))
        else:
            ends = [(corner[0] + int(rng.integers(side)), corner[1] + int(rng.integers(side))) for _ in range(5)]
            ImageDraw.Draw(image).line(ends, fill=render.any_color(rng), width=int(rng.integers(2, 6)))
    return image, objects


def write_images(folder: Path) -> None:
    """Write the splits as COCO; a second call keeps what is there."""
    for part, (split, count) in enumerate(SPLITS.items()):
        annotations = folder / f"{split}.json"
        if annotations.is_file():
            continue
        (folder / split).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, object]] = []
        found: list[dict[str, object]] = []
        for i in range(count):
            image, objects = draw(np.random.default_rng((0, part, i)))
            image.save(folder / split / f"{split}{i:03d}.jpg", quality=90)
            images.append({"id": i + 1, "file_name": f"{split}{i:03d}.jpg", "width": WIDTH, "height": HEIGHT})
            for shape, box in objects:
                one = {"image_id": i + 1, "category_id": render.CLASSES.index(shape) + 1, "bbox": box, "iscrowd": 0}
                found.append(one | {"id": len(found) + 1, "area": box[2] * box[3]})
        categories = [{"id": number, "name": name} for number, name in enumerate(render.CLASSES, 1)]
        write_json(annotations, {"images": images, "annotations": found, "categories": categories})


def windows_with_objects(folder: Path) -> int:
    """Windows of the train split that hold the corner of an object: about those of an epoch on tiles."""
    annotations = json.loads((folder / "train.json").read_text(encoding="utf-8"))["annotations"]
    step = WINDOW * (1 - OVERLAP)
    return len({(one["image_id"], one["bbox"][0] // step, one["bbox"][1] // step) for one in annotations})


def arguments(name: str, rounds: int, windows: int) -> list[str]:
    """Arguments of `dvc exp run` for one of `VARIANTS`; all see about as many pixels in training."""
    size, batch = VARIANTS[name]
    scale, epochs = 1.0, float(rounds)
    if name != "tiles":
        scale = size / HEIGHT
        epochs *= windows * WINDOW**2 / (SPLITS["train"] * WIDTH * HEIGHT * scale**2)
    splits = ", ".join(f"{split}: [{{images: {split}, annotations: {split}.json}}]" for split in SPLITS)
    sizes = [[round(side * scale, 2)] for side in ANCHORS]
    values = {
        "dataset": "large",
        "+datasets.large": f"{{format: coco, path: large, skip_empty: true, {splits}}}",
        "+budgets.large": f"{{preset: small, image_size: {size}, batch_size: {batch}, epochs: {epochs:.0f}}}",
        "+models.fasterrcnn_resnet18.overrides.large": f"{{anchors: {{sizes: {sizes}}}}}",
        "prepare.tiles": f"{{size: {WINDOW}, overlap: {OVERLAP}}}" if name == "tiles" else "",
        "train.cache_mb": "3000",
    }
    return [word for key, value in values.items() if value for word in ("-S", f"{key}={value}")]


def read_metrics(experiment: str) -> dict[str, float]:
    """Scores of a DVC experiment."""
    find = ["git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{experiment}"]
    ref = subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip()
    show = ["git", "show", f"{ref}:reports/evaluation/metrics.json"]
    metrics: dict[str, float] = json.loads(subprocess.run(show, check=True, capture_output=True).stdout)
    return metrics


def main() -> None:
    """Run the experiments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    write_images(options.folder / "large")
    windows = windows_with_objects(options.folder / "large")
    environment = os.environ | {"DATA_ROOT": str(options.folder.resolve())}
    print(f"| {'detector sees':13} | test {' | '.join(SCORES)} | seconds |", flush=True)
    for name in VARIANTS:
        start, experiment = time.perf_counter(), f"{name.replace(' ', '-')}-{int(time.time())}"
        words = ["dvc", "exp", "run", "--temp", "--name", experiment, *arguments(name, options.rounds, windows)]
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
        metrics = read_metrics(experiment)
        scores = " | ".join(f"{metrics[score]:.3f}" for score in SCORES)
        print(f"| {name:13} | {scores} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
