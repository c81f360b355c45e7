import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from detection.data.index import Index, Record, pack
from detection.data.loading.image_cache import ImageCache
from detection.data.loading.image_io import read_image
from detection.data.loading.loader import (
    BatchSampler,
    DetectionDataset,
    Loader,
    aspect_groups,
    loader_workers,
)
from detection.errors import DataError
from detection.params import Recipe, load


@pytest.fixture
def recipe() -> Recipe:
    return replace(load(model="retinanet_resnet18").recipe, image_size=40, max_size=80)


@pytest.fixture
def split(tmp_path: Path) -> Index:
    """Five pictures of three shapes: objects, a difficult one, a crowd, and one picture without any."""
    rng = np.random.default_rng(0)
    records = []
    for i, (height, width) in enumerate([(40, 60), (60, 40), (50, 50), (40, 60), (100, 30)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        count = 0 if i == 2 else 3
        boxes = np.array([[2, 3, 20, 25], [5, 5, 28, 30], [10, 8, 26, 38]], np.float32)[:count]
        flags = np.array([False, True, False])[:count]
        crowd = np.array([False, False, i == 3])[:count]
        areas = np.zeros(count, np.float32)
        records.append(
            Record(f"{i}.png", str(i), height, width, boxes, np.arange(count), flags, crowd, areas)
        )
    return pack(records)


def everything(loader: Loader, epoch: int, start: int = 0) -> list[Any]:
    return [
        (batch.rows, batch.images, batch.targets.boxes, batch.targets.labels, batch.targets.mask)
        for batch in loader.epoch(epoch, start)
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x[0] == y[0] and all(torch.equal(s, t) for s, t in zip(x[1:], y[1:], strict=True))
        for x, y in zip(a, b, strict=True)
    )


def test_a_batch_is_padded_and_knows_its_sizes(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    pictures = DetectionDataset(split, tmp_path, recipe, train=False)
    (batch,) = Loader(pictures, 5, workers=0, shuffle=False).epoch(0)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (5, 3, 96, 64)  # whole cells of 32
    assert batch.rows == [0, 1, 2, 3, 4]
    assert batch.sizes.original.tolist() == [[40, 60], [60, 40], [50, 50], [40, 60], [100, 30]]
    assert batch.sizes.inside.tolist() == [[40, 60], [60, 40], [40, 40], [40, 60], [80, 24]]
    assert batch.targets.mask.sum(1).tolist() == [3, 3, 0, 3, 3]
    assert batch.targets.boxes[~batch.targets.mask].abs().sum() == 0
    fill = torch.tensor(pictures.fill, dtype=torch.uint8)
    assert torch.equal(batch.images[4, :, 90, 40], fill)
    scaled = torch.tensor([2.0, 3, 20, 25]) * torch.tensor([0.8, 0.8, 0.8, 0.8])
    torch.testing.assert_close(batch.targets.boxes[4, 0], scaled)


@pytest.mark.parametrize(
    ("changes", "side"),
    [({}, 64), ({"resize": "stretch"}, 64), ({"anchor_strides": (8, 16, 32, 64, 128)}, 40)],
)
def test_squares_are_padded_where_anchors_take_their_strides_from_the_size(
    split: Index, tmp_path: Path, recipe: Recipe, changes: dict[str, Any], side: int
) -> None:
    pictures = DetectionDataset(
        split.select(np.array([2])), tmp_path, replace(recipe, **changes), train=False
    )
    (batch,) = Loader(pictures, 1, workers=0, shuffle=False).epoch(0)
    assert batch.images.shape == (1, 3, side, side)
    assert batch.sizes.inside.tolist() == [[40, 40]]


def test_a_batch_is_pinned_whole(
    split: Index, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own loader thread, which says nothing about what it does not know how to pin."""
    (batch,) = Loader(DetectionDataset(split, tmp_path, recipe, train=False), 5, 0, False).epoch(0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)  # takes a GPU otherwise
    pinned = pin_memory(batch)
    assert torch.equal(pinned.images, batch.images + 1)
    for name in ("boxes", "labels", "mask", "sizes"):
        assert torch.equal(getattr(pinned.targets, name), getattr(batch.targets, name) + 1)
    assert torch.equal(pinned.sizes.inside, batch.sizes.inside + 1)
    assert torch.equal(pinned.sizes.original, batch.sizes.original + 1)
    assert pinned.rows == batch.rows


def test_training_leaves_crowds_and_difficult_objects_out(
    split: Index, tmp_path: Path, recipe: Recipe
) -> None:
    for wanted, counts in ((False, [2, 2, 0, 1, 2]), (True, [3, 3, 0, 2, 3])):
        chosen = replace(recipe, train_difficult=wanted, augmentation="none")
        (batch,) = Loader(
            DetectionDataset(split, tmp_path, chosen, train=True), 5, workers=0, shuffle=False
        ).epoch(0)
        assert batch.targets.mask.sum(1).tolist() == counts


@pytest.mark.parametrize("augmentation", ["flip", "multiscale", "ssd", "letterbox"])
def test_an_epoch_is_a_function_of_seed_and_number(
    split: Index, tmp_path: Path, recipe: Recipe, augmentation: Any
) -> None:
    chosen = replace(recipe, augmentation=augmentation)

    def loader(seed: int, workers: int = 0) -> Loader:
        return Loader(
            DetectionDataset(split, tmp_path, chosen, train=True, seed=seed), 2, workers, shuffle=True
        )

    first = everything(loader(0), 3)
    assert same(first, everything(loader(0), 3))
    assert same(first, everything(loader(0, workers=2), 3))  # whoever loads it
    assert same(first[1:], everything(loader(0), 3, start=1))  # and wherever one begins
    assert not same(first, everything(loader(0), 4))
    assert not same(first, everything(loader(1), 3))


def test_loader_processes_start_beside_busy_threads(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    """As the tracking's thread is: locks that it holds at the fork stay held in the child."""
    pictures = DetectionDataset(split, tmp_path, recipe, train=True)
    expected = everything(Loader(pictures, 2, 0, shuffle=True), 0)
    log, done = logging.getLogger("busy"), threading.Event()
    log.propagate = False  # pytest keeps every record that reaches the root
    log.addHandler(logging.FileHandler(tmp_path / "busy.log"))

    def work() -> None:
        while not done.wait(1e-4):
            log.warning("%s", json.dumps({"loss": [0.5] * 100}))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert same(expected, everything(Loader(pictures, 2, 2, shuffle=True), 0))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        for handler in [*log.handlers]:
            log.removeHandler(handler)
            handler.close()


@pytest.mark.parametrize("megabytes", [1, 0.008])
def test_a_cache_changes_nothing_but_who_decodes(
    split: Index, tmp_path: Path, recipe: Recipe, megabytes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a budget that holds one picture of the five, nor how many processes fill it."""
    chosen = replace(recipe, augmentation="ssd")

    def loader(workers: int, cache: Any) -> Loader:
        pictures = DetectionDataset(split, tmp_path, chosen, train=True, cache_mb=cache)
        return Loader(pictures, 2, workers, shuffle=True)

    plain, cached, shared = loader(0, 0), loader(0, megabytes), loader(2, megabytes)
    for epoch in range(4):
        expected = everything(plain, epoch)
        assert same(expected, everything(cached, epoch))
        assert same(expected, everything(shared, epoch))
    cache = shared.pictures.cache
    assert cache is not None
    assert len(cache) == (5 if megabytes == 1 else 1)
    assert cache.held.all()  # by the loader's processes, in memory that this one sees

    decoded: list[Path] = []
    monkeypatch.setattr("detection.data.loading.loader.read_image", lambda path: decoded.append(path))
    if megabytes == 1:
        everything(cached, 9)
        assert decoded == []


def test_a_picture_of_another_size_than_its_annotation_is_not_cached(tmp_path: Path) -> None:
    cache = ImageCache(np.array([[4, 6], [5, 5]], np.int32), megabytes=1)
    cache.put(0, torch.ones(3, 6, 4, dtype=torch.uint8))
    cache.put(2, torch.ones(3, 4, 6, dtype=torch.uint8))  # a row without a place
    assert cache.get(0) is cache.get(2) is None
    picture = torch.randint(0, 256, (3, 5, 5), dtype=torch.uint8)
    cache.put(1, picture)
    held = cache.get(1)
    assert held is not None
    assert torch.equal(held, picture)


def test_like_aspect_ratios_come_together(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    loader = Loader(DetectionDataset(split, tmp_path, recipe, train=True), 2, workers=0, shuffle=True)
    groups = loader.order.groups
    assert groups is not None
    assert groups[0] == groups[3]  # 60 x 40, both
    assert len(set(groups.tolist())) == 4
    square = replace(recipe, resize="stretch")
    assert aspect_groups(DetectionDataset(split, tmp_path, square, train=True)) is None
    assert (
        aspect_groups(DetectionDataset(split, tmp_path, replace(recipe, augmentation="letterbox"), True))
        is None
    )
    assert (
        aspect_groups(DetectionDataset(split.select(np.array([0, 3])), tmp_path, recipe, train=True)) is None
    )


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_grouping_loses_and_repeats_nothing(count: int, size: int, kinds: int, seed: int) -> None:
    groups = np.random.default_rng(seed).integers(0, kinds, count)
    grouped, plain = BatchSampler(count, size, seed, groups), BatchSampler(count, size, seed)
    batches = [[row for _, row in batch] for batch in grouped]
    assert len(batches) == len(grouped) == len(plain)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == sorted(row for batch in plain for _, row in batch)  # even who is left out
    mixed = [batch for batch in batches if len(set(groups[batch])) > 1]
    assert len(mixed) < max(kinds, 2)
    grouped.start = len(batches) // 2
    assert [[row for _, row in batch] for batch in grouped] == batches[grouped.start :]
    grouped.epoch, grouped.start = 1, 0
    assert count < 9 or size == count or [[row for _, row in batch] for batch in grouped] != batches


def test_orders_cover_the_split() -> None:
    shuffled = BatchSampler(10, 3, seed=0)
    rows = [row for batch in shuffled for _, row in batch]
    assert len(shuffled) == 3
    assert len(set(rows)) == 9  # the incomplete batch is left out
    assert rows != sorted(rows)
    plain = BatchSampler(10, 3, seed=None)
    assert [row for batch in plain for _, row in batch] == list(range(10))
    assert [len(batch) for batch in BatchSampler(2, 4, seed=0)] == [2]  # unless it is the only one
    assert list(BatchSampler(0, 4, seed=0)) == list(BatchSampler(0, 4, seed=None)) == []


def test_workers() -> None:
    assert loader_workers(3, torch.device("cpu")) == 3
    assert loader_workers("auto", torch.device("cpu")) == 0
    assert loader_workers("auto", torch.device("cuda")) >= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
def test_pictures_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (7, 5), (200, 30, 60)).convert(mode).save(path)
    picture = read_image(path)
    assert picture.shape == (3, 5, 7)
    assert picture.dtype == torch.uint8
    if mode in ("RGB", "RGBA"):
        assert picture[:, 0, 0].tolist() == [200, 30, 60]


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.png is not there"):
        read_image(tmp_path / "x.png")
    (tmp_path / "y.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"y.jpg cannot be read as a picture"):
        read_image(tmp_path / "y.jpg")
