"""Training on an ImageFolder of three classes of generated shapes."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from detection.errors import DivergedError
from detection.files import WEIGHTS_JSON, write_json
from detection.models.backbones import feature_state, make_backbone
from detection.params import schema
from detection.params.stages import ImageFolder
from detection.training.common.checkpoint import Checkpoints
from detection.training.pretrain import classifier
from detection.training.pretrain.imagefolder import Folder, FolderData, list_folder
from detection.training.pretrain.methods import folder_job

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = ImageFolder(
    image_size=32, eval_resize=32, batch_size=12, iterations=24, milestones=(18,), lr=0.05, log_every=4
)
PER_EPOCH = 48 // 12


def draw_folder(root: Path, count: int, seed: int) -> Path:
    """Draw `count` images of each of three shapes, at a random position and size, tinted by shape."""
    rng = np.random.default_rng(seed)
    for channel, name in enumerate(("disc", "bars", "frame")):
        (root / name).mkdir(parents=True)
        for i in range(count):
            image = Image.new("RGB", (48, 40), tuple(rng.integers(0, 90, 3).tolist()))
            tint = rng.integers(90, 150, 3)
            tint[channel] = 255
            draw, color = ImageDraw.Draw(image), tuple(tint.tolist())
            x, y, side = rng.integers(2, 14), rng.integers(2, 8), rng.integers(22, 30)
            box = (int(x), int(y), int(x + side), int(y + side))
            if name == "disc":
                draw.ellipse(box, fill=color)
            elif name == "frame":
                draw.rectangle(box, outline=color, width=3)
            else:
                for left in range(box[0], box[2], 6):
                    draw.rectangle((left, box[1], left + 2, box[3]), fill=color)
            image.save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, Folder]:
    root = tmp_path_factory.mktemp("imagenet")
    train = list_folder(draw_folder(root / "train", 16, 0))
    return train, list_folder(draw_folder(root / "val", 8, 1), train.classes)


@pytest.fixture
def learn(folders: tuple[Folder, Folder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch.set_num_threads(1)

    def run(name: str, settings: ImageFolder = SETTINGS) -> Any:
        job = folder_job(
            FolderData(*folders, settings, workers=0, seed=0),
            settings,
            backbone="resnet18",
            device=torch.device("cpu"),
            precision=torch.float32,
            seed=0,
            curves=tmp_path / name / "curves.csv",
        )
        with Checkpoints("pretrain", name).locked() as checkpoints:
            return classifier.fit(job, checkpoints)

    return run


def test_it_learns(learn: Any) -> None:
    _, curve = learn("long", replace(SETTINGS, iterations=64, milestones=(48,), lr=0.02))
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert curve[-1]["val_accuracy"] > 0.9, "chance is 1/3"


def test_it_stops_and_resumes_bit_equal(learn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, curve = learn("uninterrupted")
    assert state.keys() == feature_state(make_backbone("resnet18")).keys()
    assert [row["epoch"] for row in curve] == [1, 2, 3, 4, 5, 6]
    assert [round(row["lr"], 6) for row in curve] == [0.05] * 4 + [0.005] * 2
    steps, to_device = [0], classifier._to_device

    def counted(*args: Any) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == 7:  # in the second epoch; val is one batch
            os.kill(os.getpid(), signal.SIGTERM)
        return to_device(*args)

    with monkeypatch.context() as patch:
        patch.setattr(classifier, "_to_device", counted)
        with pytest.raises(SystemExit) as left:
            learn("stopped")
    assert left.value.code == 143
    assert len((tmp_path / "stopped/curves.csv").read_text().splitlines()) == 2  # the header and one epoch
    again, curve_again = learn("stopped")
    assert curve_again == curve
    assert all(torch.equal(value, again[key]) for key, value in state.items())
    assert (tmp_path / "stopped/curves.csv").read_text() == (tmp_path / "uninterrupted/curves.csv").read_text()


def test_a_loss_that_is_not_finite_stops_it(learn: Any) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        learn("wild", replace(SETTINGS, lr=1e30))


def test_a_training_that_ends_within_an_epoch_adds_a_last_row(learn: Any) -> None:
    _, curve = learn("short", replace(SETTINGS, iterations=PER_EPOCH + 1))
    assert [row["epoch"] for row in curve] == [1, 1.25]


def test_the_stage_trains_on_two_ranks(tmp_path: Path) -> None:
    """Started by the launcher, each rank with its own loader process."""
    draw_folder(tmp_path / "raw/imagenet/train", 16, 0)
    draw_folder(tmp_path / "raw/imagenet/val", 8, 1)
    document = schema.read((ROOT / "params.yaml").read_text())
    longer = replace(SETTINGS, iterations=64, milestones=(48,), lr=0.02)  # far above chance on any processor
    document["pretrain"] = {"method": "imagefolder", "imagefolder": asdict(longer)}
    document["train"] |= {"device": "cpu", "devices": 2, "workers": 1, "precision": "fp32", "threads": 1}
    (tmp_path / "params.yaml").write_text(json.dumps(document))
    for name in ("dvc.yaml", "detection", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_json(tmp_path / WEIGHTS_JSON, {"start": {"from": None}})
    own = {"PYTHONPATH": str(ROOT), "DATA_ROOT": str(tmp_path / "raw"), "DVC_ROOT": str(tmp_path)}
    command = [sys.executable, "-m", "stages.pretrain"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    with open(tmp_path / "reports/pretrain/curves.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == list(range(1, 17))
    top1 = 24 * float(rows[-1]["val_accuracy"])  # each of the 24 images is counted once, on one rank
    assert top1 == pytest.approx(round(top1), abs=1e-6)
    assert top1 > 0.75 * 24, "chance is 1/3"
    state = torch.load(tmp_path / "models/backbone.pt", weights_only=True)["state_dict"]
    assert state.keys() == feature_state(make_backbone("resnet18")).keys()
