"""Images per second and latency of `detection serve` beside `detection predict` on the same images.

    python -m benchmarks.serve DETECTOR FOLDER         # 30 s with 1, 8 and 64 clients, three rounds; needs wrk

wrk sends the JPEG files of the folder to /predict, one after the other, over connections that stay open. `predict` is
`Predictor.predict` on the same files in batches of 1, 4 and 16, in this process, detector loaded. All sides alternate;
the figures are medians of the rounds.
"""

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import torch

import detection
from detection.predictor import Predictor
from tests.soak.serving import Server

CLIENTS = (1, 8, 64)
BATCH_SIZES = (1, 4, 16)
WARM_UP_S = 5
WRK_SCRIPT = """
local threads = 0
function setup(thread) thread:set("number", threads); threads = threads + 1 end
function init(args)
  requests, at = {}, number * 97
  for path in io.lines(args[1]) do
    local file = io.open(path, "rb")
    requests[#requests + 1] = wrk.format("POST", "/predict", {["Content-Type"] = "image/jpeg"}, file:read("*a"))
    file:close()
  end
end
function request() at = at + 1; return requests[at % #requests + 1] end
function done(summary, latency, all)
  local e = summary.errors
  print("RESULT", summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000,
    latency:percentile(95) / 1000, latency:percentile(99) / 1000, e.connect + e.read + e.write + e.status + e.timeout)
end
"""
Figures = tuple[float, ...]
"""Images per second, p50, p95, p99 in ms, failed requests."""


class OtherPrograms:
    """Cores that programs other than this process and its children use, since the last look."""

    def __init__(self) -> None:
        self._last = self._seconds()

    def cores(self) -> float:
        """Return the mean number of cores since the last call."""
        now = self._seconds()
        (wall, others), self._last = (new - old for new, old in zip(now, self._last, strict=True)), now
        return others / wall

    def _seconds(self) -> tuple[float, float]:
        total, ours = psutil.cpu_times(), psutil.Process()
        times = [process.cpu_times() for process in (ours, *ours.children(recursive=True))]
        own = sum(one.user + one.system for one in times) + times[0].children_user + times[0].children_system
        return time.monotonic(), total.user + total.nice + total.system + total.irq + total.softirq - own


def run_wrk(port: int, folder: Path, clients: int, seconds: float) -> Figures:
    """Figures of wrk with a number of connections; `folder` has its script and list of files."""
    command = ["wrk", "--threads", str(min(clients, 2)), "--connections", str(clients), "--timeout", "60"]
    command += ["--duration", f"{seconds:.0f}", "--script", str(folder / "post.lua"), f"http://127.0.0.1:{port}/"]
    output = subprocess.run([*command, "--", str(folder / "files")], capture_output=True, text=True, check=True).stdout
    found = re.search(r"^RESULT\t(.*)$", output, re.MULTILINE)
    assert found, output
    return tuple(float(number) for number in found[1].split())


def predict_rate(predictor: Predictor, files: list[Path], batch_size: int) -> float:
    """Images per second of `Predictor.predict`."""
    start = time.perf_counter()
    for _ in predictor.predict(files, batch_size=batch_size):
        pass
    return len(files) / (time.perf_counter() - start)


def measure(detector: Path, files: list[Path], rounds: int, seconds: float, options: list[str]) -> None:
    """Print a Markdown table."""
    predictor, server = detection.load(detector, device="cpu"), Server(detector, *options)
    rates: dict[int, list[float]] = {size: [] for size in BATCH_SIZES}
    figures: dict[int, list[Figures]] = {clients: [] for clients in CLIENTS}
    with tempfile.TemporaryDirectory(prefix="serve-") as name:
        folder = Path(name)
        (folder / "post.lua").write_text(WRK_SCRIPT)
        (folder / "files").write_text("\n".join(str(file.resolve()) for file in files))
        for clients in CLIENTS:
            run_wrk(server.port, folder, clients, WARM_UP_S)
        for size in BATCH_SIZES:
            predict_rate(predictor, files, size)
        others = OtherPrograms()
        for _ in range(rounds):
            for size, clients in zip(BATCH_SIZES, CLIENTS, strict=True):
                rates[size].append(predict_rate(predictor, files * 2, size))
                figures[clients].append(run_wrk(server.port, folder, clients, seconds))
                texts = ", ".join(f"{number:.1f}" for number in figures[clients][-1])
                print(f"predict {size}: {rates[size][-1]:.1f}; {clients} clients: {texts}; ", end="")
                print(f"{others.cores():.2f} cores used by other programs", flush=True)
    print(f"server {server.memory():.0f} MiB")
    server.stop()
    predict = {size: statistics.median(all_rates) for size, all_rates in rates.items()}
    print(", ".join(f"predict, batches of {size}: {rate:.1f} images/s" for size, rate in predict.items()))
    print("| clients | images/s | p50, ms | p95, ms | p99, ms | failed | ratio to `predict`, batches of 1, 4, 16 |")
    print("|---|---|---|---|---|---|---|")
    for clients, rows in figures.items():
        rate, p50, p95, p99, _ = (statistics.median(column) for column in zip(*rows, strict=True))
        failed = sum(row[-1] for row in rows)
        ratios = ", ".join(f"{rate / other:.2f}" for other in predict.values())
        print(f"| {clients} | {rate:.1f} | {p50:.0f} | {p95:.0f} | {p99:.0f} | {failed:.0f} | {ratios} |")


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("options", nargs="*", help="further arguments of `detection serve`, after --")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()}")
    measure(args.detector, sorted(args.folder.glob("*.jpg")), args.rounds, args.seconds, args.options)
    print(f"load at the end {os.getloadavg()}")


if __name__ == "__main__":
    main()
