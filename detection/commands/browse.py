"""`detection browse`: images of a dataset as the detector sees them in training, on one sheet."""

import argparse
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, get_args

from detection import params
from detection.data.sources.dataset import read
from detection.errors import DataError, ParamsError
from detection.params.recipe import Recipe
from detection.params.recipe_base import Augmentation
from detection.text import did_you_mean

if TYPE_CHECKING:
    from detection.data.loading.loader import DetectionDataset
    from detection.report.images.contact_sheet import Tile

COLUMNS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--model", help="model for image size and augmentation; default: that of params.yaml")
    parser.add_argument("--augmentation", metavar="POLICY", help="another policy than the model's")
    parser.add_argument("--out", type=Path, default=Path("browse.png"), help="default: %(default)s")
    parser.add_argument("--count", type=int, default=12, help="number of images; default: %(default)s")


def run(args: argparse.Namespace) -> str:
    """Run the command with parsed flags."""
    return browse(
        args.dataset, model=args.model, augmentation=args.augmentation, out=args.out, count=args.count
    )


def browse(dataset: str, model: str | None, augmentation: str | None, out: Path, count: int) -> str:
    """Draw the first training images of the first epoch, and of the next ones if the split is too small.

    Args:
        dataset: Dataset in params.yaml; need not be prepared.
        model: Model for image size and augmentation; None for that of params.yaml.
        augmentation: Another policy than the recipe's.
        out: Image file to write.
        count: Number of images.

    Raises:
        ParamsError: Unknown dataset, model or policy, or a policy that does not fit the recipe.
        DataError: The data is missing or invalid, or `out` cannot be written.
    """
    loaded = params.load(model=model, dataset=dataset)
    recipe = _with_policy(loaded.recipe, augmentation)
    if count < 1:
        raise ParamsError(f"--count {count}: must be at least one image")

    raw = read(dataset, loaded.data, loaded.prepare.checks)

    # torch, which takes seconds to import, only once the data has been read
    from detection.data.loading.loader import BatchSampler, DetectionDataset
    from detection.report.images.contact_sheet import sheet

    images = DetectionDataset(raw.splits["train"], raw.root, recipe, train=True, seed=loaded.seed)
    sampler = BatchSampler(len(images), 1, loaded.seed)
    keys: list[tuple[int, int]] = []
    while len(keys) < count:
        keys += [key for batch in sampler for key in batch]
        sampler.epoch += 1
    tiles = [_tile(images, key) for key in keys[:count]]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet(tiles, raw.classes, min(COLUMNS, count)).save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"--out {out} cannot be written: {error}") from None
    return f"{count} images of {dataset} for {loaded.model} with augmentation {recipe.augmentation}: {out}"


def _with_policy(recipe: Recipe, augmentation: str | None) -> Recipe:
    if augmentation is None:
        return recipe
    policies = get_args(Augmentation)
    if augmentation not in policies:
        raise ParamsError(
            f"--augmentation: no policy {augmentation!r}; {did_you_mean(augmentation, policies)}"
        )
    try:
        return replace(recipe, augmentation=augmentation)  # type: ignore[arg-type]
    except ValueError as error:
        raise ParamsError(f"--augmentation {augmentation}: {error}") from None


def _tile(dataset: "DetectionDataset", key: tuple[int, int]) -> "Tile":
    """Tile of a sample, with file name and image size."""
    from PIL.Image import fromarray

    from detection.report.images.contact_sheet import Tile

    sample = dataset[key]
    image = fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())
    text = f"{PurePosixPath(dataset.index[sample.row].file).name}  {image.width}×{image.height}"
    return Tile(picture=image, boxes=sample.boxes, labels=sample.labels, text=text)
