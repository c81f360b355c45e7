"""Counts by hand, and a clock that the test turns."""

import itertools
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from detection import profiling
from detection.data.index import Index
from detection.models.detector import Detections, Detector, ImageSizes, Targets
from detection.params import Evaluate, RetinaNetRecipe

RECIPE = RetinaNetRecipe(
    architecture="retinanet", backbone="resnet18", image_size=64, max_size=96, batch_size=1
)


class OneConvolution(Detector):
    """Finds nothing, with one convolution of 3 to 5 channels; remembers its batches."""

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
        nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        return [nothing] * len(images)


@pytest.fixture
def split(make_index: Callable[..., Index], tmp_path: Path) -> Index:
    """Twenty pictures of 300 by 200."""
    index = make_index(*[([], [])] * 20)
    for number in range(20):
        Image.fromarray(np.zeros((200, 300, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return index


def tick(monkeypatch: pytest.MonkeyPatch, *steps: float) -> None:
    """A clock on which the timed rounds take these seconds, over and over."""
    times = itertools.accumulate(itertools.chain.from_iterable((0, step) for step in itertools.cycle(steps)))
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: next(times))


def test_counts_and_times(split: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tick(monkeypatch, *[0.01] * 29, 0.1)
    detector = OneConvolution()
    report = profiling.measure(detector, split, tmp_path, RECIPE, Evaluate(batch_size=16, device="cpu"))
    assert report["parameters"] == 3 * 5 * 9 + 5
    assert report["weights_mib"] == pytest.approx(4 * (140 + 10) / 2**20)
    assert report["picture"] == [64, 96]
    assert report["gflops"] == pytest.approx(2 * 3 * 5 * 9 * 64 * 96 / 1e9)
    assert report["latency_ms"] == pytest.approx({"median": 10, "p95": 10, "rounds": 30})
    timed = {"pictures_per_s": 1600, "slowest": 160, "batch_size": 16, "rounds": 30}
    assert report["throughput"] == pytest.approx(timed)
    assert report["cores"] == psutil.cpu_count()
    assert report["others_busy"] >= 0
    assert detector.batches == [1] * 32 + [16] * 31  # counted and warmed up besides
    assert report["peak_mib"] > 10
    assert (report["precision"], report["threads"]) == ("float32", torch.get_num_threads())
    rows = profiling.flat(report)
    assert rows["speed/latency_ms/median"] == pytest.approx(10)
    assert rows["speed/parameters"] == 140
    assert "speed/device" not in rows


def test_a_slow_detector_gets_smaller_batches_and_fewer_rounds(
    split: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tick(monkeypatch, 0.5)
    detector = OneConvolution()
    report = profiling.measure(detector, split, tmp_path, RECIPE, Evaluate(batch_size=16, device="cpu"))
    assert report["latency_ms"]["rounds"] == profiling.SECONDS / 0.5
    assert report["throughput"]["batch_size"] == profiling.SECONDS / 2 / 0.5
    tick(monkeypatch, 60)
    report = profiling.measure(detector, split, tmp_path, RECIPE, Evaluate(batch_size=16, device="cpu"))
    assert report["latency_ms"]["rounds"] == report["throughput"]["rounds"] == 1


def test_time_of_other_programs_is_not_this_one_s(monkeypatch: pytest.MonkeyPatch) -> None:
    before = profiling._others()
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    assert profiling._others() - before > 0.4
    own = namedtuple("own", ["user", "system"])(*psutil.Process().cpu_times()[:2])
    machine = namedtuple("machine", ["user", "system", "idle", "guest"])(own.user + 7, own.system + 2, 1e6, 3)
    monkeypatch.setattr(profiling.psutil, "cpu_times", lambda: machine)
    monkeypatch.setattr(profiling.psutil.Process, "cpu_times", lambda self: own)
    assert profiling._others() == pytest.approx(9)


def test_no_picture(make_index: Callable[..., Index], tmp_path: Path) -> None:
    report = profiling.measure(OneConvolution(), make_index(), tmp_path, RECIPE, Evaluate(device="cpu"))
    assert report["parameters"] == 140
    assert "latency_ms" not in report
