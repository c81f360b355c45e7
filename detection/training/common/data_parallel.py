"""Data-parallel training: each rank computes its part of a batch, DistributedDataParallel averages the gradients."""

import hashlib
import inspect
import logging
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from detection import distributed
from detection.errors import CheckpointError

log = logging.getLogger(__name__)
DDP_OPTIONS = inspect.signature(nn.parallel.DistributedDataParallel).parameters
SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in DDP_OPTIONS else "broadcast_buffers"
"""Name of DDP's option: `broadcast_buffers` before torch 2.15."""


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
