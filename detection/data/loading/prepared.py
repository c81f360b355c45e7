"""Output of the `prepare` stage: packed indexes, class names, metadata, COCO ground truth of test.

prepared = Prepared.load()              # data/prepared
prepared.check_unchanged("train")
index = prepared.index("train")
image = prepared.root / index[0].file
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detection.data.loading.index import Index
from detection.data.sources import shapes_generator as generator
from detection.data.sources.dataset import RawDataset
from detection.data.sources.digest import image_sizes, listing_hash
from detection.errors import DataError
from detection.files import PREPARED, data_root, read_json, write_json
from detection.params.datasets import Dataset, ShapesDataset
from detection.params.stages import Tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared dataset."""

    folder: Path
    """Folder of the indexes."""
    classes: tuple[str, ...]
    """Class names in label order."""
    meta: dict[str, Any]
    """`dataset`, `classes`, `path`, `listing` (hash of the images) per split, `shapes` and `tiles` (settings),
    `exif` if images with an EXIF orientation are read as `stored`."""

    @classmethod
    def load(cls, folder: str | Path = PREPARED) -> "Prepared":
        """Open a folder written by `save`.

        Raises:
            DataError: The folder has no prepared dataset.
        """
        folder = Path(folder)
        try:
            meta = msgspec.json.decode((folder / "meta.json").read_bytes())
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} does not exist; run `dvc repro prepare` first") from None
        meta["listing"] |= read_json(folder / "test_listing.json")
        return cls(folder=folder, classes=tuple(meta["classes"]), meta=meta)

    @property
    def root(self) -> Path:
        """Folder of the images, under this machine's `DATA_ROOT`."""
        return data_root() / str(self.meta["path"])

    @property
    def tiles(self) -> Tiles | None:
        """Windows that images are cut into."""
        return Tiles(**self.meta["tiles"]) if "tiles" in self.meta else None

    def index(self, split: str) -> Index:
        """Packed index of `train`, `val` or `test`; empty if the dataset has no such split."""
        return Index.load(self.folder / f"{split}.npz")

    def check_unchanged(self, split: str) -> None:
        """Compare a split's image files with those that were prepared; generate missing shapes again.

        Raises:
            DataError: Images are missing or changed.
        """
        name = self.meta["dataset"]
        if "shapes" in self.meta:
            generator.ensure(ShapesDataset(**self.meta["shapes"]))
        if not self.root.is_dir():
            raise DataError(
                f"the images of {name} are missing: {self.root.resolve()} does not exist; restore the "
                f"folder, or set DATA_ROOT to the folder that contains {self.meta['path']}"
            )
        if listing_hash(image_sizes(self.root, self.index(split))) != self.meta["listing"][split]:
            restore = f"delete {self.root} to generate it again" if "shapes" in self.meta else "restore them"
            raise DataError(
                f"the {split} images of {name} in {self.root} differ from those that were prepared; "
                f"{restore}, or run `dvc repro` to use them"
            )

    def describe_images(self, split: str) -> dict[str, str]:
        """Hash of the objects and size in bytes of the file of each image, for comparisons with another machine."""
        index, found = self.index(split), {}
        sizes = image_sizes(self.root, index)
        for record in (index[i] for i in range(len(index))):
            columns = (record.boxes, record.labels, record.difficult, record.crowd, record.areas)
            objects = b"".join(column.tobytes() for column in columns)
            found[record.file] = f"{hashlib.blake2b(objects, digest_size=16).hexdigest()} {sizes[record.file]}"
        return found


def save(raw: RawDataset, dataset: Dataset, folder: str | Path = PREPARED, tiles: Tiles | None = None) -> None:
    """Write a dataset for `Prepared.load`.

    `meta.json` holds only what decides a training: the listing of the test images has a file of its own, license and
    digest are in the dataset's card.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {
        "dataset": raw.name,
        "classes": list(raw.classes),
        "path": raw.path,
        "listing": {split: raw.listing[split] for split in ("train", "val")},
    }
    if isinstance(dataset, ShapesDataset):
        meta["shapes"] = {key: value for key, value in asdict(dataset).items() if key not in ("digest", "license")}
    if tiles is not None:
        meta["tiles"] = asdict(tiles)
    if raw.orientation.line and not raw.orientation.upright:
        meta["exif"] = "stored"
    for split, index in raw.splits.items():
        index.save(folder / f"{split}.npz")
    write_json(folder / "meta.json", meta)
    write_json(folder / "test_listing.json", {"test": raw.listing["test"]})
    save_coco(raw.splits["test"], raw.classes, folder / "test_coco.json")


def to_coco(index: Index, classes: tuple[str, ...]) -> dict[str, Any]:
    """Convert a split to COCO's instances format.

    Image ids are `Index.image_ids()`, category ids those of the dataset's annotation file, else labels + 1; boxes
    are `x, y, width, height`. COCO's metrics ignore `iscrowd`, so a VOC object that is `difficult` gets
    `iscrowd: 1`, and `difficult: 1` as a mark.
    """
    category_ids = index.to_category_ids(np.arange(len(classes))).tolist()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, image_id in enumerate(index.image_ids().tolist()):
        one = index[i]
        images.append({"id": image_id, "file_name": one.file, "height": one.height, "width": one.width})
        for j, (x1, y1, x2, y2) in enumerate(one.boxes.tolist()):
            difficult = bool(one.difficult[j])
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category_ids[one.labels[j]],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": float(one.areas[j]),
                "iscrowd": int(one.crowd[j] or difficult),
            }
            annotations.append(annotation | ({"difficult": 1, "ignore": 1} if difficult else {}))
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def save_coco(index: Index, classes: tuple[str, ...], path: str | Path) -> None:
    """Write `to_coco` as JSON."""
    Path(path).write_bytes(msgspec.json.encode(to_coco(index, classes)))
