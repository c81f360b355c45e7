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
from command_line import detection
from command_line import error_line as slip
from PIL import Image

from detection import params as parameters

ROOT = Path(__file__).resolve().parents[2]


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
