"""Figures of a GPU: training throughput of the shipped recipes beside torchvision's classes, trainings, evaluation.

    python -m benchmarks.device --out FOLDER               # about ten minutes on an H100; repeat it if it was cut off
    python -m benchmarks.device --out FOLDER step/ train/  # the figures whose names begin so
    python -m benchmarks.device --out FOLDER --table       # the figures so far as Markdown
    python -m benchmarks.device --device cpu --tiny        # tests the code; generates its own images

Needs torch, torchvision, numpy, and the packages msgspec and PyYAML; neither DVC nor MLflow. The trainings read
`voc2007_320` under DATA_ROOT and, where the backbone fits, its weights from `--backbone FILE`.

Each figure is one JSON line in FOLDER/figures.jsonl, written when it is there. A repeated command leaves out the
figures that the file has, and a training resumes at its checkpoint.

| figure           | content                                                                                        |
|------------------|------------------------------------------------------------------------------------------------|
| `step/RECIPE`    | images per second of training at the published batch and size, beside torchvision's class with |
|                  | the same weights and the same frozen layers, in bf16 on images in GPU memory; share of         |
|                  | 790 TFLOP/s, peak memory, waits of the host for the GPU, and the kernels that take longest     |
| `train/RECIPE`   | a training on `voc2007_320` and its scores on test                                             |
| `evaluate/RECIPE`| evaluation with JPEGs decoded by the loader's workers and by the GPU (nvJPEG)                  |
| `agreement/RECIPE`| float32 outputs of GPU and CPU, and whether two bitwise trainings are equal                   |
| `loader/RECIPE`  | images per second of the loader alone                                                          |
| `compiled/RECIPE`| images per second with `torch.compile`, and with CUDA graphs                                   |
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from benchmarks.device_step import Bench, Figure, measure_agreement, measure_compiled, measure_step
from benchmarks.sides import IMAGENET
from detection.data.loading.batch import Batch, collate
from detection.data.loading.index import Index
from detection.data.loading.loader import DetectionDataset, Loader, batches_of_equal_size, eval_sample, loader_workers
from detection.data.loading.prepared import Prepared, save
from detection.data.sources.dataset import read
from detection.device import available_cores, device_name
from detection.evaluation.protocol import coco_metrics, voc_metrics
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from detection.files import DETECTOR, REPORTS_TRAIN, WEIGHTS_JSON, write_json
from detection.inference import run_detector, run_on_batches
from detection.models.build import load_detector, save_detector
from detection.models.detector import Detector
from detection.params import Params, Recipe, load
from detection.params.reader import read_yaml

TRAINED = ("ssd300", "retinanet", "fasterrcnn")
EPOCHS = {"ssd300": 60, "retinanet": 20, "fasterrcnn": 20}
LOADED = ("ssdlite320", "ssd300", "fasterrcnn")
COMPILED = ("ssd300", "retinanet", "fcos")
CUT_OFF = 75
"""Exit code if the time is over before all figures are there."""


# Trainings and evaluation


def experiment(bench: Bench, name: str) -> Params:
    """Params of a short training on `voc2007_320`, or on a few generated images, as a file in the current folder.

    A backbone without pretrained weights is trained from scratch, with the preset `small`.
    """
    raw = read_yaml(bench.params)
    dataset, epochs = ("shapes", 1) if bench.tiny else ("voc2007_320", EPOCHS.get(name, 20))
    budget = raw["budgets"][dataset]
    budget |= {"epochs": epochs, "batch_size": 32}
    raw["train"] |= {"device": bench.device.type, "validate_every": 5, "sample_every_epochs": 0, "log_every": 50}
    if bench.backbone is not None and raw["models"][name]["backbone"] in bench.backbone.name:
        raw["pretrain"] |= {"method": "file", "file": str(bench.backbone)}
        raw["models"][name] |= {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}
    else:
        raw["pretrain"]["method"] = "crops"
        raw["presets"]["small"]["optimizer"]["lr"] = 6e-4  # 2.4e-3 at the batch size below
        budget["preset"] = "small"
    if bench.tiny:
        raw["datasets"][dataset] |= {"image_size": 64, "train": 4, "val": 2, "test": 2}
        budget |= {"image_size": 64, "batch_size": 2}
        raw["pretrain"]["crops"] |= {"image_size": 32, "epochs": 1}
    file = Path("params.yaml")
    file.write_text(json.dumps(raw), encoding="utf-8")  # YAML has JSON as a subset
    return load(file, model=name, dataset=dataset)


def prepare(params: Params) -> Prepared:
    """Read the dataset and write its index, as the stage does, without figures."""
    save(read(params.dataset, params.data, params.prepare.checks), params.data)
    return Prepared.load()


def measure_training(bench: Bench, name: str) -> Figure:
    """Figure `train/RECIPE`: pretraining, training and scores.

    Raises:
        SystemExit: The time is over; the checkpoint is saved.
    """
    from detection.signals import StopSignals
    from detection.tracking.run import NoRun
    from detection.training.common.environment import determinism
    from detection.training.loop import fit
    from detection.training.setup import build_job
    from stages.pretrain import pretrain

    params = experiment(bench, name)
    prepared = prepare(params)
    write_json(WEIGHTS_JSON, {"start": {"from": None}})
    started = time.monotonic()
    pretrain(params, bench.device)
    figure: Figure = {
        "dataset": params.dataset,
        "images": len(prepared.index("train")),
        "start": params.pretrain.method,
    }
    figure |= {"batch_size": params.recipe.batch_size, "pretrain_s": time.monotonic() - started}
    with determinism(params.train.determinism):
        job = build_job(params, prepared, bench.device, REPORTS_TRAIN)
        with job.checkpoints.locked(), StopSignals() as stop:
            left = max(bench.deadline - time.monotonic(), 0.0)
            timer = threading.Timer(left, setattr, (stop, "signal", int(signal.SIGTERM)))
            timer.daemon = True
            timer.start()
            try:
                figure |= fit(job, NoRun(), stop)
            finally:
                timer.cancel()
    figure["images_per_s"] = figure["steps"] * params.recipe.batch_size / figure["seconds"]
    DETECTOR.parent.mkdir(exist_ok=True)
    save_detector(DETECTOR, job.detector.state_dict(), job.recipe, prepared.classes, name)
    index = prepared.index("test")
    return figure | scores(
        index, detect(bench, job.detector, index, prepared.root, job.recipe, "fp32"), len(prepared.classes)
    )


def detect(
    bench: Bench, detector: Detector, index: Index, root: Path, recipe: Recipe, precision: str
) -> SplitDetections:
    """Detections by the project's own evaluation."""
    options = {"batch_size": 16, "device": bench.device.type, "precision": precision}
    return run_detector(detector, index, root, recipe, **options)  # type: ignore[arg-type]


def scores(index: Index, detections: SplitDetections, classes: int) -> Figure:
    """COCO's AP and AP50 and VOC's AP."""
    overlaps = Overlaps.of_index(index, detections, classes)
    stats = coco_metrics.score_matches(overlaps, match(overlaps)).stats | voc_metrics.score_overlaps(overlaps).stats
    return {key: float(stats[key]) for key in ("AP", "AP50", "voc_ap50_11pt")}


def measure_evaluation(bench: Bench, name: str) -> Figure:
    """Figure `evaluate/RECIPE`: seconds and scores, with JPEGs decoded by the workers and by the GPU."""
    params = experiment(bench, name)
    prepared, loaded = prepare(params), load_detector(DETECTOR, bench.device)
    index, root, recipe = prepared.index("test"), prepared.root, loaded.recipe
    figure: Figure = {"images": len(index)}
    for precision in ("fp32",) if bench.tiny else ("fp32", "bf16"):
        sides: dict[str, Callable[[], SplitDetections]] = {
            "workers": lambda p=precision: detect(bench, loaded.detector, index, root, recipe, p),  # type: ignore[misc]
            "nvjpeg": lambda p=precision: run_on_batches(  # type: ignore[misc]
                loaded.detector, decoded_on_device(bench, index, root, recipe), p, None, "evaluate.batch_size"
            ),
        }
        for title, run in sides.items():
            bench.synchronize()
            started = time.perf_counter()
            detections = run()
            seconds = time.perf_counter() - started
            rate = {"seconds": seconds, "images_per_s": len(index) / seconds}
            figure[f"{title}_{precision}"] = rate | scores(index, detections, len(loaded.classes))
    return figure


def decoded_on_device(bench: Bench, index: Index, root: Path, recipe: Recipe, batch: int = 16) -> Iterator[Batch]:
    """Batches of an evaluation whose JPEGs are decoded and resized on the device, without worker processes."""
    with ThreadPoolExecutor(min(8, available_cores())) as readers:
        for rows in batches_of_equal_size(index.sizes, batch, recipe):
            records = [index[row] for row in rows.tolist()]
            files = list(readers.map(lambda record: read_file(str(root / record.file)), records))
            images = decode_jpeg(files, mode=ImageReadMode.RGB, device=bench.device)
            samples = [
                eval_sample(image, record.boxes, record.labels, row, recipe)
                for image, record, row in zip(images, records, rows.tolist(), strict=True)
            ]
            yield collate(samples, recipe)


def measure_loader(bench: Bench, name: str) -> Figure:
    """Figure `loader/RECIPE`: images per second of an epoch of training batches, after the first batch."""
    params = experiment(bench, "fasterrcnn")  # for the dataset
    prepared, recipe = prepare(params), bench.recipe(name)
    if bench.tiny:
        recipe = recipe.update({"batch_size": 2})
    workers = 1 if bench.tiny else loader_workers("auto", bench.device)
    dataset = DetectionDataset(prepared.index("train"), prepared.root, recipe, train=True)
    loader, started, count = Loader(dataset, recipe.batch_size, workers, shuffle=True), 0.0, 0
    for epoch in range(2):
        for batch in loader.epoch(epoch):
            count, started = (count + len(batch.rows), started) if started else (0, time.perf_counter())
    seconds = time.perf_counter() - started
    return {"images_per_s": count / seconds, "workers": workers, "batch": list(batch.images.shape)}


# All figures


KINDS: dict[str, tuple[Callable[[Bench, str], Figure], tuple[str, ...]]] = {
    "step": (measure_step, TRAINED),
    "agreement": (measure_agreement, TRAINED),
    "train": (measure_training, TRAINED),
    "evaluate": (measure_evaluation, TRAINED),
    "loader": (measure_loader, LOADED),
    "compiled": (measure_compiled, COMPILED),
}


TINY = (
    "step/fasterrcnn_mobilenet_320",
    "agreement/ssdlite320",
    "train/ssdlite320",
    "evaluate/ssdlite320",
    "train/fasterrcnn_mobilenet_320",
    "loader/ssdlite320",
    "compiled/ssdlite320",
)
"""Figures of `--tiny`, unless it names others."""


def names(bench: Bench) -> list[str]:
    """Names of all figures: those first that tell most."""
    recipes = tuple(read_yaml(bench.params)["models"])
    first = [f"step/{name}" for name in TRAINED]
    pairs = [f"{kind}/{name}" for name in TRAINED for kind in ("train", "evaluate")]
    rest = [f"step/{name}" for name in recipes if name not in TRAINED] + [f"agreement/{name}" for name in recipes]
    return [*first, *pairs, *rest, *(f"{kind}/{name}" for kind in ("loader", "compiled") for name in KINDS[kind][1])]


def measure(bench: Bench, name: str) -> Figure:
    """Measure one figure in a folder of its own; an error is a figure as well."""
    kind, _, recipe = name.partition("/")
    folder = bench.out / (recipe if kind in ("train", "evaluate") else kind)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    os.environ["DVC_ROOT"] = str(folder)
    with contextlib.chdir(folder):
        try:
            figure = KINDS[kind][0](bench, recipe)
        except Exception as error:  # the others are measured all the same
            traceback.print_exc()
            figure = {"error": f"{type(error).__name__}: {error}"[:500]}
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
    where = {"device": device_name(bench.device), "torch": torch.__version__, "tiny": bench.tiny}
    return {"figure": name, **figure, "wall_s": time.monotonic() - started, **where}


def main() -> None:
    """Measure what the file lacks; exit with 75 if time ran out, 1 after an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", nargs="*", help="beginnings of the names of figures; all by default")
    parser.add_argument("--out", type=Path, default=Path("device"), help="folder of the figures and the trainings")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backbone", type=Path, help="weights of a backbone, with its name in the file name")
    parser.add_argument("--minutes", type=float, default=9.5, help="time after which no figure is begun")
    parser.add_argument("--tiny", action="store_true", help="test the code")
    parser.add_argument("--table", action="store_true", help="print the figures as Markdown, measure nothing")
    options = parser.parse_args()
    file = options.out.resolve() / "figures.jsonl"
    if options.table:
        print(table(read_figures(file)))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    bench = Bench(
        device=torch.device(options.device),
        tiny=options.tiny,
        out=options.out.resolve(),
        params=Path("params.yaml").resolve(),
        backbone=options.backbone and options.backbone.resolve(strict=True),
        deadline=time.monotonic() + 60 * options.minutes,
    )
    os.environ["DATA_ROOT"] = str(data_folder(bench))
    file.parent.mkdir(parents=True, exist_ok=True)
    figures = read_figures(file)
    file.write_text("".join(json.dumps(figure) + "\n" for figure in figures), encoding="utf-8")  # no line cut off
    done = {figure["figure"] for figure in figures if "error" not in figure}
    chosen = list(TINY) if options.tiny and not options.figures else names(bench)
    wanted = tuple(options.figures) or ("",)
    left, failed = [name for name in chosen if name not in done and name.startswith(wanted)], 0
    for name in left:
        if time.monotonic() >= bench.deadline:
            sys.exit(CUT_OFF)
        figure = measure(bench, name)
        failed += "error" in figure
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(figure) + "\n")
        print(json.dumps(figure), flush=True)
    sys.exit(1 if failed else 0)


def data_folder(bench: Bench) -> Path:
    """DATA_ROOT, absolute; of the generated images a folder of the run."""
    return bench.out / "data" if bench.tiny else Path(os.environ.get("DATA_ROOT") or "data/raw").resolve()


def read_figures(file: Path) -> list[Figure]:
    """Figures of a file; a line that was cut off is left out."""
    figures = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        with contextlib.suppress(json.JSONDecodeError):
            figures.append(json.loads(line))
    return figures


def table(figures: list[Figure]) -> str:
    """One row per figure, with its numbers."""
    rows = ["| figure | numbers |", "|---|---|"]
    for figure in {one["figure"]: one for one in figures}.values():
        skipped = ("figure", "device", "torch", "tiny", "kernels_ms")
        rows.append(f"| `{figure['figure']}` | {numbers({k: v for k, v in figure.items() if k not in skipped})} |")
    return "\n".join(rows)


def numbers(value: Any) -> str:
    """A value as text: rounded numbers, and the entries of a mapping by name."""
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {'(' * isinstance(one, dict)}{numbers(one)}{')' * isinstance(one, dict)}"
            for key, one in value.items()
        )
    if isinstance(value, list):
        return " × ".join(map(numbers, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
