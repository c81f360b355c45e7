"""Machines that train together: how many, where they meet, and which of them this is.

`DETECTION_NODES=2 DETECTION_RDZV=HOST:29500 dvc repro` on each of them. The machine with the address HOST is node 0,
which alone keeps checkpoints and logs to MLflow. Imports no torch.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, TextIO

from detection.errors import DataError, DetectionError, ParamsError

STAGES = ("stages.pretrain", "stages.train", "stages.evaluate", "stages.check")
"""Stages at which nodes meet, each at a port of its own: the given one and the next three."""
JOIN_TIMEOUT_S = 1800
"""Limit for the wait for other nodes, which may still prepare their data."""
BEHIND_S = 120.0
"""Time for which node 0 may end an earlier stage while another one is here already."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Machines that train together, and this one's place."""

    count: int
    """Number of machines."""
    host: str
    """Name or address of node 0."""
    port: int
    """Port of `pretrain` on node 0."""
    address: str
    """Address under which the others reach this machine."""
    is_first: bool
    """True on node 0."""

    def port_of(self, module: str) -> int:
        """Port at which a stage meets."""
        return self.port + (STAGES.index(module) if module in STAGES else 0)


def from_environment() -> Nodes | None:
    """Read `DETECTION_NODES`, `DETECTION_RDZV`, and `DETECTION_NODE`; None for a single machine.

    `DETECTION_NODE`, the number of this machine, is needed only where HOST resolves to another address than its own.

    Raises:
        DetectionError: A variable is missing or has no meaning.
    """
    value, meeting = os.environ.get("DETECTION_NODES", "1"), os.environ.get("DETECTION_RDZV", "")
    if not value.isdigit() or int(value) < 1:
        raise DetectionError(f"DETECTION_NODES={value}: set the number of machines that train together")
    if value == "1":
        return None
    host, _, port = meeting.rpartition(":")
    if not host or not port.isdigit():
        raise DetectionError(
            f"DETECTION_NODES={value} needs DETECTION_RDZV=HOST:PORT with the address of the first machine; "
            f"it is {meeting!r}"
        )
    host = host.strip("[]")
    try:
        target = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        address = local_address(host, int(port))
    except OSError as error:
        raise DetectionError(f"DETECTION_RDZV={meeting}: {host} cannot be reached: {error.strerror}") from None
    number = os.environ.get("DETECTION_NODE")
    is_first = address == target[4][0] if number is None else number == "0"
    return Nodes(int(value), host, int(port), address, is_first)


def local_address(host: str, port: int) -> str:
    """Address of this machine on its route to another; sends nothing."""
    family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as one:
        one.connect(target)
        return str(one.getsockname()[0])


def interface(address: str) -> str | None:
    """Name of the network interface with this address; None if it is unknown."""
    with suppress(ImportError):  # part of the tracking, which training does without
        import psutil

        for name, addresses in psutil.net_if_addrs().items():
            if address in [one.address for one in addresses]:
                return name
    return None


def count() -> int:
    """Return the number of machines."""
    nodes = from_environment()
    return nodes.count if nodes else 1


def is_other() -> bool:
    """Return True on every machine of several but the first."""
    nodes = from_environment()
    return nodes is not None and not nodes.is_first


def check_batch(batch_size: int, devices: int | str) -> None:
    """Check that all devices of all machines get an equal part of a batch.

    Args:
        batch_size: Images per batch, over all machines.
        devices: Devices per machine; `auto`: at least one.

    Raises:
        ParamsError: They do not.
    """
    nodes = from_environment()
    processes = (nodes.count if nodes else 1) * (devices if isinstance(devices, int) else 1)
    if nodes and batch_size % processes:
        raise ParamsError(
            f"params.yaml: batch_size: {batch_size} images cannot be divided equally among {processes} processes on "
            f"{nodes.count} machines; change batch_size, train.devices or DETECTION_NODES"
        )


def compare(inputs: Mapping[str, str], listing: Mapping[str, str], report: Callable[[str], object]) -> None:
    """Compare code, params and raw data of all machines, before any of them starts; a no-op on a single one.

    Args:
        inputs: Hash by name.
        listing: Hash or size of each raw file, to name those that differ.
        report: Function for a message to the user.

    Raises:
        DataError: They differ; names machine and file.
        DetectionError: A machine does not come.
    """
    nodes = from_environment()
    if nodes is None:
        return
    mine = {"name": f"{socket.gethostname()}, {nodes.address}", "inputs": dict(inputs), "listing": dict(listing)}
    report(f"comparing code, params and data of {nodes.count} machines at {nodes.host}:{nodes.port_of('stages.check')}")
    try:
        verdict = _collect(nodes, mine) if nodes.is_first else _submit(nodes, mine)
    except TimeoutError:
        raise DetectionError(
            f"not all of {nodes.count} machines came to {nodes.host}:{nodes.port_of('stages.check')} within "
            f"{JOIN_TIMEOUT_S // 60} minutes; start the same command on each of them, or correct DETECTION_RDZV"
        ) from None
    except OSError as error:
        raise DetectionError(f"{nodes.host}:{nodes.port_of('stages.check')}: {error.strerror or error}") from None
    if verdict:
        raise DataError(verdict)


def _collect(nodes: Nodes, mine: Mapping[str, Any]) -> str:
    """Compare what the other machines send with node 0's, and answer them."""
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("", nodes.port_of("stages.check"))))
        server.settimeout(JOIN_TIMEOUT_S)
        others: list[tuple[Mapping[str, Any], TextIO]] = []
        while len(others) < nodes.count - 1:
            connection = opened.enter_context(server.accept()[0])
            stream = opened.enter_context(connection.makefile("rw", encoding="utf-8"))
            if line := stream.readline():
                others.append((json.loads(line), stream))
        found = (_difference(mine, theirs, number) for number, (theirs, _) in enumerate(others, 1))
        verdict = next(filter(None, found), "")
        for _, other in others:
            other.write(json.dumps(verdict) + "\n")
    return verdict


def _submit(nodes: Nodes, mine: Mapping[str, Any]) -> str:
    until = time.monotonic() + JOIN_TIMEOUT_S
    while True:
        try:
            connection = socket.create_connection((nodes.host, nodes.port_of("stages.check")), timeout=5)
            break
        except OSError:
            if time.monotonic() > until:
                raise TimeoutError from None
            time.sleep(0.5)
    connection.settimeout(JOIN_TIMEOUT_S)
    with connection, connection.makefile("rw", encoding="utf-8") as stream:
        stream.write(json.dumps(mine) + "\n")
        stream.flush()
        line = stream.readline()
    return str(json.loads(line)) if line else f"node 0 ({nodes.host}) has stopped, see its log"


def _difference(first: Mapping[str, Any], other: Mapping[str, Any], number: int) -> str:
    """Message about the first input of a machine that differs from node 0's; empty if there is none."""
    names = differing(first["inputs"], other["inputs"])
    if names == ["raw data"]:  # shapes may be generated on one machine only
        names = differing(first["listing"], other["listing"]) or names
    if not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{names[0]}{more} on node {number} ({other['name']}) is not that of node 0 ({first['name']}); use the same "
        "commit, params.yaml and data on all machines"
    )


def differing(one: Mapping[str, str], two: Mapping[str, str]) -> list[str]:
    """Names of a mapping whose values differ in another one, or are missing in one of them."""
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def await_first(nodes: Nodes, module: str, report: Callable[[str], object]) -> None:
    """Wait until node 0 is at the same stage.

    Args:
        nodes: The machines; this is not the first.
        module: The stage.
        report: Function for a message to the user.

    Raises:
        DetectionError: Node 0 does not come, or is at another stage.
    """
    started, reported = time.monotonic(), False
    later = [one for one in STAGES[:-1] if nodes.port_of(one) > nodes.port_of(module)]
    earlier = [one for one in STAGES if nodes.port_of(one) < nodes.port_of(module)]
    while not _listens(nodes, module):
        waited = time.monotonic() - started
        at = [one for one in later if _listens(nodes, one)]
        at += [one for one in earlier if waited > BEHIND_S and _listens(nodes, one)]
        if at:
            here, there = (one.removeprefix("stages.") for one in (module, at[0]))
            raise DetectionError(
                f"node 0 ({nodes.host}) is at {there}, this node at {here}: their outputs in DVC differ; "
                "run `dvc pull` on the node that lacks them, or `dvc repro --force` on both"
            )
        if waited > JOIN_TIMEOUT_S:
            raise DetectionError(
                f"node 0 does not answer at {nodes.host}:{nodes.port_of(module)}; start the same command there, or "
                "correct DETECTION_RDZV"
            )
        if not reported:
            report(f"waiting for node 0 at {nodes.host}:{nodes.port_of(module)}")
            reported = True
        time.sleep(0.5)


def _listens(nodes: Nodes, module: str) -> bool:
    try:
        with socket.create_connection((nodes.host, nodes.port_of(module)), timeout=5):
            return True
    except OSError:
        return False
