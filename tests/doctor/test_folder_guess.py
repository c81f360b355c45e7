"""Exports of labeling tools: recognized, read exactly, and with the entries of docs/datasets.md."""

import re
from pathlib import Path

import numpy as np
import pytest

from detection.commands.data import doctor
from detection.data.sources.dataset import RawDataset, read
from detection.doctor.folder_guess import build_entry, split_of, suggest
from detection.errors import DataError
from tests.doctor.tool_exports import ALL, CLASSES, EXPORTS, SPLITS, objects, save_image, write

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")


@pytest.fixture
def raw_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return tmp_path


def suggested(text: str, name: str = "mine") -> str:
    """The entry in the doctor's text."""
    (found,) = re.findall(rf"^  {name}: (\{{format: .*\}})$", text, re.MULTILINE)
    return str(found)


def number_of(file: str) -> int:
    return int(re.search(r"IMG_(\d+)", file).group(1))  # type: ignore[union-attr]


def test_a_mistyped_folder_is_not_taken_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(DataError, match=r"folder data/raw/mnie does not exist; .*shapes"):
        doctor("data/raw/mnie")


@pytest.mark.parametrize("export", EXPORTS)
def test_every_export_is_read_exactly(raw_root: Path, export: str) -> None:
    EXPORTS[export](raw_root / "mine")
    text = suggest(raw_root / "mine", [])
    entry = suggested(text)
    assert f"`mine: {entry}`" in PAGE, entry
    raw = read("mine", build_entry("mine", entry))
    assert raw.classes == CLASSES
    assert raw.problems.counts() == {}
    seen = sorted(check_objects(raw))
    assert seen == [*ALL]
    if export.startswith("roboflow"):
        for split, numbers in zip(raw.splits, SPLITS.values(), strict=True):
            assert [number_of(file.decode()) for file in raw.splits[split].files.tolist()] == [*numbers]


def check_objects(raw: RawDataset) -> list[int]:
    """Compare the objects of every image with the truth; return the numbers of the images."""
    numbers = []
    for index in raw.splits.values():
        for record in map(index.__getitem__, range(len(index))):
            number = number_of(record.file)
            numbers.append(number)
            truth = objects(number)
            assert record.labels.tolist() == [one.label for one in truth]
            boxes = np.array([one.box for one in truth], dtype=np.float64).reshape(-1, 4)
            np.testing.assert_allclose(record.boxes, boxes, rtol=0, atol=1e-4)  # YOLO has six decimals
    return numbers


def test_a_missing_test_folder_of_data_yaml(raw_root: Path) -> None:
    EXPORTS["roboflow_yolo"](raw_root / "mine")
    for path in sorted((raw_root / "mine/test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (raw_root / "mine/test").rmdir()
    assert suggested(suggest(raw_root / "mine", [])) == "{format: yolo, path: mine, test: [], holdout_fraction: 0.2}"


def test_voc_lists_and_split_folders_of_yolo_without_data_yaml(raw_root: Path) -> None:
    EXPORTS["cvat_voc"](raw_root / "lists")
    for name in ("train", "val", "trainval"):
        write(raw_root / f"lists/ImageSets/Main/{name}.txt", "IMG_000\n")
    (raw_root / "lists/ImageSets/Main/default.txt").unlink()
    assert "train: [train], val: [val], holdout" in suggested(suggest(raw_root / "lists", []), "lists")
    EXPORTS["cvat_ultralytics"](raw_root / "plain")
    for name in ("data.yaml", "train.txt"):
        (raw_root / "plain" / name).unlink()
    save_image(raw_root / "plain/images/test/IMG_900.jpg", 900)
    write(raw_root / "plain/labels/test/IMG_900.txt", "1 0.5 0.5 0.5 0.5\n")
    text = suggest(raw_root / "plain", [])
    assert "train: [images/train], test: [images/test], classes: [class_0, class_1]" in text


def test_names_are_free_and_paths_outside_data_root_absolute(
    raw_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("else") / "my set.v2"
    EXPORTS["labelimg_yolo"](outside)
    text = suggest(outside, ["my_set_v2"])
    entry = suggested(text, "my_set_v2_2")
    assert f'path: "{outside}"' in entry
    assert read("x", build_entry("x", entry)).classes == CLASSES
    assert "ln -s" in text


def test_a_link_below_data_root_keeps_its_name(raw_root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("else") / "pets"
    EXPORTS["labelimg_yolo"](outside)
    (raw_root / "mine").symlink_to(outside)
    text = suggest(raw_root / "mine", [])
    assert "path: mine" in suggested(text, "mine")
    assert "ln -s" not in text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "it has no files"),
        ({"a.csv": "filename,file_size,region_count"}, r"1 \.csv; .*VIA"),
        ({"a.json": '{"shapes": []}'}, r"1 \.json; LabelMe"),
        ({"annotations.xml": "<annotations><image><box/></image></annotations>"}, "CVAT's own"),
        ({"a.txt": "hello there", "classes.txt": "cat"}, r"2 \.txt"),
    ],
)
def test_what_no_reader_takes_is_said(raw_root: Path, files: dict[str, str], message: str) -> None:
    (raw_root / "mine").mkdir()
    for name, text in files.items():
        write(raw_root / "mine" / name, text)
    with pytest.raises(DataError, match=f"not recognized as VOC, COCO or YOLO: .*{message}"):
        suggest(raw_root / "mine", [])


def test_splits_in_names() -> None:
    names = ("instances_val2017", "images/train", "valid/_annotations.coco", "trainval", "contest", "Testing/x")
    assert [split_of(name) for name in names] == ["val", "train", "val", "train", None, "test"]
