"""`detection browse`: what a training would see of a dataset, on one sheet."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, get_args

from detection import params
from detection.errors import DataError, ParamsError
from detection.params.recipe import Recipe
from detection.params.recipe_base import Augmentation
from detection.text import did_you_mean

if TYPE_CHECKING:
    from detection.data.loading.loader import DetectionDataset
    from detection.report.images.contact_sheet import Tile

COLUMNS = 4


def browse(dataset: str, model: str | None, augmentation: str | None, out: Path, count: int) -> str:
    """Write the first pictures of a training's first epoch with their boxes, as the detector gets them.

    Args:
        dataset: Name of the dataset; it needs not be prepared.
        model: Name of the recipe, for size and policy; None: the one that `params.yaml` chooses.
        augmentation: Another policy than the recipe's.
        out: The sheet.
        count: How many pictures; where the split has fewer, they come again as the next epochs show them.

    Raises:
        ParamsError: There is no such dataset, recipe or policy, or the two do not go together.
        DataError: The data is absent or broken, or `out` is no file name that a picture can have.
    """
    chosen = params.load(model=model, dataset=dataset)
    recipe = _with_policy(chosen.recipe, augmentation)
    if count < 1:
        raise ParamsError(f"--count {count}: a sheet has at least one picture")

    from detection.data.sources.dataset import read

    raw = read(dataset, chosen.data, chosen.prepare.checks)  # before torch is imported, which takes seconds

    from detection.data.loading.loader import BatchSampler, DetectionDataset
    from detection.report.images.contact_sheet import sheet

    pictures = DetectionDataset(raw.splits["train"], raw.root, recipe, train=True, seed=chosen.seed)
    order = BatchSampler(len(pictures), 1, chosen.seed)
    keys: list[tuple[int, int]] = []
    while len(keys) < count:
        keys += [key for batch in order for key in batch]
        order.epoch += 1
    tiles = [_tile(pictures, key) for key in keys[:count]]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet(tiles, raw.classes, min(COLUMNS, count)).save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"--out {out} cannot be written: {error}") from None
    return f"{count} pictures of {dataset} as {chosen.model} gets them with {recipe.augmentation}: {out}"


def _with_policy(recipe: Recipe, augmentation: str | None) -> Recipe:
    if augmentation is None:
        return recipe
    policies = get_args(Augmentation)
    if augmentation not in policies:
        raise ParamsError(
            f"--augmentation: there is no {augmentation!r}; {did_you_mean(augmentation, policies)}"
        )
    try:
        return replace(recipe, augmentation=augmentation)  # type: ignore[arg-type]
    except ValueError as error:
        raise ParamsError(f"--augmentation {augmentation}: {error}") from None


def _tile(pictures: "DetectionDataset", key: tuple[int, int]) -> "Tile":
    """A sample with its file's name, and the size that the detector gets it in."""
    from PIL.Image import fromarray

    from detection.report.images.contact_sheet import Tile

    sample = pictures[key]
    image = fromarray(sample.image.permute(1, 2, 0).contiguous().numpy())
    name = PurePosixPath(pictures.index[sample.row].file).name
    text = f"{name}  {image.width}×{image.height}"
    return Tile(picture=image, boxes=sample.boxes, labels=sample.labels, text=text)
