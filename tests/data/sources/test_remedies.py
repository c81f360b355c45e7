"""Fixes that messages offer: each is applied as it is written, and does no harm to what is right."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.data.sources.dataset import RawDataset, read
from detection.errors import DataError
from detection.params import VocDataset
from detection.params.stages import Checks

Tree = Callable[..., Path]
BOX = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax><ymax>25</ymax></bndbox>"
CAT = f"<size><width>50</width><height>40</height></size><object><name>cat</name>{BOX}</object>"
IDS = ("a", "b", "c", "d", "e", "f")


def remove_annotation(root: Path) -> None:
    (root / "Annotations/a.xml").unlink()


def break_annotation(root: Path) -> None:
    (root / "Annotations/a.xml").write_text("<annotation><object>")


def add_unknown_class(root: Path) -> None:
    other = f"<object><name>cow</name>{BOX}</object>"
    (root / "Annotations/a.xml").write_text(f"<annotation>{CAT}{other}</annotation>")


def remove_image(root: Path) -> None:
    (root / "JPEGImages/a.jpg").unlink()


def break_image(root: Path) -> None:
    content = (root / "JPEGImages/a.jpg").read_bytes()
    (root / "JPEGImages/a.jpg").write_bytes(content[: len(content) // 2])


def resize_image(root: Path) -> None:
    with Image.open(root / "JPEGImages/a.jpg") as image:
        image.resize((60, 48)).save(root / "JPEGImages/a.jpg")


def copy_into_test(root: Path) -> None:
    (root / "JPEGImages/f.jpg").write_bytes((root / "JPEGImages/a.jpg").read_bytes())


def list_twice(root: Path) -> None:
    with (root / "ImageSets/Main/train.txt").open("a") as file:
        file.write("a\n")


def name_a_file_outside(root: Path) -> None:
    with (root / "ImageSets/Main/train.txt").open("a") as file:
        file.write("../../secret\n")


def entry(**values: object) -> VocDataset:
    return VocDataset(format="voc", path="voc", train=("train",), test=("test",), classes=("cat",), **values)  # type: ignore[arg-type]


def refused(**values: object) -> str:
    with pytest.raises(DataError) as error:
        read("mine", entry(**values))
    return str(error.value)


def with_action(problem_type: str, action: str) -> Checks:
    values: dict[str, Any] = {problem_type: action}
    return Checks(**values)


def names(raw: RawDataset, split: str = "train") -> list[str]:
    return sorted(Path(file.decode()).stem for file in raw.splits[split].files.tolist())


@pytest.mark.parametrize(
    ("damage", "action", "left", "objects"),
    [
        (remove_annotation, "missing_annotation: background", "abcde", 4),
        (break_annotation, "broken_annotation: drop", "bcde", 4),
        (add_unknown_class, "unknown_class: drop", "abcde", 5),
        (remove_image, "missing_image: drop", "bcde", 4),
        (break_image, "broken_image: drop", "bcde", 4),
        (resize_image, "image_size_mismatch: keep", "abcde", 5),
        (copy_into_test, "split_leak: drop", "bcde", 4),
        (list_twice, "duplicate_id: drop", "abcde", 5),
        (name_a_file_outside, "unsafe_name: drop", "abcde", 5),
    ],
)
def test_the_action_that_a_message_names(
    voc_tree: Tree, damage: Callable[[Path], None], action: str, left: str, objects: int
) -> None:
    root = voc_tree(dict.fromkeys(IDS, CAT))
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name in IDS[:-1]))
    (root / "ImageSets/Main/test.txt").write_text("f\n")
    damage(root)
    found = re.search(r"prepare\.checks\.(\w+): (\w+)", refused())
    assert found is not None
    assert f"{found[1]}: {found[2]}" == action
    raw = read("mine", entry(), with_action(found[1], found[2]))
    assert "".join(names(raw)) == left
    assert len(raw.splits["train"].boxes) == objects
    assert names(raw, "test") == ["f"]


def test_a_wrong_folder_is_named_instead_of_dropping_every_image(voc_tree: Tree) -> None:
    root = voc_tree(dict.fromkeys(IDS, CAT))
    (root / "ImageSets/Main/test.txt").write_text("f\n")
    (root / "JPEGImages").rename(root / "pictures")
    (root / "JPEGImages").mkdir()
    message = refused()
    assert "is JPEGImages their folder?" in message
    assert "drop" not in message
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name in IDS[:-1]))
    assert names(read("mine", entry(images="pictures"))) == [*"abcde"]


def test_exif_and_duplicates_that_are_refused_on_demand_can_be_kept(voc_tree: Tree) -> None:
    root = voc_tree(dict.fromkeys(IDS, CAT + CAT[CAT.index("<object>") :]))
    (root / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name in IDS[:-1]))
    (root / "ImageSets/Main/test.txt").write_text("f\n")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(root / "JPEGImages/a.jpg", exif=exif)
    for problem_type in ("duplicate_object", "exif_rotation"):
        with pytest.raises(DataError, match=rf"prepare\.checks\.{problem_type}: keep"):
            read("mine", entry(), with_action(problem_type, "error"))
    assert len(read("mine", entry()).splits["train"].boxes) == 10
