import pytest
import torch
from torch import Tensor, nn

from detection.models.backbones import Float32DepthwiseConv, make_backbone


def test_depthwise_convolutions_that_are_slow_in_bf16_run_in_float32() -> None:
    network = make_backbone("mobilenet_v3_small")
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    depthwise = [layer for layer in convolutions if layer.groups == layer.in_channels > 1]
    wide = [layer for layer in depthwise if isinstance(layer, Float32DepthwiseConv)]
    others = [layer for layer in depthwise if layer not in wide]
    assert {(layer.kernel_size[0], layer.stride[0]) for layer in wide} == {(3, 2), (5, 1), (5, 2)}
    assert {(layer.kernel_size[0], layer.stride[0]) for layer in others} == {(3, 1)}


def test_float32_depthwise_output_has_autocasts_dtype() -> None:
    torch.manual_seed(0)
    layer, plain = (nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False) for _ in range(2))
    plain.load_state_dict(layer.state_dict())
    layer.__class__ = Float32DepthwiseConv
    x = torch.randn(2, 8, 9, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result: Tensor = layer(x)
    expected: Tensor = plain(x.float())
    (ours,) = torch.autograd.grad(result.float().sum(), layer.weight)
    (theirs,) = torch.autograd.grad(expected.bfloat16().float().sum(), plain.weight)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, expected.bfloat16())
    assert torch.equal(ours, theirs)
    assert torch.equal(layer(x.float()), expected)  # without autocast


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_other_backbones_have_no_float32_depthwise_convolutions(name: str) -> None:
    with torch.device("meta"):
        network = make_backbone(name)
    assert not any(isinstance(layer, Float32DepthwiseConv) for layer in network.modules())
