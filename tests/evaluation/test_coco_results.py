"""Results files decoded in pieces give the numbers of `json.loads`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detection.errors import DataError
from detection.evaluation import coco_results
from detection.evaluation.deviations import Deviations

number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**20), 10**20),
    st.sampled_from([-0.0, 5e-324, 1.7976931348623157e308, 9007199254740993, 0.1, 1e23, 123456789.123456789]),
)
entry = st.fixed_dictionaries(
    {
        "image_id": st.integers(-(2**62), 2**62),
        "category_id": st.integers(0, 90),
        "bbox": st.lists(number, min_size=4, max_size=4),
        "score": number,
    },
    optional={
        "file_name": st.sampled_from(["a}, {.jpg", "}]", 'quoted "}, {"']),
        "segments": st.lists(st.fixed_dictionaries({"area": number}), max_size=2),
    },
)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_results, "CHUNK_SIZE", 20)


def read(folder: Path, content: str) -> coco_results.Columns:
    path = folder / "results.json"
    path.write_text(content)
    return coco_results.read(path, Deviations())


@pytest.mark.usefixtures("small_chunks")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(entries=st.lists(entry, max_size=6), indent=st.sampled_from([None, 0, 1]), compact=st.booleans())
def test_columns_equal_the_standard_decoder(
    tmp_path: Path, entries: list[dict[str, Any]], indent: int | None, compact: bool
) -> None:
    content = json.dumps(entries, indent=indent, separators=(",", ":") if compact else None)
    columns = read(tmp_path, f" \n{content}\n")
    assert columns.image_id.tolist() == [one["image_id"] for one in entries]
    assert columns.category_id.tolist() == [one["category_id"] for one in entries]
    boxes = np.array([[float(side) for side in one["bbox"]] for one in entries]).reshape(-1, 4)
    assert columns.bbox.tobytes() == boxes.tobytes(), "equal to the last bit, and -0.0"
    assert columns.score.tobytes() == np.array([float(one["score"]) for one in entries]).tobytes()


@pytest.mark.parametrize("digits", ["0.30000000000000004", "1e-5", "1E+2", "-0.0", "2.2250738585072011e-308", "1e400"])
def test_digits_as_written(tmp_path: Path, digits: str) -> None:
    content = f'[{{"image_id": 1, "category_id": 2, "bbox": [{digits}, 0, 1, 1], "score": {digits}}}]'
    expected = float(digits)
    if np.isinf(expected):
        with pytest.raises(DataError, match="out of range"):
            read(tmp_path, content)
    else:
        columns = read(tmp_path, content)
        assert columns.score.tobytes() == columns.bbox[:, 0].tobytes() == np.array([expected]).tobytes()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-1] + ",]", "not a list of COCO results"),
        (lambda text: text[:-1], "not a list of COCO results"),
        (lambda text: text + "]", "not a list of COCO results"),
        (lambda text: text.replace("}, {", "} {", 1), "not a list of COCO results"),
        (lambda text: text.replace("0.7", "NaN"), "line 1 column"),
        (lambda text: text.replace("0.7", '"0.7"'), r"\$\[2\]\.score"),
        (lambda text: text.replace('"score": 0.7', '"confidence": 0.7'), r"\$\[2\]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Any, message: str) -> None:
    entries = [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "score": score} for score in (0.9, 0.8, 0.7)]
    with pytest.raises(DataError, match=message):
        read(tmp_path, change(json.dumps(entries)))
