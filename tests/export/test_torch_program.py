"""`.pt2` files, which run with torch and torchvision alone."""

import subprocess
import sys
from pathlib import Path

import detection

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
