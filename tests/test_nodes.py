"""Machines that train together: network namespaces with folders of their own, and the launcher that DVC starts."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection import nodes
from detection.errors import DetectionError, ParamsError
from tests.soak.network import Network

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import os, time
from pathlib import Path
from stages.entry import run

def work():
    import torch
    from detection import distributed, process_group
    from detection.training.common.checkpoint import Checkpoints
    from detection.signals import StopSignals

    process_group.join(torch.device("cpu"), "stage")
    checkpoints = Checkpoints("stage", "key")
    with checkpoints.locked(), StopSignals() as stop:
        start = (checkpoints.load("state.pt") or {"step": 0})["step"]
        checkpoints.save("state.pt", {"step": start + 1})
        if distributed.is_main():
            print(*(f"{one} {os.environ[one + '_SOCKET_IFNAME']}" for one in ("GLOO", "NCCL")), flush=True)
            print("step", start + 1, "of", distributed.world_size(), "in", Path.cwd().name, flush=True)
            for name in ("out.pt", "reports/a.txt"):
                Path(name).write_text(f"step {start + 1}")
        for _ in range(int(os.environ["STEPS"])):
            (stop_requested,) = distributed.maximum(stop.signal or 0)
            if stop_requested:
                print("saved", flush=True)
                raise SystemExit(128 + stop_requested)
            time.sleep(0.02)

def main():
    import torch
    from detection import launch

    outputs = (Path("out.pt"), Path("reports"))
    launch.run(1, "work", torch.device("cpu"), work, outputs, alone=os.environ.get("ALONE") == "1")

if __name__ == "__main__":
    run(main)
"""
PIPELINE = "stages: {stage: {cmd: x, deps: [code.py, data/prepared]}}"
Start = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if not Network.possible():
        pytest.skip("network namespaces need root and `ip`")
    with Network(2) as network:
        yield network


@pytest.fixture
def start(network: Network, tmp_path: Path) -> Iterator[Start]:
    """Start the launchers of both machines, node 0 `late` if asked; remaining processes are killed at the end."""
    started: list[subprocess.Popen[str]] = []
    for number in (0, 1):
        (tmp_path / f"node{number}/reports").mkdir(parents=True)
        for name, text in {"work.py": SCRIPT, "dvc.yaml": PIPELINE, "code.py": "", "params.yaml": ""}.items():
            (tmp_path / f"node{number}" / name).write_text(text)

    def run(steps: int = 3000, *, late: bool = False, **more: str) -> list["subprocess.Popen[str]"]:
        processes: list[subprocess.Popen[str]] = []
        for number in (1, 0):
            if late and processes:
                until(processes[0], "waiting for node 0 at 10.77")
            folder = tmp_path / f"node{number}"
            env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "DVC_ROOT": str(folder)} | more
            env |= {"DETECTION_NODES": "2", "DETECTION_RDZV": f"{network.addresses[0]}:29500", "STEPS": str(steps)}
            words = network.inside(number, sys.executable, "-m", "work")
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            processes.insert(0, subprocess.Popen(words, cwd=folder, env=env, **pipes))
            started.append(processes[0])
        return processes

    yield run
    network.kill()  # the ranks too, which hold the pipes
    for process in started:
        process.communicate(timeout=60)


def until(process: "subprocess.Popen[str]", text: str) -> None:
    """Read the output of a process up to a line that starts with a text."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    pytest.fail(f"no {text!r}: {process.communicate()[1]}")


def results(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    outputs = [process.communicate(timeout=600) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_node_0_keeps_checkpoints_and_the_others_get_its_outputs(start: Start, tmp_path: Path) -> None:
    (tmp_path / "node1/reports/old.txt").write_text("of an earlier run")
    first, other = results(start(3, late=True))
    assert (first[0], other[0]) == (0, 0), (first, other)
    assert "GLOO eth0 NCCL =eth0\nstep 1 of 2 in node0" in first[1]
    assert [path.read_text() for path in sorted(tmp_path.glob("node?/out.pt"))] == ["step 1"] * 2
    assert {path.name for path in (tmp_path / "node1/reports").iterdir()} == {"a.txt"}
    assert not (tmp_path / "node1/.checkpoints").exists()

    processes = start()
    until(processes[0], "step 2 of 2 in node0")
    processes[1].send_signal(signal.SIGTERM)  # all of them stop and save
    first, other = results(processes)
    assert first == (143, "saved\n", "")
    assert (other[0], other[2]) == (143, "")


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_node_ends_the_others_with_one_line_that_names_it(dead: int, start: Start, network: Network) -> None:
    processes = start()
    until(processes[0], "step 1")
    launcher = processes[dead].pid
    ranks = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for number in (launcher, *map(int, ranks)):
        os.kill(number, signal.SIGKILL)
    code, _, err = results(processes)[1 - dead]
    assert (code, err.count("\n")) == (1, 1), err
    assert err.startswith(f"error: node {dead} (")
    assert network.addresses[dead] in err
    assert "has stopped or cannot be reached" in err


def test_restarts_join_again(start: Start) -> None:
    processes = start(400, DETECTION_MAX_RESTARTS="1")
    until(processes[0], "step 1")
    launcher = processes[1].pid
    (rank,) = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    os.kill(int(rank), signal.SIGKILL)
    first, other = results(processes)
    assert (first[0], other[0]) == (0, 0), (first, other)
    assert "step 2 of 2 in node0" in first[1]


def test_rank_0_works_alone(start: Start, tmp_path: Path) -> None:
    first, other = results(start(3, ALONE="1"))
    assert "step 1 of 1 in node0" in first[1]
    assert other[0] == 0
    assert (tmp_path / "node1/out.pt").read_text() == "step 1"


def test_other_inputs_are_refused(start: Start, network: Network, tmp_path: Path) -> None:
    (tmp_path / "node1/code.py").write_text("# changed")
    for code, _, err in results(start(3)):
        assert (code, err.count("\n")) == (1, 1), err
        assert err.startswith(
            f"error: code.py on node 1 ({os.uname().nodename}, {network.addresses[1]}) is not that of"
        )


def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(**variables: str) -> Any:
        with monkeypatch.context() as patch:
            for name in ("DETECTION_NODES", "DETECTION_RDZV", "DETECTION_NODE"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(f"DETECTION_{name}", value)
            nodes.check_batch(16, 2)
            return nodes.from_environment()

    assert read() is None
    assert read(NODES="1", RDZV="x") is None
    both = {"NODES": "2", "RDZV": "127.0.0.1:29500"}
    assert read(**both) == nodes.Nodes(2, "127.0.0.1", 29500, "127.0.0.1", True)
    assert read(**both, NODE="1").is_first is False
    assert [read(**both).port_of(f"stages.{name}") for name in ("pretrain", "train", "evaluate")] == [
        29500,
        29501,
        29502,
    ]
    for variables, text in (
        ({"NODES": "2"}, "needs DETECTION_RDZV=HOST:PORT"),
        ({"NODES": "two"}, "DETECTION_NODES=two"),
        ({"NODES": "2", "RDZV": "no-such-host.invalid:1"}, "cannot be reached"),
    ):
        with pytest.raises(DetectionError, match=text):
            read(**variables)
    with pytest.raises(ParamsError, match="16 images cannot be divided equally among 6 processes on 3 machines"):
        read(NODES="3", RDZV="127.0.0.1:29500")


def test_inputs_are_compared_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = nodes.Nodes(3, "127.0.0.1", port, "127.0.0.1", True)
    role = threading.local()
    monkeypatch.setattr(nodes, "from_environment", lambda: replace(first, is_first=role.number == 0))

    def compare(*values: tuple[dict[str, str], dict[str, str]]) -> list[str]:
        def one(number: int) -> str:
            role.number = number
            try:
                nodes.compare(*values[min(number, len(values) - 1)], lambda line: None)
            except DetectionError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(one, range(3)))

    same: tuple[dict[str, str], dict[str, str]] = ({"params.yaml": "a", "raw data": "b"}, {"1.xml": "1", "2.xml": "2"})
    assert compare(same) == ["", "", ""]
    assert compare(same, (same[0], {})) == ["", "", ""], "shapes that are not generated yet"
    for other, text in (
        (({**same[0], "params.yaml": "c"}, same[1]), "params.yaml on node"),
        (({**same[0], "raw data": "c"}, {"1.xml": "1", "2.xml": "3"}), "2.xml on node"),
        (({**same[0], "raw data": "c"}, {"1.xml": "0", "3.xml": "3"}), "1.xml and 2 more on node"),
    ):
        said = compare(same, other)
        assert len(set(said)) == 1
        assert said[0].startswith(text)
    monkeypatch.setattr(nodes, "JOIN_TIMEOUT_S", 0.1)
    role.number = 1
    with pytest.raises(DetectionError, match="not all of 3 machines came"):
        nodes.compare(*same, lambda line: None)


def test_a_missing_file_differs() -> None:
    assert nodes.differing({"a": "1", "b": "2"}, {"a": "1"}) == ["b"]
    assert nodes.differing({"a": "1"}, {"a": "1", "b": "2"}) == ["b"]
    assert nodes.differing({"a": "1"}, {"a": "1"}) == []


def test_nodes_at_different_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    group = nodes.Nodes(2, "10.0.0.1", 29500, "10.0.0.2", False)
    monkeypatch.setattr(nodes, "_listens", lambda group, module: module == "stages.train")
    with pytest.raises(DetectionError, match=r"node 0 \(10.0.0.1\) is at train, this node at pretrain"):
        nodes.await_first(group, "stages.pretrain", print)
    monkeypatch.setattr(nodes, "BEHIND_S", -1.0)
    with pytest.raises(DetectionError, match="is at train, this node at evaluate"):
        nodes.await_first(group, "stages.evaluate", print)
    monkeypatch.setattr(nodes, "_listens", lambda group, module: False)
    monkeypatch.setattr(nodes, "JOIN_TIMEOUT_S", 0)
    with pytest.raises(DetectionError, match=r"node 0 does not answer at 10\.0\.0\.1:29501"):
        nodes.await_first(group, "stages.train", print)
