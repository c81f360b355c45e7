"""`detection browse`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command_line import detection, error_line


def test_a_sheet_of_training_images(project: Path, with_shapes: Callable[[str], Path]) -> None:
    with_shapes("  shapes: {format: shapes, path: shapes, image_size: 64, train: 4, val: 2, test: 2}")
    done = detection(project, "browse", "shapes", "--augmentation", "letterbox", "--count", "6")
    assert done.returncode == 0, done.stderr
    assert "6 images of shapes for fasterrcnn_resnet18 with augmentation letterbox: browse.png" in done.stdout
    with Image.open(project / "browse.png") as sheet:
        colors = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert ((colors == colors[:, :1]).all(axis=1) & (colors[:, 0] < 250)).mean() > 0.05  # padding of any gray
    assert len(np.unique(colors, axis=0)) > 500  # images


def test_a_sheet_of_a_list_of_steps(project: Path, with_shapes: Callable[[str], Path]) -> None:
    with_shapes("  shapes: {format: shapes, path: shapes, image_size: 64, train: 4, val: 2, test: 2}")
    steps = "[{mosaic: {p: 1}}, {affine: {rotate: 10}}, {copy_paste: {p: 1}}, {mixup: {p: 1}}, {color: {hue: 0.1}}]"
    done = detection(project, "browse", "shapes", "--augmentation", steps, "--count", "4")
    assert done.returncode == 0, done.stderr
    assert "with augmentation mosaic + affine + copy_paste + mixup + color: browse.png" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["shape"], "did you mean 'shapes'?"),
        (["shapes", "--augmentation", "leterbox"], "did you mean 'letterbox'?"),
        (["shapes", "--model", "ssd300", "--augmentation", "multiscale"], "needs resize: keep"),
        (["shapes", "--augmentation", "[{flop: {}}]"], "did you mean 'flip'?"),
        (["shapes", "--augmentation", "[{affine: {rotate: 200}}]"], "at most 180"),
        (["shapes", "--count", "0"], "at least one image"),
        (["bccd"], "bccd"),
    ],
)
def test_invalid_flags_are_one_line(project: Path, flags: list[str], message: str) -> None:
    assert message in error_line(detection(project, "browse", *flags))
    assert not (project / "browse.png").exists()
