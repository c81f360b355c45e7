"""A stage on several devices and machines: one process per device, started by torchrun's launcher.

    run(devices, "stages.train", device, work, outputs)

The process that DVC starts becomes the launcher: it starts `python -m stages.train` once per device, waits,
and forwards SIGINT and SIGTERM. Each of these processes, a rank, takes an equal share of every batch. Only rank 0 logs,
saves and reports. On several machines (`detection.nodes`) the launchers meet first, rank 0 is on node 0, and the others
get copies of its outputs, since DVC expects them there too.

Processes that torchrun, SLURM's `srun` or another launcher has started (see `Rank.from_environment`) become
ranks as they are. `work` calls `process_group.join` before its first collective, after it has forked the loaders'
workers: a child of a process with communication threads may inherit a lock that one of them holds, and wait for it.
"""

import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from detection import distributed, nodes, process_group
from detection.errors import DetectionError, user_message
from detection.files import LockedTemporaryDirectory
from detection.nodes import Nodes
from detection.process_group import COLLECTIVE_TIMEOUT, FollowUpError, lost_message
from detection.signals import LAUNCHER, STOPPING, stop_handler

log = logging.getLogger(__name__)
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
ON_FIRST_NODE = "DETECTION_ON_FIRST_NODE"
"""Variable of a rank that our launcher started for several machines: 1 on node 0, else 0."""
MAX_RESTARTS = "DETECTION_MAX_RESTARTS"
"""Variable: how often the launchers start the ranks again, for clusters that replace a dead node."""
SHUTDOWN_TIMEOUT_S = "120"
"""Time for the ranks to stop: a step and the writing of a large checkpoint."""
KILL_REPORT_DELAY_S = 5
"""Delay with which a killed rank may be reported, after the errors that its death causes in other ranks."""


def run(
    devices: int,
    module: str,
    device: torch.device,
    work: Callable[[], None],
    outputs: Sequence[Path] = (),
    *,
    alone: bool = False,
) -> None:
    """Run `work` in this process, or for several devices in one process per device.

    Args:
        devices: Number of devices on this machine.
        module: Module that each process runs with `python -m`; it has to call this function again.
        device: Device of this process; gives the type.
        work: The stage.
        outputs: Files and folders that rank 0 writes.
        alone: Rank 0 works as if there was no other; the others wait for its outputs.

    Raises:
        DetectionError: A rank died; gives the rank and the cause.
        SystemExit: SIGTERM or SIGINT was received; the checkpoint is saved.
    """
    group = nodes.from_environment() if ON_FIRST_NODE not in os.environ else None
    if group is None and (rank := Rank.from_environment(os.environ)):
        with _as_rank(rank, device):
            if alone and distributed.world_size() > 1:
                _run_alone(device, work)
            else:
                work()
            process_group.share(outputs)
    elif group or devices > 1:
        _launch(devices, module, group)
    else:
        work()


def _run_alone(device: torch.device, work: Callable[[], None]) -> None:
    """Run `work` in rank 0, and join the others."""
    if distributed.is_main():
        ranks = distributed.world_size()
        distributed.expect(0, 1)
        work()
        distributed.expect(0, ranks)
    process_group.join(device, timeout=process_group.ALONE_TIMEOUT)


@dataclass(frozen=True, slots=True)
class Rank:
    """Place of this process among those that train together."""

    rank: int
    """Number among all processes, from 0."""
    ranks: int
    """Number of processes."""
    local_rank: int
    """Number among those of this machine, which is the number of its GPU."""
    local_ranks: int
    """Number of processes on this machine."""
    rendezvous: Mapping[str, str]
    """`MASTER_ADDR` and `MASTER_PORT`: where rank 0 listens."""

    @staticmethod
    def from_environment(variables: Mapping[str, str]) -> "Rank | None":
        """Place that a launcher gives in environment variables; None for a process that was started by hand.

        torchrun and launchers like it set `RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`; a task of `srun`
        has `SLURM_PROCID` and the number of tasks of its step, which a batch script itself does not have.

        Raises:
            DetectionError: Some of torchrun's variables are set, but not all.
        """
        if int(variables.get("WORLD_SIZE") or 1) > 1 or "TORCHELASTIC_RUN_ID" in variables:
            required = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            if missing := [name for name in required if not variables.get(name)]:
                raise DetectionError(
                    f"WORLD_SIZE={variables.get('WORLD_SIZE', '')} asks for a group of processes, but "
                    f"{missing[0]} is not set; start them with torchrun, or unset WORLD_SIZE"
                )
            rank, ranks = int(variables["RANK"]), int(variables["WORLD_SIZE"])
            local_rank = int(variables.get("LOCAL_RANK") or variables.get("SLURM_LOCALID") or rank)
            rendezvous = {name: variables[name] for name in required[2:]}
            return Rank(rank, ranks, local_rank, int(variables.get("LOCAL_WORLD_SIZE") or 1), rendezvous)
        ranks = int(variables.get("SLURM_STEP_NUM_TASKS") or 1)
        if ranks == 1 or "SLURM_PROCID" not in variables:
            return None
        port = 20000 + int(variables.get("SLURM_JOB_ID") or 0) % 10000  # jobs on one machine differ
        own = {
            "MASTER_ADDR": variables.get("MASTER_ADDR") or _first_host(variables["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": variables.get("MASTER_PORT") or str(port),
        }
        local_ranks = int(variables.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0])
        return Rank(int(variables["SLURM_PROCID"]), ranks, int(variables["SLURM_LOCALID"]), local_ranks, own)


def _first_host(nodes: str) -> str:
    """First host of SLURM's list: `gpu07` of `gpu[07-09,12],cpu1`."""
    match = re.match(r"([^\[,]+)(?:\[(\w+))?", nodes)
    assert match, nodes
    return match[1] + (match[2] or "")


@contextmanager
def reports_folder(path: Path) -> Iterator[Path]:
    """Return the folder for rank 0, and a temporary one for the other ranks."""
    if distributed.is_main():
        yield path
        return
    with LockedTemporaryDirectory("detection-rank-") as temporary:
        yield Path(temporary)


@contextmanager
def _as_rank(rank: Rank, device: torch.device) -> Iterator[None]:
    """Run as a rank, which joins the group later; an error is written for the launcher, which reports the first."""
    try:
        os.environ.update(rank.rendezvous)
        rank = _from_first_node(rank)
        if device.type == "cuda":
            torch.cuda.set_device(rank.local_rank % torch.cuda.device_count())
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // rank.local_ranks))
        distributed.expect(rank.rank, rank.ranks)
        if not distributed.is_main():
            logging.disable(logging.WARNING)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        yield
    except Exception as error:
        _report(process_group.caused_by_others(error) or error)
        sys.stdout.flush()
        os._exit(1)  # a group with a dead member cannot be destroyed cleanly
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        distributed.expect(0, 1)


def _from_first_node(rank: Rank) -> Rank:
    """Count the ranks from node 0 on; torchrun orders machines by their addresses."""
    on_first = os.environ.get(ON_FIRST_NODE)
    if on_first is None:
        return rank
    address, port = rank.rendezvous["MASTER_ADDR"], int(rank.rendezvous["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=COLLECTIVE_TIMEOUT)
    key = f"detection/first/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    if on_first == "1" and rank.local_rank == 0:
        store.set(key, str(rank.rank))
    return replace(rank, rank=(rank.rank - int(store.get(key))) % rank.ranks)


def _report(error: Exception) -> None:
    """Write the error of this rank in torchrun's format for the launcher, or without one to stderr."""
    message = user_message(error)
    text = message or "".join(traceback.format_exception(error))
    if ERROR_FILE not in os.environ:
        print(f"error: rank {distributed.rank()}: {text}", file=sys.stderr, flush=True)  # noqa: T201
        return
    known = message is not None and not isinstance(error, FollowUpError)
    extra = {"user_error": message is not None, "cause": known, "timestamp": str(int(time.time()))}
    content = {"message": {"message": text, "extraInfo": extra}}
    Path(os.environ[ERROR_FILE]).write_text(json.dumps(content), encoding="utf-8")


def _launch(devices: int, module: str, group: Nodes | None) -> None:
    """Start the ranks of this machine and wait for them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_TIMEOUT_S)
    os.environ[LAUNCHER] = str(os.getpid())
    name = nodes.interface(group.address) if group else "lo"
    if sys.platform.startswith("linux") and name:  # works even if the host name does not resolve
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        if group:  # NCCL takes the first interface, which may lead elsewhere
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
    meeting: dict[str, Any] = {"rdzv_endpoint": "localhost:0", "local_addr": "localhost", "run_id": str(os.getpid())}
    if group:
        meeting = _meet(group, module)
    logging.disable(logging.CRITICAL)  # messages of the launcher itself; the ranks have their own logging
    with LockedTemporaryDirectory("detection-ranks-") as logs, _raise_on_signal(SignalException):
        config = LaunchConfig(
            min_nodes=group.count if group else 1,
            max_nodes=group.count if group else 1,
            nproc_per_node=devices,
            rdzv_backend="c10d",
            max_restarts=int(os.environ.get(MAX_RESTARTS) or 0),
            signals_to_handle="",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            **meeting,
        )
        try:
            elastic_launch(config, sys.executable)("-m", module)
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None
        except ChildFailedError as error:
            raise _first_failure(error.failures, devices) from None
        except RendezvousError as error:
            assert group
            raise _meeting_error(group, module, error) from None
        finally:
            logging.disable(logging.NOTSET)


def _meet(group: Nodes, module: str) -> dict[str, Any]:
    """Options of the launcher to meet those of the other machines."""
    endpoint = f"{group.host}:{group.port_of(module)}"
    if group.is_first:
        log.info("node 0 of %d: waiting for the others at %s", group.count, endpoint)
    else:
        nodes.await_first(group, module, log.info)
    os.environ[ON_FIRST_NODE] = str(int(group.is_first))
    configs = {"is_host": group.is_first, "join_timeout": nodes.JOIN_TIMEOUT_S}
    return {"rdzv_endpoint": endpoint, "local_addr": group.address, "run_id": module, "rdzv_configs": configs}


def _meeting_error(group: Nodes, module: str, error: Exception) -> DetectionError:
    """Error for launchers that have not met, or have lost each other."""
    if "Timeout" in type(error).__name__:
        minutes = nodes.JOIN_TIMEOUT_S // 60
        return DetectionError(f"not all of {group.count} machines came within {minutes} minutes; start all of them")
    if group.is_first:
        return DetectionError(f"port {group.port_of(module)} is not free here; set another one in DETECTION_RDZV")
    return DetectionError(lost_message(f"node 0 ({group.host})"))


@contextmanager
def _raise_on_signal(exception: type[Exception]) -> Iterator[None]:
    """Raise torchrun's exception on the first signal that stops only: its cleanup must not be interrupted."""
    received = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise exception("stop requested", sigval=signal.Signals(number))  # type: ignore[call-arg]

    with stop_handler(handle):
        yield


def _first_failure(failures: dict[int, Any], devices: int) -> BaseException:
    """Return the error that made the group fail; the other ranks failed because of it.

    Args:
        failures: torchrun's record of each failed rank.
        devices: Number of ranks.
    """

    def order(failure: Any) -> tuple[bool, float]:
        killed = failure.exitcode < 0
        return not _is_user_error(failure, "cause"), failure.timestamp - (KILL_REPORT_DELAY_S if killed else 0)

    first = min(failures.values(), key=order)
    if first.exitcode in [128 + number for number in STOPPING]:  # all ranks have saved and stopped
        return SystemExit(first.exitcode)
    if _is_user_error(first):
        return DetectionError(first.message["message"])
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return DetectionError(
            f"process {first.local_rank} of {devices} was killed by {name}{hint}; the last checkpoint is "
            "kept, rerun the command to resume"
        )
    message = first.message["message"] if isinstance(first.message, dict) else "no error message"
    return RuntimeError(f"process {first.local_rank} of {devices} failed:\n{message}")


def _is_user_error(failure: Any, key: str = "user_error") -> bool:
    """Return True if a rank failed with an error that the user can fix; `cause`: and no other rank has caused it."""
    return isinstance(failure.message, dict) and failure.message["extraInfo"][key]
