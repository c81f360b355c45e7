"""Reading a whole dataset: digest, pinned data, hold-out and folders without lists."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detection.data.loading.index import Record, pack
from detection.data.sources.dataset import RawDataset, check_learnable, read, without_empty
from detection.data.sources.digest import Digest
from detection.data.sources.holdout import hold_out
from detection.errors import DataError
from detection.params import VocDataset

Tree = Callable[..., Path]
OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
ENTRY = VocDataset(format="voc", path="voc", train=("train",), test=("test",))


@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), min_size=1, max_size=6), st.randoms())
def test_a_digest_does_not_depend_on_the_order(entries: list[tuple[str, str]], random: Random) -> None:
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


def test_the_digest_does_not_depend_on_the_location(
    voc_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT})
    first = read_it()
    elsewhere = tmp_path / "elsewhere"
    for name in ("b.xml", "a.xml"):  # created in another order
        (elsewhere / "voc/Annotations").mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "Annotations" / name, elsewhere / "voc/Annotations" / name)
    shutil.copytree(root, elsewhere / "voc", dirs_exist_ok=True)
    monkeypatch.setenv("DATA_ROOT", str(elsewhere))
    second = read_it()
    assert (first.digest, first.listing) == (second.digest, second.listing)
    assert second.root == elsewhere / "voc"


def test_any_change_of_the_data_changes_the_digest(voc_tree: Tree) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT})
    seen = [read_it().digest]
    (root / "Annotations/a.xml").write_text(f"<annotation> {OBJECT}</annotation>")
    seen.append(read_it().digest)
    Image.new("RGB", (500, 400)).save(root / "JPEGImages/b.jpg")
    seen.append(read_it().digest)
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    seen.append(read_it().digest)
    assert len(set(seen)) == 4


def test_data_that_differs_from_the_pinned_digest_is_refused(voc_tree: Tree) -> None:
    root = voc_tree({"a": OBJECT})
    digest = read_it().digest
    assert read_it(digest=digest).digest == digest
    Image.new("RGB", (500, 400)).save(root / "JPEGImages/a.jpg")
    with pytest.raises(
        DataError, match=rf"datasets\.mine\.digest \(found .*, expected {digest}\); .*`detection pin mine`"
    ):
        read_it(digest=digest)


def held_out(names: list[str], fraction: float) -> dict[str, set[str]]:
    """Ids of each split after val and test are held out of train."""
    none, flags, numbers = np.zeros((0, 4), np.float32), np.zeros(0, np.bool_), np.zeros(0, np.int64)
    records = [Record(f"{name}.jpg", name, 4, 4, none, numbers, flags, flags, none[:, 0]) for name in names]
    splits = {"train": pack(records), "val": pack([]), "test": pack([])}
    return {
        split: {name.decode() for name in index.ids.tolist()}
        for split, index in hold_out(splits, ["val", "test"], fraction).items()
    }


def test_hold_out_depends_on_the_image_alone() -> None:
    names = [f"{number:06d}" for number in range(4000)]
    tenth, fifth, none = (held_out(names, fraction) for fraction in (0.1, 0.2, 0))
    for split in ("val", "test"):
        assert abs(len(tenth[split]) / 4000 - 0.1) < 0.02
        assert tenth[split] <= fifth[split]
        assert not none[split]
    assert not tenth["val"] & tenth["test"]
    assert held_out(names[::2], 0.1)["val"] == tenth["val"] & set(names[::2])


def test_hold_out_keeps_every_image_once(voc_tree: Tree) -> None:
    voc_tree({f"{number:03d}": OBJECT for number in range(40)})
    whole = read_it().splits["train"]
    parts = read_it(holdout_fraction=0.3).splits
    joined = np.sort(np.concatenate([parts["train"].ids, parts["val"].ids]))
    np.testing.assert_array_equal(joined, whole.ids)
    assert 0 < len(parts["val"]) < 30


def test_a_folder_without_lists_is_split_in_three(voc_tree: Tree) -> None:
    root = voc_tree({f"{number:03d}": OBJECT for number in range(60)}, "voc/trees")
    for name in ("ImageSets/Main/train.txt", "ImageSets/Main/test.txt"):
        (root / name).unlink()
    entry = VocDataset(format="voc", path="voc", train=("trees/",), holdout_fraction=0.2)
    splits = read("mine", entry).splits
    ids = {split: {name.decode() for name in index.ids} for split, index in splits.items()}
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 60
    assert all(4 <= len(ids[split]) <= 24 for split in ("val", "test"))
    assert ids == held_out(sorted(set.union(*ids.values())), 0.2)


def test_images_and_annotations_in_one_folder(voc_tree: Tree, data_root: Path) -> None:
    root = voc_tree({"a": OBJECT, "b": OBJECT, "c": OBJECT})
    for split, names in (("train", "ab"), ("valid", "c")):
        (data_root / "flat" / split).mkdir(parents=True)
        for name in names:
            (root / f"JPEGImages/{name}.jpg").rename(data_root / f"flat/{split}/{name}.JPG")
            (root / f"Annotations/{name}.xml").rename(data_root / f"flat/{split}/{name}.xml")
    entry = VocDataset(format="voc", path="flat", train=("train/",), test=("valid/",))
    splits = read("mine", entry).splits
    assert splits["train"].files.tolist() == [b"train/a.JPG", b"train/b.JPG"]
    assert splits["test"].files.tolist() == [b"valid/c.JPG"]
    (data_root / "flat/train/b.xml").unlink()
    with pytest.raises(DataError, match=r"missing_annotation: 1: train/b\.JPG: has no XML file"):
        read("mine", entry)


def test_a_dataset_without_test_names_holdout(voc_tree: Tree) -> None:
    voc_tree({"a": OBJECT})
    with pytest.raises(DataError, match=r"datasets\.mine has no test: .*`holdout_fraction: 0\.1`"):
        read("mine", VocDataset(format="voc", path="voc", train=("./",)))


def test_an_empty_test_split_is_refused(voc_tree: Tree) -> None:
    voc_tree({"a": OBJECT, "b": OBJECT})
    entry = VocDataset(format="voc", path="voc", train=("./",), holdout_fraction=0.001)
    with pytest.raises(DataError, match=r"none of its 2 images .*datasets\.mine\.holdout_fraction"):
        read("mine", entry)


def test_images_without_objects_are_negatives_or_left_out_of_training(voc_tree: Tree) -> None:
    thin = OBJECT.replace("<xmax>9</xmax>", "<xmax>1</xmax>")  # no width
    root = voc_tree({"a": OBJECT, "b": "", "c": thin, "d": thin + OBJECT, "e": ""})
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\nd\n")
    (root / "ImageSets/Main/test.txt").write_text("e\n")
    assert read_it().splits["train"].ids.tolist() == [b"a", b"b", b"c", b"d"]
    without = read_it(skip_empty=True)
    assert without.splits["train"].ids.tolist() == [b"a", b"d"]
    assert len(without.splits["train"].boxes) == 2  # a box without area is dropped before
    assert without.splits["test"].ids.tolist() == [b"e"]
    assert without.digest == read_it().digest


def test_a_crowd_keeps_its_image() -> None:
    """As in torchvision's references, which remove crowds later."""
    box, yes = np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.bool_)
    crowd = Record("a.jpg", "a", 20, 20, box, np.zeros(1, np.int64), ~yes, yes, np.full(1, 81, np.float32))
    empty = Record("b.jpg", "b", 20, 20, box[:0], np.zeros(0, np.int64), yes[:0], yes[:0], np.zeros(0, np.float32))
    assert without_empty(pack([empty, crowd, empty])).ids.tolist() == [b"a"]
    assert without_empty(pack([empty])).ids.tolist() == []


@pytest.mark.parametrize(("flag", "word"), [("crowd", "crowds"), ("difficult", "difficult")])
def test_a_training_split_without_learnable_objects_is_refused(flag: str, word: str) -> None:
    box, yes = np.array([[0, 0, 9, 9]], np.float32), np.ones(1, np.bool_)
    flags = {"crowd": ~yes, "difficult": ~yes, flag: yes}
    areas = np.full(1, 81, np.float32)
    train = pack([Record("a.jpg", "a", 20, 20, box, np.zeros(1, np.int64), flags["difficult"], flags["crowd"], areas)])
    with pytest.raises(DataError, match=f"no training object can be learnt: all are 1 {word}"):
        check_learnable("mine", train, train_difficult=False)
    if flag == "difficult":
        check_learnable("mine", train, train_difficult=True)
