"""README from top to bottom in a small clone, then the pages and the notebook about its detector."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.commands.test_predict_video import write_video
from tests.docs.pages import ROOT, Outputs, Reader, small_clone

NAMES = "git for-each-ref --sort=creatordate --format='%(refname:lstrip=-1)' 'refs/exps/??/*/*'"
FIRST, SECOND = (f"$({NAMES} | sed -n {number}p)" for number in (1, 2))
"""Names of the oldest experiments of a clone."""


def shapes(reader: Reader) -> Path:
    """Raw data of the dataset `shapes`, in VOC's layout."""
    (folder,) = reader.clone.folder.glob("data/raw/shapes/[0-9]*px-*")
    return folder


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Somebody who follows README, then the pages about its detector."""
    return Reader(small_clone(tmp_path_factory.mktemp("readme") / "clone"))


@pytest.fixture(scope="module")
def readme(reader: Reader) -> Outputs:
    folder = reader.clone.folder

    def add_images(_: Outputs) -> None:
        shutil.copytree(shapes(reader), folder / "data/raw/bccd/BCCD")

    def add_photos(_: Outputs) -> None:
        files = sorted((shapes(reader) / "JPEGImages").iterdir())
        (folder / "photos").mkdir()
        for path in files[:2]:
            shutil.copy(path, folder / "photos")
        write_video(folder / "clip.mp4")
        truth = json.loads((folder / "data/prepared/test_coco.json").read_text())
        for image in truth["images"]:
            image["file_name"] = Path(image["file_name"]).name
        (folder / "instances_val2017.json").write_text(json.dumps(truth))
        (folder / "val2017").mkdir()
        for image in truth["images"]:
            shutil.copy(shapes(reader) / "JPEGImages" / image["file_name"], folder / "val2017")

    own = {
        "make test": "make --dry-run test",
        "EXP_A": FIRST,
        "EXP_B": SECOND,
        "EXP": FIRST,
        "EXP_OR_RUN": FIRST,
        "--seeds 5": "--seeds 2",
        "detection search SPACE.yaml": "detection search --help",  # docs/experiments.md has a real one
        "IMAGE_OR_FOLDER...": "photos",
        '"folder"': '"photos"',
    }
    before = {"source .venv/bin/activate": add_images, "detection predict IMAGE_OR_FOLDER...": add_photos}
    return reader.follow("README.md", own, before)


def test_readme(reader: Reader, readme: Outputs) -> None:
    restored = readme["git checkout HEAD params.yaml && dvc repro"]
    assert re.findall(r"Running stage '(\w+)'", restored) == ["check"], "nothing is computed again"
    assert readme["source .venv/bin/activate"].count("Ran experiment") == 3
    assert "report: reports/index.html" in readme["make repro"]
    compared = readme["make compare"]
    assert f"127.0.0.1:{reader.port}/#/experiments/" in compared
    assert "recipe.optimizer.lr" in compared
    assert "0 of 2 seeds finished" in compared
    assert "champion points at it" in compared
    written = reader.clone.folder / "predictions"
    assert {"detections.json", "clip.jsonl", "clip.mp4"} <= {path.name for path in written.iterdir()}
    assert (reader.clone.folder / "export/detector.onnx").is_file()


def test_api(reader: Reader, readme: Outputs) -> None:
    outputs = reader.follow("docs/api.md", {})
    assert outputs["import detection"].count(".jpg") == 2


def test_contributing(reader: Reader, readme: Outputs) -> None:
    """Without running the whole suite: its commands exist."""
    own = {
        "make test": "make --dry-run test",
        "pytest tests/ops -q": "pytest tests/ops/test_boxes.py -q --collect-only",
        "make coverage": "make --dry-run coverage",
        "make soak": "make --dry-run soak",
    }
    (output,) = reader.follow("CONTRIBUTING.md", own).values()
    assert "tests/ops/test_boxes.py" in output
    assert "ruff check" in output


def test_score(reader: Reader, readme: Outputs) -> None:
    folder = reader.clone.folder
    shutil.copy(folder / "instances_val2017.json", folder / "instances.json")
    shutil.copy(folder / "predictions/detections.json", folder / "results.json")
    shutil.copytree(shapes(reader), folder / "VOCdevkit/VOC2007")
    (folder / "voc").mkdir()
    for name in ("circle", "square", "star", "triangle"):
        (folder / f"voc/comp4_det_test_{name}.txt").write_text("000025 0.9 10 10 30 30\n")
    outputs = reader.follow("docs/score.md", {"FOLDER": "voc"})
    (output,) = outputs.values()
    decoder, found = json.JSONDecoder(), []
    for start in re.finditer(r"^\{", output, re.MULTILINE):
        found.append(decoder.raw_decode(output[start.start() :])[0])
    assert len(found) == 2


def test_notebook(reader: Reader, readme: Outputs) -> None:
    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": reader.clone.folder}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 1
    printed = "".join(output.get("text", "") for output in shown)
    assert "'AP50'" in printed
    assert "triangle" in printed


def test_deployment(reader: Reader, readme: Outputs) -> None:
    folder = reader.clone.folder
    reader.clone.run("git", "checkout", "HEAD", ".")
    reader.clone.run("dvc", "checkout")  # the detector of `make repro`
    files = sorted((folder / "photos").iterdir())
    shutil.copy(files[0], folder / "one.jpg")
    with Image.open(files[1]) as image:
        for name in ("two.png", "photo.png"):
            image.save(folder / name)
    own = {"EXPERIMENT": "workspace", "IMAGE...": "one.jpg", "8000": str(reader.port)}
    outputs = reader.follow("docs/deployment.md", own)
    assert {"detector.onnx", "infer.py", "detector.pt2", "core.onnx"} <= {
        path.name for path in (folder / "export").iterdir()
    }
    assert (
        '"two.png"'
        in outputs["curl -F images=@one.jpg -F images=@two.png 'http://127.0.0.1:8000/predict?threshold=0.5'"]
    )
    with Image.open(folder / "boxes.png") as boxes:
        assert boxes.format == "PNG"
    (served,) = [output for first, output in outputs.items() if "/invocations" in first]
    assert "predictions" in json.loads(served)
