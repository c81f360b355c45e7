"""What the `prepare` stage left, read back.

prepared = Prepared.load()              # data/prepared
prepared.check_unchanged("train")
index = prepared.index("train")
picture = prepared.root / index[0].file

What the `prepare` stage leaves: the packed indexes, and COCO ground truth for anybody's tools.

Apart from `prepared`, which reads it back, so that an edit here or in a reader trains nothing again.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from detection.data.index import Index
from detection.data.shapes import generator
from detection.data.sources.dataset import RawDataset
from detection.data.sources.digest import listing_hash, sizes
from detection.errors import DataError
from detection.files import data_root
from detection.params.datasets import Dataset, ShapesDataset

FOLDER = "data/prepared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prepared dataset."""

    folder: Path
    """Where the indexes lie."""
    classes: tuple[str, ...]
    """Label i is `classes[i]`."""
    meta: dict[str, Any]
    """`dataset`, `format`, `path`, `digest`, `listing` per split; `shapes`: how to draw them again."""

    @classmethod
    def load(cls, folder: str | Path = FOLDER) -> "Prepared":
        """Open what `prepare` left.

        Raises:
            DataError: It is not there.
        """
        folder = Path(folder)
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            classes = tuple(json.loads((folder / "classes.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} is not there; run `dvc repro prepare` first") from None
        return cls(folder=folder, classes=classes, meta=meta)

    @property
    def root(self) -> Path:
        """Folder of the pictures: under `DATA_ROOT`, wherever that is on this machine."""
        return data_root() / str(self.meta["path"])

    @property
    def digest(self) -> str:
        """Hash over annotations and pictures."""
        return str(self.meta["digest"])

    def index(self, split: str) -> Index:
        """The packed index of `train`, `val` or `test`; empty where the dataset has no such split."""
        return Index.load(self.folder / f"{split}.npz")

    def check_unchanged(self, split: str) -> None:
        """Compare a split's pictures with what `prepare` saw; draws `shapes` again where they are missing.

        Raises:
            DataError: A picture is missing, or another one stands in its place.
        """
        name = self.meta["dataset"]
        if "shapes" in self.meta:
            generator.ensure(ShapesDataset(**self.meta["shapes"]))
        if not self.root.is_dir():
            raise DataError(
                f"the pictures of {name} were looked for at {self.root.resolve()} and are not there; "
                f"put them back, or set DATA_ROOT to the folder that holds {self.meta['path']}"
            )
        if listing_hash(sizes(self.root, self.index(split))) != self.meta["listing"][split]:
            restore = f"delete {self.root}: it is drawn again" if "shapes" in self.meta else "restore them"
            raise DataError(
                f"the {split} pictures of {name} in {self.root} are not those that were prepared; "
                f"{restore}, or run `dvc repro -f -s prepare` to take them as they are"
            )


def save(raw: RawDataset, dataset: Dataset, folder: str | Path = FOLDER) -> None:
    """Write a dataset that was read, so that `Prepared.load` opens it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {
        "dataset": raw.name,
        "format": dataset.format,
        "path": raw.path,
        "license": dataset.license,
        "digest": raw.digest,
        "listing": raw.listing,
    }
    if isinstance(dataset, ShapesDataset):
        meta["shapes"] = asdict(dataset)
    for split, index in raw.splits.items():
        index.save(folder / f"{split}.npz")
    for name, value in (("classes", list(raw.classes)), ("meta", meta)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    save_coco(raw.splits["test"], raw.classes, folder / "test_coco.json")


def to_coco(index: Index, classes: tuple[str, ...]) -> dict[str, Any]:
    """A split as COCO's instances dictionary.

    Image ids are `Index.image_ids()`, category ids are labels + 1, boxes are `x, y, width, height`. COCO's
    scores leave out what is `iscrowd`, so a VOC object that is `difficult` is written as such, and marked.
    """
    numbers = index.image_ids().tolist()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i, number in enumerate(numbers):
        record = index[i]
        images.append(
            {"id": number, "file_name": record.file, "height": record.height, "width": record.width}
        )
        for j, (x1, y1, x2, y2) in enumerate(record.boxes.tolist()):
            difficult, crowd = bool(record.difficult[j]), bool(record.crowd[j])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(record.labels[j]) + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(record.areas[j]),
                    "iscrowd": int(crowd or difficult),
                    **({"difficult": 1, "ignore": 1} if difficult else {}),
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def save_coco(index: Index, classes: tuple[str, ...], path: str | Path) -> None:
    """Write `to_coco` as JSON."""
    Path(path).write_bytes(msgspec.json.encode(to_coco(index, classes)))
