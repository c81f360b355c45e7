"""VOC reader: boxes, lists, images of an id, and the problems reported for broken files."""

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detection.data.loading.index import Index
from detection.data.sources import voc
from detection.data.sources.checks import Problems
from detection.data.sources.dataset import RawDataset, read
from detection.data.sources.digest import Digest
from detection.errors import DataError
from detection.params import VocDataset, load
from detection.params.stages import Checks

Tree = Callable[..., Path]
ROUNDTRIP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)


def dataset(**values: object) -> VocDataset:
    entry = {"format": "voc", "path": "voc", "train": ("train",), "test": ("test",), **values}
    return VocDataset(**entry)  # type: ignore[arg-type]


def train(**values: object) -> Index:
    return read("mine", dataset(**values)).splits["train"]


def obj(xmin: object, ymin: object, xmax: object, ymax: object, name: str = "cat", extra: str = "") -> str:
    return (
        f"<object><name>{name}</name>{extra}<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
    )


SIZE = "<size><width>50</width><height>40</height><depth>3</depth></size>"
LOW, HIGH = st.integers(1, 25), st.integers(26, 40)
CORNERS = st.tuples(LOW, LOW, HIGH, HIGH)


@ROUNDTRIP
@given(st.lists(st.tuples(CORNERS, st.sampled_from(["cat", "dog"]), st.booleans()), min_size=1, max_size=5))
def test_round_trip(voc_tree: Tree, objects: list[tuple[tuple[int, int, int, int], str, bool]]) -> None:
    body = "".join(obj(*corners, name, f"<difficult>{hard:d}</difficult>") for corners, name, hard in objects)
    voc_tree({"a": SIZE + body})
    record = train(classes=("cat", "dog"))[0]
    expected = np.array([corners for corners, _, _ in objects], np.float32)
    np.testing.assert_array_equal(record.boxes, expected - np.array([1, 1, 0, 0], np.float32))
    assert [("cat", "dog")[label] for label in record.labels] == [name for _, name, _ in objects]
    assert record.difficult.tolist() == [hard for _, _, hard in objects]
    assert (record.height, record.width, record.id) == (40, 50, "a")
    np.testing.assert_array_equal(record.areas, np.prod(record.boxes[:, 2:] - record.boxes[:, :2], axis=1))


def test_tags_in_any_order_fractions_and_a_missing_flag(voc_tree: Tree) -> None:
    body = (
        "<object><bndbox><ymax>20.5</ymax><xmin>2.25</xmin><xmax> 30.75 </xmax><ymin>3</ymin></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
        "<name>cat</name></object>"
    )
    voc_tree({"a": body + SIZE})
    raw = read("mine", dataset())
    assert raw.classes == ("cat",)
    record = raw.splits["train"][0]
    np.testing.assert_array_equal(record.boxes, np.array([[1.25, 2, 30.75, 20.5]], np.float32))
    assert record.difficult.tolist() == [False]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_missing_size_is_read_from_the_image(voc_tree: Tree, size: str) -> None:
    voc_tree({"a": size + obj(1, 1, 9, 9)})
    assert train().sizes.tolist() == [[40, 50]]


def test_boxes_without_area_are_dropped_and_counted(voc_tree: Tree) -> None:
    voc_tree({"a": obj(1, 1, 9, 9) + obj(5, 5, 5, 5) + obj(9, 1, 5, 20), "b": obj(1, 1, 2, 2)})
    raw = read("mine", dataset())
    assert raw.splits["train"].boxes.tolist() == [[0, 0, 9, 9], [0, 0, 2, 2]]
    assert raw.problems.counts() == {"zero_area": 2}
    assert str(raw.problems.entries[0]) == "Annotations/a.xml: cat with xmin 5, ymin 5, xmax 5, ymax 5"


def test_lists_of_several_folders_are_joined_without_duplicates(voc_tree: Tree) -> None:
    voc_tree({"a": obj(1, 1, 9, 9), "b": obj(1, 1, 9, 9)}, "voc/VOC2007")
    voc_tree({"c": obj(1, 1, 9, 9, name="dog")}, "voc/VOC2012")
    index = train(
        train=("VOC2012/train", "VOC2007/train", "VOC2007/train"), test=("VOC2007/test",), classes=("cat", "dog")
    )
    assert [name.decode() for name in index.files] == [
        "VOC2012/JPEGImages/c.jpg",
        "VOC2007/JPEGImages/a.jpg",
        "VOC2007/JPEGImages/b.jpg",
    ]
    assert index.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("head", ["", "\N{BYTE ORDER MARK}"])
def test_a_list_with_spaces_flags_and_windows_line_ends(voc_tree: Tree, head: str) -> None:
    body = SIZE + obj(1, 2, 11, 12)
    root = voc_tree(dict.fromkeys(["a", "my cat", "my cat 2", "my dog"], body))
    lines = ["a  1", "my cat", "my cat 2", "my dog -1", "", "  "]
    (root / "ImageSets/Main/train.txt").write_bytes((head + "\r\n".join(lines)).encode())
    assert train().ids.tolist() == [b"a", b"my cat", b"my cat 2", b"my dog"]


def test_an_image_with_another_suffix_is_found(voc_tree: Tree) -> None:
    root = voc_tree({"a": obj(1, 1, 9, 9)})
    (root / "JPEGImages/a.jpg").rename(root / "JPEGImages/a.jpeg")
    assert train().files.tolist() == [b"JPEGImages/a.jpeg"]


def refused(message: str, **values: object) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read("mine", dataset(**values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<object>", r"a\.xml: .*XML"),
        (obj("x", 1, 9, 9), r"a\.xml: the <bndbox> of a cat needs"),
        (obj("nan", 1, 9, 9), r"a\.xml: the <bndbox> of a cat needs"),
        ("<object><name>cat</name></object>", r"a\.xml: the <bndbox> of a cat needs"),
        (obj(1, 1, 9, 9, name=" "), r"a\.xml: an <object> has no <name>"),
        ("", "no annotated objects"),
    ],
)
def test_a_broken_annotation_is_reported(voc_tree: Tree, body: str, message: str) -> None:
    voc_tree({"a": body})
    refused(message)


@pytest.mark.parametrize("head", ["<!DOCTYPE a [<!ENTITY b 'c'>]>", "<!ENTITY b 'c'>"])
def test_entities_are_refused_before_parsing(voc_tree: Tree, head: str) -> None:
    root = voc_tree({"a": obj(1, 1, 9, 9)})
    path = root / "Annotations/a.xml"
    path.write_text(head + path.read_text())
    refused("DOCTYPE")
    path.write_text(head, encoding="utf-16")  # in another encoding the words would not be seen
    refused("ENTITY")


def test_an_unknown_class_gets_a_suggestion(voc_tree: Tree) -> None:
    voc_tree({"a": obj(1, 1, 9, 9, name="horze")})
    refused(r"a\.xml: 'horze' is not a class of the dataset; did you mean 'horse'\?", classes=("horse", "cow"))


def test_missing_files_are_reported(voc_tree: Tree) -> None:
    root = voc_tree({"a": obj(1, 1, 9, 9), "b": obj(1, 1, 9, 9)})
    refused(r"trian\.txt is not in .*did you mean 'train'", train=("trian",))
    (root / "JPEGImages/a.jpg").unlink()
    refused(r"missing_image: 1: Annotations/a\.xml: no image a\.\* in JPEGImages/")
    (root / "Annotations/a.xml").unlink()
    refused(r"missing_annotation: 1: Annotations/a\.xml: ")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd"])
def test_listed_ids_outside_the_folder_are_refused(voc_tree: Tree, name: str) -> None:
    root = voc_tree({"a": obj(1, 1, 9, 9)})
    (root.parent / "outside.xml").write_text("<annotation/>")
    (root / "ImageSets/Main/train.txt").write_text(f"../../{name}\n" if name.startswith(".") else f"{name}\n")
    refused("unsafe_name: 1: .* outside the dataset folder")


def test_a_filename_tag_outside_the_folder_is_refused(voc_tree: Tree) -> None:
    root = voc_tree({"a": "<filename>../../secret.jpg</filename>" + obj(1, 1, 9, 9)})
    (root / "JPEGImages/a.jpg").rename(root.parent / "secret.jpg")
    refused("unsafe_name: 1: .* outside the dataset folder")


def test_a_missing_dataset(data_root: Path) -> None:
    refused(rf"dataset mine is not at {data_root}/voc; put .* or set DATA_ROOT")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 7])
def test_an_invalid_holdout(voc_tree: Tree, fraction: float) -> None:
    voc_tree({"a": obj(1, 1, 9, 9)})
    refused(r"datasets\.mine\.holdout_fraction must be at least 0 and below 1", holdout_fraction=fraction)


def bccd(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> RawDataset:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    return read("bccd", dataset(path="bccd/BCCD", val=("val",)))


def test_bccd(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = bccd(shared_data, monkeypatch)
    assert {split: len(index) for split, index in raw.splits.items()} == {"train": 205, "val": 87, "test": 72}
    assert raw.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(index.boxes) for index in raw.splits.values()) == 4888 - 2
    assert {problem.where for problem in raw.problems.entries} == {
        "Annotations/BloodImage_00338.xml",
        "Annotations/BloodImage_00343.xml",
    }
    assert raw.problems.counts() == {"zero_area": 2}


def test_voc2007_with_parts_fractions_and_difficult_objects(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(shared_data))
    entry = dataset(
        path="voc2007_trainval_320/VOCdevkit", train=("VOC2007/train",), test=("VOC2007/val",), holdout_fraction=0.1
    )
    raw = read("voc2007_320", entry)
    counts = {split: len(index) for split, index in raw.splits.items()}
    assert counts["test"] == 2508
    assert counts["train"] + counts["val"] == 2500
    assert 0.07 < counts["val"] / 2500 < 0.13
    assert len(raw.classes) == 20
    assert not {"head", "hand", "foot"} & set(raw.classes)
    assert sum(int(index.difficult.sum()) for index in raw.splits.values()) == 3054
    names = set(raw.splits["train"].ids.tolist()) & set(raw.splits["val"].ids.tolist())
    assert not names


def official_splits(name: str, root: Path, **changes: object) -> dict[str, Index]:
    entry = load(Path("params.yaml"), dataset=name).data
    assert isinstance(entry, VocDataset)
    return voc.read(replace(entry, **changes), root, Digest(), Problems(Checks()))[1]  # type: ignore[arg-type]


def test_the_official_lists_of_2007(shared_data: Path) -> None:
    """The reduced copy lacks three of the 5,011 images."""
    root = shared_data / "voc2007_trainval_320/VOCdevkit"
    parts = official_splits("voc2007_trainval_split", root, test=())
    assert {split: len(index) for split, index in parts.items()} == {"train": 2500, "val": 2508, "test": 0}
    whole = official_splits("voc2007", root, test=())["train"]
    assert sorted([*parts["train"].ids.tolist(), *parts["val"].ids.tolist()]) == sorted(whole.ids.tolist())


def test_the_official_list_of_2012(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "voc2012_annotations.tar.xz") as tar:
        tar.extractall(tmp_path / "VOC2012", filter="data")
    (tmp_path / "VOC2012/JPEGImages").mkdir(exist_ok=True)
    train = official_splits("voc2012_trainval", tmp_path, test=())["train"]
    assert len(train) == 11540
    assert int((~train.difficult).sum()) == 27450  # as published
