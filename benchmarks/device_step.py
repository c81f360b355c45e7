"""Training steps on a device: throughput beside torchvision's classes, utilization, memory, waits, kernels.

`benchmarks.device` is the command.
"""

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.sides import KeepSize, Step, background_labels, freeze_like, make_batch, our_step, their_step
from detection.data.loading.batch import Targets
from detection.device import autocast, exact_float32
from detection.errors import ParamsError
from detection.models.build import build_detector
from detection.models.detector import Detector
from detection.params import Recipe, load
from detection.training.common.environment import determinism
from detection.training.compilation import compile_detector
from detection.training.setup import check_determinism

CLASSES = 90
PEAK_FLOPS = 790e12  # FLOP/s of an H100 or H200 in dense bf16, as measured with a large matrix product
BUILDERS = {
    "fasterrcnn": "fasterrcnn_resnet50_fpn",
    "fasterrcnn_v2": "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet": "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_320": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "retinanet": "retinanet_resnet50_fpn",
    "retinanet_v2": "retinanet_resnet50_fpn_v2",
    "fcos": "fcos_resnet50_fpn",
    "ssd300": "ssd300_vgg16",
    "ssdlite320": "ssdlite320_mobilenet_v3_large",
}
"""torchvision's builder of a recipe."""
Figure = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Bench:
    """Settings of the whole run."""

    device: torch.device
    """Device that is measured."""
    tiny: bool
    """Test the code with tiny batches and trainings."""
    out: Path
    """Folder of the figures and the trainings, absolute."""
    params: Path
    """The project's params.yaml, absolute."""
    backbone: Path | None
    """Weights of a backbone, absolute."""
    deadline: float
    """Time of `time.monotonic` from which no figure is begun, and at which a training stops."""

    @property
    def precision(self) -> torch.dtype:
        """Precision: bfloat16 on a GPU, else float32."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def recipe(self, name: str) -> Recipe:
        """Recipe as shipped, for COCO."""
        return load(self.params, model=name, dataset="coco2017").recipe


def batch_size(bench: Bench, recipe: Recipe) -> tuple[int, int, int]:
    """Number of images, height and width of a batch: the published ones, for images of 4:3 unless all are square."""
    side, count = recipe.image_size, recipe.batch_size
    square = recipe.resize == "stretch" or recipe.augmentation in ("letterbox", "crop")
    if bench.tiny:
        side, count = side if recipe.fixed_size else 128, 2
    return count, side, side if square else -(-side * 4 // 3 // 32) * 32


def torchvision_model(name: str, ours: Detector, recipe: Recipe) -> Any:
    """Torchvision's model of a recipe, with the weights and the frozen layers of our detector.

    Its resize is disabled: both get images of the final size.
    """
    background = background_labels(recipe)
    make = getattr(torchvision.models.detection, BUILDERS[name])
    model = make(weights=None, weights_backbone=None, num_classes=CLASSES + background)
    model.transform = KeepSize(recipe.image_mean, recipe.image_std)
    freeze_like(model, ours)
    model.load_state_dict(ours.state_dict())
    return model.train()


def measure_step(bench: Bench, name: str) -> Figure:
    """Figure `step/RECIPE`."""
    recipe = bench.recipe(name)
    size = batch_size(bench, recipe)
    torch.manual_seed(0)
    ours = build_detector(recipe, CLASSES, None).train()
    theirs = torchvision_model(name, ours, recipe).to(bench.device) if name in BUILDERS else None
    ours = ours.to(bench.device)
    images, targets = make_batch(*size, CLASSES, bench.device.type)
    work = flops_per_image(bench, recipe, lambda: ours(images[:2], targets[:2]))
    ours.zero_grad(set_to_none=True)
    sides = {"ours": our_step(ours, images, targets, bench.precision)}
    if theirs is not None:
        sides["torchvision"] = their_step(theirs, images, targets, bench.precision, background_labels(recipe))
    figure: Figure = {"batch": size, "bn": recipe.bn, "trainable_layers": recipe.trainable_layers}
    figure |= {side: {"step_gib": step_memory(bench, step)} for side, step in sides.items()}
    for side, rate in throughputs(bench, sides, size[0]).items():
        figure[side] |= {"images_per_s": rate, "share_of_peak": rate * work / PEAK_FLOPS}
    if theirs is not None:
        figure["ratio"] = figure["ours"]["images_per_s"] / figure["torchvision"]["images_per_s"]
    return figure | {"gflop_per_image": work / 1e9} | profile_step(bench, sides["ours"])


def flops_per_image(bench: Bench, recipe: Recipe, losses: Callable[[], dict[str, Tensor]]) -> float:
    """FLOPs of the forward and backward pass of two images, per image.

    The counter overstates the backward pass of grouped convolutions at least ninefold; for MobileNets it is
    taken as twice the forward pass.
    """
    light = recipe.backbone.startswith("mobilenet")
    counter: Any = FlopCounterMode(display=False)
    with counter, autocast(bench.device, bench.precision):
        total = torch.stack(list(losses().values())).sum()
        if not light:
            total.backward()
    return float(counter.get_total_flops()) / 2 * (3 if light else 1)


def step_memory(bench: Bench, step: Step) -> float | None:
    """Peak GPU memory of a step in GiB, above what the models take between steps."""
    step()  # makes the optimizer's state
    if bench.device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def throughputs(bench: Bench, sides: dict[str, Step], count: int) -> dict[str, float]:
    """Images per second of each side: medians of alternating rounds of several steps."""
    warmup, steps, rounds = (0, 1, 1) if bench.tiny else (3, 6, 3)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(warmup):
        for step in sides.values():
            step()
    for _ in range(rounds):
        for side, step in sides.items():
            bench.synchronize()
            started = time.perf_counter()
            for _ in range(steps):
                step()
            bench.synchronize()
            rates[side].append(count * steps / (time.perf_counter() - started))
    return {side: statistics.median(values) for side, values in rates.items()}


def profile_step(bench: Bench, step: Step, count: int = 15) -> Figure:
    """Number of calls that wait for the GPU, and the kernels that take the most time: name, calls, milliseconds."""
    on_gpu = bench.device.type == "cuda"
    bench.synchronize()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
    events = profiler.key_averages()
    waits = {event.key: int(event.count) for event in events if "ynchronize" in event.key or event.key == "cudaMemcpy"}
    rows = [
        (
            short_name(event.key),
            int(event.count),
            (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3,
        )
        for event in events
    ]
    return {"host_waits": waits, "kernels_ms": sorted(rows, key=lambda row: -row[2])[:count]}


def short_name(kernel: str) -> str:
    """Name of a kernel without namespaces, and the functor that an elementwise kernel applies."""
    name = re.sub(r"\b(?:void|at|native|vision|ops|cuda|c10|detail)\b(?:::)?|\(anonymous namespace\)::", "", kernel)
    return re.sub(r"\s+", " ", name).strip()[:160]


def measure_agreement(bench: Bench, name: str) -> Figure:
    """Figure `agreement/RECIPE`: the device beside the CPU in float32, and two bitwise trainings of three steps.

    `outputs` is the largest difference of an output of `core`, relative to the largest value of this output.
    """
    recipe, device = bench.recipe(name), bench.device
    side = recipe.image_size if recipe.fixed_size else 128 if bench.tiny else 320
    torch.manual_seed(0)
    detector = build_detector(recipe, CLASSES, None)
    images, targets = make_batch(2, side, side, CLASSES, device.type)
    with torch.inference_mode(), exact_float32(device):
        expected = detector.eval().core(images.cpu())
        outputs = detector.to(device).core(images)
    figure: Figure = {
        "outputs": max(
            float((outputs[key].cpu() - value).abs().max() / value.abs().max()) for key, value in expected.items()
        )
    }
    try:
        check_determinism(recipe, "bitwise", device)
        with determinism("bitwise"):
            first, second = (trained_weights(bench, recipe, images, targets) for _ in range(2))
    except ParamsError as error:
        return figure | {"bitwise": str(error)}
    return figure | {"bitwise": all(torch.equal(first[key], second[key]) for key in first)}


def trained_weights(bench: Bench, recipe: Recipe, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Weights after three steps."""
    torch.manual_seed(0)
    detector = build_detector(recipe, CLASSES, None).to(bench.device).train()
    step = our_step(detector, images, targets, bench.precision)
    for _ in range(3):
        step()
    return detector.state_dict()


def measure_compiled(bench: Bench, name: str) -> Figure:
    """Figure `compiled/RECIPE`: eager and compiled losses of one detector; on a CPU the compiler only traces."""
    recipe = bench.recipe(name)
    size = batch_size(bench, recipe)
    detector: Any = build_detector(recipe, CLASSES, None).train().to(bench.device)
    images, targets = make_batch(*size, CLASSES, bench.device.type)
    figure = Figure(batch=size)
    for title in ("eager", "compiled", "graphs"):
        started = time.perf_counter()
        try:
            if bench.tiny and title != "eager":
                detector.compile(backend="eager")
            elif title == "compiled":
                compile_detector(detector)
            elif title == "graphs":
                detector.compile(mode="reduce-overhead")
            step = our_step(detector, images, targets, bench.precision)
            memory = step_memory(bench, step)
            bench.synchronize()
            first = time.perf_counter() - started
            rate = throughputs(bench, {title: step}, size[0])[title]
            figure[title] = {"images_per_s": rate, "step_gib": memory, "first_steps_s": first}
        except Exception as error:  # a failure of the compiler must not end the benchmark
            figure[title] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return figure
