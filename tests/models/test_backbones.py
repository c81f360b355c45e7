import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import BatchNorm2d
from torchvision.ops import FrozenBatchNorm2d

from detection.models.backbones import (
    Float32DepthwiseConv,
    FrozenBatchNorm,
    FrozenStatsBatchNorm,
    NormalizedConv,
    fuse_fixed_norms,
    make_backbone,
)


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


@pytest.mark.parametrize("bn", ["frozen", "frozen_stats"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_applies_the_fixed_norm_behind_it(bn: str, bias: bool) -> None:
    torch.manual_seed(0)
    norm = (FrozenBatchNorm if bn == "frozen" else FrozenStatsBatchNorm)(16)
    theirs = nn.Sequential(nn.Conv2d(8, 16, 3, bias=bias), FrozenBatchNorm2d(16) if bn == "frozen" else BatchNorm2d(16))
    for name, tensor in theirs[1].state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(16) + 0.5 if name.endswith(("var", "weight")) else torch.randn(16))
    ours = nn.Sequential(nn.Conv2d(8, 16, 3, bias=bias), norm)
    keys = list(ours.state_dict())
    fuse_fixed_norms(ours)
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == keys
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}
    x = torch.randn(2, 8, 9, 7, requires_grad=True)
    theirs.eval()  # the statistics stay
    compared = [ours.train(), copy.deepcopy(ours)]
    expected = theirs(x)
    wanted = torch.autograd.grad(expected.square().sum(), [x, *theirs.parameters()])
    for one in compared:
        actual = one(x)
        for ours_, theirs_ in zip(
            (actual, *torch.autograd.grad(actual.square().sum(), [x, *one.parameters()])),
            (expected, *wanted),
            strict=True,
        ):
            assert (ours_ - theirs_).abs().max() <= 2e-6 * theirs_.abs().max()
    norm.state_dict()["running_var"].mul_(4)
    assert not torch.equal(ours(x), compared[1](x)), "the copy has its own norm"
    with torch.autocast("cpu", torch.bfloat16):
        low = ours(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), ours(x), rtol=2e-2, atol=2e-2)


def test_a_fixed_norm_without_a_convolution_is_refused() -> None:
    with pytest.raises(TypeError, match="no convolution before FrozenBatchNorm"):
        fuse_fixed_norms(nn.Sequential(nn.ReLU(), FrozenBatchNorm(4)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v3_large"])
def test_frozen_backbones_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    ours = make_backbone(name, bn="frozen").eval()
    theirs = torchvision.models.get_model(name, weights=None, norm_layer=FrozenBatchNorm2d).eval()
    for key, tensor in ours.state_dict().items():
        if "running" in key:
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert sum(isinstance(layer, NormalizedConv) for layer in ours.modules()) == sum(
        isinstance(layer, FrozenBatchNorm) for layer in ours.modules()
    )


def test_no_layer_of_a_frozen_backbone_leaves_autocasts_dtype() -> None:
    network, dtypes = make_backbone("resnet18", bn="frozen"), set[torch.dtype]()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ReLU | FrozenBatchNorm2d):
            module.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert dtypes == {torch.bfloat16}
