"""Text of messages and tables."""

import math

from detection.text import did_you_mean, flatten, listed, number


def test_the_nearest_spelling_else_the_list() -> None:
    assert did_you_mean("RetinaNt", ["fcos", "retinanet"]) == "did you mean 'retinanet'?"
    assert did_you_mean("xyz", ["fcos", 2007]) == "choose one of fcos, 2007"


def test_long_lists_are_shortened() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"


def test_missing_numbers_are_a_dash() -> None:
    assert number(0.12345) == "0.123"
    assert number(0.5, "+.2f") == "+0.50"
    assert number(None) == number(math.nan) == "-"
    assert number(None, missing="—") == "—"


def test_nested_mappings_become_dotted_keys() -> None:
    assert flatten({"a": {"b": (1, 2), "c": {"d": None}}, "e": {}}) == {"a.b": [1, 2], "a.c.d": None}
