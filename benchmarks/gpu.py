"""Training throughput on one GPU against torchvision's classes, and the utilization of the GPU.

    python -m benchmarks.gpu                       # all systems; under six minutes on an H200
    python -m benchmarks.gpu retinanet ssd300
    python -m benchmarks.gpu --device cpu          # tests the code: float32, tiny batches

Needs torch, torchvision and numpy, and the `detection/` and `benchmarks/` folders of this project.
Both sides train in bf16 autocast at the same batch and image size, alternating, on images already on the GPU;
medians of the rounds. Utilization relates the counted FLOPs of forward and backward pass to 790 TFLOP/s, the
dense bf16 rate of an H200. A whole step of a one-stage detector also runs under
`torch.cuda.set_sync_debug_mode("error")`, which raises at a host synchronization; in a two-stage detector NMS
is exempted. `compiled` is `torch.compile` of the losses, `graphs` the same with CUDA graphs.
"""

import argparse
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sides import CASES, Case, Step, build, make_batch, our_step, their_step
from detection.data.loading.batch import Targets
from detection.device import autocast
from detection.models.detector import Detector
from detection.ops import nms

CLASSES = 90
PEAK_FLOPS = 790e12  # FLOP/s of an H200 in dense bf16
WARMUP_STEPS, STEPS, ROUNDS = 4, 6, 3
COMPILED = ("retinanet", "ssd300")


def precision_on(device: str) -> torch.dtype:
    """Return bfloat16 on a GPU, else float32."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def throughput(step: Step, num_images: int, device: str, steps: int) -> float:
    """Images per second over some steps."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return num_images * steps / (time.perf_counter() - started)


def flops(case: Case, detector: Detector, images: Tensor, targets: Targets) -> float:
    """FLOPs of the forward and backward pass of one image.

    The counter overstates the backward pass of grouped convolutions at least ninefold; for MobileNets it is
    taken as twice the forward pass.
    """
    light = case.recipe.backbone.startswith("mobilenet")
    counter: Any = FlopCounterMode(display=False)
    with counter, autocast(images.device, precision_on(images.device.type)):
        losses = detector(images[:2], targets[:2])
        if not light:
            torch.stack(list(losses.values())).sum().backward()
    detector.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / 2 * (3 if light else 1)


def synchronizations(step: Step, one_stage: bool, device: str) -> str:
    """Host synchronizations of a whole step: "none", "NMS only", or the message of the first."""
    if device != "cuda":
        return "not measured"

    def exempted(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return torchvision.ops.nms(*args)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    torch.cuda.set_sync_debug_mode("error")
    exemption: AbstractContextManager[Any] = nullcontext() if one_stage else mock.patch.object(nms, "nms", exempted)
    try:
        with exemption:
            step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none" if one_stage else "NMS only"


def compiled_rate(detector: Any, images: Tensor, targets: Targets, mode: str, device: str, steps: int) -> str:
    """Images per second with compiled losses, or the type of the error."""
    original = detector.losses
    try:
        detector.losses = torch.compile(original, mode=mode)
        step = our_step(detector, images, targets, precision_on(device))
        for _ in range(WARMUP_STEPS):
            step()
        return f"{throughput(step, len(images), device, steps):.0f}"
    except Exception as error:  # a failure of the compiler must not end the benchmark
        return f"failed: {type(error).__name__}"
    finally:
        detector.losses = original


def measure(name: str, device: str, tiny: bool, with_compiler: bool) -> str:
    """Return one row of the table."""
    case = CASES[name]
    height, width, count = (128, 128, 2) if tiny else case.large
    if tiny and case.recipe.resize == "stretch":
        height = width = case.recipe.image_size
    steps, rounds, warmup_steps = (1, 1, 1) if tiny else (STEPS, ROUNDS, WARMUP_STEPS)
    torch.manual_seed(0)
    ours, theirs = build(case, CLASSES)
    ours.to(device)
    images, targets = make_batch(count, height, width, CLASSES, device)
    work = flops(case, ours, images, targets)
    sides = [our_step(ours, images, targets, precision_on(device))]
    if theirs is not None:
        sides.append(their_step(theirs.to(device), images, targets, precision_on(device), case.background))
    for step in sides:
        for _ in range(warmup_steps):
            step()
    rates = [[throughput(step, count, device, steps) for step in sides] for _ in range(rounds)]
    own, *other = (statistics.median(column) for column in zip(*rates, strict=True))
    row = f"{name:26} {count:3} x {height}x{width:<5} {own:8.1f} "
    row += f"{other[0]:11.1f} {own / other[0]:5.2f}x" if other else f"{'-':>11} {'-':>6}"
    row += f" {work / 1e9:7.0f} {own * work / PEAK_FLOPS:6.1%}"
    row += f"  {synchronizations(sides[0], case.one_stage, device)}"
    if with_compiler and name in COMPILED:
        sides.clear()
        for title, mode in (("compiled", "default"), ("graphs", "reduce-overhead")):
            row += f"; {title} {compiled_rate(ours, images, targets, mode, device, steps)}"
    return row


def main() -> None:
    """Print the name of the GPU and one row per system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(CASES))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--no-compiler", action="store_true", help="skip torch.compile")
    options = parser.parse_args()
    tiny = options.device == "cpu"
    gpu = "CPU: tiny batches, for testing only" if tiny else torch.cuda.get_device_name()
    precision = precision_on(options.device)
    print(f"{gpu}; torch {torch.__version__}; {precision}; images per second of training")
    print("system                      batch               ours torchvision  ratio  GFLOP   util  syncs")
    torch.backends.cudnn.benchmark = True
    for name in options.names or CASES:
        print(measure(name, options.device, tiny, not options.no_compiler), flush=True)
        if not tiny:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
