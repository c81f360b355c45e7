"""`detection compare` on real DVC experiments: result, tables, errors."""

import re

import pytest
from ruamel.yaml import YAML

from detection.commands.experiments import compare
from detection.errors import DataError
from detection.experiments.comparison import _params
from tests.experiment_projects import Project


def test_the_better_experiment_is_named(project: Project) -> None:
    text = compare(["plain", project.run_ids["better"]], 200)
    assert text.startswith("better is better than plain\n  AP +0.")
    assert "200 paired bootstrap rounds" in text
    assert re.search(r"^ +model +fasterrcnn_resnet18 +retinanet_resnet18$", text, re.MULTILINE)
    assert re.search(r"^ +AP +0\.\d{3} +0\.\d{3} +\+0\.\d{3}$", text, re.MULTILINE)
    assert "recipe.architecture" in text
    assert "recipe.rpn.fg_iou" not in text, "RetinaNet has no RPN"
    assert re.search(r"\d+ more exist in some of the recipes", text)
    assert not re.search("^ +seed ", text, re.MULTILINE), "equal params are not listed"
    reverse = compare(["better", "plain"], 200)
    assert reverse.startswith("plain is worse than better\n  AP -0.")


def test_two_comparisons_with_the_first(project: Project) -> None:
    text = compare(["plain", "workspace", "plain"], 100)
    assert "plain (3) and plain (1) are identical" in text
    assert "workspace is better than plain (1)" in text


def test_an_experiment_is_identical_to_itself(project: Project) -> None:
    text = compare(["plain", "plain"], 100)
    assert text.startswith("plain (2) and plain (1) are identical")
    assert "above 0" not in text
    assert "params: no difference" in text


def test_the_detector_that_a_training_started_from_is_a_param() -> None:
    recorded = {"model": "fcos", "start": {"source": {"from": "first.pt", "type": "file", "sha256": "1" * 64}}}
    started, plain = (_params(one, {}) for one in (recorded, {"model": "fcos"}))
    assert (started["start.from"], started["start.digest"]) == ("first.pt", "1" * 64)
    assert plain["start.from"] == "null"


def test_other_test_data_is_refused(project: Project) -> None:
    yaml, file = YAML(), project.folder / "params.yaml"
    document = yaml.load(file)
    document["datasets"]["shapes"]["test"] = 20
    yaml.dump(document, file)
    project.run("dvc", "repro")
    with pytest.raises(DataError, match=r"plain and workspace were evaluated on different test data: 24 .*, 20 of"):
        compare(["plain", "workspace"], 100)


def test_an_experiment_without_evaluation_is_refused(project: Project) -> None:
    with pytest.raises(DataError, match=r"HEAD has no data/prepared/test.npz: it was not evaluated"):
        compare(["plain", "HEAD"], 100)


def test_invalid_arguments() -> None:
    with pytest.raises(DataError, match="two or more experiments"):
        compare(["plain"], 1000)
    with pytest.raises(DataError, match="100 or more rounds"):
        compare(["plain", "better"], 1)
