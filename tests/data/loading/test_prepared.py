import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.loading.index import Record, pack
from detection.data.loading.prepared import Prepared, save, save_coco
from detection.data.sources.dataset import read
from detection.errors import DataError
from detection.params import ShapesDataset, VocDataset

Tree = Callable[..., Path]
SMALL = ShapesDataset(format="shapes", path="shapes", train=6, val=0, test=3)
OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"


def test_save_and_load(data_root: Path, tmp_path: Path) -> None:
    raw = read("small", SMALL)
    save(raw, SMALL, tmp_path / "prepared")
    prepared = Prepared.load(tmp_path / "prepared")
    assert prepared.classes == raw.classes
    assert prepared.meta["listing"] == raw.listing
    assert prepared.root == raw.root
    for split, index in raw.splits.items():
        assert prepared.index(split).boxes.tobytes() == index.boxes.tobytes()
        prepared.check_unchanged(split)
    assert len(prepared.index("val")) == 0
    assert all((prepared.root / prepared.index("train")[i].file).is_file() for i in range(6))
    assert str(data_root) not in (tmp_path / "prepared/meta.json").read_text()


def test_missing_shapes_are_generated_again(data_root: Path, tmp_path: Path) -> None:
    save(read("small", SMALL), SMALL, tmp_path / "prepared")
    shutil.rmtree(data_root)
    prepared = Prepared.load(tmp_path / "prepared")
    prepared.check_unchanged("train")
    assert (prepared.root / "JPEGImages/000001.jpg").is_file()


def test_changed_images_are_refused_in_their_split(voc_tree: Tree, tmp_path: Path) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT})
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    (root / "ImageSets/Main/test.txt").write_text("b\n")
    dataset = VocDataset(format="voc", path="voc", train=("train",), test=("test",))
    save(read("mine", dataset), dataset, tmp_path)
    prepared = Prepared.load(tmp_path)
    Image.new("RGB", (500, 400)).save(root / "JPEGImages/b.jpg")
    prepared.check_unchanged("train")
    with pytest.raises(DataError, match=r"the test images of mine in .* restore them, or run `dvc repro"):
        prepared.check_unchanged("test")
    (root / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.jpg is missing"):
        prepared.check_unchanged("test")
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"the images of mine are missing.* set DATA_ROOT"):
        prepared.check_unchanged("train")


def test_load_without_prepared_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta\.json does not exist; run `dvc repro prepare`"):
        Prepared.load(tmp_path)


def record(name: str, boxes: Sequence[Sequence[float]], **flags: list[bool]) -> Record:
    count = len(boxes)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Record(
        file=f"{name}.jpg",
        id=name,
        height=100,
        width=200,
        boxes=corners,
        labels=np.arange(count) % 2,
        difficult=np.array(flags.get("difficult", [False] * count), dtype=np.bool_),
        crowd=np.array(flags.get("crowd", [False] * count), dtype=np.bool_),
        areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
    )


def test_coco_export(tmp_path: Path) -> None:
    boxes: list[list[float]] = [[1, 2, 11, 22], [0, 0, 5.5, 4], [3, 3, 6, 6]]
    index = pack([record("x", []), record("y", boxes, difficult=[False, True, False], crowd=[False, False, True])])
    save_coco(index, ("cat", "dog"), tmp_path / "coco.json")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [image["id"] for image in coco["images"]] == index.image_ids().tolist()
    assert coco["images"][1] == {"id": 2, "file_name": "y.jpg", "height": 100, "width": 200}
    assert coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    common = {"image_id": 2}
    assert coco["annotations"] == [
        {"id": 1, "category_id": 1, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0, **common},
        {
            **{"id": 2, "category_id": 2, "bbox": [0, 0, 5.5, 4], "area": 22, "iscrowd": 1, **common},
            **{"difficult": 1, "ignore": 1},
        },
        {"id": 3, "category_id": 1, "bbox": [3, 3, 3, 3], "area": 9, "iscrowd": 1, **common},
    ]


def test_pycocotools_reads_the_export(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.coco import COCO

    raw = read("small", SMALL)
    save_coco(raw.splits["test"], raw.classes, tmp_path / "coco.json")
    coco = COCO(tmp_path / "coco.json")
    capsys.readouterr()
    assert sorted(coco.getImgIds()) == raw.splits["test"].image_ids().tolist()
    assert len(coco.getAnnIds()) == len(raw.splits["test"].boxes)
