import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from detection.data.sources import shapes_compose as compose
from detection.data.sources import shapes_generator as generator
from detection.data.sources import shapes_render as render
from detection.data.sources.dataset import RawDataset, read
from detection.data.sources.layout import shapes_folder
from detection.data.sources.statistics import at_border, describe, overlapping, side_fractions
from detection.errors import DataError
from detection.params import ShapesDataset

DEFAULT = ShapesDataset(format="shapes", path="shapes")
SMALL = replace(DEFAULT, train=6, val=2, test=3)


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_statistics_of_the_default_dataset(default_shapes: RawDataset) -> None:
    assert default_shapes.classes == ("circle", "square", "star", "triangle")
    assert len(default_shapes.splits["train"]) >= 300
    assert len(default_shapes.splits["val"]) >= 50
    assert len(default_shapes.splits["test"]) >= 100
    card = describe(default_shapes, DEFAULT)
    for split, index in default_shapes.splits.items():
        generated, boxes = card["generator"]["splits"][split], card["splits"][split]
        assert generated["covering_or_covered"] >= 0.2
        assert generated["truncated"] >= 0.1
        assert generated["difficult"] >= 0.05
        assert generated["objects"] == boxes["objects"]
        assert generated["difficult"] == boxes["difficult"]
        assert generated["truncated"] <= boxes["at_border"]
        assert overlapping(index).mean() >= generated["covering_or_covered"]
        per_image = np.diff(index.offsets)
        assert (per_image.min(), per_image.max()) == (1, 6)
        sides = side_fractions(index)
        assert sides.min() >= 0.12
        assert sides.max() <= 0.60
        assert np.quantile(sides, 0.05) < 0.16
        assert np.quantile(sides, 0.95) > 0.4
        counts = np.bincount(index.labels, minlength=4) / len(index.labels)
        assert counts.min() > 0.18


def test_flags_and_boxes_equal_those_of_the_files(default_shapes: RawDataset) -> None:
    index = default_shapes.splits["val"]
    card = describe(default_shapes, DEFAULT)["generator"]["splits"]["val"]
    flags: dict[str, list[bool]] = {"truncated": [], "occluded": [], "difficult": []}
    for name in index.ids:
        root = ElementTree.parse(default_shapes.root / f"Annotations/{name.decode()}.xml")
        for key, values in flags.items():
            values += [entry.findtext(key) == "1" for entry in root.findall("object")]
    np.testing.assert_array_equal(flags["difficult"], index.difficult)
    assert not (np.array(flags["truncated"]) & ~at_border(index)).any()
    for key, values in flags.items():
        assert card[key] == round(float(np.mean(values)), 4)
    corners = index.boxes
    assert (corners == corners.round()).all()
    assert corners.min() >= 0
    assert corners.max() <= 128


def test_each_class_has_a_hue_range_that_overlaps_its_neighbors() -> None:
    rng = np.random.default_rng(0)
    hues = {}
    for name in render.CLASSES:
        colors = np.array([render.object_color(name, rng) for _ in range(400)], dtype=np.uint8)
        hues[name] = np.asarray(Image.fromarray(colors[None]).convert("HSV"))[0, :, 0] * (360.0 / 256)
        away = (hues[name] - render.HUE_CENTERS[name] + 180) % 360 - 180
        assert np.abs(away).max() < render.HUE_REACH + 5
        assert np.abs(away).max() > render.HUE_REACH - 10
    for name, other in zip(render.CLASSES, (*render.CLASSES[1:], render.CLASSES[0]), strict=True):
        away = (hues[name] - render.HUE_CENTERS[other] + 180) % 360 - 180
        assert 0.2 < (np.abs(away) < render.HUE_REACH).mean() < 0.6


@pytest.mark.parametrize("seed", range(20))
def test_boxes_are_tight_and_objects_stay_visible(seed: int) -> None:
    image, objects = compose.compose(96, np.random.default_rng(seed))
    assert image.size == (96, 96)
    assert 1 <= len(objects) <= 6
    for one in objects:
        x1, y1, x2, y2 = one.box
        assert one.mask[y1:y2, x1:x2].sum() == one.mask.sum()
        for edge in (one.mask[y1], one.mask[y2 - 1], one.mask[:, x1], one.mask[:, x2 - 1]):
            assert edge.any()
        assert one.visible_fraction() >= compose.MIN_VISIBLE
        assert one.difficult == (one.faint or one.visible_fraction() < compose.DIFFICULT_VISIBLE)


@pytest.mark.parametrize("shape", render.CLASSES)
@pytest.mark.parametrize("side", [16, 77])
def test_a_silhouette_has_the_given_side(shape: str, side: int) -> None:
    for seed in range(10):
        mask = render.silhouette(shape, side, np.random.default_rng(seed))
        box = mask.point([0] * 128 + [255] * 128).getbbox()
        assert box is not None
        assert abs(max(box[2] - box[0], box[3] - box[1]) - side) <= (3 if shape == "star" else 2)


def test_two_trees_are_equal_byte_for_byte(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = generator.ensure(SMALL)
    files = tree(first)
    assert len(files) == 11 * 2 + 3 + 1
    monkeypatch.setenv("DATA_ROOT", str(data_root / "again"))
    second = generator.ensure(SMALL)
    assert second != first
    assert tree(second) == files


def test_an_image_does_not_depend_on_the_number_of_images(data_root: Path) -> None:
    few, more = generator.ensure(SMALL), generator.ensure(replace(SMALL, train=8))
    assert few != more
    images = [(root / "JPEGImages/000006.jpg").read_bytes() for root in (few, more)]
    assert images[0] == images[1]
    other = generator.ensure(replace(SMALL, seed=1))
    assert (other / "JPEGImages/000006.jpg").read_bytes() != images[0]


def test_settings_that_do_not_change_images_share_the_folder(data_root: Path) -> None:
    assert generator.ensure(SMALL) == generator.ensure(replace(SMALL, license="MIT", digest="0" * 32))


def test_concurrent_processes_get_one_complete_tree(data_root: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        roots = {future.result() for future in [pool.submit(generator.ensure, SMALL) for _ in range(4)]}
    (root,) = roots
    assert len(list((root / "JPEGImages").iterdir())) == 11
    assert not list(root.parent.glob(".*.partial"))


def test_an_interrupted_generation_starts_over(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compose.compose
    calls: list[int] = []

    def interrupted(size: int, rng: np.random.Generator) -> tuple[Image.Image, list[compose.ShapeObject]]:
        calls.append(size)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(size, rng)

    monkeypatch.setattr(generator, "compose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generator.ensure(SMALL)
    assert not (data_root / shapes_folder(SMALL)).exists()
    assert len(list((generator.ensure(SMALL) / "JPEGImages").iterdir())) == 11


def test_a_damaged_tree_names_the_fix(data_root: Path) -> None:
    root = generator.ensure(SMALL)
    (root / "JPEGImages/000002.jpg").unlink()
    with pytest.raises(DataError, match=rf"or delete {root} to generate"):
        read("shapes", SMALL)


@pytest.mark.parametrize(("key", "value"), [("image_size", 8), ("train", 0), ("test", -1), ("seed", -3)])
def test_values_below_the_minimum_are_rejected(data_root: Path, key: str, value: int) -> None:
    with pytest.raises(DataError, match=f"{key} must be at least"):
        generator.ensure(replace(SMALL, **{key: value}))  # type: ignore[arg-type]
    assert not list(data_root.iterdir())
