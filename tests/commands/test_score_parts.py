"""`detection score` with other limits, some classes, slices, and as a page."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detection.cli import main
from tests.report.page_reader import parse, text_of

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def files(tmp_path: Path) -> list[str | Path]:
    """40 images with 3 classes, many objects and detections per image."""
    rng = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for image in range(1, 41):
        images.append({"id": image, "width": 200, "height": 150, "file_name": f"{image:03}.png"})
        for _ in range(12):
            box = [*rng.uniform(0, 90, 2).round(1), *rng.uniform(5, 90, 2).round(1)]
            category = int(rng.integers(1, 4))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}
                | {"area": box[2] * box[3]}
            )
            for _ in range(3):
                near = [max(round(float(side + rng.normal(0, 4)), 1), 1.0) for side in box]
                score = round(float(rng.random()), 2)
                results.append({"image_id": image, "category_id": category, "bbox": near, "score": score})
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "emu"), 1)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "r.json").write_text(json.dumps(results))
    return ["--format", "coco", "--ground-truth", tmp_path / "truth.json", "--detections", tmp_path / "r.json"]


def by_pycocotools(files: list[str | Path], **params: Any) -> list[float | None]:
    truth = COCO(str(files[3]))
    evaluator = COCOeval(truth, truth.loadRes(str(files[5])), "bbox")
    for name, value in params.items():
        setattr(evaluator.params, name, value)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return [float(value) if value > -1 else None for value in evaluator.stats]


@pytest.mark.parametrize(
    ("limits", "areas"), [((1, 2, 5), (16, 40)), ((2, 4, 100), (32, 96)), ((1, 10, 300), (20, 64))]
)
def test_limits_are_those_of_pycocotools(
    files: list[str | Path],
    run: Run,
    capsys: pytest.CaptureFixture[str],
    limits: tuple[int, ...],
    areas: tuple[int, ...],
) -> None:
    low, high = (float(side**2) for side in areas)
    ranges = [[0, 1e10], [0, low], [low, high], [high, 1e10]]
    expected = by_pycocotools(files, maxDets=list(limits), areaRng=ranges)
    capsys.readouterr()
    flags = ("--max-dets", ",".join(map(str, limits)), "--areas", ",".join(map(str, areas)))
    scored = run(*files, *flags, "--verify")
    assert list(scored["stats"])[6:9] == [f"AR{limit}" for limit in limits]
    assert list(scored["stats"].values())[1:] == expected[1:]
    if limits[-1] == 100:  # pycocotools' AP alone ignores maxDets
        assert scored["stats"]["AP"] == expected[0]
    else:
        assert scored["stats"]["AP"] != expected[0]
    assert scored["stats"] != run(*files)["stats"]


def test_some_classes_are_those_of_pycocotools(
    files: list[str | Path], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = by_pycocotools(files, catIds=[1, 3])
    capsys.readouterr()
    assert list(run(*files, "--classes", "emu, cat", "--verify")["stats"].values()) == expected


def test_slices_are_scored_alone(
    files: list[str | Path], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{image:03}.png,{'rain' if image <= 25 else 'sun'},{'night' if image == 1 else ''}" for image in range(1, 41)
    ]
    (tmp_path / "s.csv").write_text("image,weather,time\n" + "\n".join(rows) + "\n")
    expected = by_pycocotools(files, imgIds=list(range(1, 26)))
    capsys.readouterr()
    slices = run(*files, "--slices", tmp_path / "s.csv")["slices"]
    assert list(slices) == ["weather", "time"]
    assert list(slices["weather"]) == ["rain", "sun"]
    rain = slices["weather"]["rain"]
    assert (rain["images"], rain["objects"]) == (25, 300)
    assert [rain[name]["value"] for name in ("AP", "AP50", "AP75")] == pytest.approx(expected[:3], abs=1e-12)
    assert 0 < rain["AP"]["low"] < rain["AP"]["high"] < 1
    assert slices["time"]["night"]["images"] == 1
    main(["score", *map(str, files), "--slices", str(tmp_path / "s.csv"), "--table"])
    assert "\n  rain     " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,weather\n99,rain\n", "s.csv: line 2: image '99' is not in the ground truth"),
        ("file,weather\n1,rain\n", "the first line is not `image,attribute,…`"),
        ("image\n1\n", "the first line is not `image,attribute,…`"),
        ("image,a,a\n1,x,y\n", "with different names"),
        ("image,weather\n1\n", "line 2: expected 2 values"),
        ("image,weather\n1,\n", "it has no value"),
        ("", "the first line is not"),
    ],
)
def test_invalid_slices(files: list[str | Path], tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["score", *map(str, files), "--slices", str(tmp_path / "s.csv")])
    assert message in str(stopped.value.code)


def test_invalid_flags(files: list[str | Path], capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (("--max-dets", "1,100"), ("--max-dets", "10,1,100"), ("--areas", "96,32"), ("--areas", "x,2")):
        with pytest.raises(SystemExit) as stopped:
            main(["score", *map(str, files), *flags])
        assert stopped.value.code == 2
        assert "ascending" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["score", *map(str, files), "--classes", "cta"])
    assert "'cta' is not a class; did you mean 'cat'" in str(stopped.value.code)


def test_the_page_is_that_of_an_experiment(files: list[str | Path], run: Run, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for image in range(1, 41):
        Image.new("RGB", (200, 150), "gray").save(tmp_path / f"images/{image:03}.png")
    (tmp_path / "s.csv").write_text("image,weather\n1,rain\n2,rain\n3,sun\n")
    flags = ("--slices", tmp_path / "s.csv", "--images", tmp_path / "images", "--max-dets", "1,10,200")
    scored = run(*files, *flags, "--report", tmp_path / "report")
    page = tmp_path / "report/index.html"
    text = text_of(parse(page))
    assert "r.json on truth.json" in text
    assert f"AP {scored['stats']['AP']:.3f}" in text
    assert "Average recall with at most 200 detections per image." in text
    assert "weather rain 2 24" in text
    assert "Largest loss of AP" in text
    assert "001.png" in page.read_text(encoding="utf-8")
    for absent in ("dvc repro", "Reproduce", "Recipe"):
        assert absent not in text
    assert {"scores.json", "slices.csv", "intervals.json", "recall.csv"} <= {f.name for f in page.parent.iterdir()}
    run(*files, "--report", tmp_path / "one/page.html")
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["page.html"]
    assert "--images" in text_of(parse(tmp_path / "one/page.html"))
    with pytest.raises(SystemExit, match=r"cannot be read|does not exist|No such file"):
        main(["score", *map(str, files), "--images", str(tmp_path / "none"), "--report", str(tmp_path / "two")])
