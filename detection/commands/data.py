"""Commands on datasets: doctor, browse, pin, convert."""

import argparse
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from yaml import YAMLError

from detection import params
from detection.commands import Command
from detection.data.loading.tiles import cut
from detection.data.sources.dataset import check_content, check_learnable, examine, read
from detection.data.sources.fingerprint import fingerprint
from detection.doctor import findings
from detection.errors import DataError, ParamsError
from detection.files import PARAMS_YAML, data_root
from detection.params import schema
from detection.params.augmentation import POLICIES, describe
from detection.params.reader import read_yaml
from detection.params.recipe import Recipe
from detection.text import did_you_mean

if TYPE_CHECKING:
    from detection.data.loading.loader import DetectionDataset
    from detection.report.images.contact_sheet import Tile

SHEET_COLUMNS = 4
CONVERTED_FORMATS = ("coco", "voc", "yolo")
log = logging.getLogger(__name__)


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="DATASET", help="dataset in params.yaml, or a folder without an entry")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all problems to this file")
    parser.add_argument("--model", help="model whose anchors are checked; default: that of params.yaml")


def doctor(name: str, json_file: Path | None = None, model: str | None = None) -> str:
    """Read a dataset as `prepare` does, decode every image, and report.

    Args:
        name: Dataset in params.yaml; a folder gets a suggested entry instead of a report.
        json_file: File for all problems, a list of `{type, action, where, detail}`.
        model: Model whose anchors are compared with the objects; None for that of params.yaml.

    Returns:
        The report: splits, problems per type, reliability of the metrics, label statistics of train, fit of
        the anchors.

    Raises:
        ParamsError: Unknown dataset or model.
        DataError: The folder does not exist. The data is missing, has problems that `prepare.checks` sets to `error`,
            or has nothing to learn or differs from the pinned; the report is logged first.
    """
    known = read_yaml(PARAMS_YAML).get("datasets") or {}
    folder = next((one for one in (Path(name), data_root() / name) if name not in known and one.is_dir()), None)
    if folder is not None:
        from detection.doctor.folder_guess import suggest

        return suggest(folder, known)
    if "/" in name and name not in known:
        raise DataError(f"folder {name} does not exist; give a folder, or a dataset in params.yaml: {', '.join(known)}")
    loaded = params.load(dataset=name, model=model)
    raw = examine(name, loaded.data, loaded.prepare.checks, decode=True)
    if json_file:
        entries = [{**one._asdict(), "action": raw.problems.action(one.type)} for one in raw.problems.entries]
        try:
            json_file.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"--json {json_file} cannot be written: {error.strerror}") from None
    sections = [[f"{name} in {raw.root}"], findings.splits(raw), findings.problems(raw), findings.reliability(raw)]
    train, tiles = raw.splits["train"], loaded.prepare.tiles
    if len(train.labels):
        sections += [
            findings.labels(raw, loaded.recipe),
            findings.anchors(loaded.model, name, loaded.recipe, cut(train, tiles) if tiles else train, raw.classes),
        ]
    report = "\n\n".join("\n".join(section) for section in sections)
    if refused := raw.problems.refused():
        log.info("%s", report)
        raise DataError(
            f"{name} has {sum(refused.values())} problems that `prepare` refuses ({', '.join(refused)}); fix "
            "them, or set an action for them at prepare.checks in params.yaml"
        )
    try:
        check_content(raw)
        check_learnable(name, train, loaded.recipe.train_difficult)
    except DataError:
        log.info("%s", report)
        raise
    return report


def _add_browse(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--model", help="model for image size and augmentation; default: that of params.yaml")
    parser.add_argument("--augmentation", metavar="POLICY", help="another policy than the model's, or a list of steps")
    parser.add_argument("--out", type=Path, default=Path("browse.png"), help="default: %(default)s")
    parser.add_argument("--count", type=int, default=12, help="number of images; default: %(default)s")


def browse(dataset: str, model: str | None, augmentation: str | None, out: Path, count: int) -> str:
    """Draw the first training images of the first epoch, and of the next ones if the split is too small.

    Args:
        dataset: Dataset in params.yaml; need not be prepared.
        model: Model for image size and augmentation; None for that of params.yaml.
        augmentation: Another policy than the recipe's, or a list of steps in YAML.
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
    from detection.report.images.contact_sheet import contact_sheet

    cut_into, train = loaded.prepare.tiles, raw.splits["train"]
    images = DetectionDataset(
        cut(train, cut_into) if cut_into else train, raw.root, recipe, train=True, seed=loaded.seed
    )
    sampler = BatchSampler(len(images), 1, loaded.seed)
    keys: list[tuple[int, int]] = []
    while len(keys) < count:
        keys += [key for batch in sampler for key in batch]
        sampler.epoch += 1
    tiles = [_tile(images, key) for key in keys[:count]]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(tiles, raw.classes, min(SHEET_COLUMNS, count)).save(out)
    except (OSError, ValueError) as error:
        raise DataError(f"--out {out} cannot be written: {error}") from None
    return f"{count} images of {dataset} for {loaded.model} with augmentation {describe(recipe.augmentation)}: {out}"


def _with_policy(recipe: Recipe, augmentation: str | None) -> Recipe:
    """Recipe with another augmentation: a policy's name, or a list of steps as in params.yaml."""
    if augmentation is None:
        return recipe
    value: object = augmentation
    if augmentation.lstrip().startswith("["):
        try:
            value = schema.read(augmentation)
        except YAMLError as error:
            raise ParamsError(f"--augmentation {augmentation}: not valid YAML: {error}") from None
    elif augmentation not in POLICIES:
        advice = did_you_mean(augmentation, POLICIES)
        raise ParamsError(f"--augmentation: no policy {augmentation!r}; {advice} Or a list: '[{{flip: {{}}}}]'")
    values = {**asdict(recipe), "augmentation": value}
    changed: Recipe = schema.validate(type(recipe), values, "recipe", f"--augmentation {augmentation}")
    return changed


def _tile(dataset: "DetectionDataset", key: tuple[int, int]) -> "Tile":
    """Tile of a sample, with file name and image size."""
    from torchvision.transforms.v2.functional import to_pil_image

    from detection.report.images.contact_sheet import Tile

    sample = dataset[key]
    image = to_pil_image(sample.image.clamp(0, 1) if sample.image.is_floating_point() else sample.image)
    text = f"{PurePosixPath(dataset.index[sample.row].file).name}  {image.width}×{image.height}"
    return Tile(image=image, boxes=sample.boxes, labels=sample.labels, text=text)


def _add_pin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="DATASET")


def pin(name: str, file: Path = PARAMS_YAML) -> str:
    """Write the digest of a dataset on disk to `datasets.<name>.digest`, keeping comments and key order.

    The dataset is prepared once more, because its entry changes.

    Raises:
        ParamsError: Unknown dataset.
        DataError: The data is missing or invalid.
    """
    loaded = params.load(file, dataset=name)
    digest = read(name, replace(loaded.data, digest=None), loaded.prepare.checks).digest
    if digest == loaded.data.digest:
        return f"{name} is pinned already, and its data is unchanged: {digest}"
    text = file.read_text(encoding="utf-8")
    file.write_text(_with_digest(text, name, digest), encoding="utf-8")
    fingerprint(name, replace(loaded.data, digest=digest), loaded.prepare.checks)  # to name files that change later
    return f"{file}: datasets.{name}.digest is now {digest}"


def _with_digest(text: str, name: str, digest: str) -> str:
    """Insert the digest and change no other character; a YAML writer would wrap lines."""
    entry = _value(_value(YAML().compose(text), "datasets"), name)
    old = _value(entry, "digest")
    if old is not None and old.value == "":  # an empty value has the position of the next token
        key = next(key for key, _ in entry.value if key.value == "digest")
        colon = text.index(":", key.end_mark.index) + 1
        return f"{text[:colon]} {digest}{text[colon:]}"
    if old is not None:
        return text[: old.start_mark.index] + digest + text[old.end_mark.index :]
    first = entry.value[0][0].start_mark
    separator = ", " if entry.flow_style else "\n" + " " * first.column
    return f"{text[: first.index]}digest: {digest}{separator}{text[first.index :]}"


def _value(mapping: Any, key: str) -> Any:
    return next((value for name, value in mapping.value if name.value == key), None)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="DATASET")
    parser.add_argument("--to", required=True, choices=CONVERTED_FORMATS, help="format of the written files")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new or empty folder")
    parser.add_argument("--link", action="store_true", help="symbolic links to the images instead of copies")


def convert(name: str, target_format: str, folder: Path, link: bool = False) -> str:
    """Write a dataset's splits, read and checked as `prepare` does, in another format.

    Args:
        name: Dataset in params.yaml; need not be prepared.
        target_format: One of `CONVERTED_FORMATS`.
        folder: New or empty folder.
        link: Make symbolic links to the images instead of copies.

    Returns:
        Counts, what the format cannot express, and an entry for params.yaml that reads the result.

    Raises:
        ParamsError: Unknown dataset.
        DataError: The data is missing or invalid, or the folder is not empty.
    """
    from detection.data.writers import write

    loaded = params.load(dataset=name)
    raw = read(name, loaded.data, loaded.prepare.checks)
    written = write(raw, target_format, folder, link)
    counts = (
        f"{split} {len(index):,} images, {len(index.boxes):,} objects"
        for split, index in raw.splits.items()
        if len(index)
    )
    images = "linked" if link else "copied"
    return "\n".join(
        [
            f"{name} as {target_format} in {folder}, images {images}: {'; '.join(counts)}",
            f"not in these files: {'; '.join(written.losses) or 'nothing'}",
            f"entry for `datasets` in params.yaml:  NAME: {written.entry}",
        ]
    )


COMMANDS = {
    "doctor": Command(_add_doctor, lambda args: doctor(args.name, json_file=args.json, model=args.model)),
    "browse": Command(
        _add_browse,
        lambda args: browse(
            args.dataset, model=args.model, augmentation=args.augmentation, out=args.out, count=args.count
        ),
    ),
    "convert": Command(
        _add_convert, lambda args: convert(args.name, target_format=args.to, folder=args.folder, link=args.link)
    ),
    "pin": Command(_add_pin, lambda args: pin(args.name)),
}
