from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder as TorchvisionImageFolder
from torchvision.transforms.v2 import functional as F

from detection.data.loading.augment import RATIOS, area_crop
from detection.errors import DataError
from detection.params.stages import ImageFolder
from detection.training.pretrain.imagefolder import FolderDataset, center_window, jitter, list_folder

SETTINGS = ImageFolder(image_size=32, eval_resize=32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("b/2.png", "b/1.JPEG", "a/x.jpg", "a/notes.txt", "c/deep.png"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            path.write_text("no image")
        else:
            Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return tmp_path / "train"


def test_files_and_labels_equal_torchvisions(root: Path) -> None:
    folder, theirs = list_folder(root), TorchvisionImageFolder(root)
    ours = [(str(root / name.decode()), int(label)) for name, label in zip(folder.files, folder.labels, strict=True)]
    assert ours == theirs.samples
    assert list(folder.classes) == theirs.classes == ["a", "b", "c"]


def test_the_digest_depends_on_names_and_sizes(root: Path) -> None:
    digest = list_folder(root).digest
    assert list_folder(root).digest == digest
    (root / "b/2.png").rename(root / "a/2.png")
    assert list_folder(root).digest != digest
    (root / "a/2.png").rename(root / "b/2.png")
    assert list_folder(root).digest == digest
    (root / "b/2.png").write_bytes((root / "b/2.png").read_bytes() + b" ")
    assert list_folder(root).digest != digest


def test_missing_folders_images_and_classes_are_errors(root: Path) -> None:
    with pytest.raises(DataError, match=r"imagenet/train.*does not exist"):
        list_folder(root / "imagenet/train")
    (root / "empty/class").mkdir(parents=True)
    with pytest.raises(DataError, match="has no image"):
        list_folder(root / "empty")
    with pytest.raises(DataError, match="train has no class c"):
        list_folder(root, classes=("a", "b"))


def test_a_val_split_without_some_class_keeps_the_labels_of_train(root: Path) -> None:
    assert list_folder(root, classes=("0", "a", "b", "c")).labels.tolist() == [1, 2, 2, 3]


def test_a_sample_is_a_function_of_seed_epoch_and_row(root: Path) -> None:
    dataset = FolderDataset(list_folder(root), SETTINGS, train=True, seed=1)
    again = FolderDataset(list_folder(root), SETTINGS, train=True, seed=1)
    other = FolderDataset(list_folder(root), SETTINGS, train=True, seed=2)
    image, label = dataset[3, 1]
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert label == 1
    assert torch.equal(image, again[3, 1][0])
    for one in (dataset[4, 1], dataset[3, 2], other[3, 1]):
        assert not torch.equal(image, one[0])


def test_a_val_image_equals_resize_and_center_crop(root: Path) -> None:
    from torchvision.transforms.v2 import functional as F

    for eval_resize in (32, 36):
        settings = replace(SETTINGS, eval_resize=eval_resize)
        ours, _ = FolderDataset(list_folder(root), settings, train=False)[0, 1]
        whole = torch.from_numpy(np.array(Image.open(root / "b/1.JPEG"))).permute(2, 0, 1)
        theirs = F.center_crop(F.resize(whole, [eval_resize], antialias=True), [32, 32])
        assert (ours.float() - theirs.float()).abs().mean() < 12, "of noise, whose pixels differ by 85"


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (40, 400), (400, 40), (1, 1), (7, 3)])
def test_windows_are_inside_the_image_with_the_given_area(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        x1, y1, x2, y2 = area_crop(rng, height, width, (0.53, 1.0), RATIOS)
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        if min(height, width) > 100:
            assert 0.52 <= (x2 - x1) * (y2 - y1) / (height * width) <= 1
            assert 0.74 <= (x2 - x1) / (y2 - y1) <= 1.34


def test_windows_have_the_mean_area_of_torchvisions() -> None:
    from torchvision.transforms.v2 import RandomResizedCrop

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    theirs = RandomResizedCrop(224, scale=(0.53, 1.0))
    image = torch.zeros(3, 375, 500)
    ours = [area_crop(rng, 375, 500, (0.53, 1.0), RATIOS) for _ in range(3000)]
    drawn = [theirs.make_params([image]) for _ in range(3000)]
    areas = (
        np.array([(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in ours]),
        np.array([d["height"] * d["width"] for d in drawn]),
    )
    assert areas[0].mean() == pytest.approx(areas[1].mean(), rel=0.02)
    assert areas[0].std() == pytest.approx(areas[1].std(), rel=0.06)


def test_the_center_window_is_a_square_in_the_center() -> None:
    assert center_window(100, 200, 1) == (50, 0, 150, 100)
    assert center_window(200, 100, 224 / 256) == (6, 56, 94, 144)
    assert center_window(1, 9, 0.1) == (4, 0, 5, 1)


def test_colors_change_little_and_not_at_all_with_amount_zero() -> None:
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    near = (jitter(rng, pixels, 0.03).float() - pixels.float()).abs().mean()
    assert 0 < near < 12
    assert jitter(rng, pixels, 0.0).equal(pixels)


def test_colors_are_those_of_torchvision_to_a_level() -> None:
    """Its `adjust_hue` takes three times as long; the other changes are its own, in the same random order."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    for seed in range(12):
        ours, rng, theirs = jitter(np.random.default_rng(seed), pixels, 0.03), np.random.default_rng(seed), pixels
        changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        for which in rng.permutation(4):
            by = float(rng.uniform(-0.03, 0.03))
            theirs = changes[which](theirs, by if which == 3 else 1 + by)
        assert (ours.int() - theirs.int()).abs().max() <= 2  # a level of the hue, changed by those after it
