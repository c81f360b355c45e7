"""Group of the ranks: join it, compare the inputs of several machines, copy outputs, name a machine that is lost."""

import os
import re
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from detection import distributed, nodes
from detection.errors import DataError, DetectionError, reason
from detection.files import PARAMS_YAML, PREPARED, sha256
from detection.pipeline import dependency_files

COLLECTIVE_TIMEOUT = timedelta(minutes=15)
"""Timeout of a collective operation. The launcher notices dead ranks of its own machine within seconds; this is for
other machines, and long enough for rank 0 to write a large checkpoint while the others wait."""
ALONE_TIMEOUT = timedelta(days=7)
"""Timeout for rank 0 where it works alone."""
TIMED_OUT = re.compile(r"tim(ed|e) ?out", re.IGNORECASE)
"""Messages of gloo, NCCL and the store about an operation that took longer than its timeout."""
LOST = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|remote process exited|socket", re.IGNORECASE)
"""Messages of gloo, NCCL and the store about a process that has ended."""
_hosts: list[tuple[str, str]] = []
"""Host name and address of each rank, once they have joined."""


class FollowUpError(DetectionError):
    """Error of this rank that another one has caused."""


def join(device: torch.device, stage: str | None = None, timeout: timedelta = COLLECTIVE_TIMEOUT) -> None:
    """Join the process group as the rank that this process is; a no-op in a process of its own.

    Args:
        device: Device of this rank.
        stage: Stage whose inputs must be the same on all machines.
        timeout: Limit for a collective operation.

    Raises:
        DataError: An input differs; names machine and file.
    """
    if distributed.world_size() == 1 or dist.is_initialized():
        return
    backend, rank, ranks = "cpu:gloo,cuda:nccl", distributed.rank(), distributed.world_size()
    backend = backend if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timeout, rank=rank, world_size=ranks)
    except RuntimeError as error:
        raise FollowUpError(
            f"rank {rank} of {ranks} cannot join the others ({reason(error)}); one has stopped, see its log"
        ) from error
    address = nodes.local_address(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    _hosts[:] = distributed.gather((socket.gethostname(), address))
    if stage and _several_machines():
        _check_same_inputs(stage)


def _several_machines() -> bool:
    return len(set(_hosts)) > 1


def _machine(host: tuple[str, str]) -> str:
    """Number, name and address of a rank's machine."""
    return f"node {[*dict.fromkeys(_hosts)].index(host)} ({host[0]}, {host[1]})"


def _check_same_inputs(stage: str) -> None:
    """Compare a stage's code, params and data with those of rank 0.

    Raises:
        DataError: They differ.
    """
    files = {name: sha256(path) for name, path in dependency_files(stage) if path.is_file()}
    files |= {str(PARAMS_YAML): sha256(PARAMS_YAML)}
    everywhere = distributed.gather(files)
    for rank, theirs in enumerate(everywhere):
        names = nodes.differing(everywhere[0], theirs)
        if not names:
            continue
        what = min(names, key=lambda name: (name.startswith(f"{PREPARED}/meta"), name))
        if any(name.startswith(f"{PREPARED}/") for name in names):
            what = distributed.gather(_different_image([name for name in files if name.endswith(".npz")]))[rank] or what
        raise DataError(
            f"{what} on {_machine(_hosts[rank])} is not that of {_machine(_hosts[0])}; use the same commit, "
            "params.yaml and data on all machines"
        )


def _different_image(indexes: Sequence[str]) -> str:
    """First image whose file or boxes differ from those of rank 0; empty if there is none. All ranks take part."""
    from detection.data.loading.prepared import Prepared

    prepared = Prepared.load()
    mine = {key: value for name in indexes for key, value in prepared.describe_images(Path(name).stem).items()}
    return next(iter(nodes.differing(distributed.broadcast(mine), mine)), "")


def share(outputs: Sequence[Path]) -> None:
    """Copy rank 0's outputs to the machines that do not have them: all but its own, without a shared folder."""
    if not _several_machines():
        return
    host, is_main = _hosts[distributed.rank()], distributed.is_main()
    writes = host != _hosts[0] and _hosts.index(host) == distributed.rank()
    there = distributed.broadcast({str(file): sha256(file) for file in _files(outputs)} if is_main else {})
    here = {str(file): sha256(file) for file in _files(outputs)} if writes else there
    missing = {name for name, digest in there.items() if here.get(name) != digest}
    for name in sorted(set[str]().union(*distributed.gather(missing))):
        content = distributed.broadcast(Path(name).read_bytes() if is_main else b"")
        if name in missing:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).unlink(missing_ok=True)  # it may be a link into DVC's cache
            Path(name).write_bytes(content)
    for name in here.keys() - there.keys():
        Path(name).unlink()


def _files(outputs: Sequence[Path]) -> list[Path]:
    return [file for path in outputs for file in (path, *path.rglob("*")) if file.is_file()]


def caused_by_others(error: Exception) -> DetectionError | None:
    """Error for a rank that another one has left alone; None for any other error."""
    return _timeout_error(error) or _lost_machine(error)


def _lost_machine(error: Exception) -> DetectionError | None:
    """Error for a connection to another machine that has ended; None for any other error."""
    if not _several_machines() or not isinstance(error, RuntimeError) or not LOST.search(str(error)):
        return None
    others = [host for host in dict.fromkeys(_hosts) if host != _hosts[distributed.rank()]]
    named = [host for host in others if f"[{host[1]}]" in str(error)] or others
    return FollowUpError(lost_message(" or ".join(map(_machine, named))))


def lost_message(machine: str) -> str:
    """Error message of the machines that are left."""
    return (
        f"{machine} has stopped or cannot be reached, see its log; the last checkpoint is kept, rerun the command on "
        "all machines to resume"
    )


def _timeout_error(error: Exception) -> DetectionError | None:
    """Error for a collective that timed out; None for any other error."""
    if not isinstance(error, RuntimeError) or not TIMED_OUT.search(str(error)):
        return None
    minutes = round(COLLECTIVE_TIMEOUT.total_seconds() / 60)
    return DetectionError(
        f"rank {distributed.rank()} of {distributed.world_size()} waited {minutes} minutes for the others: one has "
        "stopped, or the network between the machines is down; rerun the command on all of them to resume"
    )
