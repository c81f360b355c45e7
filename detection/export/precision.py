"""ONNX networks with weights of half precision or 8-bit integers.

Backbone and heads are converted; normalization, anchors, decoding, RoIAlign and suppression stay in float32.
"""

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CALIBRATION_IMAGES = 64
HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
CHEAP = {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Add", "Mul", "Concat", "Flatten"}
CHEAP |= {"BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Resize"}
"""Operators that follow the heavy ones in their precision, if one of their inputs has it."""
FLOAT_FIRST = {"Resize", "ReduceMean"}
"""Those of `CHEAP` whose first input alone is of the precision."""
Feed = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Accepted difference of a converted network."""

    unmatched: float
    """Share of the confident detections (`agreement.CONFIDENT`) without a counterpart."""
    ap: float
    """Loss of AP."""


TOLERANCES = {"fp16": Tolerance(unmatched=0.02, ap=0.002), "int8": Tolerance(unmatched=0.2, ap=0.02)}


def convert(network: Path, precision: str, feeds: Iterable[Feed]) -> None:
    """Convert a file of `onnx_file.write_network` in place.

    Args:
        network: The file.
        precision: `fp16` or `int8`.
        feeds: Inputs that the ranges of int8 values are calibrated on.
    """
    import onnx

    from detection.export.onnx_file import read_network

    model = read_network(network)
    for i, node in enumerate(model.graph.node):
        node.name = f"node_{i}"
    names = _converted_nodes(model)
    if precision == "fp16":
        _to_half(model, names)
        onnx.save(model, network)
        return
    from onnxruntime import quantization

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice to run its preprocessing first
    try:
        with np.errstate(invalid="ignore"):  # ranges of padded scores, -inf, which are not quantized
            quantization.quantize_static(
                model,
                network,
                _Calibration(iter(feeds)),
                op_types_to_quantize=sorted({node.op_type for node in model.graph.node if node.name in names}),
                nodes_to_quantize=sorted(names),
                per_channel=True,
                reduce_range=True,  # 7-bit weights: sums of 8-bit products saturate on processors without VNNI
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
    finally:
        logging.disable(before)


def _converted_nodes(model: Any) -> set[str]:
    """Names of the heavy nodes, and of the cheap ones between and behind them."""
    converted: set[str] = set()
    names: set[str] = set()
    for node in model.graph.node:
        if node.op_type in HEAVY or (node.op_type in CHEAP and not converted.isdisjoint(node.input)):
            names.add(node.name)
            converted.update(node.output)
    return names


def _to_half(model: Any, names: Collection[str]) -> None:
    """Run the named nodes in float16, with casts where their values come from others or go to them.

    `onnxruntime.transformers.float16` would also cast every value between the other nodes to float16 and back, which
    rounds boxes to half a pixel.
    """
    from onnx import TensorProto, helper, numpy_helper

    weights = {one.name: one for one in model.graph.initializer}
    half: dict[str, str] = {}
    outputs = {name for node in model.graph.node if node.name in names for name in node.output}
    outside = {name for node in model.graph.node if node.name not in names for name in node.input}
    outside |= {one.name for one in model.graph.output}
    nodes = []
    for node in model.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if not name or (i and node.op_type in FLOAT_FIRST):
                continue
            if name not in half:
                half[name] = f"{name}_half"
                if name in weights:
                    values = numpy_helper.to_array(weights[name]).astype(np.float16)
                    model.graph.initializer.append(numpy_helper.from_array(values, half[name]))
                elif name not in outputs:
                    nodes.append(helper.make_node("Cast", [name], [half[name]], to=TensorProto.FLOAT16))
            node.input[i] = half[name]
        nodes.append(node)
        for i, name in enumerate(node.output):
            half[name] = node.output[i] = f"{name}_half"
            if name in outside:
                nodes.append(helper.make_node("Cast", [half[name]], [name], to=TensorProto.FLOAT))
    used = {name for node in nodes for name in node.input}
    kept = [one for one in model.graph.initializer if one.name in used]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


class _Calibration:
    """Reader of `quantize_static`."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> dict[str, Any] | None:
        """Inputs of one run; None at the end."""
        feed = next(self._feeds, None)
        return None if feed is None else {name: np.ascontiguousarray(value) for name, value in feed.items()}
