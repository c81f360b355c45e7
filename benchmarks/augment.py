"""Augmentation throughput against torchvision's transforms, and loader memory over an epoch of COCO's size.

    python -m benchmarks.augment                                    # generated, photo-like JPEGs
    python -m benchmarks.augment --images FOLDER_OF_JPEGS           # and real ones
    python -m benchmarks.augment speed                              # or `memory`: one of the two

Both sides turn a JPEG file and its boxes into one training sample. Ours uses `DetectionDataset`, as training
does, and yields uint8 of the final size. The reference follows the defaults of torchvision's detection
references, PIL's decoder and the v2 transforms in their stock order:

* `ssd`: RandomPhotometricDistort, RandomZoomOut (filled), RandomIoUCrop, RandomHorizontalFlip, PILToTensor,
  ToDtype(float), SanitizeBoundingBoxes, then the resize to 300 x 300 that torchvision's SSD does inside the
  model (bilinear, no antialias); counted here because ours delivers the final size.
* `flip`: RandomHorizontalFlip, PILToTensor, ToDtype(float), and the model's resize to the same size. The
  boxes come from COCO JSON through our own equivalent of ConvertCocoPolysToMask: crowds removed, xywh to
  xyxy, clamped, every polygon rasterized to a mask (pycocotools). A variant without masks shows their cost.

* Lists of steps: the same steps as v2 transforms, PIL images, in the order of the list, and the resize of the model.
  `mosaic`, `copy_paste` and `mixup` of boxes are not in v2; ours alone is timed with them.

Our `adjust_hue` equals torchvision's within one gray level (tested); a variant uses torchvision's code in its
place. Three boxes per image. CPU time of one thread, medians over rounds in which the sides alternate.

Memory: an index of 118,287 entries that all refer to a few small images, so that an epoch takes minutes, not
hours. Two real loader processes; their private memory (`smaps_rollup`) after the first batch and at each
tenth of the epoch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
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
from detection.data.loading import color_jitter
from detection.data.loading.index import Index, Record, pack
from detection.data.loading.loader import DetectionDataset, Loader
from detection.params.augmentation import Affine, Color, CopyPaste, CropByOverlap, Flip, Mixup, Mosaic, Step
from detection.params.recipe import Recipe

SIDE = 300
OBJECTS = 3
VERTICES = 24
NOISE_STD = 0.3  # of the photo-like images: gives files of 85 KiB, about as VOC's
COCO_IMAGES = 118_287
AFFINE = Step(affine=Affine(rotate=10, scale=(0.5, 1.5), translate=0.1, shear=2))
FLIPS = Step(flip=Flip(horizontal=0.5, vertical=0.1))
COLOR = Step(color=Color(brightness=0.3, contrast=0.3, saturation=0.4, hue=0.02, grayscale=0.01, blur=0.01))
CROP = Step(crop_by_overlap=CropByOverlap(p=0.5))
LISTS = {
    "affine": (AFFINE,),
    "scale and shift": (Step(affine=Affine(scale=(0.5, 1.5), translate=0.1)),),
    "crop_by_overlap": (CROP,),
    "flip": (FLIPS,),
    "color": (COLOR,),
    "affine to color": (AFFINE, CROP, FLIPS, COLOR),
}
MIXED = {
    "mosaic": (Step(mosaic=Mosaic(p=1)),),
    "mosaic to color": (
        Step(mosaic=Mosaic(p=0.5)), AFFINE, CROP, Step(mixup=Mixup()), Step(copy_paste=CopyPaste()), FLIPS, COLOR,
    ),
}  # fmt: skip


def photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Photo-like image: noise on all scales with an amplitude that falls with frequency."""
    layers = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        cells = rng.normal(0, 1, (2**octave, 2**octave, 3)).astype(np.float32)
        channels = (Image.fromarray(cells[..., c]) for c in range(3))
        planes = [np.asarray(one.resize((width, height), Image.Resampling.BICUBIC)) for one in channels]
        layers += np.stack(planes, axis=2) * 0.62**octave
    layers += rng.normal(0, NOISE_STD, layers.shape)
    layers = (layers - layers.min()) / (layers.max() - layers.min()) * 255
    return Image.fromarray(layers.astype(np.uint8))


def make_split(folder: Path, source: Path | None, num_images: int) -> Index:
    """Save images of `source` at a longer side of 500, or photo-like ones of 500 x 375; return the index."""
    rng = np.random.default_rng(0)
    files = sorted(source.glob("*.jpg"))[:num_images] if source else []
    records = []
    for i in range(len(files) or num_images):
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
            f"{i:03d}.jpg", str(i), image.height, image.width, boxes.astype(np.float32), labels, none, none, areas
        )
        records.append(record)
    return pack(records)


def annotations(record: Record) -> list[dict[str, Any]]:
    """COCO annotations of a record, each with a polygon of `VERTICES` corners inside its box."""
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    entries = []
    for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True):
        x = (x1 + x2) / 2 + (x2 - x1) / 2 * np.cos(angle)
        y = (y1 + y2) / 2 + (y2 - y1) / 2 * np.sin(angle)
        polygon = np.stack([x, y], axis=1).ravel().tolist()
        entries.append(
            {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": label, "iscrowd": 0, "segmentation": [polygon]}
        )
    return entries


def convert(image: Image.Image, objects: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Target of an image as torchvision's references build it from COCO annotations."""
    width, height = image.size
    objects = [one for one in objects if one["iscrowd"] == 0]
    boxes = torch.as_tensor([one["bbox"] for one in objects], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2].clamp_(min=0, max=width)
    boxes[:, 1::2].clamp_(min=0, max=height)
    labels = torch.tensor([one["category_id"] for one in objects], dtype=torch.int64)
    decoded = [masks.decode(masks.frPyObjects(one["segmentation"], height, width)) for one in objects]
    mask = torch.stack([torch.as_tensor(one, dtype=torch.uint8).any(dim=2) for one in decoded])
    valid = (boxes[:, 3] > boxes[:, 1]) & (boxes[:, 2] > boxes[:, 0])
    return {"boxes": boxes[valid], "labels": labels[valid], "masks": mask[valid]}


def reference(policy: str, root: Path, index: Index, polygons: bool = True) -> Callable[[int], Any]:
    """Function that loads and augments one image and its boxes as torchvision's references do."""
    ends = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True)]
    transform = v2.Compose([v2.RandomHorizontalFlip(p=0.5), *ends])
    if policy in LISTS:
        steps = [one for step in LISTS[policy] for one in v2_steps(step)]
        transform = v2.Compose([*steps, *ends, v2.SanitizeBoundingBoxes()])
    if policy == "ssd":
        steps = [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: (123, 117, 104), Image.Image: (123, 117, 104), "others": 0}),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(p=0.5),
        ]
        transform = v2.Compose([*steps, *ends, v2.SanitizeBoundingBoxes()])
    coco = [annotations(index[i]) for i in range(len(index))]

    def sample(i: int) -> Any:
        image = Image.open(root / index[i].file).convert("RGB")
        if policy == "flip" and polygons:
            target: dict[str, Any] = convert(image, coco[i])
            target["masks"] = tv_tensors.Mask(target["masks"])
        else:
            target = {
                "boxes": torch.from_numpy(index[i].boxes.copy()),
                "labels": torch.from_numpy(index[i].labels.copy()),
            }
        size = image.height, image.width
        target["boxes"] = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        image, target = transform(image, target)
        pixels = torch.nn.functional.interpolate(image[None], size=(SIDE, SIDE), mode="bilinear")[0]
        return pixels, target["boxes"]

    return sample


def v2_steps(step: Step) -> list[Any]:
    """Transforms of torchvision with the settings of a step."""
    fill = {Image.Image: (123, 117, 104), tv_tensors.Image: (123, 117, 104), "others": 0}
    bilinear = v2.InterpolationMode.BILINEAR
    turn, shear = (step.affine.rotate, step.affine.shear) if step.affine else (0, 0)
    return {
        "affine": [v2.RandomAffine(turn, (0.1, 0.1), (0.5, 1.5), shear, interpolation=bilinear, fill=fill)],
        "crop_by_overlap": [v2.RandomApply([v2.RandomIoUCrop()], p=0.5)],
        "flip": [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.1)],
        "color": [
            v2.ColorJitter(0.3, 0.3, 0.4, 0.02),
            v2.RandomGrayscale(0.01),
            v2.RandomApply([v2.GaussianBlur(5)], p=0.01),
        ],
    }[step.name]


def ours(policy: Any, root: Path, index: Index, **more: Any) -> Callable[[int], Any]:
    """Function that samples from `DetectionDataset`; each call is a new epoch and draws other numbers."""
    dataset, epochs = DetectionDataset(index, root, recipe_for(policy), train=True, **more), count()
    return lambda i: dataset[next(epochs), i]


def recipe_for(policy: Any) -> Recipe:
    """Recipe with SSD300's size and mean."""
    return replace(params.load(model="ssd300").recipe, augmentation=policy, image_size=SIDE)


def measure(sides: dict[str, Callable[[int], Any]], num_images: int, rounds: int) -> dict[str, float]:
    """Median images per CPU second of each side; the sides alternate."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, sample in sides.items():
            start = time.process_time()
            for i in range(num_images):
                sample(i)
            if number:  # the first round is a warm-up
                rates[name].append(num_images / (time.process_time() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def private_mib(pid: int) -> float:
    """Private memory of a process in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def memory(folder: Path, num_images: int, workers: int = 2) -> Iterator[tuple[float, list[float]]]:
    """Yield the fraction of the epoch and the private MiB of each loader process."""
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 15, num_images))]).astype(np.int64)
    total = int(offsets[-1])
    corner = rng.random((total, 2)).astype(np.float32) * 20
    flags = np.zeros(total, np.bool_)
    index = Index(
        files=np.array([f"{i % 4}.png".encode() for i in range(num_images)]),
        ids=np.array([f"{i:012d}".encode() for i in range(num_images)]),
        sizes=np.tile(np.array([[32, 40]], np.int32), (num_images, 1)),
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
    """Print a table; return each policy's ratio of ours to torchvision."""
    stock = torchvision.transforms.v2.functional.adjust_hue

    def with_stock_hue(sample: Callable[[int], Any]) -> Callable[[int], Any]:
        def call(i: int) -> Any:
            own, color_jitter.adjust_hue = color_jitter.adjust_hue, stock
            try:
                return sample(i)
            finally:
                color_jitter.adjust_hue = own

        return call

    ratios = {}
    for policy in ("ssd", "flip"):
        sides = {"torchvision": reference(policy, root, index), "ours": ours(policy, root, index)}
        if policy == "ssd":
            sides["ours, torchvision's hue"] = with_stock_hue(ours(policy, root, index))
        else:
            sides["torchvision without polygons"] = reference(policy, root, index, polygons=False)
        sides["ours, cached"] = ours(policy, root, index, cache_mb=500)
        rates = measure(sides, len(index), rounds)
        for name, rate in rates.items():
            ratio = rate / rates["torchvision"]
            print(f"  {policy:5} {name:28} {rate:8.1f} images per CPU second  {ratio:5.2f}x")
        ratios[policy] = rates["ours"] / rates["torchvision"]
    return ratios


def time_lists(index: Index, root: Path, rounds: int) -> dict[str, float]:
    """Print a table of the lists of steps; return each list's ratio of ours to torchvision."""
    ratios = {}
    for name, steps in {**LISTS, **MIXED}.items():
        sides = {"ours": ours(steps, root, index)}
        if name in LISTS:
            sides["torchvision"] = reference(name, root, index)
        rates = measure(sides, len(index), rounds)
        line = f"  {name:16} ours {rates['ours']:7.1f}"
        if name in LISTS:
            ratios[name] = rates["ours"] / rates["torchvision"]
            line += f"  v2 {rates['torchvision']:7.1f} images per CPU second  {ratios[name]:5.2f}x"
        print(line)
    return ratios


def time_images(source: Path | None, num_images: int, rounds: int) -> dict[str, float]:
    """Time both policies on real or photo-like images; return the ratios of `time_policies`."""
    with tempfile.TemporaryDirectory() as folder:
        index = make_split(Path(folder), source, num_images)
        kib = sum(file.stat().st_size for file in Path(folder).iterdir()) / len(index) / 1024
        name = "real" if source else "photo-like"
        print(f"{len(index)} {name} images, {kib:.0f} KiB each, to {SIDE} x {SIDE}")
        return time_policies(index, Path(folder), rounds) | time_lists(index, Path(folder), rounds)


def print_memory(num_images: int) -> None:
    """Print the memory of the loader processes over an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        marks = list(memory(Path(folder), num_images))
    for fraction, each in marks:
        sizes = ", ".join(f"{size:.1f}" for size in each)
        print(f"  {fraction:4.0%} of an epoch of {num_images} images: {sizes} MiB private")
    growth = max(last - first for first, last in zip(marks[0][1], marks[-1][1], strict=True))
    print(f"a loader process grew by {growth:.1f} MiB over the epoch")


def main() -> None:
    """Print memory, speed and the ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("speed", "memory"), help="default: both")
    parser.add_argument("--images", type=Path, help="folder of real JPEGs")
    parser.add_argument("--count", type=int, default=24, help="number of images; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--epoch-images", type=int, default=COCO_IMAGES, help="for memory; default: %(default)s")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what != "speed":
        print_memory(options.epoch_images)
    if options.what != "memory":
        for source in [None, options.images] if options.images else [None]:
            ratios = time_images(source, options.count, options.rounds)
            lines = (f"{policy} {ratio:.2f}x torchvision" for policy, ratio in ratios.items())
            print("ratios: " + ", ".join(lines))


if __name__ == "__main__":
    main()
