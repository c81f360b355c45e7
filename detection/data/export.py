"""COCO ground truth of a split, for pycocotools and for anybody else's tools."""

from pathlib import Path
from typing import Any

import msgspec

from detection.data.index import Index


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
