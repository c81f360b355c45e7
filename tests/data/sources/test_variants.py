"""Annotations as labeling tools and converters write them: read in full, or reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.sources.annotation_xml import parse
from detection.data.sources.dataset import RawDataset, read
from detection.data.sources.holdout import group_name
from detection.errors import DataError
from detection.params import CocoDataset, VocDataset
from detection.params.datasets import CocoSplit
from detection.params.stages import Checks

Tree = Callable[..., Path]
BOX = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
CAT = f"<object><name>cat</name>{BOX}</object>"


@pytest.mark.parametrize(
    "xml",
    [
        f"<annotation>{CAT}</annotation>",
        f'<annotation xmlns="http://host/ns">{CAT}</annotation>',
        f"<annotation><objects>{CAT}</objects></annotation>",
        f"<Annotation><Object><Name>cat</Name>{BOX.replace('bndbox', 'BndBox')}</Object></Annotation>",
        f"<doc><size><width>5</width></size><outputs><object><item><name>cat</name>{BOX}</item></object></outputs></doc>",
        f"<root><annotation>{CAT}</annotation></root>",
        f"<!DOCTYPE annotation><annotation>{CAT}</annotation>",
        f'<?xml version="1.0" encoding="utf8"?><annotation>{CAT}</annotation>',
    ],
)
def test_objects_are_found_wherever_they_are(xml: str) -> None:
    (entry,) = parse(xml.encode()).objects
    assert (entry.name, entry.corners) == ("cat", ("1", "1", "9", "9"))


def test_several_boxes_of_one_object_are_several_objects() -> None:
    part = f"<part><name>head</name>{BOX}</part>"
    annotation = parse(f"<annotation><object><name>cat</name>{BOX}{BOX}{BOX}{part}</object></annotation>".encode())
    assert [one.name for one in annotation.objects] == ["cat"] * 3


@pytest.mark.parametrize("encoding", ["gb2312", "utf-16", "utf-8-sig", "latin-1"])
def test_declared_encodings_are_decoded(encoding: str) -> None:
    name = "caf\u00e9" if encoding == "latin-1" else "\u732b"
    declared = encoding.removesuffix("-sig")
    xml = f'<?xml version="1.0" encoding="{declared}"?><annotation>{CAT.replace("cat", name)}</annotation>'
    assert parse(xml.encode(encoding)).objects[0].name == name


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotations><image><box xtl='1'/></image></annotations>", "its root is <annotations>"),
        ("<doc/>", "its root is <doc>"),
        ("<annotation><obj><a>1</a><b>2</b><c>3</c><d>4</d></obj></annotation>", "<obj>"),
        (f"<annotation>{CAT}</annotation>".replace("cat", "caf\u00e9"), "save it as UTF-8|not valid XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding 'klingon'"),
    ],
)
def test_a_file_in_which_nothing_is_understood_is_no_background(xml: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(xml.encode("latin-1"))


@pytest.mark.parametrize("flag", ["1", "True", "true", "1.0", "yes"])
def test_difficult_flags(flag: str) -> None:
    xml = f"<annotation><object><name>a</name><difficult>{flag}</difficult>{BOX}</object></annotation>"
    assert parse(xml.encode()).objects[0].difficult


def save_image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (50, 40), (value, 0, 0)).save(path)


def folder(root: Path, names: str, images: str, annotations: str, body: str = CAT) -> None:
    for number, name in enumerate(names.split()):
        save_image(root / images / f"{name}.jpg", 10 * number)
        (root / annotations).mkdir(parents=True, exist_ok=True)
        (root / annotations / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")


def voc(checks: Checks | None = None, **values: object) -> RawDataset:
    entry = {"format": "voc", "path": "mine", "train": ("./",), "holdout_fraction": 0.3, **values}
    return read("mine", VocDataset(**entry), checks)  # type: ignore[arg-type]


def files(raw: RawDataset) -> list[str]:
    return sorted(file.decode() for index in raw.splits.values() for file in index.files.tolist())


@pytest.mark.parametrize(
    ("images", "annotations", "keys"),
    [
        ("images", "annotations", {}),
        ("Images", "annots", {}),
        ("images", "annotations/xmls", {}),
        ("photos", "labels", {"images": "photos", "annotations": "labels"}),
    ],
)
def test_folders_are_found_or_named(data_root: Path, images: str, annotations: str, keys: dict[str, str]) -> None:
    folder(data_root / "mine", "a b c d e f g h", images, annotations)
    assert files(voc(None, **keys)) == [f"{images}/{name}.jpg" for name in "abcdefgh"]


def test_sub_folders_are_read_and_mac_files_are_not(data_root: Path) -> None:
    folder(data_root / "mine", "a b c d e f", ".", ".")
    folder(data_root / "mine", "g h", "more", "more")
    for name in ("._a.jpg", "._a.xml"):
        (data_root / "mine" / name).write_bytes(b"\0\5\x16\7")
    assert files(voc()) == [*(f"{name}.jpg" for name in "abcdef"), "more/g.jpg", "more/h.jpg"]


def test_images_without_annotation_can_be_background(data_root: Path) -> None:
    folder(data_root / "mine", "a b c d e f", ".", ".")
    save_image(data_root / "mine/empty.jpg", 99)
    with pytest.raises(DataError, match=r"missing_annotation: 1: empty\.jpg.*missing_annotation: background"):
        voc()
    raw = voc(Checks(missing_annotation="background"))
    assert "empty.jpg" in files(raw)
    assert sum(len(index.boxes) for index in raw.splits.values()) == 6


def test_an_image_named_in_the_annotation_has_one(data_root: Path) -> None:
    folder(data_root / "mine", "a b c d e", ".", ".")
    save_image(data_root / "mine/IMG_0.jpg", 99)
    (data_root / "mine/000.xml").write_text(f"<annotation><filename>img_0.JPG</filename>{CAT}</annotation>")
    assert "IMG_0.jpg" in files(voc())


def test_lines_of_a_list_with_endings_and_paths(voc_tree: Tree) -> None:
    root = voc_tree(dict.fromkeys("abcd", CAT), "mine")
    lines = "a.jpg\nJPEGImages/b.jpg\n./JPEGImages/c.jpg ./Annotations/c.xml\n/home/me/d.xml\n"
    (root / "ImageSets/Main/train.txt").write_text(lines)
    raw = voc(train=("train.txt",), test=("test",), holdout_fraction=0)
    assert raw.splits["train"].ids.tolist() == [b"a", b"b", b"c", b"d"]


def test_copies_of_an_image_stay_on_one_side_of_the_cut() -> None:
    names = ["x/car_jpg.rf.0a1b2c.jpg", "y/car_jpg.rf.ffff.jpg", "car.png"]
    assert {group_name(name) for name in names} == {"car"}
    assert group_name("00012.jpg") == "00012"


def corners(*boxes: tuple[float, float, float, float]) -> str:
    tags = ("xmin", "ymin", "xmax", "ymax")
    bodies = ("".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, box, strict=True)) for box in boxes)
    return "".join(f"<object><name>cat</name><bndbox>{body}</bndbox></object>" for body in bodies)


@pytest.mark.parametrize(
    ("convention", "boxes"),
    [
        ("relative", [(0.1, 0.1, 0.5, 0.5), (0.4, 0.2, 0.9, 0.8)]),
        ("swapped", [(30, 25, 6, 5), (45, 32, 21, 9)]),
        ("width-height", [(36, 25, 5, 5), (30, 20, 15, 10)]),
    ],
)
def test_another_convention_is_one_error_that_names_it(
    data_root: Path, convention: str, boxes: list[tuple[float, float, float, float]]
) -> None:
    folder(data_root / "mine", "a b c d e f", ".", ".", corners(*boxes))
    with pytest.raises(DataError, match=rf"`corners: {convention}` at datasets\.mine") as caught:
        voc()
    assert "\n" not in str(caught.value)
    raw = voc(corners=convention)
    assert sum(len(index.boxes) for index in raw.splits.values()) == 12
    if convention == "relative":
        np.testing.assert_allclose(raw.splits["train"].boxes[0], [5, 4, 25, 20], atol=1e-4)


def coco(data_root: Path, document: dict[str, Any] | bytes, **values: object) -> RawDataset:
    for number in range(6):
        save_image(data_root / f"mine/images/{number}.jpg", 20 * number)
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    (data_root / "mine/a.json").write_bytes(content)
    parts = (CocoSplit(images="images", annotations="a.json"),)
    entry = {"format": "coco", "path": "mine", "train": parts, "holdout_fraction": 0.3, **values}
    return read("mine", CocoDataset(**entry))  # type: ignore[arg-type]


def document(id_of: Callable[[int], Any], bbox: list[Any] | None = None, **more: object) -> dict[str, Any]:
    return {
        "images": [{"id": id_of(n), "file_name": f"{n}.JPG", "height": None, "width": "50"} for n in range(6)],
        "annotations": [
            {"id": n, "image_id": id_of(n), "category_id": id_of(1), "bbox": bbox or [1, 2, 10, 20], **more}
            for n in range(6)
        ],
        "categories": [{"id": id_of(1), "name": 7}],
    }


@pytest.mark.parametrize("id_of", [str, float, "image {}".format])
def test_ids_flags_and_sizes_that_peers_read(data_root: Path, id_of: Callable[[int], Any]) -> None:
    raw = coco(data_root, document(id_of, iscrowd=None, area="12", score=float("nan")))
    assert raw.classes == ("7",)
    assert sum(len(index.boxes) for index in raw.splits.values()) == 6
    assert raw.problems.counts() == {}


def test_annotations_of_unlisted_images_are_dropped_and_counted(data_root: Path) -> None:
    values = document(int)
    values["annotations"].append({**values["annotations"][0], "image_id": 99})
    assert coco(data_root, values).problems.counts() == {"unlisted_image": 1}


def test_another_encoding_is_named(data_root: Path) -> None:
    text = json.dumps(document(int)).replace("7}", '"caf\u00e9"}')
    with pytest.raises(DataError, match=r"a\.json: .* not UTF-8 at byte \d+.*save it as UTF-8"):
        coco(data_root, text.encode("latin-1"))
    assert coco(data_root, text.encode("utf-16")).classes == ("caf\u00e9",)


def test_an_image_under_two_ids_is_reported(data_root: Path) -> None:
    values = document(int)
    values["images"].append({**values["images"][0], "id": 77})
    with pytest.raises(
        DataError, match=r"duplicate_id: 1: images/0\.jpg: is listed twice, with the ids 0 and 77; give each"
    ):
        coco(data_root, values)


def test_corners_in_coco_are_named_and_classes_can_be_set(data_root: Path) -> None:
    values = document(int, [28, 22, 45, 38])
    with pytest.raises(DataError, match=r"`corners: 0-based` at datasets\.mine"):
        coco(data_root, values)
    raw = coco(data_root, values, corners="0-based", classes=("cat", "7"))
    assert raw.splits["train"].boxes[0].tolist() == [28, 22, 45, 38]
    assert set(raw.splits["train"].labels.tolist()) == {1}
