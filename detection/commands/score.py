"""`detection score`: evaluate detections of any detector from COCO or VOC files."""

import argparse
import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detection.commands import Command
from detection.errors import DetectionError
from detection.evaluation import slices
from detection.evaluation.analysis import tables
from detection.evaluation.analysis.confidence import CONFIDENCE_LEVEL
from detection.evaluation.external import ExternalData, read_coco, read_voc
from detection.evaluation.protocol import coco_metrics, oracle, voc_metrics
from detection.evaluation.protocol.matching import COCO_LIMITS, CocoLimits, match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.text import number

log = logging.getLogger(__name__)
MAX_SIDE = 1e5
"""Side in px that no object of COCO's protocol exceeds."""


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
    add("--classes", metavar="A,B", type=_names, help="score these classes only")
    add("--max-dets", type=_max_dets, metavar="A,B,C", help="COCO: detections per class and image; default: 1,10,100")
    add("--areas", type=_areas, metavar="A,B", help="COCO: sides in px between small, medium and large; default: 32,96")
    add("--slices", type=Path, metavar="FILE.csv", help="scores by attribute of the images: columns image,attribute,…")
    add("--table", action="store_true", help="print a table instead of JSON")
    add("--report", type=Path, metavar="PATH", help="folder for tables and page of the error analysis, or FILE.html")
    add("--images", type=Path, metavar="FOLDER", help="images of the page; VOC: JPEGImages by default")


def _iou(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"an IoU is above 0 and at most 1, not {text}")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _max_dets(text: str) -> tuple[int, int, int]:
    try:
        first, second, third = map(int, text.split(","))
    except ValueError:
        first, second, third = 0, 0, 0
    if not 0 < first < second < third:
        raise argparse.ArgumentTypeError(f"expected three ascending numbers such as 1,10,100, not {text}")
    return first, second, third


def _areas(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = 0, 0
    if not 0 < low < high < MAX_SIDE:
        raise argparse.ArgumentTypeError(f"expected two ascending sides in pixels such as 32,96, not {text}")
    return low, high


def _limits(args: argparse.Namespace) -> CocoLimits:
    given = {"detections": args.max_dets, "area_sides": args.areas}
    return CocoLimits(**{name: value for name, value in given.items() if value is not None})


def score(args: argparse.Namespace) -> str:
    """Score the files named by the flags; return JSON or a table.

    Raises:
        DetectionError: A flag or file is missing, or a file is invalid.
    """
    _check_flags(args)
    options = {"skip_unknown": args.skip_unknown, "strict": args.strict}
    limits = _limits(args)
    if args.format == "coco":
        data = _selected(read_coco(args.ground_truth, args.detections, **options), args)
        overlaps, rules = data.overlaps(), None
        content = coco_scores(data, overlaps, limits, verify=args.verify)
        if args.verify and data.miscounted_ids and not args.classes:
            _explain_difference(args.ground_truth, args.detections, content["stats"], limits)
    else:
        data = _selected(read_voc(args.devkit, args.year, args.image_set, args.detections, **options), args)
        overlaps = data.overlaps()
        rules = {"strict": args.overlap == "more-than", "unstable": args.ties == "numpy", "min_iou": args.iou}
        content = voc_scores(data, overlaps, f"VOC{args.year} {args.image_set}", rules)
    if args.slices:
        content["slices"] = slices.score(data, slices.read(args.slices, data), limits, rules)
    if args.report:
        from detection.report.page import scored_files

        images = args.images or (args.devkit / f"VOC{args.year}/JPEGImages" if args.format == "voc" else None)
        source = scored_files.Source(
            args.detections, args.ground_truth or args.devkit, images, required=bool(args.images)
        )
        scored_files.write(args.report, data, overlaps, content, limits=limits, rules=rules, source=source)
    return _table(content) if args.table else json.dumps(tables.nan_to_null(content), indent=1)


def _check_flags(args: argparse.Namespace) -> None:
    needed = ("ground_truth",) if args.format == "coco" else ("devkit", "year", "image_set")
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if missing:
        raise DetectionError(f"--format {args.format} needs {' and '.join(missing)}")
    if args.format == "voc":
        if args.verify:
            raise DetectionError("--verify compares with pycocotools; use it with --format coco")
        for flag, value in (("--max-dets", args.max_dets), ("--areas", args.areas)):
            if value is not None:
                raise DetectionError(f"{flag} is a limit of COCO's protocol; use it with --format coco")
    if args.images and not args.report:
        raise DetectionError("--images are those of the page; name it with --report")


def _selected(data: ExternalData, args: argparse.Namespace) -> ExternalData:
    return slices.of_classes(data, args.classes) if args.classes else data


def coco_scores(data: ExternalData, overlaps: Overlaps, limits: CocoLimits, *, verify: bool) -> dict[str, Any]:
    """Return COCO's 12 numbers; `verify` computes them with pycocotools too and fails on any difference."""
    matches = match(overlaps, limits)
    stats = coco_metrics.score_matches(overlaps, matches, for_stats=True).stats
    if verify:
        score = coco_metrics.score_matches(overlaps, matches)
        oracle.verify(overlaps, dataclasses.replace(score, stats=stats), limits)
    protocol = f"COCO bbox, {len(data.images)} images"
    if limits != COCO_LIMITS:
        sides = " and ".join(f"{side:g}" for side in limits.area_sides)
        protocol += f", at most {', '.join(map(str, limits.detections))} detections, area limits {sides} px"
    return {"protocol": protocol, "stats": stats}


def _explain_difference(ground_truth: Path, detections: Path, stats: dict[str, float], limits: CocoLimits) -> None:
    """Score the files as they are with pycocotools, and say which numbers differ because of the annotation ids."""
    theirs = oracle.score_files(ground_truth, detections, limits)
    pairs = [(theirs[name], stats[name]) for name in oracle.compared_names(limits)]
    if all(one == other or (math.isnan(one) and math.isnan(other)) for one, other in pairs):
        return
    log.warning(
        "%s: pycocotools computes AP %s from this file, not %s: it takes a match with the annotation id 0 for none "
        "and keeps one annotation per id; with ids renumbered from 1 it computes the same as here",
        ground_truth,
        number(theirs["AP"], ".4f"),
        number(stats["AP"], ".4f"),
    )


def voc_scores(data: ExternalData, overlaps: Overlaps, name: str, rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return VOC's AP per class, by 11 points and by area.

    Args:
        data: Ground truth and predictions.
        overlaps: Their overlaps.
        name: Name of the image set, for the description of the protocol.
        rules: Arguments of `voc_metrics.match`.
    """
    score = voc_metrics.score_matches(overlaps, voc_metrics.match(overlaps, **rules))
    sign = ">" if rules["strict"] else ">="
    order = "order of numpy's unstable sort" if rules["unstable"] else "file order"
    scored = sum(not math.isnan(value) for value in score.ap_area)
    return {
        "protocol": f"{name}, IoU {sign} {rules['min_iou']:g}, inclusive-pixel (+1) areas, difficult objects ignored, "
        f"equal scores in {order}",
        "ap_11pt": dict(zip(data.classes, score.ap_11pt.tolist(), strict=True)),
        "ap_area": dict(zip(data.classes, score.ap_area.tolist(), strict=True)),
        f"map_11pt_{scored}_classes": score.stats["voc_ap50_11pt"],
        f"map_area_{scored}_classes": score.stats["voc_ap50_area"],
    }


def _table(content: dict[str, Any]) -> str:
    if "stats" in content:
        lines = [f"{name:<10} {number(value, '.4f'):>6}" for name, value in content["stats"].items()]
        return "\n".join([content["protocol"], "", *lines, *_slice_table(content)])
    rows = [(name, value, content["ap_area"][name]) for name, value in content["ap_11pt"].items()]
    rows.append(("mean", *(value for name, value in content.items() if name.startswith("map_"))))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:<{width}}  {number(a, '.4f'):>6}  {number(b, '.4f'):>6}" for name, a, b in rows]
    return "\n".join([content["protocol"], "", f"{'':<{width}}  11 pt   area", *lines, *_slice_table(content)])


def _slice_table(content: dict[str, Any]) -> list[str]:
    if "slices" not in content:
        return []
    note = "without the bias of few images, so that a score may lie above its interval"
    return ["", f"slices, {CONFIDENCE_LEVEL:.0%} intervals {note}", *slices.text(content["slices"])]


COMMANDS = {"score": Command(_add_arguments, score)}
