"""ONNX files: standard operators, metadata, the resize inside, dynamic sizes, and the check that refuses a bad file."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

import detection
from detection.cli import main
from detection.data.loading.batch import collate
from detection.data.loading.loader import eval_sample
from detection.errors import DataError, VerificationError
from detection.export import agreement, onnx_file, torch_program
from detection.export.agreement import OnnxDetector, check
from detection.export.checked import Options, require_packages
from detection.export.precision import TOLERANCES, Tolerance
from detection.models.build import LoadedDetector
from detection.models.retinanet import RetinaNet
from detection.params import load
from detection.predictor import Predictor
from tests.export.conftest import SMALL


@pytest.fixture(scope="module")
def exported(detector_file: Path, image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `detection export`, with the resize inside; beside it `network.onnx`, without."""
    out = tmp_path_factory.mktemp("export") / "folder"
    write = onnx_file.write_network

    def write_and_keep(program: ExportedProgram, path: Path, *names: Sequence[str]) -> None:
        write(program, path, *names)
        if path.name == "network.onnx":
            shutil.copy(path, out.parent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "write_network", write_and_keep)
        main(["export", str(detector_file), "--out", str(out), "--images", str(image_folder), "--core"])
    return out


def test_the_file_has_standard_operators_and_says_what_it_is(exported: Path, detector_file: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["core.onnx", "detector.onnx", "infer.py"]
    model = onnx.load(exported / "detector.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert [(one.domain, one.version) for one in model.opset_import] == [("", onnx_file.OPSET)]
    (entry,) = model.metadata_props
    values = json.loads(entry.value)
    assert (values["model"], values["classes"]) == ("retinanet_resnet18", ["ring", "cross", "leaf"])
    assert values["source"] == str(detector_file)
    session = onnxruntime.InferenceSession(exported / "detector.onnx")
    assert [(one.name, one.type) for one in session.get_inputs()] == [("images", "tensor(uint8)")]
    assert [one.name for one in session.get_outputs()] == list(onnx_file.OUTPUTS)


def test_images_of_any_size_and_number_give_the_detectors_boxes(
    exported: Path, random_detector: Callable[..., LoadedDetector], images: list[Tensor]
) -> None:
    session = onnxruntime.InferenceSession(exported / "detector.onnx")
    predictor = Predictor(random_detector(**SMALL))
    for pixels in (torch.stack(images[:2]), images[2][None], torch.stack([images[3]] * 3)):
        boxes, scores, _, counts = session.run(None, {"images": pixels.numpy()})
        for i, image in enumerate(pixels):
            (ours,) = predictor.predict(image, score_threshold=0.0)
            top = ours.boxes[:5]
            assert counts[i] > 5
            np.testing.assert_allclose(scores[i, :5], ours.scores[:5], atol=0.02)  # pixels differ by a gray level
            nearest = np.abs(boxes[i][None] - top[:, None]).max(2).min(1)
            assert nearest.max() < 2
            assert (boxes[i, : counts[i]] <= [image.shape[2], image.shape[1]] * 2).all()


def test_the_script_needs_nothing_of_this_package(exported: Path, image_folder: Path) -> None:
    script = (exported / "infer.py").read_text().replace("SCORE_THRESHOLD = 0.5", "SCORE_THRESHOLD = 0.0")
    (exported / "all.py").write_text(script + "\nassert not {'torch', 'detection'} & set(sys.modules)\n")
    command = [sys.executable, "-I", str(exported / "all.py"), str(image_folder / "0.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (exported / "all.py").unlink()
    (exported / "none.py").write_text(script.replace("SCORE_THRESHOLD = 0.0", "SCORE_THRESHOLD = 1.1"))
    command[2] = str(exported / "none.py")
    none = subprocess.run(command, capture_output=True, text=True, check=True)
    (exported / "none.py").unlink()
    assert none.stdout == f"{image_folder / '0.png'}: no detections of a score of at least 1.1\n"
    assert done.stdout.startswith(f"{image_folder / '0.png'}: ")
    assert done.stdout.split(": ")[1].split()[0] in ("ring", "cross", "leaf")


def test_a_file_of_another_detector_is_refused(
    exported: Path, random_detector: Callable[..., LoadedDetector], images: list[Tensor]
) -> None:
    loaded = random_detector(**SMALL)
    runtime = OnnxDetector(exported.parent / "network.onnx", threads=1)
    found = check(loaded, runtime, images)
    assert found.detections > 0
    assert found.box < agreement.MAX_BOX_DIFFERENCE
    with pytest.raises(VerificationError, match="disagrees"):
        check(random_detector(**SMALL, seed=1), runtime, images)


def test_a_failed_check_leaves_no_file(
    exported: Path, detector_file: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_program, "trace", lambda *args, **options: None)
    monkeypatch.setattr(onnx_file, "write_network", lambda _, path: shutil.copy(exported.parent / "network.onnx", path))
    monkeypatch.setattr(agreement, "MAX_BOX_DIFFERENCE", -1.0)
    with pytest.raises(SystemExit, match="error: the exported file cannot be compared: rounding alone changes"):
        main(["export", str(detector_file), "--out", str(tmp_path / "out"), "--images", str(image_folder)])
    assert not (tmp_path / "out").exists()


def test_the_core_gives_the_raw_outputs_and_their_anchors(
    exported: Path, random_detector: Callable[..., LoadedDetector]
) -> None:
    session = onnxruntime.InferenceSession(exported / "core.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["detection"])["resize"] == "outside"
    assert {node.domain for node in onnx.load(exported / "core.onnx").graph.node} <= {"", "ai.onnx"}
    detector = cast(RetinaNet, random_detector(**SMALL).detector)
    pixels = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    logits, deltas, anchors = session.run(None, {"images": pixels.numpy()})
    assert [one.name for one in session.get_outputs()] == ["cls_logits", "bbox_regression", "anchors"]
    with torch.inference_mode():
        expected, features = detector.core(pixels), detector.features(pixels)
        own_anchors, _ = detector.anchors.for_batch(features, pixels)
    np.testing.assert_allclose(logits, expected["cls_logits"], atol=1e-4)
    np.testing.assert_allclose(deltas, expected["bbox_regression"], atol=1e-4)
    np.testing.assert_allclose(anchors, own_anchors, atol=1e-4)


@pytest.mark.parametrize(("precision", "kind", "share"), [("fp16", onnx.TensorProto.FLOAT16, 0.6), ("int8", 3, 0.4)])
def test_lower_precisions(
    precision: str,
    kind: int,
    share: float,
    exported: Path,
    detector_file: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch_program, "trace", lambda *args, **options: None)
    monkeypatch.setattr(onnx_file, "write_network", lambda _, path: shutil.copy(exported.parent / "network.onnx", path))
    command = ["export", str(detector_file), "--out", str(tmp_path), "--images", str(image_folder)]
    main([*command, "--precision", precision])
    assert re.search(rf"in {precision}, [1-9]\d* of \d+ detections match", capsys.readouterr().out)
    model = onnx.load(tmp_path / "detector.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert json.loads(model.metadata_props[0].value)["precision"] == precision
    assert (tmp_path / "detector.onnx").stat().st_size < share * (exported / "detector.onnx").stat().st_size
    weights = [one for one in model.graph.initializer if np.prod(one.dims) > 500 and len(one.dims) == 4]
    assert {one.data_type for one in weights} == {kind}
    monkeypatch.setitem(TOLERANCES, precision, Tolerance(unmatched=-0.01, ap=0))
    (tmp_path / "detector.onnx").unlink()
    with pytest.raises(SystemExit, match=rf"in {precision}, \d+ of \d+ detections differ; export in fp32"):
        main([*command, "--precision", precision])
    assert not (tmp_path / "detector.onnx").exists()
    with pytest.raises(SystemExit, match="leave out --to pt2"):
        main([*command, "--precision", precision, "--to", "pt2"])


def test_errors_before_anything_is_exported(
    detector_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="--images FOLDER"):
        main(["export", str(detector_file)])
    with pytest.raises(DataError, match="--images FOLDER"):
        detection.load(detector_file, device="cpu").export(tmp_path / "export")
    with pytest.raises(SystemExit, match=r"missing\.pt does not exist"):
        main(["export", "missing.pt"])
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    with pytest.raises(SystemExit, match=r"broken\.pt is not a detector's file"):
        main(["export", "broken.pt"])
    with pytest.raises(DataError, match="pip install no-such-package"):
        require_packages("no-such-package")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("model", ["fasterrcnn_resnet18", "fasterrcnn", "fasterrcnn_vgg16", "ssd300"])
def test_the_resize_inside_has_the_same_sizes_and_almost_the_same_pixels(
    model: str, antialias: bool, images: list[Tensor]
) -> None:
    recipe = replace(load(model=model, dataset="shapes").recipe, antialias=antialias)
    front = onnx.parser.parse_model(onnx_file._resize_graph(recipe))
    session = onnxruntime.InferenceSession(front.SerializeToString())
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(20, 500, (8, 2), generator=generator).tolist()
    others = [torch.nn.functional.interpolate(images[0][None].float(), side).to(torch.uint8)[0] for side in sides]
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for image in images + others:
        batch = collate([eval_sample(image, *none, 0, recipe)], recipe)
        pixels, resized, original = session.run(None, {"images": image[None].numpy()})
        assert resized.tolist() == batch.sizes.resized.tolist()
        assert original.tolist() == batch.sizes.original.tolist()
        assert pixels.shape == batch.images.shape
        assert np.abs(pixels.astype(int) - batch.images.numpy().astype(int)).max() <= 3


@pytest.mark.parametrize(("name", "value"), [("to", "onx"), ("resize", "in"), ("precision", "fp15")])
def test_an_unknown_option_names_the_possible_ones(name: str, value: Any) -> None:
    with pytest.raises(DataError, match=f"{name}: unknown value '{value}'"):
        Options(**{name: value})
