"""Conversion to COCO, VOC and YOLO: what the format can express comes back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.data.loading.index import Index, Record, pack
from detection.data.sources.checks import Problems
from detection.data.sources.dataset import RawDataset, read
from detection.data.writers import WRITERS, flat_names, write
from detection.errors import DataError
from detection.params.datasets import FORMATS, CocoDataset
from detection.params.schema import build
from detection.params.stages import Checks

CLASSES = ("traffic light", "01", "<a&b>")
FILES = ("x/images/1.png", "y/images/1.png", "y/1.bmp", "z/Caf\u00e9 2.png", "2.png", "3.png")
SPLIT_OF = ("train", "train", "train", "val", "test", "test")

coordinate = st.floats(0, 40, width=32) | st.integers(0, 40).map(float)
side = st.floats(2, 20, width=32) | st.integers(2, 20).map(float)
objects = st.lists(
    st.tuples(coordinate, coordinate, side, side, st.integers(0, 2), st.sampled_from("  dc")), max_size=4
)


def record(file: str, number: int, rows: list[tuple[float, float, float, float, int, str]]) -> Record:
    corners = [(x, y, x + w, y + h) for x, y, w, h, _, _ in rows]
    boxes = np.array(corners, dtype=np.float32).reshape(-1, 4)
    flags = np.array([row[5] for row in rows], dtype="<U1")
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    labels = np.array([row[4] for row in rows], dtype=np.int64)
    return Record(file, str(number), 60, 64, boxes, labels, flags == "d", flags == "c", areas)


def dataset(root: Path, rows: list[list[tuple[float, float, float, float, int, str]]]) -> RawDataset:
    """A dataset with an image file for each of `FILES`; the objects of the first image are never empty."""
    splits: dict[str, list[Record]] = {"train": [], "val": [], "test": []}
    for number, (file, split) in enumerate(zip(FILES, SPLIT_OF, strict=True)):
        path = root / "source" / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 60), (number * 20, 0, 0)).save(path)
        splits[split].append(record(file, number + 7, rows[number] or [(1, 2, 5, 6, 2, " ")]))
    ids = np.array([5, 9, 30])
    packed = {split: replace(pack(records), category_ids=ids) for split, records in splits.items()}
    return RawDataset(
        name="mine",
        entry=CocoDataset(format="coco", path="source", train=()),
        classes=CLASSES,
        splits=packed,
        path="source",
        root=root / "source",
        digest="",
        listing={},
        problems=Problems(Checks()),
    )


def read_back(entry: str) -> RawDataset:
    values = yaml.safe_load(entry)
    problems: list[str] = []
    built = build(FORMATS[values["format"]], values, "mine", problems)
    assert not problems
    return read("mine", built, Checks(duplicate_object="keep", degenerate_box="keep"))


def columns(index: Index, keep: np.ndarray[Any, Any]) -> tuple[list[list[float]], list[int]]:
    kept = index.keep_boxes(keep)
    return kept.boxes.tolist(), kept.labels.tolist()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(objects, min_size=len(FILES), max_size=len(FILES)), st.sampled_from([*WRITERS]), st.booleans())
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[tuple[float, float, float, float, int, str]]],
    target_format: str,
    link: bool,
) -> None:
    root = tmp_path_factory.mktemp("raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(root))
        raw = dataset(root, rows)
        if not (raw.splits["train"].learnable().any() and raw.splits["test"].learnable().any()):
            return
        written = write(raw, target_format, root / "out", link)
        back = read_back(written.entry)
    assert back.classes == CLASSES
    for split, index in raw.splits.items():
        other = back.splits[split]
        keep = np.ones(len(index.labels), dtype=np.bool_) if target_format != "yolo" else index.learnable()
        order = np.argsort([(other.files.tolist().index(file)) for file in _files(raw, split, target_format)])
        expected = index.keep_boxes(keep).select(order)
        assert other.labels.tolist() == expected.labels.tolist()
        assert other.offsets.tolist() == expected.offsets.tolist()
        np.testing.assert_allclose(other.boxes, expected.boxes, rtol=0, atol=1e-6)
        if target_format == "coco":
            for name in ("boxes", "areas", "ids", "sizes", "difficult", "crowd", "category_ids"):
                assert getattr(other, name).tolist() == getattr(expected, name).tolist()
        if target_format == "voc":
            assert other.difficult.tolist() == (expected.difficult | expected.crowd).tolist()
        for one, source in zip(other.files.tolist(), expected.files.tolist(), strict=True):
            assert (back.root / one.decode()).read_bytes() == (raw.root / source.decode()).read_bytes()


def _files(raw: RawDataset, split: str, target_format: str) -> list[bytes]:
    folder = {"coco": "images", "voc": "JPEGImages", "yolo": f"images/{split}"}[target_format]
    names = flat_names([file.decode() for index in raw.splits.values() for file in index.files.tolist()])
    return [f"{folder}/{names[file.decode()]}".encode() for file in raw.splits[split].files.tolist()]


def test_losses_are_named(data_root: Path) -> None:
    rows = [[(1.0, 2.0, 5.0, 6.0, 0, flag)] for flag in "cd    "]
    raw = dataset(data_root, rows)
    losses = {name: "; ".join(write(raw, name, data_root / name).losses) for name in WRITERS}
    assert "1 difficult flags, written as `ignore`" in losses["coco"]
    assert "the mark of 1 crowd, written as difficult" in losses["voc"]
    assert "2 objects marked crowd or difficult, left out" in losses["yolo"]
    assert "6 image ids" in losses["yolo"]
    assert "category ids" in losses["voc"]


def test_names_are_flat_and_their_stems_unique() -> None:
    assert flat_names(FILES) == {
        "x/images/1.png": "1.png",
        "y/images/1.png": "y_images_1.png",
        "y/1.bmp": "y_1.bmp",
        "z/Caf\u00e9 2.png": "Caf\u00e9 2.png",
        "2.png": "2.png",
        "3.png": "3.png",
    }
    assert flat_names(["a/b.jpg", "a_b.jpg", "B.png"]) == {"a/b.jpg": "b.jpg", "a_b.jpg": "a_b.jpg", "B.png": "B_2.png"}


def test_a_folder_with_files_is_refused(data_root: Path) -> None:
    raw = dataset(data_root, [[] for _ in FILES])
    (data_root / "out").mkdir()
    (data_root / "out/notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        write(raw, "coco", data_root / "out")
    assert (data_root / "out/notes.txt").read_text() == "mine"
