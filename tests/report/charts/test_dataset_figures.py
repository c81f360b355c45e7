from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from detection.data.sources.dataset import RawDataset, read
from detection.errors import DataError
from detection.params import ShapesDataset, VocDataset
from detection.report.charts.dataset_figures import SAMPLE_IMAGES, box_sizes, class_counts, sample_images, save_figures


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RawDataset:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return read("small", ShapesDataset(format="shapes", path="shapes", train=5, val=0, test=2))


def test_the_figures_are_written(small: RawDataset, tmp_path: Path) -> None:
    save_figures(small, tmp_path / "figures")
    for name in ("class_counts", "box_sizes", "samples"):
        with Image.open(tmp_path / f"figures/{name}.png") as opened:
            image = np.asarray(opened.convert("L"))
        assert image.shape[0] > 200
        assert image.std() > 10, name


def test_bars_are_the_counts(small: RawDataset) -> None:
    rows = pd.DataFrame(class_counts(small).rows)
    assert len(rows) == 2 * len(small.classes)  # val is empty
    for split in ("train", "test"):
        part = rows[rows["split"].str.startswith(split)].set_index("class")["objects"]
        counts = np.bincount(small.splits[split].labels, minlength=len(small.classes))
        assert part[list(small.classes)].tolist() == counts.tolist()
        assert f"({counts.sum()})" in rows["split"].to_string()
    assert rows["objects"].iloc[: len(small.classes)].is_monotonic_decreasing


def test_every_training_box_is_in_the_size_figure(small: RawDataset) -> None:
    rows = pd.DataFrame(box_sizes(small).rows)
    count = len(small.splits["train"].boxes)
    assert rows.groupby("part")["objects"].sum()[["bin", "cell"]].tolist() == [count, count]


def test_fewer_images_than_the_sheet_has_tiles(small: RawDataset) -> None:
    assert len(small.splits["train"]) < SAMPLE_IMAGES
    assert sample_images(small).height < sample_images(small).width


def test_figures_of_a_dataset_with_many_classes_and_one_of_wide_images(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    entry = VocDataset(
        format="voc", path="voc2007_trainval_320/VOCdevkit", train=("VOC2007/train",), test=("VOC2007/val",)
    )
    save_figures(read("voc2007_320", entry), tmp_path)
    with Image.open(tmp_path / "class_counts.png") as bars:
        assert bars.height > 800


def test_unreadable_image_is_named(small: RawDataset) -> None:
    for path in (small.root / "JPEGImages").iterdir():
        path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"\.jpg"):
        sample_images(small)
