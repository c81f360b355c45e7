import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detection.models.backbones import Float32DepthwiseConv, FrozenBatchNorm, _FixedBatchNorm, make_backbone


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


def test_frozen_batch_norm_is_torchvisions_and_keeps_bfloat16() -> None:
    torch.manual_seed(0)
    theirs, ours = FrozenBatchNorm2d(16), FrozenBatchNorm(16)
    for name, buffer in theirs.named_buffers():
        buffer.copy_(torch.rand(16) + 0.5 if name.endswith(("var", "weight")) else torch.randn(16))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 16, 9, 7, requires_grad=True)
    expected, actual = theirs(x), ours(x)
    (a,), (b,) = (torch.autograd.grad(y.square().sum(), x) for y in (actual, expected))
    for one, other in ((actual, expected), (a, b)):
        assert (one - other).abs().max() <= 2.4e-7 * other.abs().max()
    low = x.detach().bfloat16()
    assert (ours(low).dtype, theirs(low).dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(ours(low).float(), theirs(low), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("trainable", [(), ("weight",), ("weight", "bias")])
def test_gradient_by_fixed_statistics_is_torchs_in_the_inputs_layout(trainable: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 7).to(memory_format=torch.channels_last).requires_grad_()
    mean, var = torch.randn(16), torch.rand(16) + 0.5
    weight, bias = torch.rand(16) + 0.5, torch.randn(16)
    for name in trainable:
        {"weight": weight, "bias": bias}[name].requires_grad_()
    inputs = [one for one in (x, weight, bias) if one.requires_grad]
    upstream = torch.randn_like(x)
    ours = _FixedBatchNorm.apply(x, mean, var, weight, bias, 1e-5)
    theirs = nn.functional.batch_norm(x, mean, var, weight, bias, False, 0.0, 1e-5)
    assert torch.equal(ours, theirs)
    for a, b in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert a.stride() == b.stride()
    assert torch.autograd.grad(_FixedBatchNorm.apply(x, mean, var, weight, bias, 1e-5), x, upstream)[0].is_contiguous(
        memory_format=torch.channels_last
    )


def test_no_layer_of_a_frozen_backbone_leaves_autocasts_dtype() -> None:
    network, dtypes = make_backbone("resnet18", bn="frozen"), set[torch.dtype]()
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ReLU | FrozenBatchNorm2d):
            module.register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert dtypes == {torch.bfloat16}
