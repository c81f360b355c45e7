"""What the `prepare` stage leaves: the packed indexes, and COCO ground truth for anybody's tools.

Apart from `prepared`, which reads it back, so that an edit here or in a reader trains nothing again.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from detection.data.index import Index
from detection.data.prepared import FOLDER
from detection.data.read import Raw
from detection.params.datasets import Dataset, ShapesDataset


def save(raw: Raw, dataset: Dataset, folder: str | Path = FOLDER) -> None:
    """Write a dataset that was read, so that `Prepared.load` opens it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, Any] = {
        "dataset": raw.name,
        "format": dataset.format,
        "path": raw.path,
        "licence": dataset.licence,
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
