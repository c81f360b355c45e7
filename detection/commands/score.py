"""`detection score`: COCO's or VOC's numbers of anybody's detections, from the files they come in."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.errors import DetectionError

if TYPE_CHECKING:
    from detection.evaluation.external import ExternalData
    from detection.evaluation.protocol.overlaps import Overlaps


def score(
    format: str,
    detections: Path,
    ground_truth: Path | None,
    devkit: Path | None,
    year: str | None,
    image_set: str | None,
    overlap: str,
    ties: str,
    skip_unknown: bool,
    verify: bool,
    table: bool,
    report: Path | None,
) -> str:
    """Score detections that lie in files.

    Args:
        format: `coco` or `voc`.
        detections: COCO's list of results, or the folder of `comp4_det_<image_set>_<class>.txt`.
        ground_truth: Of COCO: the instances file.
        devkit: Of VOC: the folder `VOCdevkit`.
        year: Of VOC: names its folder `VOC<year>`.
        image_set: Of VOC: a list in `ImageSets/Main`.
        overlap: Of VOC: `at-least` half of the union, as the devkit has it, or `more-than`.
        ties: Of VOC: equal scores in the order of the `file`, as in the devkit, or as `numpy` leaves them.
        skip_unknown: Leave out what the ground truth does not know.
        verify: Of COCO: run pycocotools too, and refuse any difference.
        table: Text for people instead of JSON.
        report: Folder for the whole analysis.

    Returns:
        JSON or a table.

    Raises:
        DetectionError: Something is missing, broken or of no meaning.
    """
    _check(format, ground_truth, devkit, year, image_set, verify)
    from detection.evaluation import external_coco, external_voc
    from detection.evaluation.analysis.tables import nan_to_null
    from detection.evaluation.protocol import coco_metrics, oracle, voc_metrics
    from detection.evaluation.protocol.matching import match

    if format == "coco":
        assert ground_truth is not None
        given = external_coco.read(ground_truth, detections, skip_unknown=skip_unknown)
    else:
        assert devkit is not None
        given = external_voc.read(devkit, str(year), str(image_set), detections, skip_unknown=skip_unknown)
    overlaps = given.overlaps()
    if format == "coco":
        by_coco = coco_metrics.score_matches(overlaps, match(overlaps))
        if verify:
            oracle.verify(overlaps, by_coco)
        protocol = f"COCO bbox, {len(given.pictures)} pictures"
        content: dict[str, Any] = {"protocol": protocol, "stats": by_coco.stats}
    else:
        by_voc = voc_metrics.score_overlaps(overlaps, strict=overlap == "more-than", unstable=ties == "numpy")
        content = _voc(by_voc, given.classes, f"VOC{year} {image_set}", overlap, ties)
    if report:
        _report(report, given, overlaps, content)
    return _table(content) if table else json.dumps(nan_to_null(content), indent=1)


def _check(
    format: str,
    ground_truth: Path | None,
    devkit: Path | None,
    year: str | None,
    image_set: str | None,
    verify: bool,
) -> None:
    """Options that a format needs, and one that it cannot have."""
    needed: dict[str, object] = {"--devkit": devkit, "--year": year, "--image-set": image_set}
    if format == "coco":
        needed = {"--ground-truth": ground_truth}
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise DetectionError(f"--format {format} needs {' and '.join(missing)}")
    if verify and format == "voc":
        raise DetectionError("--verify asks pycocotools, which scores COCO's way; use it with --format coco")


def _report(folder: Path, given: "ExternalData", overlaps: "Overlaps", content: dict[str, Any]) -> None:
    """Write the whole analysis; it rests on COCO's matching, whatever the format."""
    from detection.evaluation.analysis import bootstrap, tables
    from detection.evaluation.analysis.bootstrap import BootstrapSample
    from detection.evaluation.protocol import coco_metrics
    from detection.evaluation.protocol.matching import match

    matches = match(overlaps)
    by_coco = coco_metrics.score_matches(overlaps, matches)
    spread = bootstrap.intervals(BootstrapSample.of(overlaps, matches, num_images=len(given.pictures)))
    files = {
        **tables.build_tables(overlaps, matches, given.classes, given.pictures, given.sizes),
        "scores.json": content,
        "intervals.json": spread.to_json(given.classes),
        "per_class.csv": tables.per_class_table(given.classes, by_coco),
        "pr_curves.csv": tables.pr_curve_table(given.classes, by_coco),
    }
    try:
        tables.write_tables(folder, files)
    except OSError as error:
        raise DetectionError(f"--report {folder} cannot be written: {error.strerror}") from None


def _voc(by_voc: Any, classes: tuple[str, ...], name: str, overlap: str, ties: str) -> dict[str, Any]:
    sign = ">=" if overlap == "at-least" else ">"
    order = "of the file" if ties == "file" else "of numpy's unstable sort"
    scored = sum(not math.isnan(value) for value in by_voc.ap_area)
    return {
        "protocol": f"{name}, IoU {sign} 0.5, inclusive-pixel (+1) areas, difficult objects ignored, equal "
        f"scores in the order {order}",
        "ap_11pt": dict(zip(classes, by_voc.ap_11pt.tolist(), strict=True)),
        "ap_area": dict(zip(classes, by_voc.ap_area.tolist(), strict=True)),
        f"map_11pt_{scored}_classes": by_voc.stats["voc_ap50_11pt"],
        f"map_area_{scored}_classes": by_voc.stats["voc_ap50_area"],
    }


def _table(content: dict[str, Any]) -> str:
    if "stats" in content:
        lines = [f"{name:<10} {_digits(value)}" for name, value in content["stats"].items()]
        return "\n".join([content["protocol"], "", *lines])
    width = max(map(len, [*content["ap_area"], "mean"]))
    rows = [(name, value, content["ap_area"][name]) for name, value in content["ap_11pt"].items()]
    rows.append(("mean", *(value for name, value in content.items() if name.startswith("map_"))))
    lines = [f"{name:<{width}}  {_digits(eleven)}  {_digits(area)}" for name, eleven, area in rows]
    return "\n".join([content["protocol"], "", f"{'':<{width}}  11 pt   area", *lines])


def _digits(value: float) -> str:
    """Four decimals; a dash where there is nothing to find."""
    return "     -" if math.isnan(value) else f"{value:.4f}"
