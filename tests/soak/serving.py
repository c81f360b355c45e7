"""Soak test: `detection serve` under load, with no failed request and no growth of memory after the warm-up.

    python -m tests.soak.serving                          # 64 clients for ten minutes, images of forty sizes
    python -m tests.soak.serving --sizes 1 --minutes 2 --clients 8
    python -m tests.soak.serving --table                  # throughput at 1, 8 and 64 clients beside `detection predict`

The detector has random weights unless `--detector` names a file. Memory is the resident set of the server's process;
after the first fifth of the time its median over the second fifth is compared with that over the last. The last line
is `ok: …` or `failed: …`.
"""

import argparse
import asyncio
import csv
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

MAX_GROWTH = 1.02
"""Accepted ratio of the resident set in the last fifth of the time to that in the second fifth."""
TABLE_CLIENTS = (1, 8, 64)


@dataclass(slots=True)
class Load:
    """What the clients saw."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start and MiB of the server's resident set, once per second."""

    @property
    def failed(self) -> int:
        """Number of requests without the answer 200."""
        return self.statuses.total() - self.statuses["200"]

    def fifth(self, number: int) -> float:
        """Median MiB over a fifth of the time; 0 is the first."""
        first, last = (self.memory[-1][0] * share / 5 for share in (number, number + 1))
        return statistics.median(mib for at, mib in self.memory if first <= at <= last)

    def __str__(self) -> str:
        p50, p95 = (1000 * float(np.percentile(self.latencies, q)) for q in (50, 95))
        rate = self.statuses["200"] / self.seconds
        return f"{rate:.1f} images/s, p50 {p50:.0f} ms, p95 {p95:.0f} ms, {self.failed} failed"


def write_detector(path: Path, model: str, image_size: int) -> None:
    """Write a detector with random weights."""
    from dataclasses import replace

    import torch

    from detection.models.build import build_detector, save_detector, without_weights
    from detection.params import load

    recipe = without_weights(load(model=model, dataset="shapes").recipe)
    recipe = replace(recipe, image_size=image_size)
    torch.manual_seed(0)
    classes = ("ring", "cross", "leaf")
    save_detector(path, build_detector(recipe, 3, None).state_dict(), recipe, classes, model)


def write_images(folder: Path, sizes: int) -> list[Path]:
    """Write forty JPEG files, of several sizes."""
    rng, files = np.random.default_rng(0), []
    for i in range(40):
        height, width = (240 + 11 * (i % sizes), 320 - 7 * (i % sizes))
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        files.append(folder / f"{i:02}.jpg")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(files[-1])
    return files


class Server:
    """`detection serve` in a process of its own.

    Args:
        detector: Detector file.
        options: Further arguments.
    """

    def __init__(self, detector: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "detection.cli", "serve", str(detector), "--port", str(self.port)]
        self.process = subprocess.Popen([*command, "--device", "cpu", *options])
        while not self._answers():
            if self.process.poll() is not None:
                raise SystemExit("failed: the server did not start")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def memory(self) -> float:
        """Resident set in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def stop(self) -> None:
        """End the server as `docker stop` does."""
        self.process.terminate()
        self.process.wait(90)

    async def load(self, requests: list[bytes], clients: int, seconds: float) -> Load:
        """Send requests from several clients, each of which waits for its answers."""
        load, start = Load(), time.monotonic()
        watcher = asyncio.create_task(self._watch(load, start))
        await asyncio.gather(
            *(self._client(requests[i:] + requests[:i], load, start + seconds) for i in range(clients))
        )
        watcher.cancel()
        load.seconds = time.monotonic() - start
        return load

    async def _watch(self, load: Load, start: float) -> None:
        while True:
            load.memory.append((time.monotonic() - start, self.memory()))
            await asyncio.sleep(1)

    async def _client(self, requests: Sequence[bytes], load: Load, end: float) -> None:
        number = 0
        while time.monotonic() < end:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                while time.monotonic() < end:
                    begin = time.monotonic()
                    writer.write(requests[number % len(requests)])
                    number += 1
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
                    await reader.readexactly(int(length.split(":")[1]))
                    load.latencies.append(time.monotonic() - begin)
                    load.statuses[head.split()[1]] += 1
                writer.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                load.statuses[type(error).__name__] += 1
                await asyncio.sleep(0.5)


def http_request(file: Path) -> bytes:
    """POST request of an image file."""
    body = file.read_bytes()
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def predict_rate(detector: Path, files: Sequence[Path], batch_size: int) -> float:
    """Images per second of `Predictor.predict` on files, in batches; the second of two passes counts."""
    import detection

    predictor = detection.load(detector, device="cpu")
    for _ in range(2):
        start = time.monotonic()
        for _ in predictor.predict(list(files) * 2, batch_size=batch_size):
            pass
    return 2 * len(files) / (time.monotonic() - start)


def table(detector: Path, files: Sequence[Path], options: Sequence[str], seconds: float) -> None:
    """Print throughput and latency at 1, 8 and 64 clients, in turns with `predict`."""
    server, requests = Server(detector, *options), [http_request(file) for file in files]
    rates = []
    for clients in TABLE_CLIENTS:
        rates.append(predict_rate(detector, files, 8))
        asyncio.run(server.load(requests, clients, seconds / 5))
        load = asyncio.run(server.load(requests, clients, seconds))
        share = load.statuses["200"] / load.seconds / rates[-1]
        print(f"{clients} clients: {load}; {share:.2f} of predict's {rates[-1]:.1f} images/s", flush=True)
    server.stop()


def main() -> None:
    """Run the test or the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--sizes", type=int, default=40, help="different image sizes; default: %(default)s")
    parser.add_argument("--model", default="fasterrcnn_resnet18")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--detector", type=Path)
    parser.add_argument("--curve", type=Path, help="CSV file for seconds and MiB")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("options", nargs="*", help="further arguments of `detection serve`, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-serving-") as name:
        detector = args.detector or Path(name, "detector.pt")
        if args.detector is None:
            write_detector(detector, args.model, args.image_size)
        files = write_images(Path(name), args.sizes)
        if args.table:
            table(detector, files, args.options, 60 * args.minutes)
            return
        server = Server(detector, *args.options)
        load = asyncio.run(server.load([http_request(file) for file in files], args.clients, 60 * args.minutes))
        alive = server.process.poll() is None
        server.stop()
    for at, mib in load.memory[:: max(1, len(load.memory) // 20)]:
        print(f"{at:6.0f} s {mib:7.0f} MiB")
    if args.curve:
        with args.curve.open("w", newline="") as file:
            csv.writer(file).writerows([("seconds", "mib"), *load.memory])
    growth = load.fifth(4) / load.fifth(1)
    verdict = "ok" if alive and not load.failed and growth <= MAX_GROWTH else "failed"
    print(
        f"{verdict}: {load}; {load.fifth(1):.0f} MiB after the warm-up, {load.fifth(4):.0f} at the end ({growth:.3f})"
    )
    sys.exit(verdict != "ok")


if __name__ == "__main__":
    main()
