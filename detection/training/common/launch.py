"""Training on several devices: one process per device, started by torchrun's launcher, joined by DDP.

    run(devices, "stages.train", device, work)

The process that DVC starts becomes the launcher: it starts `python -m stages.train` once per device, waits,
and forwards SIGINT and SIGTERM. Each of these processes, a rank, takes an equal share of every batch;
DistributedDataParallel averages the gradients during the backward pass. Only rank 0 logs, saves and reports.
"""

import inspect
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from detection import distributed
from detection.errors import DetectionError, user_message
from detection.files import LockedTemporaryDirectory

log = logging.getLogger(__name__)
DDP_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"
"""Name of DDP's option: `broadcast_buffers` before torch 2.15."""
COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Timeout of a collective operation. The launcher notices dead ranks; a slow rank is not an error."""
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
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with _process_group(device):
            work()
    elif devices == 1:
        work()
    else:
        _launch(devices, module)


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
def _process_group(device: torch.device) -> Iterator[None]:
    """Join the process group as a rank; an error is written for the launcher, which reports the first one."""
    try:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        if not distributed.is_main():
            logging.disable(logging.WARNING)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        yield
    except Exception as error:
        _write_error_file(error)
        sys.stdout.flush()
        os._exit(1)  # a group with a dead member cannot be destroyed cleanly
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _write_error_file(error: Exception) -> None:
    """Write the error of this rank in torchrun's format, for the launcher."""
    message = user_message(error)
    extra = {"user_error": message is not None, "timestamp": str(int(time.time()))}
    text = message or "".join(traceback.format_exception(error))
    content = {"message": {"message": text, "extraInfo": extra}}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")


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
    """Raise torchrun's exception on the first SIGINT or SIGTERM only: its cleanup must not be interrupted."""
    received = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise exception("stop requested", sigval=signal.Signals(number))  # type: ignore[call-arg]

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
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
    if first.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # all ranks have saved and stopped
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
