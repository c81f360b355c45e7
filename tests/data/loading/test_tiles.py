"""Windows of large images: cover, geometry, pixels, and detections that come back whole."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detection.data.loading.index import Index, Record, pack
from detection.data.loading.loader import DetectionDataset
from detection.data.loading.tiles import cut, starts, windows_of
from detection.evaluation.protocol.results import SplitDetections
from detection.inference import merge_windows
from detection.params import load
from detection.params.stages import Tiles

RECIPE = load().recipe
tiles_of = st.builds(Tiles, size=st.integers(8, 60), overlap=st.floats(0, 0.9), min_visible=st.floats(0, 1))


def image(
    height: int, width: int, boxes: Sequence[tuple[float, ...]], labels: list[int], file: str = "a.png"
) -> Record:
    own = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    flags = np.zeros(len(own), np.bool_)
    areas = np.prod(own[:, 2:] - own[:, :2], axis=1)
    return Record(file, file, height, width, own, np.array(labels, dtype=np.int64), flags, flags, areas)


@given(st.integers(1, 400), tiles_of)
def test_windows_cover_a_side_and_overlap(length: int, tiles: Tiles) -> None:
    corners = starts(length, tiles)
    size = min(length, tiles.size)
    assert corners[0] == 0
    assert corners[-1] + size == length
    shared = [first + size - second for first, second in pairwise(corners)]
    assert all(one >= min(tiles.overlap * tiles.size, tiles.size - 1) for one in shared)


@settings(deadline=None)
@given(st.integers(10, 200), st.integers(10, 200), tiles_of, st.data())
def test_objects_of_a_window(height: int, width: int, tiles: Tiles, data: st.DataObject) -> None:
    corner = st.tuples(st.integers(0, width - 2), st.integers(0, height - 2), st.integers(1, 40), st.integers(1, 40))
    boxes = [(x, y, min(x + w, width), min(y + h, height)) for x, y, w, h in data.draw(st.lists(corner, max_size=5))]
    whole = pack([image(3, 5, [], []), image(height, width, boxes, [*range(len(boxes))])])
    index = cut(whole, tiles)
    assert len(index) == 1 + len(windows_of(height, width, tiles))
    shown: set[int] = set()
    for row in range(1, len(index)):
        record, (owner, left, top, *size) = index[row], index.windows[row].tolist()
        assert (owner, size) == (1, [height, width])
        expected = []
        for label, (x1, y1, x2, y2) in enumerate(boxes):
            a, b = max(x1, left), max(y1, top)
            c, d = min(x2, left + record.width), min(y2, top + record.height)
            area, visible = (x2 - x1) * (y2 - y1), max(c - a, 0) * max(d - b, 0)
            if visible and visible / area >= tiles.min_visible:
                expected.append((label, [a - left, b - top, c - left, d - top]))
                shown |= {label} if visible == area else set()
        assert list(zip(record.labels.tolist(), record.boxes.tolist(), strict=True)) == expected
    limit = tiles.overlap * tiles.size
    small = {i for i, (x1, y1, x2, y2) in enumerate(boxes) if x2 - x1 <= limit and y2 - y1 <= limit}
    assert small <= shown


@settings(deadline=None)
@given(st.integers(60, 200), st.integers(60, 200), st.data())
def test_perfect_detections_of_windows_are_the_objects(height: int, width: int, data: st.DataObject) -> None:
    """For objects smaller than the overlap that do not overlap each other."""
    tiles = Tiles(size=64, overlap=0.4, min_visible=0.2)
    cells = data.draw(st.sets(st.tuples(st.integers(0, width // 30 - 1), st.integers(0, height // 30 - 1)), max_size=9))
    boxes = [(x * 30 + 2, y * 30 + 3, x * 30 + 2 + 12 + 5 * (x % 3), y * 30 + 23) for x, y in sorted(cells)]
    whole = pack(
        [image(40, 40, [(3, 4, 20, 21)], [1]), image(height, width, boxes, [i % 2 for i in range(len(boxes))])]
    )
    index = cut(whole, tiles)
    scores = np.random.default_rng(0).random(len(index.labels))
    merged = merge_windows(SplitDetections.pack(index.image_rows(), index.boxes, scores, index.labels), index, RECIPE)
    for row in range(2):
        mine = merged.images == row
        found = sorted(zip(merged.labels[mine].tolist(), merged.boxes[mine].tolist(), strict=True))
        assert found == sorted(zip(whole[row].labels.tolist(), whole[row].boxes.tolist(), strict=True))
        assert (np.diff(merged.scores[mine]) <= 0).all()


def test_no_detections_and_the_limit_of_an_image() -> None:
    index = cut(pack([image(300, 300, [], [])]), Tiles(size=100, overlap=0))
    assert len(merge_windows(SplitDetections.pack([], [], [], []), index, RECIPE)) == 0
    boxes = [(x, y, x + 3, y + 3) for x in range(10, 90, 10) for y in range(10, 90, 10)]
    found = SplitDetections.pack(np.repeat(np.arange(9), 64), boxes * 9, np.linspace(1, 0.1, 576), np.zeros(576))
    merged = merge_windows(found, index, RECIPE)
    assert len(merged) == RECIPE.detections_per_image
    assert merged.scores.min() == found.scores[RECIPE.detections_per_image - 1]


@pytest.fixture
def large(tmp_path: Path) -> Index:
    pixels = np.random.default_rng(0).integers(0, 255, (150, 230, 3), np.uint8)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels if name == "a.png" else pixels[::-1]).save(tmp_path / name)
    return pack([image(150, 230, [(5, 5, 25, 30), (90, 90, 130, 120)], [0, 1], name) for name in ("a.png", "b.png")])


def test_a_window_has_the_pixels_of_its_place(large: Index, tmp_path: Path) -> None:
    index = cut(large, Tiles(size=100, overlap=0.2))
    dataset = DetectionDataset(index, tmp_path, RECIPE, train=False)
    for row in (0, 3, len(index) - 1, 1):
        pixels = dataset._decoded(row, index[row])
        owner, left, top, *_ = index.windows[row].tolist()
        whole = np.asarray(Image.open(tmp_path / ("a.png", "b.png")[owner]))
        expected = whole[top : top + index[row].height, left : left + index[row].width]
        assert torch.equal(pixels, torch.from_numpy(expected.copy()).permute(2, 0, 1))


def test_an_index_of_windows_survives_selection_and_a_file(large: Index, tmp_path: Path) -> None:
    index = cut(large, Tiles(size=100, overlap=0.2)).select(np.array([4, 1]))
    index.save(tmp_path / "windows.npz")
    assert Index.load(tmp_path / "windows.npz").windows.tolist() == index.windows.tolist()
    large.save(tmp_path / "images.npz")
    with np.load(tmp_path / "images.npz") as arrays:
        assert "windows" not in arrays
