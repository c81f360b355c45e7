"""Augmenting beside torchvision's way, and what a loader process's memory does over an epoch of COCO's size.

    python -m benchmarks.augment                                    # photo-like JPEGs made on the spot
    python -m benchmarks.augment --pictures FOLDER_OF_JPEGS         # and real ones
    python -m benchmarks.augment speed                              # or `memory`: one of the two

Both sides turn JPEG files and their boxes into one training sample: ours through `DetectionDataset`, as a
training does, into uint8 of the final size; the peer as torchvision's detection references do by default,
PIL's decoder and the transforms of v2 in their stock order:

* `ssd`: RandomPhotometricDistort, RandomZoomOut (filled), RandomIoUCrop, RandomHorizontalFlip, PILToTensor,
  ToDtype(float), SanitizeBoundingBoxes, then the resize to 300 x 300 that torchvision's SSD does inside the
  model (bilinear, no antialias): part of the peer's work, as ours leaves nothing of it to the model.
* `flip`: RandomHorizontalFlip, PILToTensor, ToDtype(float), and the model's resize to the same size. Its
  boxes come out of COCO JSON through a ConvertCocoPolysToMask of our own writing that does what the
  references' does: crowds left out, xywh to xyxy, clamped, and every polygon drawn as a mask, needed or not
  (pycocotools). A second peer, without it, shows what that costs.

Our `adjust_hue` is torchvision's `adjust_hue` in another form (equal to one grey level, and tested); another
side has torchvision's own code in its place. Three boxes a picture. CPU time of one thread, medians over
rounds in which the sides take turns.

The memory: an index of 118,287 rows that all point at a few small pictures, so that an epoch takes minutes
and not hours; two real loader processes, their private memory (`smaps_rollup`: what they share with nobody)
after the first batch, then at each tenth of the epoch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from pycocotools import mask as masks
from torchvision import tv_tensors
from torchvision.transforms import v2

from detection import params
from detection.data.index import Index, Record, pack
from detection.data.loading import color_jitter
from detection.data.loading.loader import DetectionDataset, Loader
from detection.params.recipe import Recipe

SIDE = 300
OBJECTS = 3
VERTICES = 24
GRAIN = 0.3  # of the photo-like pictures: makes files of 85 KiB, about VOC's
COCO_ROWS = 118_287


def photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A picture with detail on all scales, as photographs have: noise that falls with frequency."""
    layers = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        cells = rng.normal(0, 1, (2**octave, 2**octave, 3)).astype(np.float32)
        planes = [
            Image.fromarray(cells[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)
        ]
        layers += np.stack(planes, axis=2) * 0.62**octave
    layers += rng.normal(0, GRAIN, layers.shape)
    layers = (layers - layers.min()) / (layers.max() - layers.min()) * 255
    return Image.fromarray(layers.astype(np.uint8))


def make_split(folder: Path, source: Path | None, count: int) -> Index:
    """Pictures in `folder`: those of `source` at a longer side of 500, or photo-like ones of 500 x 375."""
    rng = np.random.default_rng(0)
    files = sorted(source.glob("*.jpg"))[:count] if source else []
    records = []
    for i in range(len(files) or count):
        if files:
            with Image.open(files[i]) as file:
                scale = 500 / max(file.size)
                size = round(file.width * scale), round(file.height * scale)
                image = file.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        else:
            image = photo(rng, 375, 500)
        image.save(folder / f"{i:03d}.jpg", quality=92)
        corner = rng.random((OBJECTS, 2)) * 0.6
        sides = 0.1 + rng.random((OBJECTS, 2)) * 0.3
        boxes = np.concatenate([corner, corner + sides], axis=1) * [*image.size, *image.size]
        none, areas = np.zeros(OBJECTS, np.bool_), boxes[:, :2].prod(axis=1).astype(np.float32)
        labels = np.arange(OBJECTS)
        record = Record(
            f"{i:03d}.jpg",
            str(i),
            image.height,
            image.width,
            boxes.astype(np.float32),
            labels,
            none,
            none,
            areas,
        )
        records.append(record)
    return pack(records)


def annotations(record: Record) -> list[dict[str, Any]]:
    """The objects as a COCO file has them, each with a polygon of `VERTICES` corners inside its box."""
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    rows = []
    for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
        x = (x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(angle)
        y = (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(angle)
        polygon = np.stack([x, y], axis=1).ravel().tolist()
        rows.append(
            {
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "category_id": label,
                "iscrowd": 0,
                "segmentation": [polygon],
            }
        )
    return rows


def convert(image: Image.Image, objects: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What the references make of a picture's annotations."""
    width, height = image.size
    objects = [one for one in objects if one["iscrowd"] == 0]
    boxes = torch.as_tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    labels = torch.tensor([one["category_id"] for one in objects], dtype=torch.int64)
    drawn = [masks.decode(masks.frPyObjects(one["segmentation"], height, width)) for one in objects]
    mask = torch.stack([torch.as_tensor(one, dtype=torch.uint8).any(dim=2) for one in drawn])
    good = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return {"boxes": boxes[good], "labels": labels[good], "masks": mask[good]}


def peer(policy: str, root: Path, index: Index, polygons: bool = True) -> Callable[[int], Any]:
    """One picture and its boxes, the references' way."""
    ends = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True)]
    transform = v2.Compose([v2.RandomHorizontalFlip(p=0.5), *ends])
    if policy == "ssd":
        steps = [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(
                fill={tv_tensors.Image: (123, 117, 104), Image.Image: (123, 117, 104), "others": 0}
            ),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(p=0.5),
        ]
        transform = v2.Compose([*steps, *ends, v2.SanitizeBoundingBoxes()])
    coco = [annotations(index[i]) for i in range(len(index))]

    def sample(row: int) -> Any:
        image = Image.open(root / index[row].file).convert("RGB")
        if policy == "flip" and polygons:
            target: dict[str, Any] = convert(image, coco[row])
            target["masks"] = tv_tensors.Mask(target["masks"])
        else:
            target = {
                "boxes": torch.from_numpy(index[row].boxes.copy()),
                "labels": torch.from_numpy(index[row].labels.copy()),
            }
        size = image.height, image.width
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        image, target = transform(image, target)
        pixels = torch.nn.functional.interpolate(image[None], size=(SIDE, SIDE), mode="bilinear")[0]
        return pixels, target["boxes"]

    return sample


def ours(policy: Any, root: Path, index: Index, **more: Any) -> Callable[[int], Any]:
    """The same by `DetectionDataset`; a new epoch for each call, so that no draw comes twice."""
    pictures, count = (
        DetectionDataset(index, root, recipe_for(policy), train=True, **more),
        iter(range(10**9)),
    )
    return lambda row: pictures[next(count), row]


def recipe_for(policy: Any) -> Recipe:
    """SSD300's size and mean."""
    return replace(params.load(model="ssd300").recipe, augmentation=policy, image_size=SIDE)


def race(sides: dict[str, Callable[[int], Any]], count: int, rounds: int) -> dict[str, float]:
    """Median pictures per CPU second of each side; the sides take turns."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, sample in sides.items():
            start = time.process_time()
            for row in range(count):
                sample(row)
            if turn:  # the first is for warming up
                rates[name].append(count / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def private_mib(pid: int) -> float:
    """Memory of a process that it shares with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def memory(folder: Path, rows: int, workers: int = 2) -> Iterator[tuple[float, list[float]]]:
    """Private memory of each loader process, after the first batch and at tenths of an epoch."""
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 15, rows))]).astype(np.int64)
    total = int(offsets[-1])
    corner = rng.random((total, 2)).astype(np.float32) * 20
    flags = np.zeros(total, np.bool_)
    index = Index(
        files=np.array([f"{i % 4}.png".encode() for i in range(rows)]),
        ids=np.array([f"{i:012d}".encode() for i in range(rows)]),
        sizes=np.tile(np.array([[32, 40]], np.int32), (rows, 1)),
        offsets=offsets,
        boxes=np.concatenate([corner, corner + 10], axis=1),
        labels=rng.integers(0, 80, total),
        difficult=flags,
        crowd=flags,
        areas=np.full(total, 100, np.float32),
    )
    recipe = replace(recipe_for("flip"), image_size=32)
    loader = Loader(DetectionDataset(index, folder, recipe, train=True), 32, workers, shuffle=True)
    marks = {max(1, len(loader) * tenth // 10): tenth / 10 for tenth in range(11)}
    for i, _ in enumerate(loader.epoch(0), 1):
        if i in marks:
            pids = [worker.pid for worker in loader.batches._iterator._workers]  # type: ignore[union-attr]
            yield marks[i], [private_mib(pid) for pid in pids]


def time_policies(index: Index, root: Path, rounds: int) -> dict[str, float]:
    """Prints a table; returns the ratios that are aimed at."""
    stock = torchvision.transforms.v2.functional.adjust_hue

    def with_stock_hue(sample: Callable[[int], Any]) -> Callable[[int], Any]:
        def call(row: int) -> Any:
            own, color_jitter.adjust_hue = color_jitter.adjust_hue, stock
            try:
                return sample(row)
            finally:
                color_jitter.adjust_hue = own

        return call

    ratios = {}
    for policy in ("ssd", "flip"):
        sides = {"torchvision": peer(policy, root, index), "ours": ours(policy, root, index)}
        if policy == "ssd":
            sides["ours, torchvision's hue"] = with_stock_hue(ours(policy, root, index))
        else:
            sides["torchvision without polygons"] = peer(policy, root, index, polygons=False)
        sides["ours, cached"] = ours(policy, root, index, cache_mb=500)
        rates = race(sides, len(index), rounds)
        for name, rate in rates.items():
            ratio = rate / rates["torchvision"]
            print(f"  {policy:5} {name:28} {rate:8.1f} pictures per CPU second  {ratio:5.2f}x")
        ratios[policy] = rates["ours"] / rates["torchvision"]
    return ratios


def time_pictures(source: Path | None, count: int, rounds: int) -> dict[str, float]:
    """Both policies on real pictures, or on photo-like ones; returns what `time_policies` does."""
    with tempfile.TemporaryDirectory() as folder:
        index = make_split(Path(folder), source, count)
        kib = sum(file.stat().st_size for file in Path(folder).iterdir()) / len(index) / 1024
        name = "real" if source else "photo-like"
        print(f"{len(index)} {name} pictures, {kib:.0f} KiB each, to {SIDE} x {SIDE}")
        return time_policies(index, Path(folder), rounds)


def grow(rows: int) -> None:
    """Prints the memory of the loader processes over an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        marks = list(memory(Path(folder), rows))
    for share, each in marks:
        sizes = ", ".join(f"{size:.1f}" for size in each)
        print(f"  {share:4.0%} of an epoch of {rows} rows: {sizes} MiB private")
    growth = max(last - first for first, last in zip(marks[0][1], marks[-1][1], strict=True))
    print(f"a loader process grew by {growth:.1f} MiB over the epoch")


def main() -> None:
    """Speed and memory, then the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("speed", "memory"), help="default: both")
    parser.add_argument("--pictures", type=Path, help="folder of real JPEGs")
    parser.add_argument("--count", type=int, default=24, help="pictures; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument(
        "--rows", type=int, default=COCO_ROWS, help="of the memory's index; default: %(default)s"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what != "speed":
        grow(options.rows)
    if options.what != "memory":
        for source in [None, options.pictures] if options.pictures else [None]:
            ratios = time_pictures(source, options.count, options.rounds)
            lines = (f"{policy} {ratio:.2f}x torchvision" for policy, ratio in ratios.items())
            print("ratios: " + ", ".join(lines))


if __name__ == "__main__":
    main()
