"""Fingerprint of raw files: what changes it, what does not, and what is read again."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from detection.data.sources import fingerprint as module
from detection.data.sources import shapes_generator as generator
from detection.data.sources.dataset import raw_digest, read
from detection.data.sources.fingerprint import fingerprint
from detection.errors import DataError
from detection.files import read_json
from detection.params.datasets import CocoDataset, CocoSplit, Dataset, ShapesDataset, VocDataset, YoloDataset
from detection.params.stages import Checks

OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
LISTS = VocDataset(format="voc", path="voc", train=("train",), test=("test",))
COCO = CocoDataset(format="coco", path="coco", train=(CocoSplit(images="images", annotations="a.json"),), test=())
Take = Callable[..., str]
Tree = Callable[..., Path]


@pytest.fixture
def root(voc_tree: Tree, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dataset of two images, older than the resolution of times."""
    monkeypatch.setenv("DVC_ROOT", str(data_root.parent))
    folder = voc_tree({"a": OBJECT, "b": OBJECT})
    (folder / "ImageSets/Main/train.txt").write_text("a\n")
    (folder / "ImageSets/Main/test.txt").write_text("b\n")
    monkeypatch.setattr(module, "TIME_RESOLUTION_NS", 0)
    return folder


def take(dataset: Dataset = LISTS) -> str:
    return fingerprint("mine", dataset, Checks())[0]


def test_a_correction_of_equal_length_an_image_and_a_list_change_it(root: Path) -> None:
    seen = [take()]
    xml = root / "Annotations/a.xml"
    xml.write_text(xml.read_text().replace("<xmax>9", "<xmax>8"))
    seen.append(take())
    shutil.copy(root / "JPEGImages/a.jpg", root / "JPEGImages/c.jpg")
    seen.append(take())
    shutil.copy(xml, root / "Annotations/c.xml")
    seen.append(take())
    (root / "ImageSets/Main/train.txt").write_text("a\nc\n")
    seen.append(take())
    with (root / "JPEGImages/c.jpg").open("ab") as file:
        file.write(b"more")
    seen.append(take())
    (root / "JPEGImages/c.jpg").unlink()
    seen.append(take())
    assert len(set(seen)) == len(seen)


def test_touch_a_copy_and_unused_files_do_not_change_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take()
    os.utime(root / "Annotations/a.xml", (1, 1))
    (root / "JPEGImages/._a.jpg").write_bytes(b"macOS")
    (root / "notes.txt").write_text("not a list")
    assert take() == first
    clone = root.parent.parent / "clone"
    shutil.copytree(root, clone / "raw/voc")
    monkeypatch.setenv("DVC_ROOT", str(clone))
    monkeypatch.setenv("DATA_ROOT", "raw")
    assert take() == first


def test_only_changed_files_are_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = take()
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("an unchanged file was read"))
    assert take() == first


def test_a_file_that_was_written_just_now_is_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIME_RESOLUTION_NS", 60_000_000_000)
    listing = module.list_files(root, LISTS, {})
    assert listing["Annotations/a.xml"].stat == module.UNKNOWN


def test_a_damaged_record_is_written_anew(root: Path) -> None:
    first = take()
    (record,) = (root.parent.parent / ".checkpoints/check").iterdir()
    record.write_text('{"files": {')
    assert take() == first
    assert len(read_json(record)["files"]) == 6


def test_pinned_data_that_changed_is_refused_with_the_files(root: Path) -> None:
    pinned = replace(LISTS, digest=raw_digest("mine", LISTS, Checks()))
    assert pinned.digest == read("mine", LISTS).digest
    assert take(pinned) == take(pinned) == take()
    take(pinned)
    xml = root / "Annotations/a.xml"
    original = xml.read_text()
    xml.write_text(original.replace("<xmax>9", "<xmax>8"))
    shutil.copy(root / "JPEGImages/a.jpg", root / "JPEGImages/c.jpg")
    for refuse in (lambda: take(pinned), lambda: take(pinned), lambda: read("mine", pinned)):
        with pytest.raises(DataError) as error:
            refuse()
        assert "JPEGImages/c.jpg added; Annotations/a.xml changed (found " in str(error.value)
        assert str(error.value).endswith("; restore the data, or run `detection pin mine` to use it as is")
    xml.write_text(original)
    take(pinned)  # the added image is in no list: the digest is the pinned one


def test_a_digest_of_other_data_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"pinned datasets\.mine\.digest \(found .*, expected 00"):
        take(replace(LISTS, digest="0" * 32))


def test_the_changes_are_described(root: Path) -> None:
    take()
    for name in ("a", "b"):
        (root / f"Annotations/{name}.xml").unlink()
    assert fingerprint("mine", LISTS, Checks())[1] == "Annotations/a.xml, Annotations/b.xml removed"
    assert fingerprint("mine", LISTS, Checks())[1] == ""


def test_a_flat_folder(root: Path) -> None:
    flat = VocDataset(format="voc", path="flat", train=("./",), holdout_fraction=0.1)
    folder = root.parent / "flat"
    (folder / "more").mkdir(parents=True)
    shutil.copy(root / "Annotations/a.xml", folder / "more/a.xml")
    first = take(flat)
    shutil.copy(root / "JPEGImages/a.jpg", folder / "more/a.jpg")
    assert take(flat) != first


def test_coco(root: Path) -> None:
    folder = root.parent / "coco"
    (folder / "images").mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    seen = [take(COCO)]
    (folder / "a.json").write_text("[]")
    seen.append(take(COCO))
    shutil.copy(root / "JPEGImages/a.jpg", folder / "images/a.jpg")
    seen.append(take(COCO))
    (folder / "images/.DS_Store").touch()
    assert len(set(seen)) == 3
    assert take(COCO) == seen[-1]


def test_yolo(root: Path) -> None:
    yolo = YoloDataset(format="yolo", path="yolo", holdout_fraction=0.1)
    folder = root.parent / "yolo"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    shutil.copy(root / "JPEGImages/a.jpg", folder / "images/a.jpg")
    (folder / "data.yaml").write_text("names: [cat]\n")
    (folder / "labels/a.txt").write_text("0 0.5 0.5 0.1 0.2\n")
    pinned = replace(yolo, digest=raw_digest("mine", yolo, Checks()))
    assert take(pinned) == take(yolo)
    seen = [take(yolo)]
    (folder / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.1\n")
    seen.append(take(yolo))
    (folder / "data.yaml").write_text("names: [dog]\n")
    seen.append(take(yolo))
    (folder / "images/a.jpg").unlink()
    seen.append(take(yolo))
    assert len(set(seen)) == 4


def test_shapes_are_the_same_before_and_after_they_are_generated(data_root: Path, root: Path) -> None:
    shapes = ShapesDataset(format="shapes", path="shapes", train=3, val=1, test=1)
    first = take(shapes)
    tree = generator.ensure(shapes)
    assert take(shapes) == first
    xml = tree / "Annotations/000001.xml"
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1"))
    assert take(shapes) != first
