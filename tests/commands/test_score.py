"""`detection score` on published files and on broken ones, and its imports."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.cli import main

Run = Callable[..., dict[str, Any]]
Fail = Callable[..., str]
BOX = [10.0, 10.0, 30.0, 40.0]


@pytest.fixture
def fail() -> Fail:
    """Runs the command and returns its error message of one line."""

    def score(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["score", *map(str, arguments)])
        message = str(stopped.value.code)
        assert message.startswith("error: ")
        assert "\n" not in message
        return message

    return score


@pytest.fixture
def coco_files(tmp_path: Path) -> list[str | Path]:
    """Two images with id gaps; one of two cats is detected."""
    truth = {
        "images": [{"id": 7}, {"id": 3}],
        "categories": [{"id": 90, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 90, "bbox": BOX, "area": 900.0, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 90, "bbox": BOX},
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    write_results(tmp_path, [{"image_id": 3, "category_id": 90, "bbox": BOX, "score": 0.5}])
    return ["--format", "coco", "--ground-truth", tmp_path / "truth.json", "--detections", tmp_path / "r.json"]


def write_results(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "r.json").write_text(json.dumps(rows))


@pytest.fixture
def voc_files(tmp_path: Path) -> list[str | Path]:
    """One image with a cat and a difficult dog; the cat is detected with an IoU of exactly 0.5."""
    folder = tmp_path / "VOCdevkit/VOC2007"
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    (tmp_path / "detections").mkdir()
    (folder / "ImageSets/Main/test.txt").write_text("000001\n")
    objects = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><part><name>head</name></part><bndbox>"
        f"<xmax>20</xmax><xmin>11</xmin><ymin>1</ymin><ymax>10</ymax></bndbox></object>"
        for name, hard in (("cat", 0), ("dog", 1))
    )
    (folder / "Annotations/000001.xml").write_text(f"<annotation>{objects}</annotation>")
    (tmp_path / "detections/comp4_det_test_cat.txt").write_text("000001 0.9 11 1 20 5\n")
    (tmp_path / "detections/comp4_det_test_dog.txt").write_text("")
    devkit: list[str | Path] = ["--format", "voc", "--devkit", tmp_path / "VOCdevkit", "--year", "2007"]
    return [*devkit, "--image-set", "test", "--detections", tmp_path / "detections"]


def test_published_coco_numbers(shared_data: Path, run: Run) -> None:
    folder = shared_data / "oracle/coco_val2014_100"
    expected = json.loads((folder / "expected.json").read_text())
    truth, found = (folder / "instances_val2014_100.json", folder / "instances_val2014_fakebbox100_results.json")
    scored = run("--format", "coco", "--ground-truth", truth, "--detections", found, "--verify")
    assert list(scored) == list(expected)
    assert list(scored["stats"]) == list(expected["stats"])
    assert scored["stats"] == pytest.approx(expected["stats"], abs=1e-9)


def test_published_voc_numbers(shared_data: Path, run: Run) -> None:
    folder = shared_data / "oracle/voc2007_test"
    expected = json.loads((folder / "expected.json").read_text())
    devkit = ("--format", "voc", "--devkit", folder / "VOCdevkit", "--year", "2007", "--image-set", "test")
    flags = (*devkit, "--detections", folder / "detections", "--skip-unknown")  # no person was detected
    scored = run(*flags)
    assert list(scored) == list(expected)
    assert scored["ap_11pt"] == pytest.approx(expected["ap_11pt"], abs=1e-9)
    assert scored["map_11pt_19_classes"] == pytest.approx(expected["map_11pt_19_classes"], abs=1e-9)
    # 11,679 detections have the class and score of another: their order decides the sixth digit of the area,
    # and the published areas come from numpy's unstable sort on a processor with AVX-512: 2e-16 there.
    assert scored["ap_area"] == pytest.approx(expected["ap_area"], abs=2e-6)
    other = run(*flags, "--ties", "numpy", "--overlap", "more-than")
    assert other["ap_11pt"] == pytest.approx(expected["ap_11pt"], abs=1e-9)
    processor = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    as_published = {"X86_V4", "AVX512_SKX"} & {*processor}  # two names of AVX-512, by numpy's version
    assert other["ap_area"] == pytest.approx(expected["ap_area"], abs=1e-9 if as_published else 1e-5)


def test_coco_files(coco_files: list[str | Path], run: Run) -> None:
    assert run(*coco_files)["stats"]["AR100"] == pytest.approx(0.5)
    assert run(*coco_files)["stats"]["AP_large"] is None


def test_table(coco_files: list[str | Path], capsys: pytest.CaptureFixture[str]) -> None:
    main(["score", *map(str, coco_files), "--table"])
    assert "\nAR100      0.5000\n" in capsys.readouterr().out


def test_voc_iou_of_one_half(voc_files: list[str | Path], run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*voc_files)["ap_area"] == {"cat": 1.0, "dog": None}
    assert run(*voc_files, "--overlap", "more-than")["ap_area"]["cat"] == 0.0
    assert run(*voc_files, "--overlap", "more-than", "--iou", "0.3")["ap_area"]["cat"] == 1.0
    scored = run(*voc_files, "--iou", "0.6")
    assert scored["ap_area"]["cat"] == 0.0
    assert "IoU >= 0.6" in scored["protocol"]
    main(["score", *map(str, voc_files), "--table"])
    assert "\nmean  1.0000  1.0000\n" in capsys.readouterr().out + "\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image_id": 8}, "$[1]: image_id 8 is not in the ground truth"),
        ({"category_id": 1}, "$[1]: category_id 1 is not in the ground truth"),
        ({"score": float("nan")}, '"score": NaN'),
        ({"score": None}, "Expected `float`, got `null` - at `$[1].score`"),
        ({"bbox": [5, 5, 1e10, 2]}, "$[1]: [5.0, 5.0, 10000000000.0, 2.0] is not a box"),
        ({"image_id": 2**64}, "Expected `int` <= 4611686018427387904 - at `$[1].image_id`"),
        ({"bbox": [5, 5, 1]}, "Expected `array` of length 4 - at `$[1].bbox`"),
    ],
)
def test_invalid_results(
    tmp_path: Path, coco_files: list[str | Path], fail: Fail, row: dict[str, Any], message: str
) -> None:
    good = {"image_id": 3, "category_id": 90, "bbox": BOX, "score": 0.5}
    write_results(tmp_path, [good, good | row])
    error = fail(*coco_files)
    assert message in error
    assert "r.json" in error


def test_skip_unknown_results(tmp_path: Path, coco_files: list[str | Path], run: Run) -> None:
    good = {"image_id": 3, "category_id": 90, "bbox": BOX, "score": 0.5}
    stats = run(*coco_files)["stats"]
    write_results(tmp_path, [good | {"image_id": 1}, good, good | {"category_id": 2}])
    assert run(*coco_files, "--skip-unknown")["stats"] == stats


def test_broken_files(tmp_path: Path, coco_files: list[str | Path], fail: Fail) -> None:
    results, truth = tmp_path / "r.json", tmp_path / "truth.json"
    results.write_text("")
    assert "r.json: the file is empty" in fail(*coco_files)
    results.write_text('[{"image_id": 3,\n "category_id": ]')
    assert "line 2 column 17" in fail(*coco_files)
    results.write_text("{}")
    assert "Expected `array`, got `object`" in fail(*coco_files)
    results.write_text('[{"extra": ' + "[" * 100_000)
    assert "recursion" in fail(*coco_files)
    results.unlink()
    assert "No such file" in fail(*coco_files)
    truth.write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    assert "truth.json: it lists no categories" in fail(*coco_files)


def test_no_detections(tmp_path: Path, coco_files: list[str | Path], run: Run) -> None:
    write_results(tmp_path, [])
    assert run(*coco_files, "--verify")["stats"]["AP"] == 0.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000002 0.5 1 1 9 9", "cat.txt: line 2: image '000002'"),
        ("000001 nan 1 1 9 9", "cat.txt: line 2: the score is not"),
        ("000001 0.5 1 1 9", "cat.txt: line 2: expected"),
        ("000001 0.5 x 1 9 9", "cat.txt: line 2: expected"),
        ("000001 0.5", "cat.txt: line 2: expected"),
        ("000001 0.5 1 1 9 1e10", "is not a box"),
    ],
)
def test_invalid_lines(tmp_path: Path, voc_files: list[str | Path], fail: Fail, line: str, message: str) -> None:
    with (tmp_path / "detections/comp4_det_test_cat.txt").open("a") as file:
        file.write(line + "\n")
    assert message in fail(*voc_files)


def test_missing_and_unknown_class_files(tmp_path: Path, voc_files: list[str | Path], fail: Fail, run: Run) -> None:
    dog = tmp_path / "detections/comp4_det_test_dog.txt"
    dog.rename(dog.with_name("comp4_det_test_dgo.txt"))
    assert "comp4_det_test_dgo.txt: " in fail(*voc_files)
    assert list(run(*voc_files, "--skip-unknown")["ap_area"]) == ["cat"]
    dog.with_name("comp4_det_test_dgo.txt").unlink()
    assert "comp4_det_test_dog.txt is missing" in fail(*voc_files)
    (tmp_path / "detections/comp4_det_test_cat.txt").unlink()
    assert "comp4_det_test_<class>.txt" in fail(*voc_files)


def test_invalid_annotations(tmp_path: Path, voc_files: list[str | Path], fail: Fail) -> None:
    annotation = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    annotation.write_text(annotation.read_text().replace("<xmax>20<", "<xmax>2<", 1))
    assert "000001.xml: cat with xmin 11, ymin 1, xmax 2, ymax 10" in fail(*voc_files)
    annotation.write_text("<annotation/>")
    assert "no image of the image set 'test'" in fail(*voc_files)


def test_a_byte_order_mark_is_skipped(tmp_path: Path, voc_files: list[str | Path], run: Run) -> None:
    file = tmp_path / "detections/comp4_det_test_cat.txt"
    before = run(*voc_files)
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert run(*voc_files) == before


def test_a_report_is_complete_or_absent(
    tmp_path: Path, coco_files: list[str | Path], fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert "file/report cannot be written: Not a directory" in fail(*coco_files, "--report", tmp_path / "file/report")

    def full(path: Path, content: bytes) -> int:
        if "calibration" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with path.open("wb") as file:
            return file.write(content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        assert "cannot be written: No space left" in fail(*coco_files, "--report", tmp_path / "report")
    assert list((tmp_path / "report").iterdir()) == []
    write_results(tmp_path, [{"image_id": 1, "category_id": 90, "bbox": BOX, "score": 0.5}])
    fail(*coco_files, "--report", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_report_counts_truncated_objects(
    tmp_path: Path, coco_files: list[str | Path], voc_files: list[str | Path], run: Run
) -> None:
    truth = tmp_path / "truth.json"
    report, content = tmp_path / "report", json.loads(truth.read_text())
    run(*coco_files, "--report", report)
    assert "truncation" not in (report / "recall.csv").read_text()
    content["images"] = [image | {"width": 40, "height": 100} for image in content["images"]]
    truth.write_text(json.dumps(content))  # the box ends at x = 40
    run(*coco_files, "--report", report)
    assert "truncation,1.0,2.0,2," in (report / "recall.csv").read_text()
    annotation = tmp_path / "VOCdevkit/VOC2007/Annotations/000001.xml"
    size = "<annotation><size><width>30</width><height>10</height></size>"
    annotation.write_text(annotation.read_text().replace("<annotation>", size))
    run(*voc_files, "--report", report)
    assert "truncation,2.0,,1," in (report / "recall.csv").read_text()


def test_missing_flags(coco_files: list[str | Path], voc_files: list[str | Path], fail: Fail) -> None:
    assert fail("--format", "coco", "--detections", "x") == "error: --format coco needs --ground-truth"
    assert "--devkit and --year and --image-set" in fail("--format", "voc", "--detections", "x")
    assert "--verify" in fail(*voc_files, "--verify")


def test_imports_nothing_heavy(coco_files: list[str | Path]) -> None:
    code = (
        "import sys; from detection.cli import main; main(sys.argv[1:]); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'mlflow', 'pycocotools', 'pandas')))"
    )
    command = [sys.executable, "-c", code, "score", *map(str, coco_files)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
