"""EXIF orientation: one decision per dataset, by the sizes that tell, for every image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from detection.data.loading.image_io import read_image
from detection.data.loading.index import Index
from detection.data.sources.dataset import RawDataset, examine
from detection.params.datasets import VocDataset, YoloDataset
from detection.params.stages import Checks

BOX = (10, 5, 20, 25)
"""The object of each image, red on black, as annotated: `x1, y1, x2, y2`."""
UNDONE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Transform of an upright image into the one that a camera stores with an orientation."""


def photo(path: Path, orientation: int, size: tuple[int, int], annotated_upright: bool) -> tuple[int, int]:
    """Write a photo on which the box is right in the annotated frame; return that frame's size."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255, 0, 0
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    undo = UNDONE[orientation]
    stored = image.transpose(undo) if annotated_upright and undo is not None else image
    stored.save(path, quality=95, exif=exif)
    if annotated_upright:
        with Image.open(path) as opened:
            assert ImageOps.exif_transpose(opened).size == size
    return size


def voc(root: Path, photos: Mapping[str, tuple[int, tuple[int, int], bool]], **keys: Any) -> RawDataset:
    folder = root / "mine"
    folder.mkdir()
    for name, (orientation, size, upright) in photos.items():
        width, height = photo(folder / f"{name}.jpg", orientation, size, upright)
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (BOX[0] + 1, BOX[1] + 1, *BOX[2:]), strict=True)
        box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
        (folder / f"{name}.xml").write_text(
            f"<annotation><size><width>{width}</width><height>{height}</height></size>"
            f"<object><name>red</name><bndbox>{box}</bndbox></object></annotation>"
        )
    entry = VocDataset(format="voc", path="mine", train=("./",), holdout_fraction=0.01, **keys)
    return examine("mine", entry, Checks())


def red_fraction(raw: RawDataset, index: Index, row: int) -> float:
    """Fraction of the pixels in the object's box that are red."""
    record = index[row]
    image = read_image(raw.root / record.file, (record.height, record.width), upright=record.upright)
    x1, y1, x2, y2 = record.boxes[0].round().astype(int).tolist()
    return float((image[0, y1:y2, x1:x2] > 150).float().mean())


def all_red(raw: RawDataset) -> bool:
    indexes = raw.splits.values()
    return all(red_fraction(raw, index, row) > 0.9 for index in indexes for row in range(len(index)))


@pytest.mark.parametrize("orientation", UNDONE)
@pytest.mark.parametrize("size", [(60, 40), (50, 50)])
def test_a_set_annotated_upright_is_turned_whatever_the_orientation(
    data_root: Path, orientation: int, size: tuple[int, int]
) -> None:
    raw = voc(data_root, {"sure": (6, (40, 60), True), "other": (orientation, size, True)})
    assert all_red(raw)
    assert "upright, as the sizes" in raw.orientation.line
    assert not raw.problems.refused()


@pytest.mark.parametrize("orientation", [2, 3, 4, 6])
def test_a_set_annotated_as_stored_is_not_turned(data_root: Path, orientation: int) -> None:
    raw = voc(data_root, {"sure": (6, (40, 60), False), "other": (orientation, (50, 50), False)})
    assert all_red(raw)
    assert "read as stored, as the sizes" in raw.orientation.line


def test_each_image_follows_its_own_size_and_the_rest_the_majority(data_root: Path) -> None:
    own = {"a": (6, (40, 60), True), "b": (8, (40, 60), True), "c": (6, (40, 60), False)}
    raw = voc(data_root, {**own, "d": (3, (60, 40), True)})
    assert all_red(raw)
    assert "2 were annotated upright and 1 as stored, by their sizes; the other 1 are turned" in raw.orientation.line


@pytest.mark.parametrize("upright", [True, False])
def test_the_switch_decides_where_no_size_tells(data_root: Path, upright: bool) -> None:
    photos = {"a": (3, (60, 40), upright), "b": (6, (50, 50), upright)}
    raw = voc(data_root, photos, exif="upright" if upright else "stored")
    assert all_red(raw)
    assert f"(exif: {'upright' if upright else 'stored'})" in raw.orientation.line


def test_without_a_telling_size_photos_are_upright_and_the_message_says_how_to_change_it(data_root: Path) -> None:
    raw = voc(data_root, {"a": (3, (60, 40), True)})
    assert all_red(raw)
    assert "`exif: stored` changes it" in raw.orientation.line


def test_yolo_labels_have_no_size_and_are_of_upright_images(data_root: Path) -> None:
    folder = data_root / "mine"
    folder.mkdir()
    (folder / "classes.txt").write_text("red\n")
    for name, orientation in (("a", 6), ("b", 3)):
        width, height = photo(folder / f"{name}.jpg", orientation, (60, 40), True)
        x, y = (BOX[0] + BOX[2]) / 2 / width, (BOX[1] + BOX[3]) / 2 / height
        w, h = (BOX[2] - BOX[0]) / width, (BOX[3] - BOX[1]) / height
        (folder / f"{name}.txt").write_text(f"0 {x} {y} {w} {h}\n")
    raw = examine("mine", YoloDataset(format="yolo", path="mine", holdout_fraction=0.01), Checks())
    assert sum(len(index) for index in raw.splits.values()) == 2
    assert all_red(raw)


def test_an_index_keeps_the_mask(data_root: Path, tmp_path: Path) -> None:
    index = voc(data_root, {"a": (1, (60, 40), True), "b": (3, (60, 40), True)}).splits["train"]
    index.save(tmp_path / "index.npz")
    loaded = Index.load(tmp_path / "index.npz").select(np.array([1, 0, 1]))
    assert [loaded[row].upright for row in range(3)] == [True, False, True]
