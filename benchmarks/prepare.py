"""Time to read annotations: VOC's XML against a bare ElementTree, COCO's JSON against `json.load`.

    python -m benchmarks.prepare voc VOCDEVKIT/VOC2012     # a folder with Annotations/
    python -m benchmarks.prepare coco                      # a generated file of COCO 2017 train's size
    python -m benchmarks.prepare headers FOLDER            # headers and end markers of images

Each side of each round runs in its own process, ours and the parser alternating; medians of CPU seconds
(without Python's start and imports) and the peak resident memory. Ours is the whole reader: parsing, checks
of names, ids and boxes, digest, packed index. `--times 3` reads three times as much.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from detection.data.sources import coco, voc
from detection.data.sources.checks import Problems
from detection.data.sources.digest import Digest
from detection.data.sources.image_headers import read_headers
from detection.params.datasets import CocoDataset, CocoSplit, VocDataset
from detection.params.stages import Checks

IMAGES, BOXES = 118_287, 860_001
URL = "http://images.cocodataset.org/train2017"


def write_coco(path: Path, times: int) -> None:
    """Write an instances file of the size (450 MB) and layout of COCO 2017 train's; seed 0."""
    rng = np.random.default_rng(0)
    polygons = [
        ",".join(f"{side:.2f}" for side in rng.uniform(0, 640, 2 * int(count))) for count in rng.integers(4, 46, 2000)
    ]
    ids = np.sort(rng.choice(6 * IMAGES * times, IMAGES * times, replace=False)).tolist()
    with open(path, "w", encoding="ascii") as file:
        file.write('{"info": {"year": 2017},"licenses": [],"images": [')
        file.write(
            ",".join(
                f'{{"license": 3,"file_name": "{i:012d}.jpg","coco_url": "{URL}/{i:012d}.jpg","height": 480,'
                f'"width": 640,"date_captured": "2013-11-14 16:28:13",'
                f'"flickr_url": "http://farm8.staticflickr.com/7187/{i:010d}_5f8da4e7d0_z.jpg","id": {i}}}'
                for i in ids
            )
        )
        file.write('],"annotations": [')
        for start in range(0, BOXES * times, 50_000):
            count = min(50_000, BOXES * times - start)
            image_ids, shapes = (rng.choice(ids, count).tolist(), rng.integers(0, len(polygons), count).tolist())
            sides, classes = rng.uniform(1, 300, (count, 4)).round(2), rng.integers(1, 91, count).tolist()
            objects = zip(image_ids, shapes, sides.tolist(), classes, strict=True)
            file.write(
                ("," if start else "")
                + ",".join(
                    f'{{"segmentation": [[{polygons[p]}]],"area": {w * h * 0.7},"iscrowd": 0,"image_id": {o},'
                    f'"bbox": [{x},{y},{w},{h}],"category_id": {c},"id": {n}}}'
                    for n, (o, p, (x, y, w, h), c) in enumerate(objects, start + 1)
                )
            )
        file.write('],"categories": [')
        file.write(",".join(f'{{"supercategory": "x","id": {i},"name": "class {i}"}}' for i in range(1, 91)))
        file.write("]}")


def ours_coco(path: Path) -> int:
    """Read with our reader, up to the packed index."""
    split = CocoSplit(images="train2017", annotations=path.name)
    dataset = CocoDataset(format="coco", path="", train=(split,))
    return len(coco.read(dataset, path.parent, Digest(), Problems(Checks()))[1]["train"].boxes)


def peer_coco(path: Path) -> int:
    """Parse only."""
    with open(path, encoding="utf-8") as file:
        return len(json.load(file)["annotations"])


def ours_voc(folder: Path) -> int:
    """Read with our reader, up to the packed index; the images are not checked."""
    dataset = VocDataset(format="voc", path="", train=("./",))
    return len(voc.read(dataset, folder, Digest(), Problems(Checks()))[1]["train"].boxes)


def peer_voc(folder: Path) -> int:
    """Parse only."""
    total = 0
    for name in sorted(os.listdir(folder / "Annotations")):
        total += len(ElementTree.parse(f"{folder}/Annotations/{name}").findall("object"))
    return total


def link_voc(folder: Path, source: Path, times: int) -> None:
    """Link every annotation of a folder several times under different names."""
    (folder / "Annotations").mkdir()
    for file in (source / "Annotations").resolve().iterdir():
        for copy in range(times):
            (folder / "Annotations" / f"{copy}_{file.name}").symlink_to(file)


def measure(source: str, side: str, path: Path) -> None:
    """Run one side in this process; print CPU seconds, wall seconds, peak MiB and the number of objects."""
    work = {"voc": (ours_voc, peer_voc), "coco": (ours_coco, peer_coco)}[source][side == "peer"]
    cpu, wall = time.process_time(), time.monotonic()
    count = work(path)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    print(cpu, wall, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, count)


def compare(source: str, path: Path, rounds: int) -> None:
    """Run both sides, alternating; print medians and the ratio."""
    runs: dict[str, list[list[float]]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for side, measured in runs.items():
            command = [sys.executable, "-m", "benchmarks.prepare", source, str(path), "--side", side]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append([float(word) for word in done.stdout.split()])
    medians = {
        side: [statistics.median(column) for column in zip(*measured, strict=True)] for side, measured in runs.items()
    }
    name = {"voc": "ElementTree", "coco": "json.load"}[source]
    for side, (cpu, wall, peak, count) in medians.items():
        print(
            f"{'ours' if side == 'ours' else name:<12} {cpu:7.2f} s CPU  {wall:7.2f} s wall  {peak:6.0f} MiB"
            f"  {count:,.0f} objects"
        )
    (cpu, _, peak, _), (peer_cpu, _, peer_peak, _) = medians["ours"], medians["peer"]
    if source == "voc":
        print(f"ratio of CPU time: {cpu / peer_cpu:.2f} times the bare parse")
    else:
        print(f"ratio: {peer_cpu / cpu:.1f} times faster, {peak / peer_peak:.2f} of the memory")


def headers(folder: Path) -> None:
    """Print the cost of the header checks in `prepare` and of decoding all images in `detection doctor`."""
    files = sorted(path.name for path in folder.iterdir())
    for decode in (False, True):
        cpu, wall = time.process_time(), time.monotonic()
        sizes = read_headers(folder, files, decode)
        cpu, wall = (time.process_time() - cpu) / len(sizes), (time.monotonic() - wall) / len(sizes)
        name = "decoded" if decode else "headers"
        print(f"{name}: {1e6 * cpu:.0f} µs CPU, {1e6 * wall:.0f} µs wall per image")


def main() -> None:
    """Generate missing data and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", choices=("voc", "coco", "headers"))
    parser.add_argument("path", type=Path, nargs="?", help="VOC folder, folder of images, or instances file")
    parser.add_argument("--times", type=int, default=1, help="multiply the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.source != "coco" and options.path is None:
        parser.error(f"{options.source} needs a folder")
    if options.side:
        measure(options.source, options.side, options.path)
        return
    if options.source == "headers":
        headers(options.path)
        return
    path = options.path
    with tempfile.TemporaryDirectory() as folder:
        if options.source == "coco" and path is None:
            path = Path(folder) / "instances.json"
            write_coco(path, options.times)
        elif options.source == "voc" and options.times > 1:
            link_voc(Path(folder), path, options.times)
            path = Path(folder)
        compare(options.source, path, options.rounds)


if __name__ == "__main__":
    main()
