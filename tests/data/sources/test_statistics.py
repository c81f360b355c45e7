"""Dataset card."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detection.data.loading.index import Record, pack
from detection.data.sources import statistics
from detection.data.sources.dataset import read
from detection.params import ShapesDataset

SMALL = ShapesDataset(format="shapes", path="shapes", train=6, val=0, test=3)


def record(name: str, boxes: Sequence[Sequence[float]], difficult: list[bool] | None = None) -> Record:
    count = len(boxes)
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return Record(
        file=f"{name}.jpg",
        id=name,
        height=100,
        width=200,
        boxes=corners,
        labels=np.arange(count) % 2,
        difficult=np.array(difficult or [False] * count, dtype=np.bool_),
        crowd=np.zeros(count, dtype=np.bool_),
        areas=np.prod(corners[:, 2:] - corners[:, :2], axis=1),
    )


def test_statistics_of_a_split() -> None:
    boxes = [[0, 10, 50, 60], [40, 20, 90, 40], [100, 20, 150, 99]]
    index = pack([record("a", boxes, difficult=[True, False, False]), record("b", []), record("c", [[9, 9, 29, 19]])])
    card = statistics.describe_split(index, ("cat", "dog"))
    assert (card["images"], card["objects"], card["empty_images"]) == (3, 4, 1)
    assert card["objects_by_class"] == {"cat": 3, "dog": 1}
    assert card["overlapping"] == 0.5
    assert card["at_border"] == 0.25
    assert card["difficult"] == 0.25
    assert card["box_side_fraction"]["min"] == 0.1
    assert card["box_side_fraction"]["max"] == 79 / 200
    assert card["objects_per_image"]["max"] == 3


def test_fractions_of_an_empty_split_are_none() -> None:
    card = statistics.describe_split(pack([]), ("cat",))
    assert (card["images"], card["objects"], card["objects_by_class"]) == (0, 0, {"cat": 0})
    assert card["overlapping"] is None
    assert card["box_side_fraction"] is None


def test_files(data_root: Path, tmp_path: Path) -> None:
    entry = replace(SMALL, license="mine")
    raw = read("small", entry)
    statistics.save(statistics.describe(raw, entry), tmp_path)
    saved = json.loads((tmp_path / "card.json").read_text())
    assert (saved["name"], saved["license"], saved["digest"]) == ("small", "mine", raw.digest)
    lines = [line.split(",") for line in (tmp_path / "classes.csv").read_text().splitlines()]
    assert lines[0] == ["class", "train", "val", "test"]
    assert [line[0] for line in lines[1:]] == list(raw.classes)
    assert sum(int(line[1]) for line in lines[1:]) == len(raw.splits["train"].boxes)
