from pathlib import Path
from typing import Any

import pytest
import yaml
from ruamel.yaml import YAML

from detection.params import schema

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_the_projects_own_files_mean_what_dvc_reads(name: str) -> None:
    text = (PROJECT / name).read_text()
    assert schema.read(text) == YAML(typ="safe").load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-05", 1e-05),
        ("1E3", 1e3),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("+7", 7),
        ("1:2", "1:2"),
        ("1_000", "1_000"),
        ("off", "off"),
        ("yes", "yes"),
        ("true", True),
        ("", None),
        ("~", None),
        ("null", None),
        ("'1'", "1"),
        ("2026-11-21", "2026-11-21"),
        ("=", "="),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    (read,) = schema.read(f"key: {text}").values()
    assert read == value
    assert type(read) is type(value)


def test_a_merge_key_merges() -> None:
    assert schema.read("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


def test_a_key_that_stands_twice_is_an_error_with_its_line() -> None:
    with pytest.raises(yaml.YAMLError) as raised:
        schema.read("a: 1\nb: 2\na: 3\n")
    error: Any = raised.value
    assert "duplicate key 'a'" in error.problem
    assert error.problem_mark.line == 2
