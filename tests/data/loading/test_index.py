from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from detection.data.loading.index import Index, Record, join, pack

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


@st.composite
def records(draw: st.DrawFn) -> Record:
    count = draw(st.integers(0, 4))
    return Record(
        file=draw(NAMES),
        id=draw(NAMES),
        height=draw(st.integers(1, 5000)),
        width=draw(st.integers(1, 5000)),
        boxes=draw(hnp.arrays(np.float32, (count, 4), elements=st.floats(0, 5000, width=32))),
        labels=draw(hnp.arrays(np.int64, count, elements=st.integers(0, 90))),
        difficult=draw(hnp.arrays(np.bool_, count)),
        crowd=draw(hnp.arrays(np.bool_, count)),
        areas=draw(hnp.arrays(np.float32, count, elements=st.floats(0, 1e7, width=32))),
    )


def assert_equal(a: Record, b: Record) -> None:
    for name, one, other in zip(Record._fields, a, b, strict=True):
        if isinstance(one, np.ndarray):
            assert isinstance(other, np.ndarray)
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other, err_msg=name)
        else:
            assert one == other, name


@given(st.lists(records(), max_size=6), st.data())
def test_pack_and_select_keep_every_record(rows: list[Record], data: st.DataObject) -> None:
    index = pack(rows)
    assert len(index) == len(rows)
    for i, record in enumerate(rows):
        assert_equal(index[i], record)
    if rows:
        selected = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6))
        part = index.select(np.array(selected, dtype=np.int64))
        for i, row in enumerate(selected):
            assert_equal(part[i], rows[row])


@pytest.mark.parametrize("count", [0, 3])
def test_category_ids_survive(tmp_path: Path, count: int) -> None:
    index = replace(pack([_record(str(i), boxes=i) for i in range(count)]), category_ids=np.array([3, 90, 13]))
    index.save(tmp_path / "index.npz")
    for part in (Index.load(tmp_path / "index.npz"), index.select(np.arange(0)), join([index, pack([])])):
        assert part.to_category_ids(np.array([2, 0])).tolist() == [13, 3]
        assert part.to_labels(np.array([13, 3])).tolist() == [2, 0]
    assert pack([]).to_category_ids(np.array([2, 0])).tolist() == [3, 1]


@pytest.mark.parametrize("count", [0, 3])
def test_save_and_load_are_inverse(tmp_path: Path, count: int) -> None:
    index = pack([_record(str(i), boxes=i) for i in range(count)])
    index.save(tmp_path / "index.npz")
    loaded = Index.load(tmp_path / "index.npz")
    assert len(loaded) == count
    for i in range(count):
        assert_equal(loaded[i], index[i])
    assert loaded.boxes.dtype == np.float32
    assert loaded.boxes.shape == index.boxes.shape


def test_save_is_deterministic(tmp_path: Path) -> None:
    index = pack([_record("a", boxes=2)])
    for name in ("one.npz", "two.npz"):
        index.save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["139", "000285", "632"], [139, 285, 632]),  # all are numbers
        (["2008_000001", "139"], [1, 2]),
        (["7", "007"], [1, 2]),  # equal numbers
        (["20231105123045123456", "139"], [1, 2]),  # more than 64 bits
        (["²", "3"], [1, 2]),  # a Unicode digit, not a number
        ([], []),
    ],
)
def test_image_ids_are_unique_integers(names: list[str], expected: list[int]) -> None:
    ids = pack([_record(name) for name in names]).image_ids()
    assert ids.dtype == np.int64
    assert ids.tolist() == expected


def _record(name: str, boxes: int = 1) -> Record:
    return Record(
        file=f"JPEGImages/{name}.jpg",
        id=name,
        height=40,
        width=50,
        boxes=np.tile(np.array([1, 2, 11, 22], np.float32), (boxes, 1)),
        labels=np.zeros(boxes, np.int64),
        difficult=np.zeros(boxes, np.bool_),
        crowd=np.zeros(boxes, np.bool_),
        areas=np.full(boxes, 200, np.float32),
    )
