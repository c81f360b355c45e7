import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detection.data.sources import holdout
from detection.data.sources.dataset import RawDataset, read
from detection.data.sources.digest import Digest
from detection.errors import DataError
from detection.params import VocDataset

Tree = Callable[..., Path]
OBJECT = (
    "<object><name>cat</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
)
ENTRY = VocDataset(format="voc", path="voc", train=("train",), test=("test",))


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), min_size=1, max_size=6), st.randoms())
def test_a_digest_does_not_depend_on_the_order(entries: list[tuple[str, str]], random) -> None:  # noqa: ANN001
    def digest(pairs: list[tuple[str, str]]) -> str:
        collected = Digest()
        for name, value in pairs:
            collected.entry(name, value)
        return collected.hexdigest()

    shuffled = random.sample(entries, len(entries))
    assert digest(entries) == digest(shuffled)
    assert digest(entries) != digest([*entries, ("another", "entry")])
    assert len(digest(entries)) == 32


def read_it(**values: object) -> RawDataset:
    return read("mine", replace(ENTRY, **values))  # type: ignore[arg-type]


def test_the_same_data_elsewhere_has_the_same_digest(
    voc_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT})
    first = read_it()
    elsewhere = tmp_path / "elsewhere"
    for name in ("b.xml", "a.xml"):  # made in another order
        (elsewhere / "voc/Annotations").mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "Annotations" / name, elsewhere / "voc/Annotations" / name)
    shutil.copytree(root, elsewhere / "voc", dirs_exist_ok=True)
    monkeypatch.setenv("DATA_ROOT", str(elsewhere))
    second = read_it()
    assert (first.digest, first.listing) == (second.digest, second.listing)
    assert second.root == elsewhere / "voc"


def test_every_change_of_the_data_changes_the_digest(voc_tree: Tree) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT})
    seen = [read_it().digest]
    (root / "Annotations/a.xml").write_text(f"<annotation> {OBJECT}</annotation>")
    seen.append(read_it().digest)
    Image.new("RGB", (500, 400)).save(root / "JPEGImages/b.jpg")
    seen.append(read_it().digest)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    seen.append(read_it().digest)
    assert len(set(seen)) == 4


def test_a_pinned_digest_is_held_against_the_data(voc_tree: Tree) -> None:
    root = voc_tree({"a": OBJECT})
    digest = read_it().digest
    assert read_it(digest=digest).digest == digest
    Image.new("RGB", (500, 400)).save(root / "JPEGImages/a.jpg")
    with pytest.raises(
        DataError, match=rf"datasets\.mine\.digest pins: found .*, expected {digest}; .*`digest: "
    ):
        read_it(digest=digest)


def test_what_is_held_out_depends_on_the_picture_alone() -> None:
    names = [f"{number:06d}" for number in range(4000)]
    held = {name for name in names if holdout.is_held_out(name, 0.1)}
    assert abs(len(held) / 4000 - 0.1) < 0.02
    assert held <= {name for name in names if holdout.is_held_out(name, 0.2)}
    assert not any(holdout.is_held_out(name, 0) for name in names)


def test_the_cut_keeps_every_picture_once(voc_tree: Tree) -> None:
    voc_tree({f"{number:03d}": OBJECT for number in range(40)})
    whole = read_it().splits["train"]
    parts = read_it(holdout_fraction=0.3).splits
    joined = np.sort(np.concatenate([parts["train"].ids, parts["val"].ids]))
    np.testing.assert_array_equal(joined, whole.ids)
    assert 0 < len(parts["val"]) < 30
