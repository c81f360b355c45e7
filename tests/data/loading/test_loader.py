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

from detection import device
from detection.data.loading.image_cache import ImageCache
from detection.data.loading.image_io import read_image
from detection.data.loading.index import Index, Record, pack
from detection.data.loading.loader import (
    BatchSampler,
    DetectionDataset,
    Loader,
    aspect_ratio_groups,
    in_order,
    in_time,
    loader_workers,
)
from detection.errors import DataError
from detection.params import Recipe, load


@pytest.fixture
def recipe() -> Recipe:
    return replace(load(model="retinanet_resnet18").recipe, image_size=40, max_size=80)


@pytest.fixture
def split(tmp_path: Path) -> Index:
    """Five images of three shapes: with objects, a difficult object, a crowd, and without objects."""
    rng = np.random.default_rng(0)
    records = []
    for i, (height, width) in enumerate([(40, 60), (60, 40), (50, 50), (40, 60), (100, 30)]):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        count = 0 if i == 2 else 3
        boxes = np.array([[2, 3, 20, 25], [5, 5, 28, 30], [10, 8, 26, 38]], np.float32)[:count]
        flags = np.array([False, True, False])[:count]
        crowd = np.array([False, False, i == 3])[:count]
        areas = np.zeros(count, np.float32)
        records.append(Record(f"{i}.png", str(i), height, width, boxes, np.arange(count), flags, crowd, areas))
    return pack(records)


@pytest.mark.parametrize("model", ["retinanet_resnet18", "ssd300"])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_batches_of_equal_size_compute_no_more_pixels_than_single_images(
    split: Index, tmp_path: Path, model: str, batch_size: int
) -> None:
    recipe = load(model=model).recipe
    if recipe.resize == "keep":
        recipe = replace(recipe, image_size=40, max_size=80)
    dataset = DetectionDataset(split, tmp_path, recipe, train=False)
    loader = Loader(dataset, batch_size, workers=0, shuffle=False, equal_sizes=True)
    batches = list(loader.epoch(0))
    assert len(loader) == len(batches)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(5))
    assert all(len(batch.rows) <= batch_size for batch in batches)
    alone = {batch.rows[0]: batch.images[0] for batch in Loader(dataset, 1, workers=0, shuffle=False).epoch(0)}
    for batch in batches:
        for row, image in zip(batch.rows, batch.images, strict=True):
            assert torch.equal(image, alone[row])
    if batch_size == 16:
        assert len(batches) == (1 if recipe.resize == "stretch" else 2)


def batches_of(loader: Loader, epoch: int, start: int = 0) -> list[Any]:
    return [
        (batch.rows, batch.images, batch.targets.boxes, batch.targets.labels, batch.targets.mask)
        for batch in loader.epoch(epoch, start)
    ]


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        x[0] == y[0] and all(torch.equal(s, t) for s, t in zip(x[1:], y[1:], strict=True))
        for x, y in zip(a, b, strict=True)
    )


def test_float_images_keep_their_values_and_are_padded_with_the_mean(
    split: Index, tmp_path: Path, recipe: Recipe
) -> None:
    """Brightness and contrast of `ssd_legacy` leave 0..1; the padding has the scale of the images."""
    dataset = DetectionDataset(split, tmp_path, replace(recipe, augmentation="ssd_legacy"), train=True)
    batches = [batch for epoch in range(4) for batch in Loader(dataset, 5, workers=0, shuffle=True).epoch(epoch)]
    images = torch.cat([batch.images.flatten() for batch in batches])
    assert images.dtype == torch.float32
    assert images.min() < -0.02
    assert images.max() > 1.02
    fill = torch.tensor([124, 116, 104]) / 255
    for batch in batches:
        for image, (height, width) in zip(batch.images, batch.sizes.resized.tolist(), strict=True):
            for part in (image[:, height:], image[:, :, width:]):
                torch.testing.assert_close(part, fill.view(3, 1, 1).expand_as(part))


def test_a_batch_is_padded_and_has_its_sizes(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    dataset = DetectionDataset(split, tmp_path, recipe, train=False)
    (batch,) = Loader(dataset, 5, workers=0, shuffle=False).epoch(0)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (5, 3, 96, 64)  # multiples of 32
    assert batch.rows == [0, 1, 2, 3, 4]
    assert batch.sizes.original.tolist() == [[40, 60], [60, 40], [50, 50], [40, 60], [100, 30]]
    assert batch.sizes.resized.tolist() == [[40, 60], [60, 40], [40, 40], [40, 60], [80, 24]]
    assert batch.targets.mask.sum(1).tolist() == [3, 3, 0, 3, 3]
    assert batch.targets.boxes[~batch.targets.mask].abs().sum() == 0
    fill = torch.tensor(dataset.fill, dtype=torch.uint8)
    assert torch.equal(batch.images[4, :, 90, 40], fill)
    scaled = torch.tensor([2.0, 3, 20, 25]) * torch.tensor([0.8, 0.8, 0.8, 0.8])
    torch.testing.assert_close(batch.targets.boxes[4, 0], scaled)


@pytest.mark.parametrize(
    ("changes", "side"), [({}, 64), ({"resize": "stretch"}, 64), ({"anchors.strides": (8, 16, 32, 64, 128)}, 40)]
)
def test_squares_are_padded_if_anchor_strides_depend_on_the_size(
    split: Index, tmp_path: Path, recipe: Recipe, changes: dict[str, Any], side: int
) -> None:
    dataset = DetectionDataset(split.select(np.array([2])), tmp_path, recipe.update(changes), train=False)
    (batch,) = Loader(dataset, 1, workers=0, shuffle=False).epoch(0)
    assert batch.images.shape == (1, 3, side, side)
    assert batch.sizes.resized.tolist() == [[40, 40]]


def test_all_tensors_of_a_batch_are_pinned(
    split: Index, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinned by torch's loader thread, which silently skips objects that it cannot pin."""
    (batch,) = Loader(DetectionDataset(split, tmp_path, recipe, train=False), 5, 0, False).epoch(0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)  # takes a GPU otherwise
    pinned = pin_memory(batch)
    assert torch.equal(pinned.images, batch.images + 1)
    for name in ("boxes", "labels", "mask", "sizes"):
        assert torch.equal(getattr(pinned.targets, name), getattr(batch.targets, name) + 1)
    assert torch.equal(pinned.sizes.resized, batch.sizes.resized + 1)
    assert torch.equal(pinned.sizes.original, batch.sizes.original + 1)
    assert pinned.rows == batch.rows


def test_training_drops_crowds_and_difficult_objects(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    for train_difficult, counts in ((False, [2, 2, 0, 1, 2]), (True, [3, 3, 0, 2, 3])):
        changed = replace(recipe, train_difficult=train_difficult, augmentation="none")
        (batch,) = Loader(DetectionDataset(split, tmp_path, changed, train=True), 5, workers=0, shuffle=False).epoch(0)
        assert batch.targets.mask.sum(1).tolist() == counts


@pytest.mark.parametrize("augmentation", ["flip", "multiscale", "ssd", "letterbox"])
def test_an_epoch_is_a_function_of_seed_and_number(
    split: Index, tmp_path: Path, recipe: Recipe, augmentation: Any
) -> None:
    changed = replace(recipe, augmentation=augmentation)

    def loader(seed: int, workers: int = 0) -> Loader:
        return Loader(DetectionDataset(split, tmp_path, changed, train=True, seed=seed), 2, workers, shuffle=True)

    first = batches_of(loader(0), 3)
    assert equal(first, batches_of(loader(0), 3))
    assert equal(first, batches_of(loader(0, workers=2), 3))  # in any process
    assert equal(first[1:], batches_of(loader(0), 3, start=1))  # from any batch on
    assert not equal(first, batches_of(loader(0), 4))
    assert not equal(first, batches_of(loader(1), 3))


def test_workers_start_beside_busy_threads(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    """Like the MLflow uploader's thread: a lock that it holds at the fork stays locked in the child."""
    dataset = DetectionDataset(split, tmp_path, recipe, train=True)
    expected = batches_of(Loader(dataset, 2, 0, shuffle=True), 0)
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
            assert equal(expected, batches_of(Loader(dataset, 2, 2, shuffle=True), 0))
    finally:
        done.set()
        for thread in threads:
            thread.join()
        for handler in [*log.handlers]:
            log.removeHandler(handler)
            handler.close()


def test_workers_send_batches_without_dev_shm(
    split: Index, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's default of 64 MB is less than a batch of 800-pixel images for each of eight workers."""
    expected = batches_of(Loader(DetectionDataset(split, tmp_path, recipe, train=True), 2, 0, shuffle=True), 0)

    def refuse(*_: Any) -> Any:
        raise OSError("/dev/shm is full")

    for name in ("_share_fd_cpu_", "_share_filename_cpu_"):  # in the forked workers, too
        monkeypatch.setattr(torch.UntypedStorage, name, refuse)
    loader = Loader(DetectionDataset(split, tmp_path, recipe, train=True), 2, 2, shuffle=True)
    received = batches_of(loader, 0)
    assert equal(expected, received)
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert equal(expected, batches_of(loader, 0))
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches_have_the_decoders_memory_format(
    split: Index, tmp_path: Path, recipe: Recipe, workers: int
) -> None:
    """Channels last, as training wants them; evaluation keeps the contiguous format."""
    formats = {True: torch.channels_last, False: torch.contiguous_format}
    for train, memory_format in formats.items():
        dataset = DetectionDataset(split, tmp_path, replace(recipe, augmentation="none"), train=train)
        for batch in Loader(dataset, 3, workers, shuffle=False).epoch(0):
            assert batch.images.is_contiguous(memory_format=memory_format)
    values = [
        [batch.images for batch in Loader(dataset, 3, workers, shuffle=False).epoch(0)]
        for train in formats
        for dataset in [DetectionDataset(split, tmp_path, replace(recipe, augmentation="none"), train=train)]
    ]
    assert all(torch.equal(one, other) for one, other in zip(*values, strict=True))


def test_workers_start_on_demand_and_serve_all_epochs(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    dataset = DetectionDataset(split, tmp_path, recipe, train=False)
    loader = Loader(dataset, 2, 2, shuffle=False, equal_sizes=True)
    loader.start()

    def workers() -> list[int]:
        iterator: Any = loader.batches._iterator
        return [worker.pid for worker in iterator._workers]

    started = workers()
    assert len(started) == 2
    alone = Loader(dataset, 2, 0, shuffle=False, equal_sizes=True)
    assert equal(batches_of(alone, 0), batches_of(loader, 0))
    for rows in (np.array([4, 0, 2]), np.zeros(0, np.int64), np.arange(5)):
        received = [batch.rows for batch in loader.of_rows(in_order(rows, 2))]
        assert [len(batch) for batch in received] == [2] * (len(rows) // 2) + [1] * (len(rows) % 2)
        assert [row for batch in received for row in batch] == rows.tolist()
    alone.sampler.batches = in_order(np.arange(5), 2)  # type: ignore[union-attr]
    assert equal(batches_of(alone, 0), batches_of(loader, 0))
    assert workers() == started


def test_workers_that_deliver_nothing_are_an_error_with_the_fix() -> None:
    def stuck(message: str) -> Any:
        yield 1
        raise RuntimeError(message)

    batches = in_time(stuck("DataLoader timed out after 600 seconds"))
    assert next(batches) == 1
    with pytest.raises(DataError, match=r"10 minutes.*train\.workers"):
        next(batches)
    with pytest.raises(RuntimeError, match="another"):
        list(in_time(stuck("another")))


@pytest.mark.parametrize("megabytes", [1, 0.008])
def test_a_cache_does_not_change_the_batches(
    split: Index, tmp_path: Path, recipe: Recipe, megabytes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a budget for one of the five images, nor the number of workers that fill it."""
    changed = replace(recipe, augmentation="ssd")

    def loader(workers: int, cache: Any) -> Loader:
        dataset = DetectionDataset(split, tmp_path, changed, train=True, cache_mb=cache)
        return Loader(dataset, 2, workers, shuffle=True)

    plain, cached, shared = loader(0, 0), loader(0, megabytes), loader(2, megabytes)
    for epoch in range(4):
        expected = batches_of(plain, epoch)
        assert equal(expected, batches_of(cached, epoch))
        assert equal(expected, batches_of(shared, epoch))
    cache = shared.dataset.cache
    assert cache is not None
    assert len(cache) == (5 if megabytes == 1 else 1)
    assert cache.filled.all()  # by the workers, in memory shared with this process

    decoded: list[Path] = []
    monkeypatch.setattr("detection.data.loading.loader.read_image", lambda path: decoded.append(path))
    if megabytes == 1:
        batches_of(cached, 9)
        assert decoded == []


def test_an_image_of_another_size_than_in_the_index_is_not_cached(tmp_path: Path) -> None:
    cache = ImageCache(np.array([[4, 6], [5, 5]], np.int32), megabytes=1)
    cache.put(0, torch.ones(3, 6, 4, dtype=torch.uint8))
    cache.put(2, torch.ones(3, 4, 6, dtype=torch.uint8))  # an image beyond the budget
    assert cache.get(0) is cache.get(2) is None
    image = torch.randint(0, 256, (3, 5, 5), dtype=torch.uint8)
    cache.put(1, image)
    held = cache.get(1)
    assert held is not None
    assert torch.equal(held, image)


def test_batches_group_similar_aspect_ratios(split: Index, tmp_path: Path, recipe: Recipe) -> None:
    loader = Loader(DetectionDataset(split, tmp_path, recipe, train=True), 2, workers=0, shuffle=True)
    assert isinstance(loader.sampler, BatchSampler)
    groups = loader.sampler.groups
    assert groups is not None
    assert groups[0] == groups[3]  # both 60 x 40
    assert len(set(groups.tolist())) == 4
    one_shape = split.select(np.array([0, 3]))
    cases: list[tuple[Index, dict[str, Any]]]
    cases = [(split, {"resize": "stretch"}), (split, {"augmentation": "letterbox"}), (one_shape, {})]
    for index, changes in cases:
        dataset = DetectionDataset(index, tmp_path, recipe.update(changes), train=True)
        assert aspect_ratio_groups(dataset) is None


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_grouping_neither_drops_nor_repeats_images(count: int, size: int, group_count: int, seed: int) -> None:
    groups = np.random.default_rng(seed).integers(0, group_count, count)
    grouped, plain = BatchSampler(count, size, seed, groups), BatchSampler(count, size, seed)
    batches = [[row for _, row in batch] for batch in grouped]
    assert len(batches) == len(grouped) == len(plain)
    rows = [row for batch in batches for row in batch]
    assert sorted(rows) == sorted(row for batch in plain for _, row in batch)  # including the dropped ones
    mixed = [batch for batch in batches if len(set(groups[batch])) > 1]
    assert len(mixed) < max(group_count, 2)
    grouped.start = len(batches) // 2
    assert [[row for _, row in batch] for batch in grouped] == batches[grouped.start :]
    grouped.epoch, grouped.start = 1, 0
    assert count < 9 or size == count or [[row for _, row in batch] for batch in grouped] != batches


def test_the_sampler_covers_the_split() -> None:
    shuffled = BatchSampler(10, 3, seed=0)
    rows = [row for batch in shuffled for _, row in batch]
    assert len(shuffled) == 3
    assert len(set(rows)) == 9  # the incomplete batch is dropped
    assert rows != sorted(rows)
    plain = BatchSampler(10, 3, seed=None)
    assert [row for batch in plain for _, row in batch] == list(range(10))
    assert [len(batch) for batch in BatchSampler(2, 4, seed=0)] == [2]  # unless it is the only one
    assert list(BatchSampler(0, 4, seed=0)) == list(BatchSampler(0, 4, seed=None)) == []


def test_workers() -> None:
    assert loader_workers(3, torch.device("cpu")) == 3
    assert loader_workers("auto", torch.device("cpu")) == 0
    assert loader_workers("auto", torch.device("cuda")) >= 1


def test_workers_fit_the_cores_of_the_job_rather_than_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, quota = torch.device("cuda"), tmp_path / "cpu.max"
    monkeypatch.setattr(device, "CPU_QUOTA", quota)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    for cores, limit, expected in ((12, "max 100000\n", 12), (12, "400000 100000\n", 4), (64, "", 32)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        quota.write_text(limit)
        assert loader_workers("auto", cuda) == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "RGBA"])
def test_images_of_any_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (7, 5), (200, 30, 60)).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (3, 5, 7)
    assert image.dtype == torch.uint8
    if mode in ("RGB", "RGBA"):
        assert image[:, 0, 0].tolist() == [200, 30, 60]


def test_undecodable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.png does not exist"):
        read_image(tmp_path / "x.png")
    (tmp_path / "y.jpg").write_bytes(b"text")
    with pytest.raises(DataError, match=r"y.jpg cannot be decoded"):
        read_image(tmp_path / "y.jpg")
