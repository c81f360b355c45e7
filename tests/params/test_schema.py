from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from ruamel.yaml import YAML

from detection.errors import ParamsError
from detection.params import schema
from detection.params.bounds import Count, Fraction, Positive

PROJECT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_the_projects_files_are_read_as_dvc_reads_them(name: str) -> None:
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
def test_scalars_of_yaml_1_2(text: str, value: Any) -> None:
    (read,) = schema.read(f"key: {text}").values()
    assert read == value
    assert type(read) is type(value)


def test_a_merge_key_merges() -> None:
    assert schema.read("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


def test_a_duplicate_key_is_an_error_with_its_line() -> None:
    with pytest.raises(yaml.YAMLError) as raised:
        schema.read("a: 1\nb: 2\na: 3\n")
    error: Any = raised.value
    assert "duplicate key 'a'" in error.problem
    assert error.problem_mark.line == 2


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: Fraction = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    counts: tuple[tuple[Count, ...], ...] = ()
    limit: Positive | None = None
    workers: Count | Literal["auto"] = "auto"
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Inner, ...] = ()


def test_values_of_all_types_are_built() -> None:
    values = {"counts": [[1, 2], []], "limit": 3, "workers": 2, "inner": {"rate": 1}, "parts": [{"rate": 0}]}
    built = schema.validate(Outer, values, "key", "file")
    expected = Outer(counts=((1, 2), ()), limit=3.0, workers=2, inner=Inner(rate=1.0), parts=(Inner(rate=0.0),))
    assert built == expected
    assert schema.validate(Outer, {"limit": None, "workers": "auto"}, "key", "file") == Outer()


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"counts": [[1, 0]]}, ["key.counts"]),
        ({"limit": 0.0, "workers": 0}, ["key.limit", "key.workers"]),
        ({"limit": float("inf")}, ["key.limit"]),
        ({"limit": float("nan")}, ["key.limit"]),
        ({"workers": "atuo"}, ["key.workers"]),
        ({"inner": {"rate": 1.5}, "parts": [{"rate": 1}, {"rate": -1}]}, ["key.inner.rate", "key.parts[1].rate"]),
        ({"inner": 3, "counts": [[True]]}, ["key.counts", "key.inner"]),
        ([], ["key"]),
    ],
)
def test_every_problem_is_reported_with_its_key(values: Any, keys: list[str]) -> None:
    with pytest.raises(ParamsError) as raised:
        schema.validate(Outer, values, "key", "file")
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == keys
