"""Generator of `format: shapes`, a dataset without download, written as a Pascal VOC tree.

An image is a function of (seed, split, index). The name of a tree's folder is a hash of everything that
decides its content, so that two settings never share a folder and all workspaces of a repository share the
tree. It is written to a temporary folder under a lock and renamed when complete.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from detection.data.sources.fingerprint import SHAPES_MARKER, tree_hash
from detection.data.sources.layout import shapes_folder, shapes_settings
from detection.data.sources.shapes_compose import ShapeObject, compose
from detection.data.sources.shapes_render import CLASSES, HUE_CENTERS, HUE_REACH
from detection.files import data_root, locked, write_json
from detection.params.datasets import ShapesDataset

SPLITS = ("train", "val", "test")
log = logging.getLogger(__name__)


def ensure(dataset: ShapesDataset) -> Path:
    """Generate the dataset unless it exists.

    Returns:
        Folder of the VOC tree: `JPEGImages`, `Annotations`, `ImageSets/Main`.
    """
    root = data_root() / shapes_folder(dataset)
    if root.is_dir():
        return root
    with locked(root.parent / f".{root.name}.lock"):
        if not root.is_dir():  # another process may have generated it meanwhile
            partial = root.parent / f".{root.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            count = dataset.train + dataset.val + dataset.test
            log.info("generating %d images of shapes in %s", count, root)
            _write(shapes_settings(dataset), partial)
            partial.rename(root)
    return root


def _write(settings: dict[str, int], root: Path) -> None:
    """Write all splits to `root`."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    size, number = settings["image_size"], 0
    statistics: dict[str, Any] = {}
    for part, split in enumerate(SPLITS):
        names: list[str] = []
        composed: list[list[ShapeObject]] = []
        for i in range(settings[split]):
            number += 1
            name = f"{number:06d}"
            image, objects = compose(size, np.random.default_rng((settings["seed"], part, i)))
            image.save(root / "JPEGImages" / f"{name}.jpg", quality=90, subsampling=0)
            xml = _annotation(f"{name}.jpg", size, objects)
            (root / "Annotations" / f"{name}.xml").write_text(xml, encoding="utf-8")
            names.append(name)
            composed.append(objects)
        lines = "".join(f"{name}\n" for name in names)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="utf-8")
        statistics[split] = _statistics(composed)
    hues = {name: [(HUE_CENTERS[name] - HUE_REACH) % 360, (HUE_CENTERS[name] + HUE_REACH) % 360] for name in CLASSES}
    marker = {"recipe": settings, "hues": hues, "splits": statistics, "fingerprint": tree_hash(root)}
    write_json(root / SHAPES_MARKER, marker)


def _statistics(images: list[list[ShapeObject]]) -> dict[str, float]:
    """Number of objects, and fractions that follow from silhouettes and not from boxes."""
    every = [one for objects in images for one in objects]
    overlapping = [
        any(one is not other and bool((one.mask & other.mask).any()) for other in objects)
        for objects in images
        for one in objects
    ]

    def fraction(flags: list[bool]) -> float:
        return round(sum(flags) / max(1, len(flags)), 4)

    return {
        "objects": len(every),
        "covering_or_covered": fraction(overlapping),
        "truncated": fraction([one.truncated for one in every]),
        "occluded": fraction([one.occluded for one in every]),
        "faint": fraction([one.faint for one in every]),
        "difficult": fraction([one.difficult for one in every]),
    }


def _annotation(file: str, size: int, objects: list[ShapeObject]) -> str:
    """VOC annotation of one image; corners are 1-based and inclusive as in VOC."""
    return (
        f"<annotation>\n  <folder>JPEGImages</folder>\n  <filename>{file}</filename>\n"
        f"  <source><database>shapes</database></source>\n"
        f"  <size><width>{size}</width><height>{size}</height><depth>3</depth></size>\n"
        f"  <segmented>0</segmented>\n{''.join(map(_object, objects))}</annotation>\n"
    )


def _object(one: ShapeObject) -> str:
    x1, y1, x2, y2 = one.box
    return (
        f"  <object>\n    <name>{one.shape}</name>\n    <pose>Unspecified</pose>\n"
        f"    <truncated>{one.truncated:d}</truncated>\n    <occluded>{one.occluded:d}</occluded>\n"
        f"    <difficult>{one.difficult:d}</difficult>\n    <bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>\n  </object>\n"
    )
