import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

from detection.ops.box_coder import UNIT_WEIGHTS, Weights, decode, decode_edges, encode, encode_edges

WEIGHTS: list[Weights] = [UNIT_WEIGHTS, (10.0, 10.0, 5.0, 5.0)]


def random_boxes(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    corner = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 200 - 40
    side = torch.rand(*shape, 2, generator=generator, dtype=dtype) * 150 + 3
    return torch.cat([corner, corner + side], dim=-1)


@given(st.integers(0, 10_000), st.sampled_from(WEIGHTS))
@settings(deadline=None)
def test_decoding_undoes_encoding(seed: int, weights: Weights) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes, anchors = (random_boxes(generator, 2, 5, dtype=torch.float64) for _ in range(2))
    decoded = decode(encode(boxes, anchors, weights), anchors, weights)
    torch.testing.assert_close(decoded, boxes, rtol=1e-9, atol=1e-9)
    decoded = decode_edges(encode_edges(boxes, anchors), anchors)
    torch.testing.assert_close(decoded, boxes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_encoding_and_decoding_equal_torchvisions(weights: Weights) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, anchors = random_boxes(generator, 200), random_boxes(generator, 200)
    deltas = torch.randn(200, 4, generator=generator) * 10  # some beyond the limit
    theirs = BoxCoder(weights)
    torch.testing.assert_close(encode(boxes, anchors, weights), theirs.encode_single(boxes, anchors))
    torch.testing.assert_close(decode(deltas, anchors, weights), theirs.decode_single(deltas, anchors))


def test_edges_equal_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, anchors = random_boxes(generator, 200), random_boxes(generator, 200)
    edges, theirs = torch.rand(200, 4, generator=generator), BoxLinearCoder()
    torch.testing.assert_close(encode_edges(boxes, anchors), theirs.encode(anchors, boxes))
    torch.testing.assert_close(decode_edges(edges, anchors), theirs.decode(edges, anchors))


def test_leading_dimensions_broadcast() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, anchors = random_boxes(generator, 2, 3, 5), random_boxes(generator, 5)
    assert encode(boxes, anchors).shape == decode(boxes / 99, anchors).shape == (2, 3, 5, 4)


def test_decoded_sides_are_limited() -> None:
    anchor = torch.tensor([0.0, 0.0, 16.0, 16.0])
    box = decode(torch.tensor([0.0, 0.0, 1000.0, 1000.0]), anchor)
    torch.testing.assert_close(box, torch.tensor([-492.0, -492.0, 508.0, 508.0]))
