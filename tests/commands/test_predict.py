"""`detection predict` as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection.files import HEIF_SUFFIXES, IMAGE_SUFFIXES
from tests.command_line import ROOT, detection, error_line


def save_image(path: Path, width: int = 120, height: int = 80, mode: str = "RGB") -> Path:
    """Save an image of noise."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path)
    return path


def test_predict_draws_and_writes(project: Path, weights: Path) -> None:
    images = project / "images"
    images.mkdir()
    save_image(images / "b.png")
    save_image(images / "a.jpg", 60, 100)
    save_image(images / "gray.bmp", mode="L")
    (images / "notes.txt").write_text("not an image")
    done = detection(project, "predict", "images", "--weights", str(weights), "--threshold", "0")
    assert done.returncode == 0, done.stderr
    found = json.loads((project / "predictions" / "detections.json").read_text())
    assert [one["file"] for one in found] == ["images/a.jpg", "images/b.png", "images/gray.bmp"]
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


def test_predict_keeps_scores_above_the_threshold(project: Path, weights: Path) -> None:
    from detection.commands.predict import predict

    file = save_image(project / "one.png").rename(project / "one")  # a file name without a suffix
    every, some = project / "every", project / "some"
    predict(file, weights, every, 0.0, "cpu")
    (whole,) = json.loads((every / "detections.json").read_text())
    scores = [one["score"] for one in whole["detections"]]
    middle = (min(scores) + max(scores)) / 2
    predict(file, weights, some, middle, "cpu")
    (part,) = json.loads((some / "detections.json").read_text())
    assert [one["score"] for one in part["detections"]] == [score for score in scores if score >= middle]
    assert 0 < len(part["detections"]) < len(scores)
    assert (some / "one.png").is_file()


def test_predict_reports_broken_images_and_processes_the_others(project: Path, weights: Path) -> None:
    images = project / "images"
    images.mkdir()
    save_image(images / "fine.png")
    (images / "broken.jpg").write_bytes(b"\xff\xd8\xff but no more")
    (images / "empty.png").write_bytes(b"")
    (images / "._fine.png").write_bytes(b"resource fork of macOS")
    done = detection(project, "predict", "images", "--weights", str(weights))
    assert done.returncode == 1
    assert "2 of 3 files cannot be read: images/broken.jpg, images/empty.png" in done.stderr
    assert "detections on 1 image:" in done.stdout + done.stderr
    assert [one["file"] for one in json.loads((project / "predictions/detections.json").read_text())] == [
        "images/fine.png"
    ]


def test_predict_names_what_is_missing(project: Path) -> None:
    assert "nowhere does not exist" in error_line(detection(project, "predict", "nowhere"))
    assert "no image files in ." in error_line(detection(project, "predict", "."))
    save_image(project / "one.png")
    assert "models/detector.pt does not exist" in error_line(detection(project, "predict", "one.png"))
    assert "name another folder" in error_line(detection(project, "predict", "one.png", "--out", "."))


def test_predict_refuses_a_file_that_is_not_a_detector(project: Path) -> None:
    save_image(project / "one.png")
    message = error_line(detection(project, "predict", "one.png", "--weights", "params.yaml"))
    assert "params.yaml is not a detector" in message


@pytest.mark.parametrize("threshold", ["50", "half", "nan"])
def test_a_score_is_between_0_and_1(project: Path, threshold: str) -> None:
    done = detection(project, "predict", "one.png", "--threshold", threshold)
    assert done.returncode == 2
    assert f"a score is between 0 and 1, not {threshold}" in done.stderr


@pytest.mark.parametrize("suffix", [one for one in IMAGE_SUFFIXES if one not in (".pgm", ".jpe", *HEIF_SUFFIXES)])
def test_predict_reads_every_image_type_that_training_reads(project: Path, weights: Path, suffix: str) -> None:
    (project / "images").mkdir()
    Image.new("RGB", (48, 32)).save(project / f"images/one{suffix}")
    done = detection(project, "predict", "images", "--weights", str(weights))
    assert done.returncode == 0, done.stderr
    assert (project / f"predictions/one{suffix}").is_file()


def test_predict_sub_folders_patterns_and_lists(project: Path, weights: Path) -> None:
    from detection.commands.predict import predict
    from detection.input_files import find_inputs

    for name in ("images/a.png", "images/deep/a.png", "images/deep/er/b.png"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(project / name, 40, 60 if "b" in name else 30)
    images, out = project / "images", project / "images/out"
    for _ in range(2):  # the second time, the drawn images of the first are left out
        predict(images, weights, out, 0.5, "cpu", recursive=True)
        found = json.loads((out / "detections.json").read_text())
        assert [one["file"] for one in found] == [str(images / p) for p in ("a.png", "deep/a.png", "deep/er/b.png")]
        assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == [
            *("a.png", "deep/a.png", "deep/er/b.png")
        ]
    assert find_inputs([images / "deep/*.png", images / "a.png"]).images == [images / "deep/a.png", images / "a.png"]
    assert find_inputs([images / "**/*.png"], exclude=out).images == [
        *(images / "a.png", images / "deep/a.png", images / "deep/er/b.png")
    ]
    (images / "list.txt").write_text("deep/a.png\n\na.png\n")
    assert find_inputs([images / "list.txt"]).images == [images / "deep/a.png", images / "a.png"]


def test_exif_rotated_photos_are_upright(project: Path, weights: Path) -> None:
    from detection.commands.predict import predict

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(project / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(project / "upright.png")
    predict([project / "turned.png", project / "upright.png"], weights, project / "out", 0.0, "cpu")
    turned, upright = json.loads((project / "out/detections.json").read_text())
    assert (turned["width"], turned["height"]) == (40, 80)
    assert turned["detections"] == upright["detections"]


def test_an_interrupted_process_keeps_its_results(project: Path, weights: Path) -> None:
    images = project / "images"
    images.mkdir()
    save_image(images / "0.png")
    for i in range(1, 4000):
        (images / f"{i}.png").symlink_to(images / "0.png")
    command = [sys.executable, "-m", "detection.cli", "predict", "images", "--weights", str(weights), "--no-images"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        logged = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors == ""
    assert all(line.startswith("images/") for line in logged), logged
    found = json.loads((project / "predictions/detections.json").read_text())
    assert 3 <= len(found) < 4000
    assert f"on {len(found)} image" in rest.splitlines()[-1]
    assert rest.splitlines()[-1].startswith("interrupted; ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_results_and_summary_agree_wherever_a_signal_arrives(
    project: Path,
    weights: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from detection.commands import predict

    class Interrupted(predict._JsonList):
        """Signals come before and after the second entry is written."""

        count = 0

        def extend(self, values: Sequence[dict[str, Any]], indent: int | None = None) -> None:
            Interrupted.count += 1
            if Interrupted.count == 2:
                signal.raise_signal(number)
            super().extend(values, indent)
            if Interrupted.count == 2:
                signal.raise_signal(number)

    monkeypatch.setattr(predict, "_JsonList", Interrupted)
    images = [save_image(project / f"{i}.png") for i in range(4)]
    before = signal.signal(number, lambda *_: None)  # a command that does not handle it must not end pytest
    try:
        with caplog.at_level("INFO"), pytest.raises(SystemExit) as stopped:
            predict.predict(images, weights, project / "out", device="cpu", draw=False)
    finally:
        signal.signal(number, before)
    assert stopped.value.code == 128 + number
    assert len(json.loads((project / "out/detections.json").read_text())) == 2
    assert caplog.messages[-1].startswith("interrupted; ")
    assert " on 2 images: " in caplog.messages[-1]


def test_the_list_is_complete_after_every_entry(tmp_path: Path) -> None:
    from detection.commands.predict import _JsonList

    file = tmp_path / "list.json"
    with _JsonList(file) as results:
        results.extend([])
        assert json.loads(file.read_bytes()) == []
        for i in range(3):
            results.extend([{"a": i}, {"b": "ü"}], indent=1 if i else None)
            assert len(json.loads(file.read_bytes())) == 2 * (i + 1)
    assert json.loads(file.read_text())[-2:] == [{"a": 2}, {"b": "ü"}]
