"""`format: shapes`: a dataset that needs no download, drawn once and written as a true Pascal VOC tree.

Every picture is a function of (seed, split, index). A tree lives in a folder named after everything that it
was made from, so that two settings never mix and every workspace of the repository shares it; it is written
beside, under a lock, and renamed when it is whole.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detection.data.shapes.compose import Thing, compose
from detection.data.shapes.render import CLASSES, HUE_CENTRES, HUE_REACH
from detection.errors import DataError
from detection.files import data_root, locked
from detection.params.datasets import ShapesDataset

VERSION = 2
"""Raised when the drawing changes: other pictures, other folder."""
SPLITS = ("train", "val", "test")
MARKER = "shapes.json"
"""What the tree was made from and what came of it; written last."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What the pictures depend on; nothing else of the dataset's entry does."""

    version: int
    image_size: int
    train: int
    val: int
    test: int
    seed: int

    @classmethod
    def of(cls, dataset: ShapesDataset) -> "Recipe":
        """The recipe of a dataset's entry.

        Raises:
            DataError: A size, count or seed that cannot be drawn.
        """
        for key, least in (("image_size", 32), ("train", 1), ("val", 0), ("test", 0), ("seed", 0)):
            if getattr(dataset, key) < least:
                raise DataError(
                    f"datasets of format shapes: {key} must be at least {least}, not {getattr(dataset, key)}"
                )
        return cls(VERSION, dataset.image_size, dataset.train, dataset.val, dataset.test, dataset.seed)

    def key(self) -> str:
        """Name of the folder."""
        text = json.dumps(vars(self), sort_keys=True)
        return f"{self.image_size}px-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def folder(dataset: ShapesDataset) -> str:
    """Where the tree of these settings lies, relative to `DATA_ROOT`."""
    return f"{dataset.path}/{Recipe.of(dataset).key()}"


def ensure(dataset: ShapesDataset) -> Path:
    """Draw the dataset unless it is there already.

    Returns:
        Folder of the VOC tree: `JPEGImages`, `Annotations`, `ImageSets/Main`.
    """
    recipe = Recipe.of(dataset)
    home = data_root() / folder(dataset)
    if home.is_dir():
        return home
    with locked(home.parent / f".{home.name}.lock"):
        if not home.is_dir():  # somebody else may have drawn it while we waited
            partial = home.parent / f".{home.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            count = recipe.train + recipe.val + recipe.test
            log.info("drawing %d pictures of shapes into %s", count, home)
            _write(recipe, partial)
            partial.rename(home)
    return home


def _write(recipe: Recipe, root: Path) -> None:
    """Draw all splits into `root`."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    number = 0
    drawn: dict[str, list[list[Thing]]] = {split: [] for split in SPLITS}
    for part, split in enumerate(SPLITS):
        names = []
        for i in range(getattr(recipe, split)):
            number += 1
            names.append(f"{number:06d}")
            picture, things = compose(recipe.image_size, np.random.default_rng((recipe.seed, part, i)))
            drawn[split].append(things)
            picture.save(root / "JPEGImages" / f"{names[-1]}.jpg", quality=90, subsampling=0)
            xml = _annotation(f"{names[-1]}.jpg", recipe.image_size, things)
            (root / "Annotations" / f"{names[-1]}.xml").write_text(xml, encoding="utf-8")
        lines = "".join(f"{name}\n" for name in names)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8")
    figures = {split: _figures(pictures) for split, pictures in drawn.items()}
    marker = {"recipe": vars(recipe), "hues": _hues(), "splits": figures}
    (root / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _hues() -> dict[str, list[int]]:
    """First and last hue of each class in degrees, counted upward and round."""
    return {
        name: [(HUE_CENTRES[name] - HUE_REACH) % 360, (HUE_CENTRES[name] + HUE_REACH) % 360]
        for name in CLASSES
    }


def _figures(pictures: list[list[Thing]]) -> dict[str, float]:
    """What only the one who drew them knows: the truth about silhouettes, which boxes do not show."""
    covering = [
        any(thing is not other and bool((thing.inside & other.inside).any()) for other in things)
        for things in pictures
        for thing in things
    ]
    everything = [thing for things in pictures for thing in things]

    def share(flags: list[bool]) -> float:
        return round(sum(flags) / max(1, len(flags)), 4)

    return {
        "objects": len(everything),
        "covering_or_covered": share(covering),
        "truncated": share([thing.truncated for thing in everything]),
        "occluded": share([thing.occluded for thing in everything]),
        "faint": share([thing.faint for thing in everything]),
        "difficult": share([thing.difficult for thing in everything]),
    }


def _annotation(file: str, size: int, things: list[Thing]) -> str:
    """One VOC annotation; corners are 1-based and inclusive, as VOC has them."""
    objects = "".join(_object(thing) for thing in things)
    return (
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{file}</filename>\n"
        f"  <source><database>shapes</database></source>\n"
        f"  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>\n"
        f"  <segmented>0</segmented>\n{objects}</annotation>\n"
    )


def _object(thing: Thing) -> str:
    x1, y1, x2, y2 = thing.box
    return (
        f"  <object>\n    <name>{thing.shape}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>{thing.truncated:d}</truncated>\n    <occluded>{thing.occluded:d}</occluded>\n"
        f"    <difficult>{thing.difficult:d}</difficult>\n    <bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n  </object>\n"
    )
