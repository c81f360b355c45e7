"""Training on several devices: one process per device, started by torchrun's launcher, joined by DDP.

    run(devices, "stages.train", device, work)

The process that DVC starts becomes the launcher: it starts `python -m stages.train` once per device, waits,
and forwards SIGINT and SIGTERM. Each of these processes, a rank, takes an equal share of every batch;
DistributedDataParallel averages the gradients during the backward pass. Only rank 0 logs, saves and reports.

Processes that torchrun, SLURM's `srun` or another launcher has started (see `Rank.from_environment`) become
ranks as they are. `work` calls `join` before its first collective, after it has forked the loaders' workers: a
child of a process with communication threads may inherit a lock that one of them holds, and wait for it forever.
"""

import hashlib
import inspect
import json
import logging
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from detection import distributed
from detection.errors import CheckpointError, DetectionError, user_message
from detection.files import LockedTemporaryDirectory
from detection.training.common.signals import STOPPING

log = logging.getLogger(__name__)
DDP_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"
"""Name of DDP's option: `broadcast_buffers` before torch 2.15."""
COLLECTIVE_TIMEOUT = timedelta(minutes=15)
"""Timeout of a collective operation. The launcher notices dead ranks of its own machine within seconds; this is for
other machines, and long enough for rank 0 to write a large checkpoint while the others wait."""
TIMED_OUT = re.compile(r"tim(ed|e) ?out", re.IGNORECASE)
"""Messages of gloo, NCCL and the store about an operation that took longer than its timeout."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
SHUTDOWN_TIMEOUT_S = "120"
"""Time for the ranks to stop: a step and the writing of a large checkpoint."""
KILL_REPORT_DELAY_S = 5
"""Delay with which a killed rank may be reported, after the errors that its death causes in other ranks."""


def run(devices: int, module: str, device: torch.device, work: Callable[[], None]) -> None:
    """Run `work` in this process, or for several devices in one process per device.

    Args:
        devices: Number of devices on this machine.
        module: Module that each process runs with `python -m`; it has to call this function again.
        device: Device of this process; gives the type.
        work: The training.

    Raises:
        DetectionError: A rank died; gives the rank and the cause.
        SystemExit: SIGTERM or SIGINT was received; the checkpoint is saved.
    """
    if rank := Rank.from_environment(os.environ):
        with _as_rank(rank, device):
            work()
    elif devices == 1:
        work()
    else:
        _launch(devices, module)


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


def join(device: torch.device) -> None:
    """Join the process group as the rank that this process is; a no-op in a process of its own."""
    if distributed.world_size() == 1 or dist.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, timeout=COLLECTIVE_TIMEOUT, rank=distributed.rank(), world_size=distributed.world_size()
    )


def check_same_start(step: int, model: nn.Module) -> None:
    """Check that all ranks start from the same step and the same weights.

    Raises:
        CheckpointError: They differ; names the first rank that does.
    """
    if distributed.world_size() == 1:
        return
    sha = hashlib.sha256()
    for value in model.state_dict().values():
        sha.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    starts = distributed.gather((step, sha.hexdigest()[:12]))
    for rank, start in enumerate(starts):
        if start != starts[0]:
            raise CheckpointError(
                "the processes start differently: "
                + ", ".join(f"rank {r} at step {s} with weights {w}" for r, (s, w) in ((0, starts[0]), (rank, start)))
                + "; use the same code, params.yaml and data on all machines"
            )


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the module to call in a training step: the model itself, or DDP around it if there are ranks.

    On GPUs, BatchNorm with live statistics is converted to SyncBatchNorm, in place. torch has none for CPUs:
    there each rank normalizes with the statistics of its share, and rank 0's running statistics are kept.
    """
    if distributed.world_size() == 1:
        return model
    # running statistics are synced, frozen or a rank's own, and each rank's meters count its own share
    options: dict[str, Any] = {SYNC_BUFFERS: False}
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        options["device_ids"] = [torch.cuda.current_device()]
    elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        ranks = distributed.world_size()
        log.info("live BatchNorm on CPUs: each of %d processes uses the statistics of its share", ranks)
    # raised for 1x1 kernels, whose memory is the same in both layouts
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(model, **options)


def broadcast_buffers(model: nn.Module) -> None:
    """Copy rank 0's running statistics to every rank, before a joint validation."""
    names = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in names and distributed.world_size() > 1:
            dist.broadcast(buffer, 0)


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
        _report(_timeout_error(error) or error)
        sys.stdout.flush()
        os._exit(1)  # a group with a dead member cannot be destroyed cleanly
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        distributed.expect(0, 1)


def _timeout_error(error: Exception) -> DetectionError | None:
    """Error for a collective that timed out; None for any other error."""
    if not isinstance(error, RuntimeError) or not TIMED_OUT.search(str(error)):
        return None
    minutes = round(COLLECTIVE_TIMEOUT.total_seconds() / 60)
    return DetectionError(
        f"rank {distributed.rank()} of {distributed.world_size()} waited {minutes} minutes for the others: one has "
        "stopped, or the network between the machines is down; rerun the command on all of them to resume"
    )


def _report(error: Exception) -> None:
    """Write the error of this rank in torchrun's format for the launcher, or without one to stderr."""
    message = user_message(error)
    text = message or "".join(traceback.format_exception(error))
    if ERROR_FILE not in os.environ:
        print(f"error: rank {distributed.rank()}: {text}", file=sys.stderr, flush=True)  # noqa: T201
        return
    extra = {"user_error": message is not None, "timestamp": str(int(time.time()))}
    content = {"message": {"message": text, "extraInfo": extra}}
    Path(os.environ[ERROR_FILE]).write_text(json.dumps(content), encoding="utf-8")


def _launch(devices: int, module: str) -> None:
    """Start the ranks and wait for them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_TIMEOUT_S)
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # works even if the host name does not resolve
    logging.disable(logging.CRITICAL)  # messages of the launcher itself; the ranks have their own logging
    with LockedTemporaryDirectory("detection-ranks-") as logs, _raise_on_signal(SignalException):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=devices,
            run_id=str(os.getpid()),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            signals_to_handle="",
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, sys.executable)("-m", module)
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None
        except ChildFailedError as error:
            raise _first_failure(error.failures, devices) from None
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def _raise_on_signal(exception: type[Exception]) -> Iterator[None]:
    """Raise torchrun's exception on the first signal that stops only: its cleanup must not be interrupted."""
    received = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise exception("stop requested", sigval=signal.Signals(number))  # type: ignore[call-arg]

    numbers = [one for one in STOPPING if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _first_failure(failures: dict[int, Any], devices: int) -> BaseException:
    """Return the error that made the group fail; the other ranks failed because of it.

    Args:
        failures: torchrun's record of each failed rank.
        devices: Number of ranks.
    """

    def order(failure: Any) -> tuple[bool, float]:
        killed = failure.exitcode < 0
        return not _is_user_error(failure), failure.timestamp - (KILL_REPORT_DELAY_S if killed else 0)

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


def _is_user_error(failure: Any) -> bool:
    """Return True if a rank failed with an error that the user can fix."""
    return isinstance(failure.message, dict) and failure.message["extraInfo"]["user_error"]
