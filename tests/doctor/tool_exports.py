"""Small exports of labeling tools, written after their documented formats.

Every export has the same images and boxes, so that a reader can be compared with the truth.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
CLASSES = ("cat", "dog")
SPLITS = {"train": range(16), "valid": range(16, 20), "test": range(20, 24)}
ALL = range(24)


class Object(NamedTuple):
    """A labeled object: class index and box in whole pixels, `x1, y1, x2, y2`, half-open."""

    label: int
    box: tuple[int, int, int, int]


def objects(number: int) -> list[Object]:
    """Objects of an image; every sixth one has none."""
    if number % 6 == 5:
        return []
    x, y = 4 + 2 * (number % 8), 3 + number % 7
    return [Object(number % 2, (x, y, x + 20, y + 16)), Object(1, (x + 8, y + 10, x + 36, y + 30))]


def name(number: int) -> str:
    """File name of an image."""
    return f"IMG_{number:03}.jpg"


def roboflow_name(number: int) -> str:
    """File name as Roboflow writes it."""
    return f"IMG_{number:03}_jpg.rf.{number:032x}.jpg"


def save_image(path: Path, number: int) -> None:
    """An image in which the objects are visible."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(60, 120, (HEIGHT, WIDTH, 3), np.uint8)
    for one in objects(number):
        x1, y1, x2, y2 = one.box
        noise[y1:y2, x1:x2] = ((230, 40, 40), (40, 60, 230))[one.label]
    Image.fromarray(noise).save(path, quality=95)


def write(path: Path, text: str) -> None:
    """Write a text file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def yolo_lines(number: int) -> str:
    """Lines of a label file with six decimals."""
    lines = []
    for label, (x1, y1, x2, y2) in objects(number):
        values = ((x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT)
        lines.append(f"{label} " + " ".join(f"{value:.6f}" for value in values))
    return "\n".join(lines)


def voc_xml(number: int, file: str) -> str:
    """VOC annotation in the order of tags that the tools use."""
    entries = "".join(
        f"<object><name>{CLASSES[label]}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
        f"<bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for label, (x1, y1, x2, y2) in objects(number)
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    source = "<folder>images</folder><source><database>Unknown</database></source>"
    return f"<annotation><filename>{file}</filename>{source}{size}<segmented>0</segmented>{entries}</annotation>"


def coco(numbers: Iterable[int], file_name: Callable[[int], str], first: int, **values: Any) -> dict[str, Any]:
    """COCO document whose ids start at `first`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for row, number in enumerate(numbers, first):
        images.append({"id": row, "file_name": file_name(number), "width": WIDTH, "height": HEIGHT, "license": 1})
        for label, (x1, y1, x2, y2) in objects(number):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            entry = {"image_id": row, "category_id": label + first, "bbox": bbox, "area": bbox[2] * bbox[3]}
            annotations.append({"id": len(annotations) + first, **entry, "iscrowd": 0, "segmentation": []})
    categories = [{"id": i, "name": one, "supercategory": ""} for i, one in enumerate(CLASSES, first)]
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
        **values,
    }


def roboflow_coco(folder: Path) -> None:
    """Roboflow, COCO: JSON in each folder; class 0 is the project and has no objects."""
    for split, numbers in SPLITS.items():
        document = coco(numbers, roboflow_name, 1)
        document["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}] + [
            {**one, "supercategory": "pets"} for one in document["categories"]
        ]
        write(folder / split / "_annotations.coco.json", json.dumps(document))
        for number in numbers:
            save_image(folder / split / roboflow_name(number), number)
    write(folder / "README.roboflow.txt", "exported")


def roboflow_voc(folder: Path) -> None:
    """Roboflow, Pascal VOC: XML beside the images."""
    for split, numbers in SPLITS.items():
        for number in numbers:
            file = roboflow_name(number)
            save_image(folder / split / file, number)
            write(folder / split / f"{file.removesuffix('.jpg')}.xml", voc_xml(number, file))
    write(folder / "README.roboflow.txt", "exported")


def roboflow_yolo(folder: Path) -> None:
    """Roboflow, YOLO: data.yaml with paths to the folder above."""
    for split, numbers in SPLITS.items():
        for number in numbers:
            file = roboflow_name(number)
            save_image(folder / split / "images" / file, number)
            write(folder / split / "labels" / f"{file.removesuffix('.jpg')}.txt", yolo_lines(number))
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(folder / "data.yaml", f"{paths}\nnc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: me\n  version: 1\n")
    write(folder / "README.dataset.txt", "exported")


def cvat_coco(folder: Path) -> None:
    """CVAT, COCO 1.0."""
    write(folder / "annotations/instances_default.json", json.dumps(coco(ALL, name, 1)))
    for number in ALL:
        save_image(folder / "images/default" / name(number), number)


def cvat_voc(folder: Path) -> None:
    """CVAT, PASCAL VOC 1.1."""
    for number in ALL:
        save_image(folder / "JPEGImages" / name(number), number)
        write(folder / f"Annotations/IMG_{number:03}.xml", voc_xml(number, name(number)))
    stems = [f"IMG_{number:03}" for number in ALL]
    write(folder / "ImageSets/Main/default.txt", "\n".join(stems))
    write(folder / "ImageSets/Main/cat_default.txt", "\n".join(f"{stem}  1" for stem in stems))
    write(folder / "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncat:::\ndog:::\n")


def cvat_yolo(folder: Path) -> None:
    """CVAT, YOLO 1.1."""
    for number in ALL:
        save_image(folder / "obj_train_data" / name(number), number)
        write(folder / f"obj_train_data/IMG_{number:03}.txt", yolo_lines(number))
    write(folder / "train.txt", "\n".join(f"data/obj_train_data/{name(number)}" for number in ALL))
    write(folder / "obj.names", "cat\ndog\n")
    write(folder / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")


def cvat_ultralytics(folder: Path) -> None:
    """CVAT, Ultralytics YOLO Detection 1.0."""
    for number in ALL:
        save_image(folder / "images/train" / name(number), number)
        write(folder / f"labels/train/IMG_{number:03}.txt", yolo_lines(number))
    write(folder / "train.txt", "\n".join(f"images/train/{name(number)}" for number in ALL))
    write(folder / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")


def label_studio_coco(folder: Path) -> None:
    """Label Studio, COCO."""
    write(folder / "result.json", json.dumps(coco(ALL, lambda number: f"images/{name(number)}", 0)))
    for number in ALL:
        save_image(folder / "images" / name(number), number)


def label_studio_voc(folder: Path) -> None:
    """Label Studio, Pascal VOC XML."""
    for number in ALL:
        save_image(folder / "images" / name(number), number)
        write(folder / f"Annotations/IMG_{number:03}.xml", voc_xml(number, f"IMG_{number:03}"))


def label_studio_yolo(folder: Path) -> None:
    """Label Studio, YOLO."""
    for number in ALL:
        save_image(folder / "images" / name(number), number)
        write(folder / f"labels/IMG_{number:03}.txt", yolo_lines(number))
    write(folder / "classes.txt", "cat\ndog")
    notes = {"categories": [{"id": i, "name": one} for i, one in enumerate(CLASSES)], "info": {"year": 2026}}
    write(folder / "notes.json", json.dumps(notes))


def labelimg_voc(folder: Path) -> None:
    """LabelImg, PascalVOC: XML beside the images."""
    for number in ALL:
        save_image(folder / name(number), number)
        write(folder / f"IMG_{number:03}.xml", voc_xml(number, name(number)))


def labelimg_yolo(folder: Path) -> None:
    """LabelImg, YOLO: text beside the images, and classes.txt."""
    for number in ALL:
        save_image(folder / name(number), number)
        if objects(number):
            write(folder / f"IMG_{number:03}.txt", yolo_lines(number))
    write(folder / "classes.txt", "cat\ndog\n")


def via_coco(folder: Path) -> None:
    """VIA, COCO format, beside the images; the annotations' ids are text."""
    document = coco(ALL, name, 1)
    for one in document["annotations"]:
        one["image_id"] = str(one["image_id"])
    write(folder / "via_project_coco.json", json.dumps(document))
    for number in ALL:
        save_image(folder / name(number), number)


EXPORTS: dict[str, Callable[[Path], None]] = {
    one.__name__: one
    for one in (
        roboflow_coco,
        roboflow_voc,
        roboflow_yolo,
        cvat_coco,
        cvat_voc,
        cvat_yolo,
        cvat_ultralytics,
        label_studio_coco,
        label_studio_voc,
        label_studio_yolo,
        labelimg_voc,
        labelimg_yolo,
        via_coco,
    )
}
"""Writer of each export."""
