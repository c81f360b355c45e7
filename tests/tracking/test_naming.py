"""Names that MLflow accepts."""

import math

from detection.tracking.client import finite


def test_every_class_gets_a_unique_metric_name_that_mlflow_accepts() -> None:
    from mlflow.utils.validation import _validate_metric

    classes = ["", ".", "..", "a/", "a//b", "/a", "C#", "C+", "C_", "nan", "猫", "n/a"]
    classes += ["x" * 400, "x" * 401, "x" * 191 + "/y"]  # the last is cut behind its slash
    values = {f"test/AP/{name}": number for number, name in enumerate(classes)} | {"test/AP/nan": math.nan}
    named = finite(values)
    assert sorted(named.values()) == [value for value in values.values() if value == value]
    for name, value in named.items():
        _validate_metric(name, value, 0, 0)
    assert named["test/AP/n/a"] == classes.index("n/a")
    assert finite(named) == named
