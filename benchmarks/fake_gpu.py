"""Training steps on fake CUDA tensors, which have a shape, a dtype, a layout and a device, but no data and no GPU.

torch's `FakeTensorMode` runs every operation's shape function. Two parts of torch still require a GPU:
`torch.autocast`, whose check is patched, and autograd's engine, which has a thread per GPU. Here the graph is walked in
Python instead, in the engine's order.

Reading a value of a fake tensor raises an error. A training step that runs therefore synchronizes with the GPU only in
non-maximum suppression and in blocking copies, which are counted.
"""

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from detection.ops import nms

VIEWS = frozenset(
    re.findall(
        r"\w+",
        "alias as_strided chunk detach device diagonal empty empty_like empty_strided expand is_same_size "
        "lift_fresh narrow new_empty new_empty_strided permute reshape select slice split split_with_sizes "
        "squeeze t transpose unbind unsafe_split unsqueeze view _reshape_alias _unsafe_view ",
    )
)
"""Operations that move no data."""


@dataclass
class Traffic:
    """Counters of a step's operations on GPU tensors."""

    ops: Counter[str] = field(default_factory=Counter)
    """Operations by name, without views: about the kernels that are started."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Bytes of all inputs and outputs, by name of the operation."""
    by_dtype: Counter[str] = field(default_factory=Counter)
    """The same bytes by dtype."""
    waits: list[str] = field(default_factory=list)
    """Operations for which the host waits for the GPU."""
    peak: int = 0
    """Largest number of bytes of live tensors, without those of cuDNN and of the allocator."""


class TrafficMeter(TorchDispatchMode):
    """Count operations, bytes, host synchronizations and live memory.

    Args:
        live: Tensors that exist from the start, such as weights.
    """

    def __init__(self, live: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic = Traffic()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bytes = 0
        self._allocate(live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._allocate(outputs)
        name = func._schema.name.partition("::")[2]
        if name.rstrip("_") in VIEWS or name in VIEWS:
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)] + outputs
        if any(tensor.device.type == "cuda" for tensor in tensors):
            self._count(name, tensors, args, kwargs)
        return result

    def _count(self, name: str, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        traffic = self.traffic
        traffic.ops[name] += 1
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            traffic.bytes[name] += size
            traffic.by_dtype[str(tensor.dtype).removeprefix("torch.")] += size
        if name in ("_to_copy", "copy_") and len({tensor.device.type for tensor in tensors}) > 1:
            non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2])
            if not non_blocking:
                traffic.waits.append(f"{name} {tuple(tensors[-1].shape)}")

    def _allocate(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            if tensor.device.type != "cuda":
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            held = self._live.get(key)
            if held is None or held[0].expired():
                self._bytes += storage.nbytes() - (held[1] if held else 0)
                self._live[key] = StorageWeakRef(storage), storage.nbytes()
        if self._bytes > self.traffic.peak:  # else the peak stands, whatever has been freed
            for key in [key for key, (storage, _) in self._live.items() if storage.expired()]:
                self._bytes -= self._live.pop(key)[1]
            self.traffic.peak = max(self.traffic.peak, self._bytes)


@contextmanager
def fake_gpu(image_size: tuple[int, int] = (0, 0)) -> Iterator[torch.device]:
    """Make and run fake tensors: on the CPU, and on the device of the context, a GPU that does not exist.

    Args:
        image_size: Height and width that detection reads as those of each image.

    Yields:
        The GPU.
    """
    with ExitStack() as stack:
        for target, value in (
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            ("torch.cuda.is_bf16_supported", lambda *_, **__: True),
            ("torch.autograd._engine_run_backward", walk_graph),
            ("torch._C._select_conv_backend", lambda *_, **__: None),
            ("torch._C._conv_determine_backend_memory_format", _conv_layout),
        ):
            stack.enter_context(mock.patch(target, value))
        stack.enter_context(mock.patch.object(nms, "_in_parallel", _fake_nms))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", _fake_lists(image_size)))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(_Saved, _Saved.unpack))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(mock.patch.object(FakeTensor, "__deepcopy__", _deep_copy))
        yield torch.device("cuda")


def _conv_layout(images: Tensor, weight: Tensor, backend: None) -> torch.memory_format:
    """Layout of cuDNN's results: channels_last if the images or the weights have it."""
    return max(map(_layout, (images, weight)), key=lambda layout: layout == torch.channels_last)


def _layout(tensor: Tensor) -> torch.memory_format:
    last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def move(module: nn.Module, device: torch.device) -> None:
    """Replace the parameters and buffers of a module of fake tensors by others on a device, in channels_last.

    `Module.to` swaps parameters in place, which fake ones do not allow.
    """
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(_moved(parameter.detach(), device), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _moved(buffer, device)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return tensor.to(device, memory_format=layout)


def _waiting(name: str) -> None:
    """Count a host synchronization in the innermost meter."""
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        if isinstance(mode, TrafficMeter):
            mode.traffic.waits.append(name)


def _fake_nms(boxes: Tensor, scores: Tensor, group: Tensor, groups: int, valid: Tensor, threshold: float) -> Tensor:
    """Keep all boxes; the real suppression, whose work depends on the boxes, waits."""
    _waiting("nms")
    return valid.clone()


def _fake_lists(image_size: tuple[int, int]) -> Callable[[Tensor], list[list[int]]]:
    """Make `Tensor.tolist` for the two places that read values.

    On the CPU, sizes of images; on the GPU the two rows of `nms_and_rescale`: ten detections, and none is lacking.
    """

    def tolist(values: Tensor) -> list[list[int]]:
        assert values.dim() == 2, "a fake tensor's values are read"
        if values.device.type == "cpu":
            return [list(image_size)] * len(values)
        assert len(values) == 2, "a fake tensor's values are read"
        _waiting("tolist")
        return [[10] * values.shape[1], [0] * values.shape[1]]

    return tolist


def _deep_copy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Copy a tensor or parameter; torch's own copy reads the memory that a fake tensor does not have."""
    copied = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(copied, tensor.requires_grad)
    memo[id(tensor)] = copied
    return copied


class _Saved:
    """Tensor saved for the backward pass, which is freed as the engine does: when its node has run."""

    unpacked: "list[_Saved]" = []  # noqa: RUF012 - of the node that is running

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def unpack(self) -> Tensor:
        assert self.tensor is not None, "the graph is used twice"
        self.unpacked.append(self)
        return self.tensor


def walk_graph(roots: Sequence[Tensor], root_gradients: Sequence[Tensor], *_: Any, **__: Any) -> tuple[()]:
    """Run the backward pass from `roots` and add to the leaves' `grad`, node by node in the engine's order.

    In the place of torch's `_engine_run_backward`. Hooks of tensors and nodes are not run.
    """
    nodes: list[Any] = [root.grad_fn for root in roots]
    waiting: Counter[Any] = Counter()
    seen, stack = set(nodes), list(nodes)
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    del seen
    inputs: dict[Any, dict[int, Tensor]] = {}
    for root, root_gradient in zip(roots, root_gradients, strict=True):
        inputs.setdefault(root.grad_fn, {})[root.output_nr] = root_gradient
    ready = [(-node._sequence_nr(), i, node) for i, node in enumerate(nodes) if not waiting[node]]
    count = len(ready)
    results: Any = None
    with torch.no_grad():
        while ready:
            node = heapq.heappop(ready)[2]
            results = _run_node(node, inputs.pop(node, {}))
            for (target, slot), gradient in zip(node.next_functions, results, strict=False):  # may return more
                if target is None:
                    continue
                if gradient is not None:
                    held, gradient = inputs.setdefault(target, {}), _as_output(gradient, target._input_metadata[slot])
                    held[slot] = held[slot] + gradient if slot in held else gradient
                waiting[target] -= 1
                if not waiting[target]:
                    heapq.heappush(ready, (-target._sequence_nr(), count, target))
                    count += 1
            results = gradient = None  # freed before the next node runs
    return ()


def _run_node(node: Any, inputs: dict[int, Tensor]) -> Sequence[Tensor | None]:
    """Gradients of a node's inputs from those of its outputs, by their position."""
    if not inputs:
        return [None] * len(node.next_functions)
    if hasattr(node, "variable"):  # a leaf
        _accumulate(node.variable, inputs[0])
        return []
    arguments: list[Any] = [inputs.pop(i, None) for i in range(len(node._input_metadata))]
    results = (
        node.apply(*arguments) if isinstance(node, torch.autograd.function.BackwardCFunction) else node(*arguments)
    )
    for saved in _Saved.unpacked:
        saved.tensor = None
    _Saved.unpacked.clear()
    return results if isinstance(results, tuple) else (results,)


def _as_output(gradient: Tensor, output: Any) -> Tensor:
    """Gradient with the dtype and the shape of the output that it belongs to, summed over what was broadcast."""
    if tuple(gradient.shape) != tuple(output.shape):
        gradient = gradient.sum_to_size(output.shape)
    return gradient.to(output.dtype)


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    """Add to a leaf's `grad`, which has the leaf's layout."""
    if leaf.grad is not None:
        leaf.grad.add_(gradient)
    elif gradient.stride() == leaf.stride():
        leaf.grad = gradient.detach()
    else:
        leaf.grad = torch.empty_like(leaf).copy_(gradient)
