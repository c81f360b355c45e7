"""`detection score` on untidy files: scored as pycocotools and the devkit do, with one warning per file."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from detection.cli import main
from detection.evaluation.protocol import oracle

Content = dict[str, Any]
Change = Callable[[Content, list[Content]], Any]


def scene() -> tuple[Content, list[Content]]:
    """Four images and two categories with gaps in the ids; jittered detections and false positives."""
    rng = np.random.default_rng(0)
    images = [{"id": number, "height": 200, "width": 200} for number in (3, 7, 20, 11)]
    annotations: list[Content] = []
    results: list[Content] = []
    for image in images:
        for number in range(6):
            box = [*rng.uniform(0, 90, 2).tolist(), *rng.uniform(8, 100, 2).tolist()]
            ids = {"image_id": image["id"], "category_id": 90 if number % 2 else 4}
            entry = {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, **ids, **entry})
            near = (np.array(box) + rng.uniform(-4, 4, 4)).tolist()
            results.append({**ids, "bbox": near, "score": float(rng.random())})
            far = [*rng.uniform(0, 100, 2).tolist(), *rng.uniform(8, 90, 2).tolist()]
            results.append({**ids, "bbox": far, "score": float(rng.random() / 2)})
    categories = [{"id": 90, "name": "cat"}, {"id": 4, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def write(folder: Path, truth: Content, results: Any) -> list[str]:
    """Write both files; return the flags of the command."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "r.json").write_text(json.dumps(results))
    files = ["--ground-truth", str(folder / "truth.json"), "--detections", str(folder / "r.json")]
    return ["score", "--format", "coco", *files]


def warned(flags: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, float], list[str]]:
    """Numbers and warnings of the command."""
    capsys.readouterr()
    main(flags)
    out, err = capsys.readouterr()
    stats: dict[str, float | None] = json.loads(out)["stats"]
    return {name: float("nan") if value is None else value for name, value in stats.items()}, err.splitlines()


def score(flags: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    return warned(flags, capsys)[0]


def inverted_detections(_: Content, results: list[Content]) -> None:
    for i, sides in enumerate([(-5, 40), (30, -1e-6), (-20, -30), (0, 50)]):
        results[3 * i]["bbox"][2:] = sides


def inverted_objects(truth: Content, _: list[Content]) -> None:
    for i, sides in enumerate([(-5, 40), (-20, -30), (0, 50)]):
        truth["annotations"][3 * i]["bbox"][2:] = sides


def float_ids(truth: Content, results: list[Content]) -> None:
    for entry in (*truth["annotations"][:5], *results[:5]):
        entry |= {"image_id": float(entry["image_id"]), "category_id": float(entry["category_id"])}


def masks(_: Content, results: list[Content]) -> None:
    for entry in results:
        x, y, width, height = (int(side) for side in entry.pop("bbox"))
        bitmap = np.zeros((200, 200), np.uint8, order="F")
        bitmap[max(y, 0) : y + height, max(x, 0) : x + width : 2] = 1
        encoded = mask.encode(bitmap)
        entry["segmentation"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (inverted_detections, "r.json: scored as official tools do: 3 boxes with negative width or height"),
        (inverted_objects, "truth.json: scored as official tools do: 2 objects with negative width or height"),
        (float_ids, "ids written as 1.0"),
        (masks, "48 masks without boxes"),
    ],
)
def test_scores_as_pycocotools_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, warning: str
) -> None:
    truth, results = scene()
    clean, messages = warned(write(tmp_path, truth, results), capsys)
    assert not messages
    change(truth, results)
    flags = write(tmp_path, truth, results)
    ours, messages = warned(flags, capsys)
    expected = oracle.score_files(tmp_path / "truth.json", tmp_path / "r.json")
    assert ours == pytest.approx(expected, abs=0, rel=0, nan_ok=True)
    assert ours["AP"] > 0.05
    assert (ours["AP"] == clean["AP"]) == (change is float_ids)
    assert any(warning in message for message in messages)
    files = ["truth.json" in message for message in messages]
    assert len(files) == len(set(files)), "one line per file"
    with pytest.raises(SystemExit, match="--strict"):
        main([*flags, "--strict"])


def test_results_in_an_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = scene()
    expected = score(write(tmp_path, truth, results), capsys)
    flags = write(tmp_path, truth, {"info": {}, "annotations": results})
    assert score(flags, capsys) == pytest.approx(expected, abs=0, nan_ok=True)
    with pytest.raises(SystemExit, match="instead of a list"):
        main([*flags, "--strict"])


def test_unlisted_images_and_categories_of_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, results = scene()
    expected = score(write(tmp_path, truth, results), capsys)
    more = copy.deepcopy(truth)
    more["annotations"] += [
        truth["annotations"][0] | {"id": 100, "image_id": 999},
        truth["annotations"][0] | {"id": 101, "category_id": 5},
    ]
    flags = write(tmp_path, more, [*results, results[0] | {"image_id": 998}, results[0] | {"category_id": 6}])
    with pytest.raises(SystemExit, match="image 999 is unlisted"):
        main(flags)
    assert score([*flags, "--skip-unknown"], capsys) == pytest.approx(expected, abs=0, nan_ok=True)


@pytest.mark.parametrize("ids", ["zero", "repeated"])
def test_annotation_ids_that_pycocotools_miscounts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ids: str
) -> None:
    truth, results = scene()
    results[0] |= {"bbox": truth["annotations"][0]["bbox"], "score": 1.0}
    expected = score(write(tmp_path, truth, results), capsys)
    for number, annotation in enumerate(truth["annotations"]):
        annotation["id"] = number if ids == "zero" else 1 + number // 2
    flags = write(tmp_path, truth, results)
    stats, warnings = warned([*flags, "--verify"], capsys)
    assert stats == pytest.approx(expected, abs=0, nan_ok=True)
    assert "renumber from 1" in warnings[0]
    theirs = oracle.score_files(tmp_path / "truth.json", tmp_path / "r.json")
    assert theirs["AP"] != expected["AP"]
    assert f"AP {theirs['AP']:.4f} from this file, not {expected['AP']:.4f}" in warnings[1]


def test_lvis_is_refused(tmp_path: Path) -> None:
    truth, results = scene()
    truth["images"][0]["neg_category_ids"] = [4]
    with pytest.raises(SystemExit, match="lvis-api"):
        main(write(tmp_path, truth, results))


def voc_files(folder: Path, difficult: str, lines: str) -> list[str]:
    """One image `my image` with two cats, the second of them difficult."""
    devkit, detections = folder / "VOCdevkit", folder / "detections"
    (devkit / "VOC2007/ImageSets/Main").mkdir(parents=True)
    (devkit / "VOC2007/Annotations").mkdir()
    detections.mkdir()
    objects = "".join(
        f"<object><name>cat</name><difficult>{flag}</difficult><bndbox><xmin>{x}</xmin><xmax>{x + 9}</xmax>"
        "<ymin>1</ymin><ymax>10</ymax></bndbox></object>"
        for x, flag in ((11, 0), (51, difficult))
    )
    (devkit / "VOC2007/ImageSets/Main/test.txt").write_text("my image\n")
    (devkit / "VOC2007/Annotations/my image.xml").write_text(f"<annotation>{objects}</annotation>")
    (detections / "comp4_det_test_cat.txt").write_text(lines)
    flags = ["score", "--format", "voc", "--devkit", str(devkit), "--year", "2007", "--image-set", "test"]
    return [*flags, "--detections", str(detections)]


def test_voc_names_with_spaces_inverted_boxes_and_spelled_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "my image 0.8 11 1 20 10\nmy image 0.9 30 1 20 -5.4\nmy image 0.7 51 1 60 10\n"
    flags = voc_files(tmp_path, "True", lines)
    main(flags)
    out, err = capsys.readouterr()
    ap = json.loads(out)["ap_area"]
    assert ap == {"cat": 0.5}, "the inverted box is a false positive; the difficult cat does not count"
    (warning,) = err.splitlines()
    assert "1 boxes without area, false positives (first: line 2)" in warning
    with pytest.raises(SystemExit, match="line 2"):
        main([*flags, "--strict"])
