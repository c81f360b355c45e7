"""Real images of VOC2007."""

from pathlib import Path

import numpy as np
import pytest

from detection.data.loading.index import Index
from detection.data.sources import voc
from detection.data.sources.checks import Problems
from detection.data.sources.digest import Digest
from detection.data.sources.image_headers import read_headers
from detection.params import VocDataset
from detection.params.stages import Checks


@pytest.fixture(scope="session")
def voc_images(shared_data: Path) -> tuple[Index, Path]:
    """The first 300 images of VOC2007 train, and the folder of their files."""
    entry = VocDataset(format="voc", path="voc2007_trainval_320/VOCdevkit", train=("VOC2007/train",))
    root = shared_data / entry.path
    index = voc.read(entry, root, Digest(), Problems(Checks()))[1]["train"].select(np.arange(300))
    headers = read_headers(root, [file.decode() for file in index.files.tolist()], decode=False)
    index.sizes[:] = [(header.height, header.width) for header in headers]
    return index, root
