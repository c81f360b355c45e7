"""Counts by hand, and a clock that the test controls."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from detection import profiling
from detection.data.loading.index import Index, Record, pack
from detection.models.detector import Detections, Detector, ImageSizes, Targets
from detection.params import Evaluate, RetinaNetRecipe

RECIPE = RetinaNetRecipe(
    architecture="retinanet", backbone="resnet18", image_size=64, max_size=96, batch_size=1, epochs=1
)


class OneConvolution(Detector):
    """Detector without detections, with one convolution of 3 to 5 channels; records its batch sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 5, 3, padding=1)
        self.register_buffer("table", torch.zeros(10))
        self.batches: list[int] = []

    def losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        raise AssertionError

    def core(self, images: Tensor) -> dict[str, Tensor]:
        raise AssertionError

    def detect(self, images: Tensor, sizes: ImageSizes) -> list[Detections]:
        self.layer(images / 255)
        self.batches.append(len(images))
        no_detections = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return [no_detections] * len(images)


@pytest.fixture
def split(tmp_path: Path) -> Index:
    """Twenty images of 300 by 200 pixels without objects."""
    boxes, areas = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    labels, flags = np.zeros(0, int), np.zeros(0, bool)
    records = []
    for i in range(20):
        Image.fromarray(np.zeros((200, 300, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        records.append(Record(f"{i}.png", str(i), 200, 300, boxes, labels, flags, flags, areas))
    return pack(records)


def tick(monkeypatch: pytest.MonkeyPatch, *steps: float) -> None:
    """Install a clock on which the timed rounds take these seconds, in a cycle."""
    times = itertools.accumulate(itertools.chain.from_iterable((0, step) for step in itertools.cycle(steps)))
    monkeypatch.setattr("detection.profiling.time.perf_counter", lambda: next(times))


def test_counts_and_times(split: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch, *[0.01] * 29, 0.1)
    detector = OneConvolution()
    report = profiling.measure(detector, split, tmp_path, RECIPE, Evaluate(batch_size=16, device="cpu"))
    assert report["parameters"] == 3 * 5 * 9 + 5
    assert report["weights_mib"] == pytest.approx(4 * (140 + 10) / 2**20)
    assert report["image_size"] == [64, 96]
    assert report["gflops"] == pytest.approx(2 * 3 * 5 * 9 * 64 * 96 / 1e9)
    assert report["latency_ms"] == pytest.approx({"median": 10, "p95": 10, "rounds": 30})
    throughput = {"images_per_s": 1600, "slowest": 160, "batch_size": 16, "rounds": 30}
    assert report["throughput"] == pytest.approx(throughput)
    assert detector.batches == [1] * 32 + [16] * 31  # one for the FLOPs, one to warm up
    assert report["peak_mib"] > 10
    assert (report["precision"], report["threads"]) == ("float32", torch.get_num_threads())
    metrics = profiling.metrics(report)
    assert metrics["speed/latency_ms/median"] == pytest.approx(10)
    assert metrics["speed/parameters"] == 140
    assert "speed/device" not in metrics


def test_a_slow_detector_gets_smaller_batches_and_fewer_rounds(
    split: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick(monkeypatch, 0.5)
    detector = OneConvolution()
    report = profiling.measure(detector, split, tmp_path, RECIPE, Evaluate(batch_size=16, device="cpu"))
    assert report["latency_ms"]["rounds"] == profiling.MEASURED_S / 0.5
    assert report["throughput"]["batch_size"] == profiling.MEASURED_S / 2 / 0.5
    tick(monkeypatch, 60)
    report = profiling.measure(detector, split, tmp_path, RECIPE, Evaluate(batch_size=16, device="cpu"))
    assert report["latency_ms"]["rounds"] == report["throughput"]["rounds"] == 1


def test_an_empty_split_gives_the_size_alone(split: Index, tmp_path: Path) -> None:
    empty = split.select(np.zeros(0, np.int64))
    report = profiling.measure(OneConvolution(), empty, tmp_path, RECIPE, Evaluate(device="cpu"))
    assert report["parameters"] == 140
    assert "latency_ms" not in report
