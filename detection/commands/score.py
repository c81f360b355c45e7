"""`detection score`: evaluate detections of any detector from COCO or VOC files."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.commands import Command
from detection.errors import DetectionError
from detection.text import number

if TYPE_CHECKING:
    from detection.evaluation.external import ExternalData
    from detection.evaluation.protocol.overlaps import Overlaps

    Scored = tuple[dict[str, Any], ExternalData, Overlaps]


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--format", choices=("coco", "voc"), required=True)
    add("--detections", type=Path, required=True, help="COCO: results.json; VOC: folder of comp4_det_*.txt")
    add("--ground-truth", type=Path, metavar="FILE", help="COCO: instances.json")
    add("--devkit", type=Path, metavar="FOLDER", help="VOC: VOCdevkit")
    add("--year", help="VOC: 2007 for the folder VOC2007")
    add("--image-set", metavar="LIST", help="VOC: test for ImageSets/Main/test.txt")
    add(
        "--overlap",
        choices=("at-least", "more-than"),
        default="at-least",
        help="VOC: comparison of the IoU with 0.5, >= as in the devkit or > as in its Python ports",
    )
    add(
        "--ties",
        choices=("file", "numpy"),
        default="file",
        help="VOC: order of equal scores, that of the file as in the devkit or that of numpy's unstable sort "
        "as in its Python ports (the sixth digit then depends on the processor)",
    )
    add("--skip-unknown", action="store_true", help="ignore images and classes missing in the ground truth")
    add("--verify", action="store_true", help="COCO: compare with pycocotools, fail on any difference")
    add("--table", action="store_true", help="print a table instead of JSON")
    add("--report", type=Path, metavar="FOLDER", help="write the error analysis to this folder")


def score(args: argparse.Namespace) -> str:
    """Score the files named by the flags; return JSON or a table.

    Raises:
        DetectionError: A flag or file is missing, or a file is invalid.
    """
    needed = ("ground_truth",) if args.format == "coco" else ("devkit", "year", "image_set")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        raise DetectionError(f"--format {args.format} needs {' and '.join(missing)}")
    if args.format == "coco":
        content, data, overlaps = score_coco(
            args.ground_truth, args.detections, skip_unknown=args.skip_unknown, verify=args.verify
        )
    elif args.verify:
        raise DetectionError("--verify compares with pycocotools; use it with --format coco")
    else:
        content, data, overlaps = score_voc(
            args.devkit,
            args.year,
            args.image_set,
            args.detections,
            overlap=args.overlap,
            ties=args.ties,
            skip_unknown=args.skip_unknown,
        )
    if args.report:
        _write_report(args.report, data, overlaps, content)
    from detection.evaluation.analysis.tables import nan_to_null

    return _table(content) if args.table else json.dumps(nan_to_null(content), indent=1)


def score_coco(ground_truth: Path, detections: Path, *, skip_unknown: bool, verify: bool) -> "Scored":
    """Compute COCO's 12 numbers.

    Args:
        ground_truth: Instances JSON.
        detections: Results JSON.
        skip_unknown: Ignore detections of images and classes that the ground truth does not list.
        verify: Run pycocotools too and fail on any difference.
    """
    from detection.evaluation import external
    from detection.evaluation.protocol import coco_metrics, oracle
    from detection.evaluation.protocol.matching import match

    data = external.read_coco(ground_truth, detections, skip_unknown=skip_unknown)
    overlaps = data.overlaps()
    score = coco_metrics.score_matches(overlaps, match(overlaps))
    if verify:
        oracle.verify(overlaps, score)
    return {"protocol": f"COCO bbox, {len(data.images)} images", "stats": score.stats}, data, overlaps


def score_voc(
    devkit: Path,
    year: str,
    image_set: str,
    detections: Path,
    *,
    overlap: str,
    ties: str,
    skip_unknown: bool,
) -> "Scored":
    """Compute VOC's AP per class, by 11 points and by area.

    Args:
        devkit: Folder `VOCdevkit`.
        year: Year in the name of the folder `VOC<year>`.
        image_set: Name of a list in `ImageSets/Main`.
        detections: Folder of `comp4_det_<image_set>_<class>.txt`.
        overlap: `at-least` (IoU >= 0.5, the devkit) or `more-than` (IoU > 0.5).
        ties: Order of equal scores, `file` (the devkit) or `numpy` (unstable sort).
        skip_unknown: Ignore detections of images and classes that the ground truth does not list.
    """
    from detection.evaluation import external
    from detection.evaluation.protocol import voc_metrics

    data = external.read_voc(devkit, year, image_set, detections, skip_unknown=skip_unknown)
    overlaps = data.overlaps()
    score = voc_metrics.score_overlaps(overlaps, strict=overlap == "more-than", unstable=ties == "numpy")
    sign = ">=" if overlap == "at-least" else ">"
    order = "file order" if ties == "file" else "order of numpy's unstable sort"
    scored = sum(not math.isnan(value) for value in score.ap_area)
    content = {
        "protocol": f"VOC{year} {image_set}, IoU {sign} 0.5, inclusive-pixel (+1) areas, difficult objects "
        f"ignored, equal scores in {order}",
        "ap_11pt": dict(zip(data.classes, score.ap_11pt.tolist(), strict=True)),
        "ap_area": dict(zip(data.classes, score.ap_area.tolist(), strict=True)),
        f"map_11pt_{scored}_classes": score.stats["voc_ap50_11pt"],
        f"map_area_{scored}_classes": score.stats["voc_ap50_area"],
    }
    return content, data, overlaps


def _write_report(folder: Path, data: "ExternalData", overlaps: "Overlaps", content: dict[str, Any]) -> None:
    """Write the error analysis, which uses COCO's matching for both formats."""
    from detection.evaluation.analysis import bootstrap, tables
    from detection.evaluation.protocol import coco_metrics
    from detection.evaluation.protocol.matching import match

    matches = match(overlaps)
    score = coco_metrics.score_matches(overlaps, matches)
    sample = bootstrap.BootstrapSample.of(overlaps, matches, num_images=len(data.images))
    files = {
        **tables.build_tables(overlaps, matches, data.classes, data.images, data.sizes),
        "scores.json": content,
        "intervals.json": bootstrap.intervals(sample).to_json(data.classes),
        "per_class.csv": tables.per_class_table(data.classes, score),
        "pr_curves.csv": tables.pr_curve_table(data.classes, score),
    }
    try:
        tables.write_tables(folder, files)
    except OSError as error:
        raise DetectionError(f"--report {folder} cannot be written: {error.strerror}") from None


def _table(content: dict[str, Any]) -> str:
    if "stats" in content:
        lines = [f"{name:<10} {number(value, '.4f'):>6}" for name, value in content["stats"].items()]
        return "\n".join([content["protocol"], "", *lines])
    rows = [(name, value, content["ap_area"][name]) for name, value in content["ap_11pt"].items()]
    rows.append(("mean", *(value for name, value in content.items() if name.startswith("map_"))))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {number(a, '.4f'):>6}  {number(b, '.4f'):>6}" for name, a, b in rows]
    return "\n".join([content["protocol"], "", f"{'':<{width}}  11 pt   area", *lines])


COMMANDS = {"score": Command(_add_arguments, score)}
