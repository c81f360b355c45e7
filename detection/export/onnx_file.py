"""ONNX file of a detector: standard operators, any number of images, decoding and NMS included.

The network's inputs are resized and padded `images` with their sizes; with the resize inside, the only input is
`images`, uint8 RGB [B, 3, H, W] of any size. Outputs: `boxes` [B, D, 4] in pixels of the input images, `scores`
[B, D] in descending order, `labels` [B, D], and `count` [B], after which rows are zeros.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from detection.data.loading.batch import STRIDE, fill_color, pads_to_stride
from detection.export.operators import translations
from detection.export.torch_program import METADATA, has_fixed_size, quiet
from detection.files import LockedTemporaryDirectory
from detection.models.build import LoadedDetector
from detection.params.recipe import Recipe

OPSET, IR_VERSION = 18, 10
INPUTS, OUTPUTS = ("images", "resized", "original"), ("boxes", "scores", "labels", "count")


def settings(loaded: LoadedDetector, resize: str, precision: str, source: Mapping[str, str]) -> dict[str, Any]:
    """Metadata of the file: classes, how images are prepared, thresholds, and where the detector is from."""
    recipe = loaded.recipe
    return {
        "model": loaded.model,
        "architecture": recipe.architecture,
        "classes": list(loaded.classes),
        "resize": resize,
        "precision": precision,
        "mode": recipe.resize,
        "image_size": recipe.image_size,
        "max_size": recipe.max_size,
        "size_rounding": recipe.size_rounding,
        "antialias": recipe.antialias,
        "upright": loaded.upright,
        "stride": STRIDE if pads_to_stride(recipe) else 1,
        "fill": list(fill_color(recipe)),
        "score_threshold": recipe.score_threshold,
        "nms_threshold": recipe.nms_threshold,
        "detections_per_image": recipe.detections_per_image,
        **source,
    }


def write_network(
    program: ExportedProgram, path: Path, inputs: Sequence[str] = INPUTS, outputs: Sequence[str] = OUTPUTS
) -> None:
    """Write a program as it is, without the resize."""
    import onnxruntime

    with quiet(), LockedTemporaryDirectory("detection-export-") as folder:
        raw = Path(folder, "raw.onnx")
        torch.onnx.export(
            program,
            f=str(raw),
            dynamo=True,
            custom_translation_table=translations(),
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            external_data=False,
            optimize=False,
            verbose=False,
        )
        once = Path(folder, "once.onnx")
        for source, target in ((raw, once), (once, path)):  # the second time, BatchNorm is folded into convolutions
            options = onnxruntime.SessionOptions()  # folds constants and removes dead nodes, in a second
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath, options.log_severity_level = str(target), 3
            onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def finish(network: Path, path: Path, metadata: Mapping[str, Any], recipe: Recipe) -> None:
    """Write the final file: with the resize in front of the network unless it is outside, and the metadata."""
    import onnx
    from onnx import compose

    model = read_network(network)
    if metadata["resize"] == "inside":
        front = onnx.parser.parse_model(_resize_graph(recipe))
        network_model = compose.add_prefix(model, "network/", rename_outputs=False)
        pairs = [(f"batch_{name}", f"network/{name}") for name in INPUTS]
        model = compose.merge_models(front, network_model, io_map=pairs)
    while len(model.opset_import) > 1:  # both parts name it
        del model.opset_import[-1]
    save(model, path, metadata)


def read_network(path: Path) -> Any:
    """Read a file of `write_network` as an `onnx.ModelProto` of one opset, without shapes of intermediate values."""
    import onnx

    model = onnx.load(path)
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    del model.opset_import[:]  # ONNX Runtime lists all that it knows
    model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    return model


def save(model: Any, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check a model and write it with its metadata."""
    import onnx

    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(metadata)
    model.producer_name, model.doc_string = "detection", ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _resize_graph(recipe: Recipe) -> str:
    """The resize and padding of `eval_sample` and `collate`, in ONNX's text syntax.

    With antialiasing ONNX Runtime resizes uint8 as Pillow does; without, its 8-bit arithmetic is coarse, and floats
    are rounded instead: at most 1 gray level from ours, with antialiasing 2, and more in the outermost pixels.
    """
    if recipe.antialias:
        resize = 'small = Resize<mode="linear", antialias=1>(images, , , shape)'
    else:
        resize = 'f = Cast<to=1>(images) r = Resize<mode="linear">(f, , , shape) q = Round(r) small = Cast<to=2>(q)'
    if has_fixed_size(recipe):
        target = f"target = Constant<value_ints=[{recipe.image_size}, {recipe.image_size}]>()"
    else:
        limit = float(recipe.max_size or 2**31)
        rounding = "Floor" if recipe.size_rounding == "floor" else "Round"
        target = f"""
            zero = Constant<value_ints=[0]>()
            short = ReduceMin<keepdims=1>(sides, zero) long = ReduceMax<keepdims=1>(sides, zero)
            scale_1 = Div(goal, short) scale_2 = Div(limit, long) scale = Min(scale_1, scale_2)
            scaled = Mul(sides, scale) whole = {rounding}(scaled) at_least = Max(whole, one)
            target = Cast<to=7>(at_least)"""
        target = (
            f"goal_f = Constant<value_floats=[{float(recipe.image_size)}]>() goal = Cast<to=11>(goal_f)"
            f" limit_f = Constant<value_floats=[{limit}]>() limit = Cast<to=11>(limit_f)"
            f" one_f = Constant<value_floats=[1.0]>() one = Cast<to=11>(one_f) {target}"
        )
    step = STRIDE if pads_to_stride(recipe) else 1
    fill = ", ".join(str(value) for value in fill_color(recipe))
    return f"""<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]>
        resize (uint8[batch, 3, height, width] images) => (
            uint8[batch, 3, h, w] batch_images, int64[batch, 2] batch_resized, int64[batch, 2] batch_original
        ) {{
            size = Shape<start=2>(images) images_n = Shape<start=0, end=1>(images) sides = Cast<to=11>(size)
            {target}
            three = Constant<value_ints=[3]>() head = Concat<axis=0>(images_n, three)
            shape = Concat<axis=0>(head, target)
            {resize}
            step = Constant<value_ints=[{step}]>() less = Constant<value_ints=[{step - 1}]>()
            more = Add(target, less) steps = Div(more, step) padded = Mul(steps, step)
            missing = Sub(padded, target)
            first = Constant<value_ints=[0]>() second = Constant<value_ints=[1]>() end = Constant<value_ints=[2]>()
            rows = Slice(target, first, second) all_columns = Slice(padded, second, end)
            lower = Slice(missing, first, second) right = Slice(missing, second, end)
            right_shape = Concat<axis=0>(head, rows, right)
            lower_shape = Concat<axis=0>(head, lower, all_columns)
            fill_i = Constant<value_ints=[{fill}]>() fill_u = Cast<to=2>(fill_i)
            fill_shape = Constant<value_ints=[1, 3, 1, 1]>() fill = Reshape(fill_u, fill_shape)
            right_part = Expand(fill, right_shape) lower_part = Expand(fill, lower_shape)
            wide = Concat<axis=3>(small, right_part)
            batch_images = Concat<axis=2>(wide, lower_part)
            pair = Concat<axis=0>(images_n, end)
            batch_resized = Expand(target, pair)
            batch_original = Expand(size, pair)
        }}"""
