"""`detection …` as a person runs it: programs, exit codes, one line for a slip."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection import params as parameters

ROOT = Path(__file__).resolve().parents[2]


def detection(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    gone = ("DVC_ROOT", "DATA_ROOT")
    environment = {key: value for key, value in os.environ.items() if key not in gone} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, "-m", "detection.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=120)


def slip(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a slip costs."""
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's file with random weights: it finds something everywhere, none of it right."""
    import torch

    from detection.models.build import build_detector, save_detector

    torch.manual_seed(0)
    recipe = parameters.load(ROOT / "params.yaml").recipe
    classes = ("ring", "cross", "leaf")
    file = tmp_path_factory.mktemp("weights") / "detector.pt"
    save_detector(file, build_detector(recipe, len(classes), None).state_dict(), recipe, classes, "toy")
    return file


def picture(path: Path, width: int = 120, height: int = 80, mode: str = "RGB") -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def test_help_lists_the_commands_in_no_time(project: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = detection(project, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    for command in ("predict", "browse", "summary", "check", "pin", "compare", "apply", "noise", "promote"):
        assert command in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_predict_draws_and_writes(project: Path, weights: Path) -> None:
    pictures = project / "pictures"
    pictures.mkdir()
    picture(pictures / "b.png")
    picture(pictures / "a.jpg", 60, 100)
    picture(pictures / "grey.bmp", mode="L")
    (pictures / "notes.txt").write_text("not a picture")
    done = detection(project, "predict", "pictures", "--weights", str(weights), "--threshold", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads((project / "predictions" / "detections.json").read_text())
    assert [one["file"] for one in found] == ["pictures/a.jpg", "pictures/b.png", "pictures/grey.bmp"]
    assert [(one["width"], one["height"]) for one in found] == [(60, 100), (120, 80), (120, 80)]
    assert all(one["detections"] for one in found)
    for one in found:
        with Image.open(project / "predictions" / Path(one["file"]).name) as drawn:
            assert drawn.size >= (one["width"], one["height"])
        for detection_ in one["detections"]:
            x1, y1, x2, y2 = detection_["box"]
            assert 0 <= x1 < x2 <= one["width"]
            assert 0 <= y1 < y2 <= one["height"]
            assert detection_["class"] == ("ring", "cross", "leaf")[detection_["label"]]
            assert 0 <= detection_["score"] <= 1
    assert f"{sum(len(one['detections']) for one in found)} detections on 3 images" in done.stdout


def test_predict_keeps_what_scores_above_the_threshold(project: Path, weights: Path) -> None:
    from detection.commands.predict import predict

    file = picture(project / "one.png").rename(project / "one")  # as a browser saves some
    every, some = project / "every", project / "some"
    predict(file, weights, every, 0.0, "cpu")
    (all_of_it,) = json.loads((every / "detections.json").read_text())
    scores = [one["score"] for one in all_of_it["detections"]]
    middle = (min(scores) + max(scores)) / 2
    predict(file, weights, some, middle, "cpu")
    (part,) = json.loads((some / "detections.json").read_text())
    assert [one["score"] for one in part["detections"]] == [score for score in scores if score >= middle]
    assert 0 < len(part["detections"]) < len(scores)
    assert (some / "one.png").is_file()


def test_predict_tells_of_broken_pictures_and_does_the_others(project: Path, weights: Path) -> None:
    pictures = project / "pictures"
    pictures.mkdir()
    picture(pictures / "fine.png")
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff but no more")
    (pictures / "empty.png").write_bytes(b"")
    said = slip(detection(project, "predict", "pictures", "--weights", str(weights)))
    assert "pictures/broken.jpg cannot be read as a picture" in said
    assert "1 more" in said
    assert [one["file"] for one in json.loads((project / "predictions/detections.json").read_text())] == [
        "pictures/fine.png"
    ]


def test_predict_says_what_is_missing(project: Path) -> None:
    assert "nowhere does not exist" in slip(detection(project, "predict", "nowhere"))
    assert "no image files in ." in slip(detection(project, "predict", "."))
    picture(project / "one.png")
    assert "models/detector.pt does not exist" in slip(detection(project, "predict", "one.png"))
    assert "name another folder" in slip(detection(project, "predict", "one.png", "--out", "."))


def test_a_file_that_can_be_neither_read_nor_written_costs_a_line(project: Path) -> None:
    (project / "params.yaml").unlink()
    (project / "params.yaml").mkdir()
    assert "Is a directory: 'params.yaml'" in slip(detection(project, "check"))


def test_predict_says_that_a_file_is_no_detector(project: Path) -> None:
    picture(project / "one.png")
    said = slip(detection(project, "predict", "one.png", "--weights", "params.yaml"))
    assert "params.yaml is not a detector's file" in said


@pytest.mark.parametrize("threshold", ["50", "half", "nan"])
def test_a_score_is_between_0_and_1(project: Path, threshold: str) -> None:
    done = detection(project, "predict", "one.png", "--threshold", threshold)
    assert done.returncode == 2
    assert f"a score is between 0 and 1, not {threshold}" in done.stderr


def test_check_says_what_the_recipe_became(project: Path) -> None:
    done = detection(project, "check")
    assert done.returncode == 0
    assert "params.yaml is fine" in done.stdout
    assert "batch_size = " in done.stdout
    file = project / "params.yaml"
    file.write_text(file.read_text().replace("\nseed:", "\nseeed:"))
    assert "did you mean 'seed'?" in slip(detection(project, "check"))


def test_summary_shows_the_scores_and_how_to_go_on(project: Path) -> None:
    assert "run `dvc repro` first" in slip(detection(project, "summary"))
    for path, content in {
        "evaluation/metrics.json": {"AP": 0.5004, "AP50": 0.71249, "AP_large": None},
        "train/recipe.json": {"model": "toy", "dataset": "shapes"},
    }.items():
        file = project / "reports" / path
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    shown = detection(project, "summary").stdout
    assert "toy on shapes" in shown
    assert "AP50 0.712" in shown
    assert "AP_large     -" in shown
    assert str(project / "reports/index.html") in shown
    assert "dvc exp run -S model=" in shown


def with_shapes(project: Path, entry: str) -> Path:
    """Give the project's params.yaml another entry for shapes, which is the first of the datasets."""
    file = project / "params.yaml"
    head, rest = file.read_text().split("\ndatasets:\n")
    file.write_text(f"{head}\ndatasets:\n{entry}\n  voc2007:{rest.split('  voc2007:', 1)[1]}")
    return file


@pytest.mark.parametrize(
    ("entry", "pinned"),
    [
        ("shapes: {format: shapes, train: 4,", "shapes: {digest: DIGEST, format: shapes, train: 4,"),
        ("shapes: {train: 4, digest: null,", "shapes: {train: 4, digest: DIGEST,"),
        ("shapes: {train: 4, digest: aaaa, # why\n  ", "shapes: {train: 4, digest: DIGEST, # why\n  "),
    ],
)
def test_pin_changes_the_digest_and_no_other_character(project: Path, entry: str, pinned: str) -> None:
    rest = "test: 2, val: 2, path: shapes" + (", format: shapes" if "format" not in entry else "")
    file = with_shapes(project, f"  {entry} {rest}}}")
    before = file.read_text()
    done = detection(project, "pin", "shapes")
    assert done.returncode == 0, done.stderr
    digest = done.stdout.split()[-1]
    assert file.read_text() == before.replace(entry, pinned.replace("DIGEST", digest))
    assert "pinned already" in detection(project, "pin", "shapes").stdout


def test_pin_of_an_entry_in_block_style(project: Path) -> None:
    block = (
        "  shapes:\n    format: shapes  # drawn\n    path: shapes\n    train: 4\n    val: 2\n    test: 2\n"
    )
    file = with_shapes(project, block)
    digest = detection(project, "pin", "shapes").stdout.split()[-1]
    assert f"  shapes:\n    digest: {digest}\n    format: shapes  # drawn\n" in file.read_text()
    assert "pinned already" in detection(project, "pin", "shapes").stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{a: {digest: , path: x}}", "{a: {digest: 1f , path: x}}"),
        ("a:\n  digest:  # none yet\n  path: x\n", "a:\n  digest: 1f  # none yet\n  path: x\n"),
        ("a:\n  path: x\n  digest:", "a:\n  path: x\n  digest: 1f"),
    ],
)
def test_pin_fills_an_empty_value(old: str, new: str) -> None:
    from detection.commands.pin import _with_digest

    head = "datasets: " if old.startswith("{") else "datasets:\n  "
    assert _with_digest(head + old.replace("\n", "\n  "), "a", "1f") == head + new.replace("\n", "\n  ")


def test_pin_knows_the_nearest_name(project: Path) -> None:
    assert "did you mean 'shapes'?" in slip(detection(project, "pin", "shape"))


def test_browse_draws_a_sheet_of_what_training_sees(project: Path) -> None:
    with_shapes(
        project, "  shapes: {format: shapes, path: shapes, image_size: 64, train: 4, val: 2, test: 2}"
    )
    done = detection(project, "browse", "shapes", "--augmentation", "letterbox", "--count", "6")
    assert done.returncode == 0, done.stderr
    assert "6 images of shapes for fasterrcnn_resnet18 with augmentation letterbox: browse.png" in done.stdout
    with Image.open(project / "browse.png") as sheet:
        colours = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    assert (colours == 128).all(axis=1).mean() > 0.05  # the canvas
    assert len(np.unique(colours, axis=0)) > 500  # and pictures on it


@pytest.mark.parametrize(
    ("words", "mend"),
    [
        (["shape"], "did you mean 'shapes'?"),
        (["shapes", "--augmentation", "leterbox"], "did you mean 'letterbox'?"),
        (["shapes", "--model", "ssd300", "--augmentation", "multiscale"], "needs resize: keep"),
        (["shapes", "--count", "0"], "at least one image"),
        (["bccd"], "bccd"),
    ],
)
def test_a_slip_in_browsing_costs_a_line(project: Path, words: list[str], mend: str) -> None:
    assert mend in slip(detection(project, "browse", *words))
    assert not (project / "browse.png").exists()


def test_commands_on_experiments_tell_a_slip_without_loading_torch_or_mlflow(project: Path) -> None:
    program = (
        "import sys; from detection.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('loaded', {'torch', 'mlflow', 'dvc', 'matplotlib'} & sys.modules.keys())"
    )
    for words, told in (
        (("compare", "one"), "two experiments or more"),
        (("noise", "--seeds", "1"), "two seeds or more"),
        (("apply", "one"), "is no DVC repository"),
        (("promote", "one"), "is no DVC repository"),
    ):
        command = [sys.executable, "-c", program, *words]
        environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(project)}
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
        assert told in slip(done)
        assert done.stdout.strip() == "loaded set()"
