from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.sources.dataset import RawDataset, read
from detection.errors import DataError
from detection.params import ShapesDataset, VocDataset
from detection.report.charts.dataset_figures import SAMPLES, box_sizes, class_counts, samples, save_figures


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RawDataset:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return read("small", ShapesDataset(format="shapes", path="shapes", train=5, val=0, test=2))


def test_the_figures_are_written(small: RawDataset, tmp_path: Path) -> None:
    save_figures(small, tmp_path / "figures")
    for name in ("class_counts", "box_sizes", "samples"):
        with Image.open(tmp_path / f"figures/{name}.png") as opened:
            picture = np.asarray(opened.convert("L"))
        assert picture.shape[0] > 200
        assert picture.std() > 10, f"{name} is blank"


def test_bars_are_the_counts(small: RawDataset) -> None:
    axes = class_counts(small).axes[0]
    widths = sorted(bar.get_width() for container in axes.containers for bar in container)
    expected = [
        count
        for split in ("train", "test")
        for count in np.bincount(small.splits[split].labels, minlength=len(small.classes))
    ]
    assert widths == sorted(expected)
    assert len(axes.containers) == 2  # val is empty


def test_every_training_box_is_in_the_size_figure(small: RawDataset) -> None:
    left = box_sizes(small).axes[0]
    assert sum(bar.get_height() for bar in left.patches) == len(small.splits["train"].boxes)


def test_fewer_pictures_than_the_sheet_has_room_for(small: RawDataset) -> None:
    assert len(small.splits["train"]) < SAMPLES
    assert samples(small).height < samples(small).width


def test_figures_of_a_dataset_with_many_classes_and_one_of_wide_pictures(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    entry = VocDataset(
        format="voc", path="voc2007_trainval_320/VOCdevkit", train=("VOC2007/train",), test=("VOC2007/val",)
    )
    save_figures(read("voc2007_320", entry), tmp_path)
    with Image.open(tmp_path / "class_counts.png") as bars:
        assert bars.height > 800


def test_a_broken_picture_is_named(small: RawDataset) -> None:
    for path in (small.root / "JPEGImages").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"\.jpg cannot be read as a picture"):
        samples(small)
