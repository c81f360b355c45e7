"""`detection doctor` and `prepare` on a folder with planted problems: one list names all of them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.params import schema
from detection.params.stages import Checks

ROOT = Path(__file__).resolve().parents[2]
CAT = "<object><name>cat</name><bndbox>{}</bndbox></object>"


def run(folder: Path, data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DATA_ROOT": str(data), "DVC_ROOT": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )


def project(folder: Path, entry: Mapping[str, object], **checks: str) -> Path:
    """A copy of params.yaml with the dataset `mine`, selected."""
    document = schema.read((ROOT / "params.yaml").read_text())
    document |= {"dataset": "mine"}
    document["datasets"]["mine"], document["budgets"]["mine"] = entry, {}
    document["prepare"]["checks"] |= checks
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(json.dumps(document))
    return folder


def box(xmin: float, ymin: float, xmax: float, ymax: float, name: str = "cat") -> str:
    corners = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return CAT.format(corners).replace("cat", name)


class Folder:
    """A VOC folder with images of random content and 50 x 40 pixels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: list[str] = []
        self.rng = np.random.default_rng(0)
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / name).mkdir(parents=True)

    def image(self, suffix: str = "jpg", width: int = 50, **options: object) -> bytes:
        pixels = self.rng.integers(0, 255, (40, width, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, {"jpg": "JPEG", "png": "PNG"}[suffix], **options)
        return content.getvalue()

    def add(
        self,
        name: str,
        body: str = box(5, 5, 20, 20),
        image: bytes | None = b"good",
        suffix: str = "jpg",
        size: tuple[int, int] = (50, 40),
    ) -> None:
        self.listed.append(name)
        if image is not None:
            content = self.image(suffix) if image == b"good" else image
            (self.root / "JPEGImages" / f"{name}.{suffix}").write_bytes(content)
        sizes = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        self.write(name, f"<annotation>{sizes}{body}</annotation>")

    def write(self, name: str, xml: str) -> None:
        (self.root / "Annotations" / f"{name}.xml").write_text(xml)

    def list(self, split: str, names: list[str]) -> None:
        (self.root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))


def plant(root: Path) -> dict[str, str]:
    """Plant 24 problems, one per image; return the problem type by image."""
    folder = Folder(root)
    for number in range(3):
        folder.add(f"good{number}")
    good = box(5, 5, 20, 20)
    folder.add("no_width", good + box(9, 9, 9, 20))
    folder.add("inverted", good + box(30, 20, 10, 30))
    folder.add("partly_out", good + box(40, 20, 70, 30))
    folder.add("wholly_out", good + box(400, 300, 500, 350))
    wide = folder.image(width=300)
    folder.add("thread", good + box(1, 3, 300, 3.2), image=wide, size=(300, 40))
    folder.add("twice_drawn", good + good)
    folder.add("typo", good + box(2, 2, 9, 9, "caat"))
    folder.add("no_name", good + box(2, 2, 9, 9, " "))
    folder.add("no_numbers", good + box(2, 2, 9, 9).replace("<xmin>2", "<xmin>two"))
    folder.add("no_picture", image=None)
    folder.add("text", image=b"not an image")
    folder.add("empty", image=b"")
    folder.add("cut_jpg", image=folder.image()[:-700])
    folder.add("cut_png", image=folder.image("png")[:-700], suffix="png")
    folder.add("other_size", size=(100, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    folder.add("turned", image=folder.image(exif=exif), size=(40, 50))
    folder.add("two_files")
    (root / "JPEGImages/two_files.png").write_bytes(folder.image("png"))
    folder.add("leads_out", "<filename>../../../etc/passwd.jpg</filename>" + good, image=None)
    folder.add("broken_xml")
    folder.write("broken_xml", "<annotation><object>")
    folder.add("entities")
    folder.write("entities", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>")
    folder.add("no_xml")
    (root / "Annotations/no_xml.xml").unlink()
    shared = folder.image()
    folder.add("shared_test", image=shared)
    folder.add("good_test")
    folder.list("test", ["shared_test", "good_test"])
    folder.listed = folder.listed[:-2]
    folder.add("shared_train", image=shared)
    folder.list("train", [*folder.listed, "../../outside", "good0"])
    return {
        **dict.fromkeys(["no_width", "inverted"], "zero_area"),
        **dict.fromkeys(["partly_out", "wholly_out"], "box_outside_image"),
        "thread": "degenerate_box",
        "twice_drawn": "duplicate_object",
        "typo": "unknown_class",
        **dict.fromkeys(["no_name", "no_numbers", "broken_xml", "entities"], "broken_annotation"),
        "no_picture": "missing_image",
        **dict.fromkeys(["text", "empty", "cut_jpg", "cut_png"], "broken_image"),
        "other_size": "image_size_mismatch",
        "turned": "exif_rotation",
        "two_files": "duplicate_id",
        "good0 is listed twice": "duplicate_id",
        **dict.fromkeys(["leads_out", "../../outside"], "unsafe_name"),
        "no_xml": "missing_annotation",
        "shared_train": "split_leak",
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    data = tmp_path_factory.mktemp("raw")
    return data, plant(data / "mine")


ENTRY = {"format": "voc", "path": "mine", "train": ["train"], "test": ["test"], "classes": ["cat"]}


def test_the_doctor_names_every_planted_problem(planted: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    data, problems = planted
    folder = project(tmp_path / "work", ENTRY)
    done = run(folder, data, "detection.cli", "doctor", "mine", "--json", "problems.json", "--model", "fcos")
    assert done.returncode == 1
    assert done.stderr.startswith("error: mine has ")
    assert done.stderr.count("\n") == 1
    entries = json.loads((folder / "problems.json").read_text())
    for image, name in problems.items():
        matching = [one for one in entries if image in one["where"] + one["detail"] and one["type"] == name]
        assert len(matching) == 1, image
    assert len(entries) == len(problems) >= 20
    for name in set(problems.values()):
        count = list(problems.values()).count(name)
        (line,) = [line for line in done.stdout.splitlines() if f"[{name}: " in line]
        assert int(line.split()[0]) == count, name
    assert all(image in done.stdout for image in problems)


def test_prepare_refuses_all_types_in_one_message(planted: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    data, problems = planted
    done = run(project(tmp_path / "work", ENTRY), data, "stages.prepare")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    named = {line.split(":")[0].strip() for line in done.stderr.splitlines()[1:-1]}
    defaults = Checks()
    assert named == {name for name in problems.values() if getattr(defaults, name) == "error"}
    assert "broken_image: 4: " in done.stderr
    assert "and 1 more" in done.stderr
    assert not (tmp_path / "work/data").exists()


def test_dropped_objects_and_images_are_in_the_statistics(planted: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    data, problems = planted
    errors = [name for name in set(problems.values()) if getattr(Checks(), name) == "error"]
    folder = project(tmp_path / "work", ENTRY, **dict.fromkeys(errors, "drop"))
    done = run(folder, data, "stages.prepare")
    assert done.returncode == 0, done.stderr
    assert "box_outside_image: 2 clipped: JPEGImages/partly_out.jpg: cat [39, 19, 70, 30]" in done.stdout
    card = json.loads((folder / "reports/dataset/card.json").read_text())
    assert card["problems"]["zero_area"]["count"] == 2
    assert card["problems"]["broken_image"]["action"] == "drop"
    left = {"no_width", "inverted", "partly_out", "wholly_out", "thread", "twice_drawn", "typo", "no_name"}
    left |= {"no_numbers", "turned", "two_files", "good0", "good1", "good2"}
    with np.load(folder / "data/prepared/train.npz") as index:
        assert {name.decode() for name in index["ids"]} == left
        widths = np.repeat(index["sizes"][:, 1], np.diff(index["offsets"]))
        assert (index["boxes"][:, 2] <= widths).all()


def test_the_doctor_on_real_blood_cells(shared_data: Path, tmp_path: Path) -> None:
    done = run(project(tmp_path / "work", ENTRY), shared_data, "detection.cli", "doctor", "bccd", "--model", "fcos")
    assert done.returncode == 0, done.stderr
    assert "BloodImage_00338.xml: RBC with xmin 504, ymin 337, xmax 504, ymax 337" in done.stdout
    assert "BloodImage_00343.xml: RBC with xmin 181, ymin 329, xmax 181, ymax 329" in done.stdout
    assert done.stdout.count("[zero_area: drop]") == done.stdout.count(": drop]") == 1  # no other problem
    assert "AP50 by chance: ± 0.05 on val, ± 0.06 on test" in done.stdout
    assert "most objects: RBC 2,381, fewest: Platelets 209, ratio 11" in done.stdout
    assert "duplicates (IoU ≥ 0.9): 4 pairs; in BloodImage_00020," in done.stdout
    assert done.stdout.endswith("  fcos has no anchors\n")


def test_published_anchors_miss_platelets(shared_data: Path, tmp_path: Path) -> None:
    """The sizes of `overrides.small` fit them."""
    folder = project(tmp_path / "work", ENTRY)
    document = schema.read((folder / "params.yaml").read_text())
    del document["models"]["retinanet_v2"]["overrides"]["small"]["anchors"]
    (folder / "params.yaml").write_text(json.dumps(document))
    published, ours = (
        run(folder, shared_data, "detection.cli", "doctor", "bccd", "--model", model)
        for model in ("retinanet_v2", "retinanet")
    )
    assert [published.returncode, ours.returncode] == [0, 0], published.stderr + ours.stderr
    lines, fitted = (
        {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.strip()}
        for done in (published, ours)
    )
    assert lines["Platelets"] == ["209", "21", "px", "35.4%", "0.43"]
    assert lines["WBC"][3] == "99.5%"
    assert "136 objects fit no anchor" in published.stdout
    assert (
        "suggested: models.retinanet_v2.overrides.bccd.anchors.sizes: [[19, 24, 30], [38, 48, 60]," in published.stdout
    )
    assert fitted["Platelets"] == ["209", "21", "px", "99.0%", "0.69"]


@pytest.mark.parametrize(("name", "images"), [("tiny_coco", "50"), ("voc2007_320", "2,508")])
def test_the_doctor_reports_no_problems_of_clean_data(
    shared_data: Path, tmp_path: Path, name: str, images: str
) -> None:
    done = run(project(tmp_path / "work", ENTRY), shared_data, "detection.cli", "doctor", name, "--model", "fcos")
    assert done.returncode == 0, done.stderr
    assert "no problems" in done.stdout
    assert f" {images} " in done.stdout
