"""`detection compare` on real experiments of DVC: tables, verdict, page, refusals."""

import re
from pathlib import Path

import pytest
from experiment_rooms import Project
from ruamel.yaml import YAML

from detection.commands.compare import compare
from detection.errors import DataError


def test_the_better_one_is_called_better(project: Project) -> None:
    text = compare(["plain", project.rows["better"]], Path("out/page.html"), 200)
    assert text.startswith("better is better than plain\n  AP +0.")
    assert "200 draws of the same test pictures" in text
    assert re.search(r"^ +model +fasterrcnn_resnet18 +retinanet_resnet18$", text, re.MULTILINE)
    assert re.search(r"^ +AP +0\.\d{3} +0\.\d{3} +\+0\.\d{3}$", text, re.MULTILINE)
    assert "recipe.architecture" in text
    assert "recipe.rpn.fg_iou" not in text, "RetinaNet has no such thing"
    assert re.search(r"\d+ more are params of one kind of detector", text)
    assert "recipe.rpn.fg_iou" in Path("out/page.html").read_text()
    assert not re.search("^ +seed ", text, re.MULTILINE), "what is the same in both is not listed"
    turned = compare(["better", "plain"], Path("out/page.html"), 200)
    assert turned.startswith("plain is worse than better\n  AP -0.")


def test_the_page_stands_alone(project: Project) -> None:
    compare(["plain", "workspace", "plain"], Path("page.html"), 100)
    html = Path("page.html").read_text()
    assert html.count("<svg") == 3, "losses, validation, and the classes of the one that differs"
    assert "plain (3) and plain (1) are identical" in html
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", html)
    assert "http" not in re.sub(r'xmlns(?::\w+)?="[^"]*"', "", html)
    assert "<script" not in html
    assert "workspace is better than plain (1)" in html
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_an_experiment_is_no_better_than_itself(project: Project) -> None:
    text = compare(["plain", "plain"], Path("page.html"), 100)
    assert text.startswith("plain (2) and plain (1) are identical: the same detections on every test")
    assert "above 0" not in text
    assert "params: no difference" in text


def test_other_test_data_is_refused(project: Project) -> None:
    yaml, file = YAML(), project.folder / "params.yaml"
    document = yaml.load(file)
    document["datasets"]["shapes"]["test"] = 20
    yaml.dump(document, file)
    project.run("dvc", "repro")
    with pytest.raises(
        DataError, match=r"plain and workspace were scored on different test data: 24 .*, 20 of"
    ):
        compare(["plain", "workspace"], Path("page.html"), 100)


def test_what_was_not_evaluated_is_refused(project: Project) -> None:
    with pytest.raises(DataError, match=r"HEAD has no data/prepared/test.npz: it was not evaluated"):
        compare(["plain", "HEAD"], Path("page.html"), 100)


def test_slips() -> None:
    with pytest.raises(DataError, match="two experiments or more"):
        compare(["plain"], Path("page.html"), 1000)
    with pytest.raises(DataError, match="100 rounds or more"):
        compare(["plain", "better"], Path("page.html"), 1)
