"""`detection score`: evaluate detections of any detector from COCO or VOC files."""

import argparse
import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

from detection.commands import Command
from detection.errors import DetectionError
from detection.evaluation.analysis import bootstrap, tables
from detection.evaluation.analysis.resampling import BootstrapSample
from detection.evaluation.external import ExternalData, read_coco, read_voc
from detection.evaluation.protocol import coco_metrics, oracle, voc_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.text import number

log = logging.getLogger(__name__)


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
        help="VOC: comparison of the IoU with --iou, >= as in the devkit or > as in its Python ports",
    )
    add("--iou", type=_iou, default=voc_metrics.MIN_IOU, help="VOC: IoU of a true positive; default: %(default)s")
    add(
        "--ties",
        choices=("file", "numpy"),
        default="file",
        help="VOC: order of equal scores, that of the file as in the devkit or that of numpy's unstable sort "
        "as in its Python ports (the sixth digit then depends on the processor)",
    )
    add("--skip-unknown", action="store_true", help="ignore objects and detections of unlisted images and classes")
    add("--strict", action="store_true", help="refuse what official tools accept although the format does not allow it")
    add("--verify", action="store_true", help="COCO: compare with pycocotools, fail on any difference")
    add("--table", action="store_true", help="print a table instead of JSON")
    add("--report", type=Path, metavar="FOLDER", help="write the error analysis to this folder")


def _iou(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"an IoU is above 0 and at most 1, not {text}")
    return value


def score(args: argparse.Namespace) -> str:
    """Score the files named by the flags; return JSON or a table.

    Raises:
        DetectionError: A flag or file is missing, or a file is invalid.
    """
    needed = ("ground_truth",) if args.format == "coco" else ("devkit", "year", "image_set")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        raise DetectionError(f"--format {args.format} needs {' and '.join(missing)}")
    options = {"skip_unknown": args.skip_unknown, "strict": args.strict}
    if args.format == "coco":
        data = read_coco(args.ground_truth, args.detections, **options)
        overlaps = data.overlaps()
        content = coco_scores(data, overlaps, verify=args.verify)
        if args.verify and data.miscounted_ids:
            _explain_difference(args.ground_truth, args.detections, content["stats"])
    elif args.verify:
        raise DetectionError("--verify compares with pycocotools; use it with --format coco")
    else:
        data = read_voc(args.devkit, args.year, args.image_set, args.detections, **options)
        overlaps = data.overlaps()
        name = f"VOC{args.year} {args.image_set}"
        content = voc_scores(data, overlaps, name, overlap=args.overlap, ties=args.ties, iou=args.iou)
    if args.report:
        _write_report(args.report, data, overlaps, content)
    return _table(content) if args.table else json.dumps(tables.nan_to_null(content), indent=1)


def coco_scores(data: ExternalData, overlaps: Overlaps, *, verify: bool) -> dict[str, Any]:
    """Return COCO's 12 numbers; `verify` computes them with pycocotools too and fails on any difference."""
    matches = match(overlaps)
    stats = coco_metrics.stats_of_matches(overlaps, matches)
    if verify:
        score = coco_metrics.score_matches(overlaps, matches)
        oracle.verify(overlaps, dataclasses.replace(score, stats=stats))
    return {"protocol": f"COCO bbox, {len(data.images)} images", "stats": stats}


def _explain_difference(ground_truth: Path, detections: Path, stats: dict[str, float]) -> None:
    """Score the files as they are with pycocotools, and say which numbers differ because of the annotation ids."""
    theirs = oracle.score_files(ground_truth, detections)
    same = (theirs[name] == value or (math.isnan(theirs[name]) and math.isnan(value)) for name, value in stats.items())
    if all(same):
        return
    log.warning(
        "%s: pycocotools computes AP %s from this file, not %s: it takes a match with the annotation id 0 for none "
        "and keeps one annotation per id; with ids renumbered from 1 it computes the same as here",
        ground_truth,
        number(theirs["AP"], ".4f"),
        number(stats["AP"], ".4f"),
    )


def voc_scores(
    data: ExternalData, overlaps: Overlaps, name: str, *, overlap: str, ties: str, iou: float = voc_metrics.MIN_IOU
) -> dict[str, Any]:
    """Return VOC's AP per class, by 11 points and by area.

    Args:
        data: Ground truth and predictions.
        overlaps: Their overlaps.
        name: Name of the image set, for the description of the protocol.
        overlap: `at-least` (IoU >= 0.5, the devkit) or `more-than` (IoU > 0.5).
        iou: Threshold instead of 0.5.
        ties: Order of equal scores, `file` (the devkit) or `numpy` (unstable sort).
    """
    matches = voc_metrics.match(overlaps, strict=overlap == "more-than", unstable=ties == "numpy", min_iou=iou)
    score = voc_metrics.score_matches(overlaps, matches)
    sign = ">=" if overlap == "at-least" else ">"
    order = "file order" if ties == "file" else "order of numpy's unstable sort"
    scored = sum(not math.isnan(value) for value in score.ap_area)
    return {
        "protocol": f"{name}, IoU {sign} {iou:g}, inclusive-pixel (+1) areas, difficult objects ignored, equal "
        f"scores in {order}",
        "ap_11pt": dict(zip(data.classes, score.ap_11pt.tolist(), strict=True)),
        "ap_area": dict(zip(data.classes, score.ap_area.tolist(), strict=True)),
        f"map_11pt_{scored}_classes": score.stats["voc_ap50_11pt"],
        f"map_area_{scored}_classes": score.stats["voc_ap50_area"],
    }


def _write_report(folder: Path, data: ExternalData, overlaps: Overlaps, content: dict[str, Any]) -> None:
    """Write the error analysis, which uses COCO's matching for both formats."""
    matches = match(overlaps)
    score = coco_metrics.score_matches(overlaps, matches)
    sample = BootstrapSample.of(overlaps, matches, num_images=len(data.images))
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
