"""`.pt2` files, which run with torch and torchvision alone."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import detection
from detection.data.loading.batch import ImageSizes
from detection.errors import VerificationError
from detection.export import agreement, torch_program
from detection.models.build import LoadedDetector
from tests.export.conftest import SMALL

PROGRAM = """
import json, sys, torch, torchvision
files = {"detection": ""}
program = torch.export.load(sys.argv[1], extra_files=files).module()
side = json.loads(files["detection"])["image_size"]
sizes = torch.tensor([[side, side]] * 3)
boxes, scores, labels, counts = program(torch.full((3, 3, side, side), 128, dtype=torch.uint8), sizes, sizes)
assert not any(name.split(".")[0] == "detection" for name in sys.modules)
print(tuple(boxes.shape)[::2], counts.min().item() > 0, json.loads(files["detection"])["classes"][0])
"""


def test_a_program_runs_without_this_package(detector_file: Path, image_folder: Path, tmp_path: Path) -> None:
    path = detection.load(detector_file, device="cpu").export(tmp_path, to="pt2", images=image_folder)
    assert path == tmp_path / "detector.pt2"
    assert [path.name for path in tmp_path.iterdir()] == ["detector.pt2"]
    command = [sys.executable, "-W", "ignore", "-I", "-c", PROGRAM, str(tmp_path / "detector.pt2")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "(3, 4) True ring", done.stderr[-500:]


def test_a_program_takes_images_of_any_size(
    random_detector: Callable[..., LoadedDetector], images: list[Tensor], tmp_path: Path
) -> None:
    loaded, path = random_detector(**(SMALL | {"resize": "keep", "fixed_size": False})), tmp_path / "detector.pt2"
    torch_program.write(torch_program.trace(loaded, plain=True), path, {})
    program = torch_program.ProgramDetector(path)
    for size in (32, 64, 96, 100):  # to 128, the last level of the pyramid has one row
        recipe = replace(loaded.recipe, image_size=size, max_size=3 * size // 2)
        found = agreement.check(replace(loaded, recipe=recipe), program, images[:2])
        assert found.detections > 20 * found.tied
    sides = torch.tensor([[32, torch_program.MAX_SIDE + 32]])
    with pytest.raises(VerificationError, match=f"1×3×32×{torch_program.MAX_SIDE + 32}"):
        program.detect(torch.zeros(1, 3, *sides[0].tolist(), dtype=torch.uint8), ImageSizes(sides, sides))
