"""Soak test: one training on two machines, which are network namespaces with folders of their own. Needs root.

    python -m tests.soak.nodes

`dvc repro` on both nodes must give the losses, weights and detections of two processes on one machine, in one MLflow
run of node 0, and the detections of a single process. A node that is killed ends the other one with one line; the same
commands resume and give the same weights. A node with other data is refused, which names node and image. Each case
ends in a line with its verdict; the last line is `ok` or the list of problems, and the exit code is 0 or 1.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.soak.clones import Clone, same_weights, wait
from tests.soak.network import Network

DETECTOR = "models/detector.pt"
DETECTIONS = "reports/evaluation/tables/detections.json"
TOLERANCE = 1e-6
"""Largest difference allowed between losses of one step."""


class Pair:
    """Two clones of one commit, each on its node.

    Args:
        start: Prepared clone that both are copies of.
        folder: Folder for the copies.
        network: Two nodes.
    """

    def __init__(self, start: Clone, folder: Path, network: Network) -> None:
        self.clones = [start.copy_to(folder / f"node-{i}") for i in (0, 1)]
        self._network = network

    def start(self) -> list["subprocess.Popen[bytes]"]:
        """Run `dvc repro` on both nodes."""
        variables = {"DETECTION_NODES": "2", "DETECTION_RDZV": f"{self._network.addresses[0]}:29500"}
        words = ("dvc", "repro")
        return [clone.start(*self._network.inside(i, *words), **variables) for i, clone in enumerate(self.clones)]

    def run(self) -> list[int]:
        """Run `dvc repro` on both nodes to its end; returns the exit codes."""
        return [process.wait(1800) for process in self.start()]

    def errors(self, node: int) -> list[str]:
        """Lines of a node's log that are errors of a stage."""
        lines = Path(f"{self.clones[node].folder}.log").read_text().splitlines()
        return [line for line in lines if line.startswith("error: ")]


def compare(pair: Pair, reference: Clone, single: Clone) -> list[str]:
    """Problems with an undisturbed training on two nodes."""
    problems = [f"exit codes {codes}"] if any(codes := pair.run()) else []
    first, other = pair.clones
    losses = [[{key: row[key] for key in row if key != "time"} for row in one.losses()] for one in (first, reference)]
    pairs = list(zip(*losses, strict=True))
    worst = max(abs(float(a[key]) - float(b[key])) for a, b in pairs for key in a if a[key])
    problems += [f"the losses differ by {worst:g}"] * (worst > TOLERANCE)
    for name, one in (("two processes on one machine", reference), ("node 1's copy", other)):
        problems += [f"the weights differ from {name}"] * (
            not same_weights(first.folder / DETECTOR, one.folder / DETECTOR)
        )
    detections = {(one.folder / DETECTIONS).read_bytes() for one in (first, reference, other, single)}
    problems += ["the detections differ"] * (len(detections) != 1)
    runs = [(run.info.status, "test/AP" in run.data.metrics) for run in first.runs()]
    print(f"runs of node 0: {runs}; node 1 has {'a' if (other.folder / 'mlflow.db').exists() else 'no'} store")
    problems += [f"runs {runs}"] * (runs != [("FINISHED", True)] or (other.folder / "mlflow.db").exists())
    locks = [(one.folder / "dvc.lock").read_text() for one in (first, other)]
    problems += ["dvc.lock differs"] * (locks[0] != locks[1])
    terms = len(pairs[0][0]) - 2
    print(
        f"two nodes and two processes on one machine: {verdict(problems)}; {len(pairs)} steps of {terms} values, "
        f"largest difference {worst:g} (limit {TOLERANCE:g}); detections of both nodes, two processes, one process: "
        f"{len(detections)} distinct of 4 files", flush=True,
    )  # fmt: skip
    return problems


def verdict(problems: list[str]) -> str:
    """Verdict for the terminal."""
    return f"differs ({'; '.join(problems)})" if problems else "equal"


def kill(pair: Pair, undisturbed: Clone, node: int) -> list[str]:
    """Kill everything on a node in the middle of the training, then repeat the commands."""
    steps, problems = len(undisturbed.losses()), []
    processes = pair.start()
    wait(lambda: pair.clones[0].step() >= steps // 2, 900, 0.05)
    for one in pair.clones[node].processes():
        one.kill()
    codes = [process.wait(900) for process in processes]
    errors = pair.errors(1 - node)
    print(f"node {node} killed at step {pair.clones[0].step()} of {steps}: exit codes {codes}, {errors}")
    if len(errors) != 1 or f"error: node {node} (" not in errors[0] or not all(codes):
        problems.append(f"node {node} killed: {codes}, {errors}")
    if any(codes := pair.run()):
        problems.append(f"node {node} killed, then repeated: exit codes {codes}")
    log = Path(f"{pair.clones[0].folder}.log").read_text()
    if not same_weights(pair.clones[0].folder / DETECTOR, undisturbed.folder / DETECTOR):
        problems.append(f"node {node} killed: the weights differ")
    if len(pair.clones[0].runs()) != 1:
        problems.append(f"node {node} killed: {len(pair.clones[0].runs())} runs")
    resumed = [line for line in log.splitlines() if line.startswith("resuming")]
    print(f"  repeated: {resumed}, weights of the undisturbed training, one run: {verdict(problems)}", flush=True)
    return problems


def refuse(pair: Pair) -> list[str]:
    """Change the boxes of an image on node 1."""
    (names,) = (pair.clones[1].folder / "data/raw").glob("shapes/*/ImageSets/Main/train.txt")
    listed = names.read_text().split()
    file = names.parents[2] / f"Annotations/{listed[3]}.xml"
    text = file.read_text()
    left = text.partition("<xmin>")[2].partition("<")[0]
    file.write_text(text.replace(f"<xmin>{left}<", f"<xmin>{int(float(left)) + 1}<", 1))
    codes = pair.run()
    problems = [] if all(codes) else [f"other data: exit codes {codes}"]
    for node in (0, 1):
        errors = pair.errors(node)
        print(f"other data, node {node}: exit code {codes[node]}, {errors}")
        if len(errors) != 1 or f"{listed[3]}." not in errors[0] or "on node 1 (" not in errors[0]:
            problems.append(f"other data: node {node} does not name it")
    print(f"  refused on both nodes, image and node named: {'no' if problems else 'yes'}", flush=True)
    return problems


def main() -> None:
    """Run all cases; exit with 1 on any problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--folder", type=Path, help="keep all files there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as scratch, Network(2) as network:
        folder = options.folder or Path(scratch)
        start = Clone.create(folder / "start", options.epochs, options.images, devices=1)
        start.run("dvc", "repro", "pretrain")
        reference = start.copy_to(folder / "reference")
        params = (reference.folder / "params.yaml").read_text()
        (reference.folder / "params.yaml").write_text(params.replace("\n  devices: 1\n", "\n  devices: 2\n"))
        reference.run("dvc", "repro")
        single = reference.copy_to(folder / "single")
        (single.folder / "params.yaml").write_text(params)
        single.run("python", "-m", "stages.evaluate", DETECTION_TRACKING="off")

        undisturbed = Pair(start, folder / "undisturbed", network)
        problems = compare(undisturbed, reference, single)
        for node in (1, 0):
            problems += kill(Pair(start, folder / f"killed-{node}", network), undisturbed.clones[0], node)
        problems += refuse(Pair(start, folder / "refused", network))
    print(problems or "ok: two nodes equal two processes, a dead node is named and resumed from, other data is refused")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
