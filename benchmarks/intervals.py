"""Coverage of the confidence intervals: how often they contain the score on all images.

    python -m benchmarks.intervals --devkit VOCdevkit --year 2007 --image-set test --detections FOLDER
    python -m benchmarks.intervals --synthetic

Random subsets of the images (without replacement) play the test splits of different users, all images the truth. For
each subset every method computes a 95 % interval from the same rounds; a good method contains the
truth in 95 % of the subsets and misses it on both sides equally often. `half normal` draws half of the images without
replacement instead of all with replacement and is corrected as `normal`; `unbiased normal` takes the spread of the
estimates without bias (`resampling.Curve`), and `wilson` is what `bootstrap.intervals` returns.

`--synthetic` makes 3-class ground truth and detections of 5,000 images instead of reading files.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import interval_methods as methods
from detection.evaluation import external
from detection.evaluation.analysis import bootstrap
from detection.evaluation.analysis.resampling import BootstrapSample
from detection.evaluation.protocol import voc_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import GroundTruth, Overlaps, Predictions

COCO_SCORES = ("AP", "AP50", "AP75")
SCORES = (*COCO_SCORES, "voc_ap50_11pt", "voc_ap50_area")


def subset(
    truth: GroundTruth, predictions: Predictions, images: NDArray[np.int64], total: int, classes: int
) -> tuple[BootstrapSample, BootstrapSample]:
    """Samples by COCO's and by VOC's rules of some images, numbered from 0."""
    number = np.full(total, -1)
    number[images] = np.arange(len(images))
    truth = truth.take(np.flatnonzero(number[truth.images] >= 0))
    predictions = predictions.take(np.flatnonzero(number[predictions.images] >= 0))
    truth = replace(truth, images=number[truth.images])
    predictions = replace(predictions, images=number[predictions.images])
    overlaps = Overlaps.of(truth, predictions, classes)
    by_voc = BootstrapSample.of_voc(overlaps, voc_metrics.match(overlaps), num_images=len(images))
    return BootstrapSample.of(overlaps, match(overlaps), num_images=len(images)), by_voc


def scores_on_all(samples: tuple[BootstrapSample, BootstrapSample]) -> dict[str, float]:
    """Score by name, on all images."""
    result = bootstrap.intervals(samples[0], 2).with_scores_of(bootstrap.voc_intervals(samples[1], 2))
    return {name: interval.value for name, interval in result.stats.items()}


def intervals_of(
    samples: tuple[BootstrapSample, BootstrapSample], rounds: int, seed: int, *, only_used: bool
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Value, low and high by score and method; `only_used` computes `wilson` alone."""
    used = bootstrap.intervals(samples[0], rounds, seed).with_scores_of(
        bootstrap.voc_intervals(samples[1], rounds, seed)
    )
    result: dict[str, dict[str, tuple[float, float, float]]] = {}
    others = {} if only_used else _others(samples[0], rounds, seed)
    for name, interval in used.stats.items():
        result[name] = others.get(name, {}) | {"wilson (used)": (interval.value, interval.low, interval.high)}
    return result


def _others(sample: BootstrapSample, rounds: int, seed: int) -> dict[str, dict[str, tuple[float, float, float]]]:
    count = sample.num_images
    one, halves = np.ones((1, count), np.uint16), bootstrap.draw_halves(count, rounds, seed)
    left_out = [1 - np.eye(count, dtype=np.uint16)] if count <= 200 else []  # BCa takes a round per image
    scores = bootstrap.mean_scores(
        sample, np.concatenate([one, bootstrap.draw(count, rounds, seed), halves, *left_out])
    )
    unbiased = bootstrap.mean_scores(sample, np.concatenate([one, halves]), bootstrap.UNBIASED)
    result: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name in COCO_SCORES:
        value, drawn = float(scores[name][0]), scores[name][1 : 1 + rounds]
        half, jackknife = scores[name][1 + rounds : 1 + 2 * rounds], scores[name][1 + 2 * rounds :]
        result[name] = {method: (value, *methods.interval(method, value, drawn)) for method in methods.METHODS}
        if len(jackknife):
            result[name]["bca"] = (value, *methods.bca(value, drawn[~np.isnan(drawn)], jackknife))
        result[name]["half normal"] = (value, *methods.interval("normal", value, half))
        center, spread = float(unbiased[name][0]), methods.Z * float(np.nanstd(unbiased[name][1:], ddof=1))
        result[name]["unbiased normal"] = (value, center - spread, center + spread)
    return result


def synthetic(images: int = 5000, classes: int = 3) -> tuple[GroundTruth, Predictions]:
    """Objects and noisy detections of a detector with AP 0.4."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.5, images)
    rows = np.repeat(np.arange(images), counts)
    boxes = np.concatenate([rng.uniform(0, 400, (len(rows), 2)), rng.uniform(20, 200, (len(rows), 2))], axis=1)
    labels, none = rng.integers(0, classes, len(rows)), np.zeros(len(rows), np.bool_)
    truth = GroundTruth(images=rows, labels=labels, boxes=boxes, areas=boxes[:, 2] * boxes[:, 3], ignored=none)
    found = np.flatnonzero(rng.random(len(rows)) < 0.8)
    noise = rng.gamma(1.5, 0.06, len(found))[:, None] * rng.standard_normal((len(found), 4))
    near = boxes[found] + noise * boxes[found][:, [2, 3, 2, 3]]
    near[:, 2:] = np.maximum(near[:, 2:], 1)
    false = rng.integers(0, images, 4 * images)
    far = np.concatenate([rng.uniform(0, 400, (len(false), 2)), rng.uniform(20, 200, (len(false), 2))], axis=1)
    scores = np.concatenate([rng.beta(4, 2, len(found)), rng.beta(1, 4, len(false))])
    return truth, Predictions(
        images=np.concatenate([rows[found], false]),
        labels=np.concatenate([labels[found], rng.integers(0, classes, len(false))]),
        boxes=np.concatenate([near, far]),
        scores=scores,
    )


def main() -> None:
    """Print a Markdown table, one row per method and number of images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--devkit", type=Path)
    parser.add_argument("--year", default="2007")
    parser.add_argument("--image-set", default="test")
    parser.add_argument("--detections", type=Path)
    parser.add_argument("--sizes", default="50x100,100x100,200x100", help="images x subsets; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--only-used", action="store_true", help="no other methods")
    args = parser.parse_args()
    if args.synthetic:
        truth, predictions = synthetic()
        total, classes = 5000, 3
    else:
        data = external.read_voc(args.devkit, args.year, args.image_set, args.detections, skip_unknown=True)
        truth, predictions, total, classes = data.ground_truth, data.predictions, len(data.images), len(data.classes)
    everything = subset(truth, predictions, np.arange(total), total, classes)
    target = scores_on_all(everything)
    print("truth: " + ", ".join(f"{name} {value:.4f}" for name, value in target.items()), flush=True)
    print("| images | subsets | method | " + " | ".join(f"{n}: covered, below, above, width" for n in SCORES) + " |")
    print("|---|---|---|" + "---|" * len(SCORES), flush=True)
    rng = np.random.default_rng(1)
    for size in args.sizes.split(","):
        count, repeats = map(int, size.split("x"))
        start, rows = time.process_time(), []
        for repeat in range(repeats):
            images = rng.permutation(total)[:count]
            samples = subset(truth, predictions, images, total, classes)
            rows.append(intervals_of(samples, args.rounds, repeat, only_used=args.only_used))
        for method in rows[0]["AP"]:
            cells = []
            for name in SCORES:
                if method not in rows[0][name]:
                    cells.append("")
                    continue
                _, low, high = np.array([row[name][method] for row in rows]).T
                below, above = np.mean(target[name] < low), np.mean(target[name] > high)
                cells.append(f"{1 - below - above:.2f}, {below:.2f}, {above:.2f}, {np.mean(high - low):.3f}")
            print(f"| {count} | {repeats} | {method} | " + " | ".join(cells) + " |", flush=True)
        bias = ", ".join(f"{n} {np.mean([r[n]['wilson (used)'][0] for r in rows]) - target[n]:+.4f}" for n in SCORES)
        print(f"<!-- bias at {count}: {bias}; {time.process_time() - start:.0f} CPU s -->", flush=True)


if __name__ == "__main__":
    main()
