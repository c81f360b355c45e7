"""Datasets on disk: the default shapes, generated once for all tests, and small VOC trees."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detection.data.sources.dataset import RawDataset, read
from detection.params import ShapesDataset


@pytest.fixture(scope="session")
def default_shapes(tmp_path_factory: pytest.TempPathFactory) -> RawDataset:
    """The default dataset, generated under a DATA_ROOT of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(tmp_path_factory.mktemp("raw")))
        return read("shapes", ShapesDataset(format="shapes", path="shapes"))


@pytest.fixture
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty DATA_ROOT."""
    folder = tmp_path / "raw"
    folder.mkdir()
    monkeypatch.setenv("DATA_ROOT", str(folder))
    return folder


@pytest.fixture
def voc_tree(data_root: Path) -> Callable[..., Path]:
    """Writes a VOC tree from annotation bodies by image id; list `train` has all ids, `test` none."""

    def write(annotations: dict[str, str], folder: str = "voc") -> Path:
        root = data_root / folder
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / name).mkdir(parents=True, exist_ok=True)
        for name, body in annotations.items():
            own = np.random.default_rng(list(f"{folder}/{name}".encode())).integers(0, 255, (5, 5, 3), np.uint8)
            Image.fromarray(own).resize((50, 40)).save(root / "JPEGImages" / f"{name}.jpg")
            (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{body}</annotation>")
        (root / "ImageSets/Main/train.txt").write_text("".join(f"{name}\n" for name in annotations))
        (root / "ImageSets/Main/test.txt").write_text("")
        return root

    return write
