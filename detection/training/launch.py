"""One training on several devices: as many processes, started by torchrun's own launcher, joined by DDP.

    run(devices, "stages.train", device, work)

The process that DVC starts becomes the launcher: it starts `python -m stages.train` once a device, waits, and
passes on Ctrl-C and SIGTERM. Each of those, a rank, takes its equal share of every batch; the gradients are
averaged while they are made (DistributedDataParallel). Only rank 0 logs, saves and reports.
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
from detection.training.checkpoint import Checkpoints

log = logging.getLogger(__name__)
# Running statistics are synced, frozen or a rank's own, and each rank's meters count its own share.
DDP_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
BUFFERS = (
    "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"
)  # torch < 2.15
PATIENCE = timedelta(days=1)  # the launcher sees a rank that dies; waiting for one that works is no fault
SHUTDOWN_S = "120"  # a step may take that long, and a checkpoint be large
NOTICED_S = 5  # a killed rank is noticed up to so much later than the errors that its death causes


def run(devices: int, module: str, device: torch.device, work: Callable[[], None]) -> None:
    """Do `work` on so many devices of this machine: here, or in a process for each.

    Args:
        devices: How many.
        module: What `python -m` starts in each process; it comes to call this function again.
        device: Their kind.
        work: A training.

    Raises:
        DetectionError: A rank died; says which and why.
        SystemExit: After SIGTERM or Ctrl-C, once the state is saved.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        with _joined(device):
            work()
    elif devices == 1:
        work()
    else:
        _launch(devices, module)


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """What is called in a training step: the model, or among ranks DDP around it.

    On GPUs live BatchNorm is turned into SyncBatchNorm, in place. On CPUs torch has none: each rank
    normalises with the statistics of its own share, and rank 0's running statistics are kept.
    """
    if distributed.world_size() == 1:
        return model
    options: dict[str, Any] = {BUFFERS: False}
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        options["device_ids"] = [torch.cuda.current_device()]
    elif any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        log.info(
            "BatchNorm is live: each of %d processes uses its own share's statistics",
            distributed.world_size(),
        )
    # of 1x1 kernels, whose memory is the same in either layout
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return nn.parallel.DistributedDataParallel(model, **options)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's running statistics, before they score together."""
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in kept and distributed.world_size() > 1:
            dist.broadcast(buffer, 0)


def checkpoints(stage: str, key: str) -> Checkpoints:
    """The checkpoints of a key: rank 0 holds and writes them, the others read what it has written."""
    return Checkpoints(stage, key) if distributed.is_main() else ReadOnlyCheckpoints(stage, key)


class ReadOnlyCheckpoints(Checkpoints):
    """Checkpoints as the other ranks see them: never locked, never written."""

    @contextmanager
    def held(self) -> Iterator["Checkpoints"]:
        """Wait until rank 0 holds the folder."""
        distributed.barrier()
        yield self

    def save(self, name: str, state: Any) -> None:
        """Nothing."""

    def keep_only(self, name: str, pattern: str) -> None:
        """Nothing."""

    def training(self) -> str:
        """Nobody asks."""
        return ""

    def mark_complete(self) -> None:
        """Nothing."""


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Where rank 0 writes; the others write to a folder that is thrown away."""
    if distributed.is_main():
        yield path
        return
    with LockedTemporaryDirectory("detection-rank-") as scratch:
        yield Path(scratch)


@contextmanager
def _joined(device: torch.device) -> Iterator[None]:
    """Be one of the ranks; an error goes to the launcher, which tells the one that came first."""
    try:
        if device.type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"])))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        if not distributed.is_main():
            logging.disable(logging.WARNING)
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        yield
    except Exception as error:
        _record(error)
        sys.stdout.flush()
        os._exit(1)  # a group with a dead member cannot be left in good order
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _record(error: Exception) -> None:
    """Write what the launcher reads of a rank that fails."""
    told = user_message(error)
    text = told or "".join(traceback.format_exception(error))
    extra = {"known": told is not None, "timestamp": str(int(time.time()))}
    content = {"message": {"message": text, "extraInfo": extra}}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(content), encoding="utf-8")


def _launch(devices: int, module: str) -> None:
    """Start the ranks and wait for them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_S)
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host name need not resolve
    logging.disable(logging.CRITICAL)  # the launcher's own talk; the ranks have theirs
    with LockedTemporaryDirectory("detection-ranks-") as logs, _signals(SignalException):
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
        except SignalException as stopped:
            raise SystemExit(128 + stopped.sigval) from None
        except ChildFailedError as failed:
            raise _reason(failed.failures, devices) from None
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def _signals(exception: type[Exception]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into torchrun's exception; a second must not cut its tidying short."""
    asked = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) == 1:
            raise exception("asked to stop", sigval=signal.Signals(number))  # type: ignore[call-arg]

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(failures: dict[int, Any], devices: int) -> BaseException:
    """What made the group fail, out of what each of its ranks left: the others only fell over the first."""

    def order(failure: Any) -> tuple[bool, float]:
        killed = failure.exitcode < 0
        return not _known(failure), failure.timestamp - (NOTICED_S if killed else 0)

    first = min(failures.values(), key=order)
    if first.exitcode in (128 + signal.SIGINT, 128 + signal.SIGTERM):  # a rank was asked, and all have saved
        return SystemExit(first.exitcode)
    if _known(first):
        return DetectionError(first.message["message"])
    if first.exitcode < 0:
        name = signal.Signals(-first.exitcode).name
        why = " (was memory short?)" if name == "SIGKILL" else ""
        return DetectionError(
            f"process {first.local_rank} of {devices} was ended by {name}{why}; the last checkpoint is kept, "
            "and the same command goes on from there"
        )
    told = first.message["message"] if isinstance(first.message, dict) else "it left no word"
    return RuntimeError(f"process {first.local_rank} of {devices} failed:\n{told}")


def _known(failure: Any) -> bool:
    """Whether a rank ended with an error that a person can mend."""
    return isinstance(failure.message, dict) and failure.message["extraInfo"]["known"]
