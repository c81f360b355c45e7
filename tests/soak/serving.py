"""Soak test: `detection serve` under load, with no failed request and no growth of memory after the warm-up.

    python -m tests.soak.serving                          # 64 clients for ten minutes, images of forty sizes
    python -m tests.soak.serving --sizes 1 --minutes 2 --clients 8
    python -m tests.soak.serving --stop --minutes 0.2     # SIGTERM with 64 clients: no request may be lost
    python -m tests.soak.serving --bad                    # the answers to bad requests, as a table

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

from tests.soak.bad_requests import check

MAX_GROWTH = 1.02
"""Accepted ratio of the resident set in the last fifth of the time to that in the second fifth."""


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


async def stop_under_load(server: Server, requests: list[bytes], clients: int, seconds: float) -> bool:
    """Send SIGTERM to a server under load; print what became of the requests, and return whether none was lost.

    A request is lost if it was sent before the signal and has no answer. One that a client sends later on an open
    connection may find it closed, as with any HTTP/1.1 server, and can be sent again elsewhere.
    """
    stopped, outcomes, last_answer = float("inf"), Counter[str](), 0.0

    async def client(number: int) -> None:
        nonlocal last_answer
        sent = 0.0
        try:
            while True:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                for body in requests[number:] + requests[:number]:
                    sent = time.monotonic()
                    writer.write(body)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
                    await reader.readexactly(int(length.split(":")[1]))
                    last_answer = time.monotonic()
                    outcomes[f"sent {'before' if sent < stopped else 'after'} SIGTERM, answered {head.split()[1]}"] += 1
                    if "connection: close" in head:
                        break
                writer.close()
        except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError):
            outcomes[f"sent {'before' if sent < stopped else 'after'} SIGTERM, not answered"] += 1
        except OSError:
            outcomes["connection refused"] += 1

    tasks = [asyncio.create_task(client(number % len(requests))) for number in range(clients)]
    await asyncio.sleep(seconds)
    stopped = time.monotonic()
    server.process.terminate()
    code = await asyncio.to_thread(server.process.wait, 90)
    ended = time.monotonic()
    await asyncio.gather(*tasks)
    for outcome, number in sorted(outcomes.items()):
        print(f"{number:6} {outcome}")
    print(
        f"last answer {last_answer - stopped:.2f} s and end {ended - stopped:.2f} s after SIGTERM, exit status {code}"
    )
    return not any("before" in outcome and "200" not in outcome for outcome in outcomes)


def http_request(file: Path) -> bytes:
    """POST request of an image file."""
    body = file.read_bytes()
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def send_bad_requests(detector: Path, options: Sequence[str]) -> None:
    """Print the answers to bad requests; the server must go on."""
    server = Server(detector, "--timeout", "15", "--max-mb", "8", *options)
    before = server.memory()
    wrong = check(server.port, 8_000_000)
    alive = server.process.poll() is None
    print(f"{before:.0f} MiB before, {server.memory() if alive else 0:.0f} MiB after")
    server.stop()
    print(
        f"failed: {', '.join(wrong) or 'the server ended'}" if wrong or not alive else "ok: all answers as they must be"
    )
    sys.exit(bool(wrong) or not alive)


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
    parser.add_argument("--stop", action="store_true", help="end the server after --minutes, under load")
    parser.add_argument("--bad", action="store_true", help="send bad requests instead")
    parser.add_argument("options", nargs="*", help="further arguments of `detection serve`, after --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-serving-") as name:
        detector = args.detector or Path(name, "detector.pt")
        if args.detector is None:
            write_detector(detector, args.model, args.image_size)
        files = write_images(Path(name), args.sizes)
        if args.bad:
            send_bad_requests(detector, args.options)
        server = Server(detector, *args.options)
        if args.stop:
            requests = [http_request(file) for file in files]
            fine = asyncio.run(stop_under_load(server, requests, args.clients, 60 * args.minutes))
            sys.exit(None if fine else "failed: requests were lost")
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
