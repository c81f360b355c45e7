"""YOLO folders as tools write them: boxes are read exactly, every problem is reported."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.data.sources.dataset import RawDataset, examine, read
from detection.data.sources.layout import check_present
from detection.errors import DataError
from detection.params import YoloDataset
from detection.params.stages import Checks

WIDTH, HEIGHT = 50, 40
NAMES = "names: [cat, dog]\n"
BOX = "0 0.5 0.5 0.2 0.4\n"


def image(path: Path) -> None:
    """A random image that no other file equals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = np.random.default_rng(list(path.name.encode())).integers(0, 255, (5, 5, 3), np.uint8)
    Image.fromarray(own).resize((WIDTH, HEIGHT)).save(path)


def tree(root: Path, files: dict[str, str | bytes | None]) -> Path:
    """Writes text files, and an image where the content is None."""
    for name, content in files.items():
        path = root / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            image(path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root / "mine"


def split(folder: str, stems: str, label: str | bytes = BOX) -> dict[str, str | bytes | None]:
    """Images and labels in `images/FOLDER` and `labels/FOLDER`."""
    files: dict[str, str | bytes | None] = {}
    for stem in stems.split():
        files |= {f"images/{folder}/{stem}.jpg": None, f"labels/{folder}/{stem}.txt": label}
    return files


def yolo(**values: Any) -> YoloDataset:
    return YoloDataset(**{"format": "yolo", "path": "mine", **values})


def load(checks: Checks | None = None, **values: Any) -> RawDataset:
    check_present("mine", yolo(**values))
    return read("mine", yolo(**values), checks)


def files(raw: RawDataset) -> dict[str, list[str]]:
    return {name: [file.decode() for file in index.files.tolist()] for name, index in raw.splits.items()}


STANDARD = {**split("train", "a b"), **split("val", "c"), **split("test", "d")}
SPLITS = "train: images/train\nval: images/val\ntest: images/test\n"
EXPECTED = {
    "train": ["images/train/a.jpg", "images/train/b.jpg"],
    "val": ["images/val/c.jpg"],
    "test": ["images/test/d.jpg"],
}


@pytest.mark.parametrize(
    "description",
    [
        NAMES + SPLITS,
        "names:\n  0: cat\n  1: dog\n" + SPLITS,
        f"path: .\nnc: 2\n{NAMES}{SPLITS}",
        f"path: ../datasets/somewhere  # gone\n{NAMES}{SPLITS}",
        f"path: C:\\Users\\me\\mine\n{NAMES}{SPLITS}",
        NAMES + SPLITS.replace("images/", "../images/"),
        NAMES + SPLITS.replace("images/", "/home/me/old/images/"),
        NAMES + SPLITS.replace("images/", "D:\\data\\Images\\"),
        NAMES + "train: [images/train]\nvalid: ./images/val\ntest: [images/test]\n",
        "\ufeff" + (NAMES + SPLITS).replace("\n", "\r\n"),
    ],
)
def test_splits_and_names_of_data_yaml(data_root: Path, description: str) -> None:
    tree(data_root, {**STANDARD, "data.yaml": description})
    raw = load()
    assert raw.classes == ("cat", "dog")
    assert files(raw) == EXPECTED
    assert raw.problems.counts() == {}
    assert raw.splits["train"].boxes.tolist() == [[20, 12, 30, 28]] * 2


def test_a_description_in_a_folder_and_its_path(data_root: Path) -> None:
    tree(data_root, {**STANDARD, "conf/mine.yaml": f"path: ..\n{NAMES}{SPLITS}"})
    assert files(load(data="conf/mine.yaml")) == EXPECTED


@pytest.mark.parametrize(
    "lines",
    [
        ("images/train/a.jpg", "./images/train/b.jpg"),
        ("/content/mine/images/train/a.jpg", "data/images/train/b.jpg"),
        ("images\\train\\a.jpg", "C:\\mine\\images\\train\\B.JPG"),
        ("# two images", "", "images/train/a.jpg ", "images/train/b.jpg"),
    ],
)
def test_lists_of_images(data_root: Path, lines: tuple[str, ...]) -> None:
    lists = {"train.txt": "\r\n".join(lines), "val.txt": "images/val/c.jpg", "test.txt": "images/test/d.jpg\n"}
    description = f"{NAMES}path: ./\ntrain: train.txt\nval: val.txt\ntest: test.txt\n"
    tree(data_root, {**STANDARD, **lists, "data.yaml": description})
    assert files(load()) == EXPECTED


def test_a_list_names_what_is_missing_or_repeated(data_root: Path) -> None:
    tree(data_root, {**STANDARD, "train.txt": "images/train/a.jpg\nimages/train/x.jpg\nimages/train/a.jpg\n"})
    tree(data_root, {"data.yaml": NAMES + SPLITS.replace("images/train", "train.txt")})
    with pytest.raises(DataError, match=r"(?s)train\.txt: line 3.*listed twice.*train\.txt: line 2.*does not exist"):
        load()


def test_images_beside_their_labels_and_darknet(data_root: Path) -> None:
    """CVAT's YOLO 1.1."""
    tree(data_root, {f"obj_train_data/{name}.jpg": None for name in "abcdefgh"})
    tree(data_root, {f"obj_train_data/{name}.txt": BOX for name in "abcdefg"})
    lines = "".join(f"data/obj_train_data/{name}.jpg\n" for name in "abcdefgh")
    description = "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    tree(data_root, {"obj.data": description, "obj.names": "cat\ndog\n", "train.txt": lines})
    raw = load(holdout_fraction=0.3)
    assert raw.classes == ("cat", "dog")
    assert sum(len(index) for index in raw.splits.values()) == 8
    assert sum(len(index.boxes) for index in raw.splits.values()) == 7


def test_without_data_yaml(data_root: Path) -> None:
    """Label Studio: images, labels, classes.txt; or names in the entry."""
    tree(data_root, {f"images/{name}.jpg": None for name in "abcdefgh"})
    tree(data_root, {f"labels/{name}.txt": BOX for name in "abcdefgh"})
    with pytest.raises(DataError, match=r"data\.yaml and classes\.txt are missing; .*datasets\.mine\.classes"):
        load(holdout_fraction=0.3)
    assert load(holdout_fraction=0.3, classes=("tree", "car")).classes == ("tree", "car")
    tree(data_root, {"notes.json": '{"categories": [{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}]}'})
    assert load(holdout_fraction=0.3).classes == ("cat", "dog")
    tree(data_root, {"classes.txt": "01\n02\n"})
    raw = load(holdout_fraction=0.3)
    assert raw.classes == ("01", "02")
    assert not [file for part in files(raw).values() for file in part if not file.startswith("images/")]


@pytest.mark.parametrize("labels", ["annos", "annos/"])
def test_labels_can_be_named(data_root: Path, labels: str) -> None:
    tree(data_root, {f"photos/{name}.png": None for name in "abcdefgh"})
    tree(data_root, {f"annos/{name}.txt": BOX for name in "abcdefgh"})
    tree(data_root, {"data.yaml": f"{NAMES}train: photos\n"})
    with pytest.raises(DataError, match=r"none of the 8 images of photos has a label file.*`labels`"):
        load(holdout_fraction=0.3)
    assert len(load(holdout_fraction=0.3, labels=labels).splits["train"].boxes)


def test_empty_and_missing_label_files_are_background(data_root: Path) -> None:
    extra = {"images/train/e.jpg": None, "images/train/f.JPG": None, "labels/train/f.txt": "\n# nothing\n"}
    tree(data_root, {**STANDARD, **extra, "data.yaml": NAMES + SPLITS})
    raw = load()
    assert len(raw.splits["train"]) == 4
    assert len(raw.splits["train"].boxes) == 2
    assert raw.problems.counts() == {}


def labeled(data_root: Path, label: str | bytes, more: str = "", **values: Any) -> RawDataset:
    """Reads a dataset whose image `e` has the given label file, without refusing it."""
    tree(data_root, {**STANDARD, **split("train", "e", label), "data.yaml": more or NAMES + SPLITS})
    return examine("mine", yolo(**values), Checks())


@pytest.mark.parametrize(
    ("label", "problem", "words"),
    [
        ("0 0.5 0.5 0.2\n", "broken_annotation", "line 1: 4 columns"),
        (BOX + "0 0.5 0.5 0.2 0.2 0.9\n", "broken_annotation", "line 2: 6 columns.*score"),
        ("0 0,5 0,5 0,2 0,2\n", "broken_annotation", "not a line of numbers"),
        ("cat 0.5 0.5 0.2 0.2\n", "broken_annotation", "not a line of numbers"),
        ("0 nan 0.5 0.2 0.2\n", "broken_annotation", "not finite"),
        ("2 0.5 0.5 0.2 0.2\n", "unknown_class", "index 2; .* 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2\n", "unknown_class", "index -1"),
        ("0.5 0.5 0.5 0.2 0.2\n", "unknown_class", r"index 0\.5"),
        ("0 0.5 0.5 0 0.2\n", "zero_area", "cat with 0.5 0.5 0 0.2"),
        ("0 0.9 0.5 0.6 0.2\n", "box_outside_image", "in an image of 50x40"),
        (BOX + BOX, "duplicate_object", "annotated before"),
        (b"\x89PNG\r\n", "broken_annotation", "not a line of numbers"),
    ],
)
def test_faults_of_a_label_file(data_root: Path, label: str | bytes, problem: str, words: str) -> None:
    problems = labeled(data_root, label).problems
    assert problems.counts() == {problem: 1}
    assert "labels/train/e.txt" in problems.entries[0].where or problem in ("box_outside_image", "duplicate_object")
    assert len([one for one in problems.entries if re.search(words, str(one))]) == 1


@pytest.mark.parametrize(
    "label",
    [
        "\ufeff0 .5 .5 .2 .4\r\n",
        "0.0\t0.5  0.5 2e-1 0.4",
        "0 0.4 0.3 0.6 0.3 0.6 0.7\n",
        "0 0.5 0.3 0.6 0.5 0.5 0.7 .4 .5",
    ],
)
def test_ways_to_write_a_box_or_a_polygon(data_root: Path, label: str) -> None:
    for content in (label, label.strip("\ufeff").encode("utf-16")):
        raw = labeled(data_root, content)
        assert raw.problems.counts() == {}
        np.testing.assert_allclose(raw.splits["train"][2].boxes, [[20, 12, 30, 28]], rtol=1e-6)


def test_keypoints_follow_the_box(data_root: Path) -> None:
    more = NAMES + SPLITS + "kpt_shape: [2, 2]\n"
    assert labeled(data_root, BOX.strip() + " 0.1 0.1 0.9 0.9\n", more).splits["train"][2].boxes.tolist() == [
        [20, 12, 30, 28]
    ]


def test_names_that_contradict_each_other(data_root: Path) -> None:
    tree(data_root, {**STANDARD, "data.yaml": f"nc: 3\n{NAMES}{SPLITS}"})
    with pytest.raises(DataError, match=r"nc: 3 and 2 names"):
        load()
    tree(data_root, {"data.yaml": f"names: [cat, cat]\n{SPLITS}"})
    with pytest.raises(DataError, match="several classes have the name 'cat'"):
        load()
    assert load(Checks(duplicate_id="drop")).classes == ("cat",)


def test_class_indices_with_gaps_and_selected_classes(data_root: Path) -> None:
    names = "names:\n  3: dog\n  7: cat\n"
    raw = labeled(data_root, "7 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n", names + SPLITS)
    assert raw.classes == ("dog", "cat")
    assert raw.splits["train"].labels.tolist() == [1]
    assert raw.problems.counts() == {"unknown_class": 5}
    raw = labeled(data_root, "1 0.5 0.5 0.2 0.2\n", classes=("dog",))
    assert raw.splits["train"].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("convention", "label"),
    [
        ("center-pixels", "0 25 20 10 16\n"),
        ("relative", "0 0.4 0.3 0.6 0.7\n1 0.7 0.1 0.9 0.8\n"),
        ("0-based", "0 20 12 30 28\n1 0 0 45 38\n"),
        ("center-pixels", "0 20 12 30 12 30 28\n"),
    ],
)
def test_another_convention_is_named(data_root: Path, convention: str, label: str) -> None:
    tree(data_root, {**split("train", "a b c d e f", label), "data.yaml": f"{NAMES}train: images/train\n"})
    with pytest.raises(DataError, match=rf"`corners: {convention}` at datasets\.mine"):
        load(holdout_fraction=0.3)
    raw = load(holdout_fraction=0.3, corners=convention)
    assert raw.problems.counts() == {}
    assert [20, 12, 30, 28] in raw.splits["train"].boxes.tolist()


def test_two_images_of_one_label_file(data_root: Path) -> None:
    tree(data_root, {**STANDARD, "images/train/a.PNG": None, "data.yaml": NAMES + SPLITS})
    with pytest.raises(DataError, match=r"duplicate_id: 1: images/train/a\.\w+: and a\.\w+ have the same label"):
        load()


def test_labels_without_an_image(data_root: Path) -> None:
    tree(data_root, {**STANDARD, "labels/train/z.txt": BOX, "labels/train/y.txt": "", "data.yaml": NAMES + SPLITS})
    with pytest.raises(DataError, match=r"missing_image: 1: labels/train/z\.txt: is the label file of no image"):
        load()


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (SPLITS, "data.yaml has no names; .*classes"),
        (NAMES + "train: images/tarin\n", r"train: 'images/tarin' \(train: of data\.yaml\) is not in"),
        (
            NAMES + SPLITS.replace("test: images/test", "test: ../elsewhere"),
            r"datasets\.mine\.test: \[\] and use holdout",
        ),
        (NAMES + "train: images/train\n", "has no test: set it, or `holdout_fraction"),
        ("names: {a: cat}\n" + SPLITS, "names: 'a': 'cat' is not an index and a name"),
        ('names: [cat]\npath: "C:\\Users"\n', "line 2: not valid YAML"),
        ("- cat\n", "not a mapping"),
    ],
)
def test_a_description_that_cannot_be_used(data_root: Path, description: str, message: str) -> None:
    tree(data_root, {**STANDARD, "data.yaml": description})
    with pytest.raises(DataError, match=message):
        load()


def test_a_missing_split_can_be_replaced(data_root: Path) -> None:
    """Roboflow lists a test split that it does not export."""
    tree(data_root, {**split("train", "a b c d e f g h"), **split("val", "v")})
    tree(data_root, {"data.yaml": NAMES + SPLITS})
    raw = load(test=(), holdout_fraction=0.3)
    assert files(raw)["val"] == ["images/val/v.jpg"]
    assert files(raw)["test"]


def test_names_outside_the_folder_are_never_read(data_root: Path) -> None:
    image(data_root / "secret/images/x.jpg")
    tree(data_root, {**STANDARD, "data.yaml": NAMES + SPLITS.replace("images/train", "../secret/images")})
    raw = examine("mine", yolo(), Checks())
    assert not [file for part in files(raw).values() for file in part if not file.startswith("images/")]


box = st.tuples(*[st.floats(0, WIDTH - 2), st.floats(0, HEIGHT - 2), st.floats(1, WIDTH), st.floats(1, HEIGHT)])


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(box, min_size=1, max_size=5), st.booleans())
def test_boxes_are_the_float64_product_rounded_once(
    data_root: Path, boxes: list[tuple[float, float, float, float]], polygon: bool
) -> None:
    sides = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=np.float64)
    corners = np.array([(x, y, min(x + w, WIDTH), min(y + h, HEIGHT)) for x, y, w, h in boxes]) / sides
    center, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    rows = corners[:, [0, 1, 2, 1, 2, 3, 0, 3]] if polygon else np.concatenate([center, size], axis=1)
    text = "".join("1 " + " ".join(map(repr, row)) + "\n" for row in rows.tolist())
    read_back = labeled(data_root, text).splits["train"][2]
    assert read_back.boxes.dtype == np.float32
    expected = np.concatenate([center - size / 2, center + size / 2], axis=1) * sides
    np.testing.assert_allclose(read_back.boxes, expected, rtol=0, atol=4e-6)  # half a unit of float32 at 50 pixels
    assert set(read_back.labels.tolist()) == {1}
