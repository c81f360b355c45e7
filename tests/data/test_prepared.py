import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data import statistics
from detection.data.index import Record, pack
from detection.data.prepared import Prepared, save, save_coco
from detection.data.sources.dataset import read
from detection.errors import DataError
from detection.params import ShapesDataset, VocDataset

Tree = Callable[..., Path]
SMALL = ShapesDataset(format="shapes", path="shapes", train=6, val=0, test=3)
OBJECT = (
    "<object><name>cat</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
)


def test_what_is_saved_is_loaded(data_root: Path, tmp_path: Path) -> None:
    raw = read("small", SMALL)
    save(raw, SMALL, tmp_path / "prepared")
    prepared = Prepared.load(tmp_path / "prepared")
    assert prepared.classes == raw.classes
    assert prepared.digest == raw.digest
    assert prepared.root == raw.root
    for split, index in raw.splits.items():
        assert prepared.index(split).boxes.tobytes() == index.boxes.tobytes()
        prepared.check_unchanged(split)
    assert len(prepared.index("val")) == 0
    assert all((prepared.root / prepared.index("train")[i].file).is_file() for i in range(6))
    assert str(data_root) not in (tmp_path / "prepared/meta.json").read_text()


def test_shapes_that_are_gone_are_drawn_again(data_root: Path, tmp_path: Path) -> None:
    save(read("small", SMALL), SMALL, tmp_path / "prepared")
    shutil.rmtree(data_root)
    prepared = Prepared.load(tmp_path / "prepared")
    prepared.check_unchanged("train")
    assert (prepared.root / "JPEGImages/000001.jpg").is_file()


def test_drift_is_refused_in_the_split_it_happened(voc_tree: Tree, tmp_path: Path) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT})
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    (root / "ImageSets/Main/test.txt").write_text("b\n")
    dataset = VocDataset(format="voc", path="voc", train=("train",), test=("test",))
    save(read("mine", dataset), dataset, tmp_path)
    prepared = Prepared.load(tmp_path)
    Image.new("RGB", (500, 400)).save(root / "JPEGImages/b.jpg")
    prepared.check_unchanged("train")
    with pytest.raises(DataError, match=r"the test pictures of mine in .* restore them, or run `dvc repro"):
        prepared.check_unchanged("test")
    (root / "JPEGImages/b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.jpg is missing"):
        prepared.check_unchanged("test")
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"the pictures of mine were looked for at .* set DATA_ROOT"):
        prepared.check_unchanged("train")


def test_nothing_prepared(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"meta\.json is not there; run `dvc repro prepare` first"):
        Prepared.load(tmp_path)


def record(name: str, boxes: list[list[float]], **flags: list[bool]) -> Record:
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
    boxes = [[1, 2, 11, 22], [0, 0, 5.5, 4], [3, 3, 6, 6]]
    index = pack(
        [record("x", []), record("y", boxes, difficult=[False, True, False], crowd=[False, False, True])]
    )
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


def test_pycocotools_takes_the_export(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools.coco import COCO

    raw = read("small", SMALL)
    save_coco(raw.splits["test"], raw.classes, tmp_path / "coco.json")
    coco = COCO(tmp_path / "coco.json")
    capsys.readouterr()
    assert sorted(coco.getImgIds()) == raw.splits["test"].image_ids().tolist()
    assert len(coco.getAnnIds()) == len(raw.splits["test"].boxes)


def test_card_of_a_known_split() -> None:
    boxes = [[0, 10, 50, 60], [40, 20, 90, 40], [100, 20, 150, 99]]
    index = pack(
        [record("a", boxes, difficult=[True, False, False]), record("b", []), record("c", [[9, 9, 29, 19]])]
    )
    found = statistics.describe_split(index, ("cat", "dog"))
    assert (found["pictures"], found["objects"], found["empty_pictures"]) == (3, 4, 1)
    assert found["objects_by_class"] == {"cat": 3, "dog": 1}
    assert found["overlapping"] == 0.5
    assert found["at_border"] == 0.25
    assert found["difficult"] == 0.25
    assert found["box_side_share"]["min"] == 0.1
    assert found["box_side_share"]["max"] == 79 / 200
    assert found["objects_per_picture"]["max"] == 3


def test_card_of_an_empty_split_has_no_shares() -> None:
    found = statistics.describe_split(pack([]), ("cat",))
    assert (found["pictures"], found["objects"], found["objects_by_class"]) == (0, 0, {"cat": 0})
    assert found["overlapping"] is None
    assert found["box_side_share"] is None


def test_card_files(data_root: Path, tmp_path: Path) -> None:
    entry = replace(SMALL, license="mine")
    raw = read("small", entry)
    statistics.save(statistics.describe(raw, entry), tmp_path)
    saved = json.loads((tmp_path / "card.json").read_text())
    assert (saved["name"], saved["license"], saved["digest"]) == ("small", "mine", raw.digest)
    lines = [line.split(",") for line in (tmp_path / "classes.csv").read_text().splitlines()]
    assert lines[0] == ["class", "train", "val", "test"]
    assert [line[0] for line in lines[1:]] == list(raw.classes)
    assert sum(int(line[1]) for line in lines[1:]) == len(raw.splits["train"].boxes)
