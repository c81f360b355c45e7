"""COCO reader: labels, crowds, areas, and the problems reported for broken files."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.data.sources.checks import Problems
from detection.data.sources.coco import load
from detection.data.sources.dataset import RawDataset, read
from detection.errors import DataError
from detection.params import CocoDataset
from detection.params.datasets import CocoSplit
from detection.params.stages import Checks

Write = Callable[..., None]


def image(number: int, name: str | None = None) -> dict[str, Any]:
    return {"id": number, "file_name": name or f"{number}.jpg", "height": 40, "width": 50, "license": 3}


def annotation(image_id: int, category: int, bbox: list[float], **more: object) -> dict[str, Any]:
    return {"id": 1, "image_id": image_id, "category_id": category, "bbox": bbox, **more}


CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]
GOOD = {
    "info": {"year": 2017},
    "images": [image(7), image(2)],
    "annotations": [
        annotation(7, 90, [1, 2, 10, 20], segmentation=[[1, 2, 3, 4]], area=33.5, iscrowd=0),
        annotation(7, 3, [0.5, 0.25, 4, 4], segmentation={"counts": [1, 2], "size": [40, 50]}, iscrowd=1),
    ],
    "categories": CATEGORIES,
}
TEST = {"images": [image(99)], "annotations": [], "categories": CATEGORIES}


@pytest.fixture
def write(data_root: Path) -> Write:
    def files(train: dict[str, Any] | bytes, test: dict[str, Any] | None = None) -> None:
        (data_root / "coco/images").mkdir(parents=True, exist_ok=True)
        for number in (2, 7, 99):
            Image.new("RGB", (50, 40), (number, 0, 0)).save(data_root / f"coco/images/{number}.jpg")
        content = train if isinstance(train, bytes) else json.dumps(train).encode()
        (data_root / "coco/train.json").write_bytes(content)
        (data_root / "coco/test.json").write_text(json.dumps(test or TEST))

    return files


def read_it(checks: Checks | None = None, **values: object) -> RawDataset:
    parts = {split: (CocoSplit(images="images", annotations=f"{split}.json"),) for split in ("train", "test")}
    entry = CocoDataset(format="coco", path="coco", **{**parts, **values})  # type: ignore[arg-type]
    return read("mine", entry, checks)


def test_id_gaps_crowds_areas_and_images_without_annotations(write: Write) -> None:
    write(GOOD)
    raw = read_it()
    assert raw.classes == ("car", "cat", "toothbrush")
    record, empty = raw.splits["train"][0], raw.splits["train"][1]
    assert (record.id, record.file, record.height, record.width) == ("7", "images/7.jpg", 40, 50)
    assert record.boxes.tolist() == [[1, 2, 11, 22], [0.5, 0.25, 4.5, 4.25]]
    assert record.labels.tolist() == [2, 0]
    assert record.crowd.tolist() == [False, True]
    assert record.areas.tolist() == [33.5, 16]
    assert (empty.id, len(empty.boxes)) == ("2", 0)
    assert raw.splits["train"].image_ids().tolist() == [7, 2]
    assert raw.splits["train"].category_ids.tolist() == [3, 17, 90]
    assert len(raw.splits["val"]) == 0


def test_a_split_keeps_the_category_ids_of_its_own_file(write: Write) -> None:
    write(GOOD, TEST | {"categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "car"}]})
    assert read_it().splits["test"].category_ids.tolist() == [9, 5, 10], "toothbrush gets a free id"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [annotation(8, 3, [0, 0, 1, 1])]}, "no annotated objects"),
        ({"annotations": [annotation(7, 4, [0, 0, 1, 1])]}, "category 4 is unlisted"),
        (
            {"annotations": [annotation(7, 3, [0, 0, 1])]},
            r"broken_annotation: 1: train\.json: annotations\[0\]: .*length 4.*bbox",
        ),
        ({"images": [image(7), image(7)]}, r"duplicate_id: 1: train\.json: images\[1\]: .* id 7"),
        ({"images": [image(7, "../../x.jpg"), image(2)]}, r"unsafe_name: 1: train\.json: images\[0\]: .*\.\./x\.jpg"),
        ({"images": [image(7, "gone.jpg"), image(2)]}, r"missing_image: 1: images/gone\.jpg: "),
        ({"images": {}}, "not a COCO instances file"),
        ({"annotations": []}, "no annotated objects"),
    ],
)
def test_an_invalid_entry_is_named(write: Write, change: dict[str, Any], message: str) -> None:
    write({**GOOD, **change})
    with pytest.raises(DataError, match=message) as caught:
        read_it()
    assert "\n" not in str(caught.value)


def test_boolean_flags_after_a_byte_order_mark(write: Write) -> None:
    objects = [annotation(7, 3, [1, 2, 3 + i, 4], iscrowd=i == 1, ignore=i == 2) for i in range(3)]
    write(codecs.BOM_UTF8 + json.dumps(GOOD | {"annotations": objects}).encode())
    index = read_it().splits["train"]
    assert index.crowd.tolist() == [False, True, False]
    assert index.difficult.tolist() == [False, False, True]
    assert index.boxes[:, 2].tolist() == [4, 5, 6]


def test_an_unusable_image_does_not_shift_the_others(write: Write) -> None:
    write(GOOD | {"images": [image(8, "a\0b.jpg"), image(7), image(2)]})
    index = read_it(checks=Checks(unsafe_name="drop")).splits["train"]
    assert index.files.tolist() == [b"images/7.jpg", b"images/2.jpg"]


def test_a_file_that_is_not_json(write: Write) -> None:
    write(b"\xff\xfe nonsense")
    with pytest.raises(DataError, match=r"train\.json: not a COCO instances file"):
        read_it()


def test_categories_of_other_files_are_matched_by_name(write: Write) -> None:
    other = {**TEST, "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "lorry"}]}
    write(GOOD, {**other, "annotations": [annotation(99, 1, [0, 0, 9, 9])]})
    assert read_it().splits["test"].labels.tolist() == [1]
    write(GOOD, {**other, "annotations": [annotation(99, 2, [0, 0, 9, 9])]})
    with pytest.raises(DataError, match=r"unknown_class: 1: test\.json: annotations\[0\].*'lorry' "):
        read_it()


def test_boxes_without_area_are_dropped(write: Write) -> None:
    flat = annotation(2, 3, [5, 5, 0, 9])
    write({**GOOD, "annotations": [*GOOD["annotations"], flat]})
    raw = read_it()
    assert len(raw.splits["train"].boxes) == 2
    assert [str(problem) for problem in raw.problems.of_type("zero_area")] == [
        "train.json: annotations[2] of image 2: width 0, height 9"
    ]


def test_a_missing_file_gets_a_suggestion(write: Write) -> None:
    write(GOOD)
    with pytest.raises(DataError, match=r"dataset mine, test: tset\.json is not in .*did you mean 'test\.json'"):
        read_it(test=(CocoSplit(images="images", annotations="tset.json"),))


def test_tiny_coco(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    parts = {
        split: (CocoSplit(images=f"{name}2017", annotations=f"annotations/instances_{name}2017.json"),)
        for split, name in (("train", "train"), ("test", "val"))
    }
    raw = read("tiny_coco", CocoDataset(format="coco", path="tiny_coco", **parts))  # type: ignore[arg-type]
    train, test = raw.splits["train"], raw.splits["test"]
    assert (len(train), len(test)) == (50, 50)
    assert len(raw.classes) == 80
    assert (raw.classes[0], raw.classes[79]) == ("person", "toothbrush")
    assert int(train.crowd.sum() + test.crowd.sum()) == 10
    assert sum(int((np.diff(index.offsets) == 0).sum()) for index in (train, test)) == 3
    for name, index in (("train", train), ("val", test)):
        path = shared_data / f"tiny_coco/annotations/instances_{name}2017.json"
        truth = json.loads(path.read_text())
        boxes: dict[int, list[list[float]]] = {}
        for item in truth["annotations"]:
            boxes.setdefault(item["image_id"], []).append(item["bbox"])
        for i, number in enumerate(index.image_ids().tolist()):
            ours = index[i].boxes.copy()
            ours[:, 2:] -= ours[:, :2]
            expected = np.array(boxes.get(number, []), dtype=np.float64).reshape(-1, 4)
            np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_ids_written_as_floats(write: Write) -> None:
    write(GOOD | {"annotations": [annotation(7, 3, [0, 0, 9, 9]) | {"image_id": 7.0, "category_id": 3.0}]})
    index = read_it().splits["train"]
    assert (np.diff(index.offsets).tolist(), index.labels.tolist()) == ([1, 0], [0])


def test_a_non_finite_coordinate_is_reported(write: Write) -> None:
    write(json.dumps(GOOD | {"annotations": [annotation(7, 3, [0, 0, 9, float("nan")])]}).encode())
    with pytest.raises(DataError, match=r"broken_annotation: 1: train\.json: annotations\[0\].*nan.* is not a box"):
        read_it()


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
def test_columns_equal_the_entries(tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("coco") / "instances.json"
    path.write_text(json.dumps({"images": [], "annotations": entries, "categories": []}))
    columns = load(path, "instances.json", Problems(Checks()))
    assert columns.image_id.tolist() == [entry["image_id"] for entry in entries]
    assert columns.category_id.tolist() == [entry["category_id"] for entry in entries]
    assert columns.bbox.tolist() == [entry["bbox"] for entry in entries]
    assert columns.iscrowd.tolist() == [bool(entry.get("iscrowd")) for entry in entries]
    assert columns.ignore.tolist() == [bool(entry.get("ignore")) for entry in entries]
    areas = [entry.get("area") for entry in entries]
    np.testing.assert_array_equal(columns.area, [np.nan if area is None else area for area in areas])
