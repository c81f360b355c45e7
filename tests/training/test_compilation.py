import copy
import logging
import shutil
from typing import Any

import pytest
import torch

from detection.data.loading.batch import Targets
from detection.models.build import build_detector, without_weights
from detection.models.detector import Detector
from detection.models.heads import GROUP_NORM, conv_tower
from detection.params import load
from detection.training.common.ema import MovingAverage
from detection.training.compilation import compile_detector, compile_parts, is_compiled

SMALL = {"fpn_channels": 32}


def detector_of(model: str, **changes: Any) -> Detector:
    torch.manual_seed(0)
    return build_detector(without_weights(load(model=model, dataset="shapes").recipe).update(changes), 3, None).train()


def step(detector: Detector) -> tuple[dict[str, torch.Tensor], list[torch.Tensor | None]]:
    """Losses and gradients of a fixed batch, as the training loop computes them."""
    torch.manual_seed(1)
    boxes = torch.tensor([[[8.0, 8, 40, 48], [20, 4, 60, 30]]]).repeat(2, 1, 1)
    labels, mask = torch.tensor([[0, 2], [1, 1]]), torch.ones(2, 2, dtype=torch.bool)
    losses = detector(torch.rand(2, 3, 64, 64), Targets(boxes, labels, mask, torch.full((2, 2), 64)))
    torch.stack(list(losses.values())).sum().backward()
    return losses, [parameter.grad for parameter in detector.parameters()]


@pytest.mark.parametrize(
    ("setting", "determinism", "device", "expected"),
    [
        ("auto", "seeded", "cpu", False),
        ("auto", "seeded", "cuda", True),
        ("auto", "bitwise", "cuda", False),
        (True, "bitwise", "cpu", True),
        (False, "seeded", "cuda", False),
    ],
)
def test_auto_compiles_on_a_gpu(setting: bool | str, determinism: str, device: str, expected: bool) -> None:
    assert is_compiled(setting, determinism, torch.device(device)) is expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["retinanet_resnet18", "fasterrcnn_resnet18"])
def test_losses_of_the_captured_graph_are_equal(
    model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same kernels: compiling those of a whole detector takes minutes."""
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend="eager"))
    plain, compiled = detector_of(model, **SMALL), detector_of(model, **SMALL)
    compile_detector(compiled)
    average = MovingAverage(compiled, 0.9)
    expected, values = step(plain), step(compiled)
    assert list(values[0]) == list(expected[0])
    for name, loss in expected[0].items():
        torch.testing.assert_close(values[0][name], loss, rtol=1e-4, atol=1e-5)
    for gradient, other in zip(expected[1], values[1], strict=True):
        assert gradient is not None
        torch.testing.assert_close(other, gradient, rtol=1e-2, atol=1e-3)
    average.update(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert not [record for record in caplog.records if record.name.startswith("detection")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++) for torch.compile")
@pytest.mark.filterwarnings("ignore")
def test_compiled_kernels_give_equal_losses(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    head = conv_tower(32, 1, GROUP_NORM).train()
    compiled, images = copy.deepcopy(head), torch.rand(2, 32, 8, 8)
    compile_parts([compiled])
    losses = []
    for module in (head, compiled):
        loss = module(images).square().mean()
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(compiled.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert not [record for record in caplog.records if record.name.startswith("detection")]


@pytest.mark.filterwarnings("ignore")
def test_a_failing_compiler_falls_back_with_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(graph: Any, inputs: Any) -> Any:
        raise OSError("no compiler\nand more lines")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, backend=fail))
    plain, compiled = detector_of("fasterrcnn_resnet18", **SMALL), detector_of("fasterrcnn_resnet18", **SMALL)
    compile_detector(compiled)
    with caplog.at_level(logging.WARNING):
        expected, values = step(plain)[0], step(compiled)[0]
    assert all(torch.equal(values[name], expected[name]) for name in expected)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("detection")] == [
        "warning: train.compile: the compiler failed, the training is not compiled: OSError: no compiler"
    ]
