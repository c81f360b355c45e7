import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from detection.ops.box_coder import decode, encode
from detection.ops.losses import BoxLoss, box_loss, focal_loss, masked_sum


@given(st.integers(0, 10_000), st.sampled_from([1.0, 8.0, 40.0]))
@settings(deadline=None, max_examples=50)
def test_focal_loss_equals_torchvisions(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(2, 7, 4, generator=generator) * spread).double().requires_grad_()
    labels = torch.randint(0, 4, (2, 7), generator=generator)
    positive, mask = (torch.rand(2, 2, 7, generator=generator) < 0.6).unbind(0)
    weight = torch.rand(2, 7, generator=generator)
    targets = torch.nn.functional.one_hot(labels, 4) * positive[..., None].double()
    theirs = sigmoid_focal_loss(logits, targets).sum(2) * mask
    ours = focal_loss(logits, labels, positive, mask)
    # in float64: torchvision's own float32 loses digits where a probability is nearly 1
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    (a,) = torch.autograd.grad((ours * weight).sum(), logits)
    (b,) = torch.autograd.grad((theirs * weight).sum(), logits)
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_focal_loss_gradient_equals_the_numerical_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 0, 1]])
    positive = torch.tensor([[True, True, False, True, False]])
    mask = torch.tensor([[True, True, True, False, False]])
    assert torch.autograd.gradcheck(lambda x: focal_loss(x, labels, positive, mask), logits)


def test_box_losses_equal_their_definitions() -> None:
    torch.manual_seed(0)
    anchors = torch.tensor([[0.0, 0, 10, 20], [5, 5, 30, 30]])
    boxes = torch.tensor([[[1.0, 2, 12, 18], [5, 5, 30, 30]]])
    deltas = torch.randn(1, 2, 4)
    positive = torch.tensor([[True, True]])
    difference = (deltas - encode(boxes, anchors)).abs()
    smooth = torch.where(difference < 1, difference**2 / 2, difference - 0.5)
    torch.testing.assert_close(box_loss("l1", deltas, boxes, anchors, positive), difference.sum(2))
    torch.testing.assert_close(box_loss("smooth_l1", deltas, boxes, anchors, positive), smooth.sum(2))
    overlap = generalized_box_iou_loss(decode(deltas, anchors), boxes)
    torch.testing.assert_close(box_loss("giou", deltas, boxes, anchors, positive), overlap)
    assert box_loss("giou", torch.zeros(1, 2, 4), anchors[None], anchors, positive).abs().max() < 1e-6


@pytest.mark.parametrize("loss_type", ["l1", "smooth_l1"])
def test_box_loss_counts_only_positives(loss_type: BoxLoss) -> None:
    """Boxes without a match may be NaN, and anchors without area encode to NaN: neither has a gradient."""
    deltas = torch.zeros(1, 3, 4, requires_grad=True)
    anchors = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]]])
    boxes = torch.tensor([[[10.0, 10, 20, 20], [torch.nan] * 4, [5, 5, 5, 5]]])
    loss = box_loss(loss_type, deltas, boxes, anchors, torch.tensor([[True, False, False]]), beta=0.1)
    assert loss.tolist() == [[pytest.approx(2.0 if loss_type == "l1" else 2 * 0.95), 0, 0]]
    loss.sum().backward()
    assert deltas.grad is not None
    assert torch.equal(deltas.grad[0, 0], torch.tensor([-1.0, -1, 0, 0]))
    assert (deltas.grad[0, 1:] == 0).all()


@pytest.mark.parametrize("masked", [float("nan"), float("inf"), 3.0])
def test_masked_values_affect_neither_sum_nor_gradient(masked: float) -> None:
    values = torch.tensor([[1.0, masked], [2.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    total = masked_sum(values, mask)
    total.backward()
    assert total == 7
    assert values.grad is not None
    assert torch.equal(values.grad, mask.float())
    assert masked_sum(values.detach(), mask, 1).tolist() == [1, 6]
