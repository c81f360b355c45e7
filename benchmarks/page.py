"""Load time and network requests of the report at COCO val's size.

    python -m benchmarks.page                # needs chromium; a minute

Generates a split of 5,000 images of 640x480 and 500,000 detections in 80 classes (that of
`benchmarks.evaluate`), analyzes it, runs the stage `plots`, and opens the page in a headless browser. Load
times, requests and console messages come from the browser's debugging protocol.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp  # DVC brings it
import msgspec
import numpy as np
from PIL import Image

from benchmarks.evaluate import generate
from detection.data.loading.index import Index
from detection.data.sources.digest import image_sizes, listing_hash
from detection.evaluation import external
from detection.evaluation.analysis.tables import write_tables
from detection.evaluation.evaluate import evaluate
from detection.evaluation.protocol.results import SplitDetections

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH = 480, 640
ROUNDS = 20
"""Bootstrap rounds; they do not change the size of the page."""
LOAD_LIMIT_S = 2.0
BROWSER_FLAGS = "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
TIMES_SCRIPT = """(() => {
  const page = performance.getEntriesByType("navigation")[0];
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return {load: page.loadEventEnd / 1000, paint: paint.startTime / 1000};
})()"""


def prepare(folder: Path) -> None:
    """Write the outputs of the stages before `plots`."""
    generate(folder, 1)
    data = external.read_coco(folder / "ground_truth.json", folder / "detections.json", skip_unknown=False)
    truth, predictions = data.ground_truth, data.predictions
    order = np.argsort(truth.images, kind="stable")
    count = len(data.images)
    corners = truth.boxes[order].copy()
    corners[:, 2:] += corners[:, :2]
    index = Index(
        files=np.array([f"{i:05}.jpg".encode() for i in range(count)]),
        ids=np.array([f"{i:05}".encode() for i in range(count)]),
        sizes=np.tile(np.array([[HEIGHT, WIDTH]], dtype=np.int32), (count, 1)),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(truth.images, minlength=count))]),
        boxes=corners.clip(0, (WIDTH, HEIGHT, WIDTH, HEIGHT)).astype(np.float32),
        labels=truth.labels[order],
        difficult=np.zeros(len(order), dtype=np.bool_),
        crowd=truth.ignored[order],
        areas=truth.areas[order].astype(np.float32),
    )
    boxes = predictions.boxes.copy()
    boxes[:, 2:] += boxes[:, :2]
    results = SplitDetections.pack(predictions.images, boxes, predictions.scores, predictions.labels)
    _write_images(folder / "data/raw/generated", count)
    _write_prepared(folder, index, data.classes)
    _write_evaluation(folder / "reports/evaluation", index, results, data.classes)
    shutil.copy(ROOT / "params.yaml", folder)


def _write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (HEIGHT // 20, WIDTH // 20, 3), dtype=np.uint8))
        small.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR).save(folder / f"{i:05}.jpg", quality=75)


def _write_prepared(folder: Path, index: Index, classes: tuple[str, ...]) -> None:
    prepared = folder / "data/prepared"
    prepared.mkdir(parents=True)
    index.save(prepared / "test.npz")
    listing = {"test": listing_hash(image_sizes(folder / "data/raw/generated", index))}
    meta = {
        "dataset": "generated",
        "classes": classes,
        "format": "coco",
        "path": "generated",
        "digest": "0",
        "listing": listing,
    }
    (prepared / "meta.json").write_text(json.dumps(meta))


def _write_evaluation(folder: Path, index: Index, results: SplitDetections, classes: tuple[str, ...]) -> None:
    evaluation = evaluate(index, results, classes, rounds=ROUNDS)
    detections = msgspec.json.encode(results.to_coco(index))
    write_tables(folder / "tables", {**evaluation.tables, "detections.json": detections})
    write_tables(folder, {"metrics.json": evaluation.stats})


def plot(folder: Path) -> float:
    """Run the stage; return its seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
    environment |= {"DATA_ROOT": str(folder / "data/raw"), "DETECTION_TRACKING": "off"}
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "stages.plots"], cwd=folder, env=environment, check=True)
    return time.monotonic() - began


class Tab:
    """Browser tab controlled over the debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket, self.number = socket, 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            message = json.loads((await self.socket.receive()).data)
            if message.get("id") == self.number:
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    async def open(self, page: Path) -> dict[str, Any]:
        """Open a page; return its load times, requests and console messages."""
        self.events.clear()
        await self.call("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads((await self.socket.receive()).data))
        await asyncio.sleep(1)
        answer = await self.call("Runtime.evaluate", expression=TIMES_SCRIPT, returnByValue=True)
        requests = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        console = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        times: dict[str, Any] = answer["result"]["value"]
        return times | {
            "requests": [url for url in requests if not url.startswith("data:") and url != page.as_uri()],
            "console": [event for event in self.events if event.get("method") in console],
        }


async def browse(page: Path, repeats: int) -> list[dict[str, Any]]:
    """Open a page several times in a browser with a fresh profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *BROWSER_FLAGS.split()]
        command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        browser = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            port = Path(profile) / "DevToolsActivePort"
            while not port.is_file():
                await asyncio.sleep(0.1)
            address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"
            async with aiohttp.ClientSession() as session, session.get(address) as answer:
                (tab,) = [one for one in await answer.json() if one["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    window = Tab(socket)
                    for domain in ("Network", "Page", "Runtime", "Log"):
                        await window.call(f"{domain}.enable")
                    return [await window.open(page) for _ in range(repeats)]
        finally:
            browser.terminate()
            browser.wait()


def main() -> None:
    """Measure, then compare the load time with the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--page", type=Path, help="open this page instead of generating one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        page = options.page and options.page.resolve()
        if page is None:
            prepare(Path(name))
            print(f"plots: {plot(Path(name)):.1f} s")
            page = Path(name) / "reports/index.html"
        print(f"{page.name}: {page.stat().st_size / 1e6:.1f} MB")
        opened = asyncio.run(browse(page, options.repeats))
    for one in opened:
        print(f"loaded in {one['load']:.2f} s, first painted after {one['paint']:.2f} s")
    print(f"network requests: {sum(len(one['requests']) for one in opened)}")
    print(f"console messages and exceptions: {sum(len(one['console']) for one in opened)}")
    load = statistics.median(one["load"] for one in opened)
    print(f"median load time {load:.2f} s, limit {LOAD_LIMIT_S:g} s")


if __name__ == "__main__":
    main()
