"""Memory traffic of whole training steps on a GPU, simulated without one.

    python -m benchmarks.simulate                 table of all recipes of params.yaml
    python -m benchmarks.simulate retinanet fcos  of some
    python -m benchmarks.simulate --write         also write the budgets that tests/gpu compares with

A step at the recipe's published batch and size: copies to the GPU, losses under bf16 autocast, backward pass and
optimizer; and a forward pass of detection. Bytes are those of every operation's inputs and outputs,
as if nothing stayed in a cache: divided by the memory's bandwidth a lower bound of the time of all that is no
convolution.
"""

import argparse
import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch
import yaml
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.fake_gpu import Traffic, TrafficMeter, fake_gpu, move
from detection import inference
from detection.data.loading.augment import is_square
from detection.data.loading.batch import Batch, ImageSizes, Targets
from detection.models.build import build_detector
from detection.models.detector import Detector
from detection.params import load
from detection.params.recipe import Recipe
from detection.training import loop
from detection.training.common.ema import MovingAverage
from detection.training.common.optim import make_optimizer

BUDGETS = Path(__file__).resolve().parents[1] / "tests" / "gpu" / "budgets.csv"
CLASSES, OBJECTS = 20, 12
"""VOC's classes, and objects per image."""
DETECT_BATCH = 16


@dataclass(frozen=True)
class Row:
    """Figures of one recipe."""

    model: str
    batch: str
    """Images x height x width."""
    ops: int
    """Operations of a training step."""
    gb: float
    """Gigabytes that they read and write."""
    float32_gb: float
    """Those of float32 tensors."""
    waits: int
    """Host synchronizations of a training step."""
    peak_gib: float
    """Peak of live tensors in GiB: weights, optimizer state, activations."""
    detect_ops: int
    """Operations of detection in bf16, on a batch of at most 16."""
    detect_gb: float
    """Gigabytes that they read and write."""
    detect_waits: int
    """Host synchronizations of detection."""


def batch_shape(recipe: Recipe) -> tuple[int, int, int]:
    """Images, height and width of a typical batch: photos of 4:3 where the aspect ratio is kept."""
    side = recipe.image_size
    if recipe.resize == "stretch" or is_square(recipe.steps):
        return recipe.batch_size, side, side
    width = min(side * 4 / 3, recipe.max_size or math.inf)
    return recipe.batch_size, math.ceil(side / 32) * 32, math.ceil(width / 32) * 32


def make_batch(images: int, height: int, width: int) -> Batch:
    """Batch of empty images, on the CPU."""
    sizes = torch.full((images, 2), height)
    mask = torch.ones(images, OBJECTS, dtype=torch.bool)
    targets = Targets(torch.zeros(images, OBJECTS, 4), torch.zeros(images, OBJECTS, dtype=torch.int64), mask, sizes)
    pixels = torch.zeros(images, 3, height, width, dtype=torch.uint8)
    return Batch(pixels, targets, ImageSizes(sizes, sizes), list(range(images)))


def simulate(model: str) -> tuple[Row, Traffic, Traffic]:
    """Figures of a recipe, and all of its training step and of its detection.

    The training step is the project's own, with the recipe's settings, and not the first: that one makes the anchors
    and the optimizer's buffers. Clipping and the moving average, which are off by default, are run before it.
    """
    recipe = load(model=model, dataset="voc2007").recipe
    images, height, width = batch_shape(recipe)
    with fake_gpu((height, width)) as device:
        detector = build_detector(recipe, CLASSES, None).train()
        move(detector, device)
        batch = make_batch(images, height, width)
        detect = _detect(detector.eval(), make_batch(min(images, DETECT_BATCH), height, width), device)
        detector.train()
        optimizer, average = make_optimizer(detector, recipe.optimizer), MovingAverage(detector, 0.999)
        _update(detector, optimizer, average)
        states = [value for state in optimizer.state.values() for value in state.values()]
        train = _step(detector, optimizer, batch, [*detector.parameters(), *detector.buffers(), *states])
    row = Row(
        model=model,
        batch=f"{images} x {height} x {width}",
        ops=train.ops.total(),
        gb=round(train.bytes.total() / 1e9, 2),
        float32_gb=round(train.by_dtype["float32"] / 1e9, 2),
        waits=len(train.waits),
        peak_gib=round(train.peak / 2**30, 2),
        detect_ops=detect.ops.total(),
        detect_gb=round(detect.bytes.total() / 1e9, 2),
        detect_waits=len(detect.waits),
    )
    return row, train, detect


def _detect(detector: Detector, batch: Batch, device: torch.device) -> Traffic:
    """Traffic of detection in bf16, after a pass in float32 that makes the anchors."""
    with torch.inference_mode():
        inference._detect(detector, batch, slice(None), device, torch.float32)
        with TrafficMeter() as meter:
            inference._detect(detector, batch, slice(None), device, torch.bfloat16)
    traffic: Traffic = meter.traffic
    return traffic


def _update(detector: Detector, optimizer: Optimizer, average: MovingAverage) -> None:
    """Clip gradients of zeros, make the optimizer's buffers, and update the moving average, all without waiting."""
    for parameter in detector.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with TrafficMeter() as meter:
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        average.update(detector)
        average.update(detector)
    optimizer.zero_grad(set_to_none=True)
    assert not meter.traffic.waits, f"the host waits: {meter.traffic.waits}"


def _step(detector: Detector, optimizer: Optimizer, batch: Batch, live: Sequence[Tensor]) -> Traffic:
    """Traffic of the project's own training step."""
    device = next(detector.parameters()).device
    job: Any = SimpleNamespace(
        detector=detector,
        device=device,
        precision=torch.bfloat16,
        memory_format=torch.channels_last,
        settings=SimpleNamespace(accumulate=1, clip_gradients=None),
    )
    with TrafficMeter(live) as meter:
        total, losses = loop._step(job, detector, optimizer, batch)
    for value in (total, *losses.values()):
        assert (value.dtype, value.device.type, value.shape) == (torch.float32, "cuda", ()), value
    traffic: Traffic = meter.traffic
    return traffic


def recipes() -> list[str]:
    """Names of all recipes of params.yaml."""
    return list(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["models"])


def read_budgets() -> dict[str, Row]:
    """Budgets by model, from the file that `--write` writes."""
    types = get_type_hints(Row)
    with BUDGETS.open(encoding="utf-8", newline="") as file:
        rows = [Row(**{name: types[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]
    return {row.model: row for row in rows}


def write_budgets(rows: Iterable[Row]) -> None:
    """Replace the budgets of some recipes, in the order of params.yaml."""
    known = (read_budgets() if BUDGETS.is_file() else {}) | {row.model: row for row in rows}
    with BUDGETS.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(known[model]) for model in recipes() if model in known)


def main() -> None:
    """Print one row per recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="recipes of params.yaml; all if empty")
    parser.add_argument("--write", action="store_true", help="write the budgets of tests/gpu")
    parser.add_argument("--top", type=int, default=0, help="also print that many operations with the most bytes")
    options = parser.parse_args()
    print(
        "model                     batch                   ops     GB  float32  waits  peak GiB  detect: ops  GB  waits"
    )
    rows = []
    for model in options.models or recipes():
        row, train, _ = simulate(model)
        rows.append(row)
        print(
            f"{row.model:25} {row.batch:18} {row.ops:8,} {row.gb:6.1f} {row.float32_gb:7.1f} {row.waits:6} "
            f"{row.peak_gib:9.2f} {row.detect_ops:12,} {row.detect_gb:3.0f} {row.detect_waits:5}",
            flush=True,
        )
        for name, size in train.bytes.most_common(options.top):
            print(f"    {name:40} {train.ops[name]:6,} {size / 1e9:8.2f} GB")
    if options.write:
        write_budgets(rows)


if __name__ == "__main__":
    main()
