"""Training on one GPU: pictures per second beside torchvision's classes, and what share of the card that is.

    python -m benchmarks.gpu                       # all systems; under six minutes on an H200
    python -m benchmarks.gpu retinanet ssd300
    python -m benchmarks.gpu --device cpu          # tries the code: float32, tiny batches, no meaning

Needs torch, torchvision and numpy, and this project's `detection/` and `benchmarks/` folders; nothing else.
Both sides train in bf16 autocast at the same batch and picture size, in turn, on pictures that lie on the
card already; medians of the rounds. The share is of 790 TFLOP/s, what an H200 does in dense bf16, by the
counted FLOPs of forward and backward pass. A whole step of a one-stage detector is also run with
`torch.cuda.set_sync_debug_mode("error")`, which raises where the host would wait for the card; of a two-stage
one NMS is exempted. `compiled` is `torch.compile` of the losses, `graphs` the same with CUDA graphs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sides import CASES, Case, Step, build, make_batch, our_step, their_step
from detection.data.loading.batch import Targets
from detection.device import autocast
from detection.models.detector import Detector
from detection.ops import nms as our_nms

CLASSES = 90
BOUND = 790e12  # FLOP/s
WARM, STEPS, ROUNDS = 4, 6, 3
COMPILED = ("retinanet", "ssd300")  # shapes are fixed, and so are the figures' names


def precision_on(device: str) -> torch.dtype:
    """bfloat16; float32 on a CPU, where it is only tried."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def wait(device: str) -> None:
    """Until the card has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def rate(step: Step, pictures: int, device: str, steps: int) -> float:
    """Pictures per second over some steps."""
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return pictures * steps / (time.perf_counter() - started)


def flops(case: Case, detector: Detector, images: Tensor, targets: Targets) -> float:
    """Forward and backward pass of one picture.

    The counter overstates the backward pass of grouped convolutions, ninefold and more: for MobileNets it is
    taken as twice the forward pass.
    """
    light = case.recipe.backbone.startswith("mobilenet")
    counter: Any = FlopCounterMode(display=False)
    with counter, autocast(images.device, precision_on(images.device.type)):
        losses = detector(images[:2], targets[:2])
        if not light:
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    detector.zero_grad(set_to_none=True)
    return float(counter.get_total_flops()) / 2 * (3 if light else 1)


def waits(step: Step, one_stage: bool, device: str) -> str:
    """Whether a whole step makes the host wait: `no`, or where."""
    if device != "cuda":
        return "not tried"
    plain: Callable[..., Tensor] = our_nms.nms

    def exempted(*args: Any) -> Tensor:
        torch.cuda.set_sync_debug_mode("default")
        try:
            return plain(*args)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    torch.cuda.set_sync_debug_mode("error")
    if not one_stage:
        our_nms.nms = exempted
    try:
        step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        our_nms.nms = plain
        torch.cuda.set_sync_debug_mode("default")
    return "no" if one_stage else "in NMS alone"


def compiled_rate(detector: Any, images: Tensor, targets: Targets, mode: str, device: str, steps: int) -> str:
    """Pictures per second with compiled losses, or why there are none."""
    plain = detector.losses
    try:
        detector.losses = torch.compile(plain, mode=mode)
        step = our_step(detector, images, targets, precision_on(device))
        for _ in range(WARM):
            step()
        return f"{rate(step, len(images), device, steps):.0f}"
    except Exception as error:  # whatever the compiler meets, the other figures still count
        return f"failed: {type(error).__name__}"
    finally:
        detector.losses = plain


def measure(name: str, device: str, tiny: bool, with_compiler: bool) -> str:
    """One row of the table."""
    case = CASES[name]
    height, width, count = (128, 128, 2) if tiny else case.large
    if tiny and case.recipe.resize == "stretch":
        height = width = case.recipe.image_size
    steps, rounds, warm = (1, 1, 1) if tiny else (STEPS, ROUNDS, WARM)
    torch.manual_seed(0)
    ours, theirs = build(case, CLASSES)
    ours.to(device)
    images, targets = make_batch(count, height, width, CLASSES, device)
    work = flops(case, ours, images, targets)
    sides = [our_step(ours, images, targets, precision_on(device))]
    if theirs is not None:
        sides.append(their_step(theirs.to(device), images, targets, precision_on(device), case.background))
    for step in sides:
        for _ in range(warm):
            step()
    rates = [[rate(step, count, device, steps) for step in sides] for _ in range(rounds)]
    mine, *other = (statistics.median(column) for column in zip(*rates, strict=True))
    row = f"{name:26} {count:3} x {height}x{width:<5} {mine:8.1f} "
    row += f"{other[0]:11.1f} {mine / other[0]:5.2f}x" if other else f"{'-':>11} {'-':>6}"
    row += f" {work / 1e9:7.0f} {mine * work / BOUND:6.1%}  {waits(sides[0], case.one_stage, device)}"
    if with_compiler and name in COMPILED:
        sides.clear()
        for title, mode in (("compiled", "default"), ("graphs", "reduce-overhead")):
            row += f"; {title} {compiled_rate(ours, images, targets, mode, device, steps)}"
    return row


def main() -> None:
    """Print the card's name and a row for each system."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(CASES))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--no-compiler", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    tiny = options.device == "cpu"
    card = "CPU: tiny batches, figures mean nothing" if tiny else torch.cuda.get_device_name()
    precision = precision_on(options.device)
    print(f"{card}; torch {torch.__version__}; {precision}; pictures per second of training")
    print("system                      batch               ours torchvision  ratio  GFLOP  share  host waits")
    torch.backends.cudnn.benchmark = True
    for name in options.names or CASES:
        print(measure(name, options.device, tiny, not options.no_compiler), flush=True)
        if not tiny:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
