"""The checks by themselves: what is noted, and what each action leaves."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detection.data.index import Index, Record, join, pack
from detection.data.sources import holdout
from detection.data.sources.checks import check_boxes, check_images
from detection.data.sources.coco_json import Annotation, Columns
from detection.data.sources.dataset import read
from detection.data.sources.image_headers import Header
from detection.data.sources.problems import KINDS, Problems
from detection.data.sources.voc_layout import is_inside
from detection.errors import DataError
from detection.params import VocDataset
from detection.params.stages import Checks

Tree = Callable[..., Path]
CLASSES = ("cat", "dog")
OBJECT = (
    "<object><name>cat</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
)


def index_of(*boxes: list[float], labels: list[int] | None = None) -> Index:
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(len(corners), dtype=np.bool_)
    numbers = np.array(labels or [0] * len(corners), dtype=np.int64)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    return pack([Record("a.jpg", "a", 40, 50, corners, numbers, flags, flags, areas)])


def test_every_kind_has_a_param() -> None:
    assert set(KINDS) == set(Checks.__slots__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("action", "left"),
    [
        ("clip", [[0, 0, 10, 10], [40, 30, 50, 40]]),
        ("drop", [[0, 0, 10, 10]]),
        ("error", [[0, 0, 10, 10]]),
        ("keep", [[0, 0, 10, 10], [40, 30, 60, 50], [60, 50, 70, 60]]),
    ],
)
def test_boxes_outside(action: str, left: list[list[float]]) -> None:
    faults = Problems(replace(Checks(), box_outside_image=action))  # type: ignore[arg-type]
    checked = check_boxes(index_of([0, 0, 10, 10], [40, 30, 60, 50], [60, 50, 70, 60]), CLASSES, faults)
    assert checked.boxes.tolist() == left
    assert checked.offsets.tolist() == [0, len(left)]
    assert faults.counts() == {"box_outside_image": 2}
    assert faults.refused() == ({"box_outside_image": 2} if action == "error" else {})
    assert str(faults.found[0]) == "a.jpg: cat [40, 30, 60, 50], in a picture of 50x40"
    if action == "clip":
        assert checked.areas.tolist() == [100, 100]


def test_rounding_is_not_reaching_out() -> None:
    faults = Problems(Checks())
    index = index_of([-1, -0.5, 51, 41])
    assert check_boxes(index, CLASSES, faults) is not None
    assert faults.found == []


def test_thin_boxes_and_repeats() -> None:
    boxes = index_of([0, 0, 0.4, 9], [1, 1, 5, 5], [1, 1, 5, 5], [1, 1, 5, 5], labels=[0, 0, 1, 0])
    faults = Problems(Checks())
    assert len(check_boxes(boxes, CLASSES, faults).boxes) == 4
    assert faults.counts() == {"duplicate_object": 1, "degenerate_box": 1}
    strict = Problems(replace(Checks(), degenerate_box="drop", duplicate_object="drop"))
    assert check_boxes(boxes, CLASSES, strict).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("given", "orientation", "kind", "size"),
    [
        ((40, 50), 1, None, (40, 50)),
        ((0, 0), 1, None, (40, 50)),
        ((40, 50), 6, "exif_rotation", (40, 50)),
        ((50, 40), 6, "exif_rotation", (50, 40)),
        ((50, 40), 3, "image_size_mismatch", (40, 50)),
        ((50, 40), 1, "image_size_mismatch", (40, 50)),
        ((80, 100), 1, "image_size_mismatch", (40, 50)),
    ],
)
def test_which_size_counts(
    given: tuple[int, int], orientation: int, kind: str | None, size: tuple[int, int]
) -> None:
    index = index_of([0, 0, 9, 9])
    index = replace(index, sizes=np.array([given], dtype=np.int32))
    faults = Problems(replace(Checks(), image_size_mismatch="keep"))
    headers = {"a.jpg": Header(length=9, height=40, width=50, orientation=orientation)}
    assert check_images(index, headers, faults).sizes.tolist() == [list(size)]
    assert set(faults.counts()) >= ({kind} if kind else set())
    assert bool(faults.counts()) == (kind is not None)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 2**31), st.data())
def test_selecting_keeps_each_picture_with_its_boxes(count: int, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    parts = [index_of(*rng.uniform(0, 40, (rng.integers(0, 4), 4)).tolist()) for _ in range(count)]
    index = join(parts)
    assert len(index) == count
    rows = data.draw(st.lists(st.integers(0, count - 1), max_size=10)) if count else []
    chosen = index.select(np.array(rows, dtype=np.int64))
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(chosen[place].boxes, parts[row].boxes)
    kept = rng.random(len(index.boxes)) < 0.5
    fewer = index.keep_boxes(kept)
    np.testing.assert_array_equal(fewer.boxes, index.boxes[kept])
    np.testing.assert_array_equal(fewer.image_rows(), index.image_rows()[kept])


NUMBER = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "image_id": st.integers(0, 2**50),
                "category_id": st.integers(0, 10**6),
                "bbox": st.lists(NUMBER, min_size=4, max_size=4),
            },
            optional={
                "area": st.one_of(st.none(), st.floats(0, 1e9)),
                "iscrowd": st.integers(0, 1),
                "ignore": st.integers(0, 1),
            },
        ),
        max_size=40,
    )
)
def test_columns_hold_what_the_objects_say(entries: list[dict]) -> None:
    columns = Columns.of(msgspec.json.decode(msgspec.json.encode(entries), type=list[Annotation]))
    assert columns.image_id.tolist() == [entry["image_id"] for entry in entries]
    assert columns.category_id.tolist() == [entry["category_id"] for entry in entries]
    assert columns.bbox.tolist() == [entry["bbox"] for entry in entries]
    assert columns.iscrowd.tolist() == [bool(entry.get("iscrowd")) for entry in entries]
    assert columns.ignore.tolist() == [bool(entry.get("ignore")) for entry in entries]
    given_areas = [entry.get("area") for entry in entries]
    assert columns.area.tolist() == [-1.0 if area is None else area for area in given_areas]


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.jpg", True),
        ("sub/a..b.jpg", True),
        (".hidden", True),
        ("../a.jpg", False),
        ("sub/../../a.jpg", False),
        ("/etc/passwd", False),
        ("..\\a.jpg", False),
        ("C:\\a.jpg", False),
        ("a\0b", False),
    ],
)
def test_names_that_lead_out(name: str, inside: bool) -> None:
    assert is_inside(name) is inside


def test_a_folder_without_lists_is_cut_in_three(voc_tree: Tree) -> None:
    root = voc_tree({f"{number:03d}": OBJECT for number in range(60)}, "voc/trees")
    for name in ("ImageSets/Main/train.txt", "ImageSets/Main/test.txt"):
        (root / name).unlink()
    entry = VocDataset(format="voc", path="voc", train=("trees/",), holdout_fraction=0.2)
    splits = read("mine", entry).splits
    ids = {split: {name.decode() for name in index.ids} for split, index in splits.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 60
    assert all(4 <= len(ids[split]) <= 24 for split in ("val", "test"))
    assert ids["val"] == {name for name in set.union(*ids.values()) if holdout.is_held_out(name, 0.2)}


def test_pictures_and_annotations_in_one_folder(voc_tree: Tree, data_root: Path) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT, "c": OBJECT})
    for split, names in (("train", "ab"), ("valid", "c")):
        (data_root / "flat" / split).mkdir(parents=True)
        for name in names:
            (root / f"JPEGImages/{name}.jpg").rename(data_root / f"flat/{split}/{name}.JPG")
            (root / f"Annotations/{name}.xml").rename(data_root / f"flat/{split}/{name}.xml")
    entry = VocDataset(format="voc", path="flat", train=("train/",), test=("valid/",))
    splits = read("mine", entry).splits
    assert splits["train"].files.tolist() == [b"train/a.JPG", b"train/b.JPG"]
    assert splits["test"].files.tolist() == [b"valid/c.JPG"]
    (data_root / "flat/train/b.xml").unlink()
    with pytest.raises(DataError, match=r"missing_annotation: 1: train/b\.JPG: has no XML file"):
        read("mine", entry)


def test_a_dataset_without_test_says_how_to_cut_one(voc_tree: Tree) -> None:
    voc_tree({"a": OBJECT})
    with pytest.raises(DataError, match=r"datasets\.mine names no test: .*`holdout_fraction: 0\.1`"):
        read("mine", VocDataset(format="voc", path="voc", train=("./",)))


def test_a_cut_that_leaves_no_test_is_refused(voc_tree: Tree) -> None:
    voc_tree({"a": OBJECT, "b": OBJECT})
    entry = VocDataset(format="voc", path="voc", train=("./",), holdout_fraction=0.001)
    with pytest.raises(
        DataError, match=r"none of its 2 pictures fell to test.*raise datasets\.mine\.holdout_fraction"
    ):
        read("mine", entry)
