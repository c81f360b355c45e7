"""One-stage detectors: robustness, no host synchronization, export."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detection.data.loading.batch import ImageSizes, Targets
from detection.models.build import build_detector, without_weights
from detection.models.detector import Detector
from detection.models.fpn import AlignedPyramid
from detection.models.retinanet import RetinaNet
from detection.params import Recipe, load

SIDE = 64
FAMILIES = ["retinanet", "retinanet_v2", "retinanet_257", "fcos", "ssdlite320"]


def recipe_of(model: str, dataset: str = "coco2017") -> Recipe:
    return load(model=model, dataset=dataset).recipe


def small(model: str, classes: int = 3, **changes: Any) -> Detector:
    """The recipe's detector on the smallest backbone."""
    torch.manual_seed(0)
    recipe = recipe_of(model)
    smaller: dict[str, Any] = {"backbone": "mobilenet_v3_small"}
    if model != "ssdlite320":
        smaller = {"backbone": "resnet18", "fpn_channels": 64, "image_size": SIDE, "max_size": None}
    return build_detector(without_weights(replace(recipe, **smaller | changes)), classes, None)


def side_of(detector: Any) -> int:
    return 320 if detector.recipe.architecture == "ssdlite" else SIDE


def targets_of(boxes: Tensor, mask: Tensor | None, side: int) -> Targets:
    """Ground truth [B, M, 4] of class 0."""
    mask = torch.ones(boxes.shape[:2], dtype=torch.bool) if mask is None else mask
    labels = torch.zeros(boxes.shape[:2], dtype=torch.int64)
    return Targets(boxes * side / SIDE, labels, mask, torch.tensor([[side, side]] * len(boxes)))


def test_the_257_pixel_pyramid() -> None:
    """Maps of 33, 17, 9 and 5 cells, 4,452 anchors, no negative values."""
    detector = small("retinanet_257", image_size=257)
    assert isinstance(detector, RetinaNet)
    with torch.inference_mode():
        maps = detector.features(torch.rand(1, 3, 257, 257))
        outputs = detector.core(torch.rand(1, 3, 257, 257))
    assert [level.shape[2:] for level in maps] == [(33, 33), (17, 17), (9, 9), (5, 5)]
    assert all((level >= 0).all() for level in maps)
    assert outputs["cls_logits"].shape == (1, 4_452, 3)


def test_the_squares_of_fcos_are_as_wide_as_the_strides() -> None:
    detector: Any = small("fcos", fpn_levels=(2, 3, 4, 5))
    sides = (16, 8, 4, 2, 1, 1)
    squares = detector.anchors([(side, side) for side in sides], (SIDE, SIDE))
    widths = squares[:, 2] - squares[:, 0]
    assert widths.unique_consecutive().tolist() == [4, 8, 16, 32, 64, 128]
    assert float(squares[1, 0] - squares[0, 0]) == 4


def test_upsampling_keeps_the_corners() -> None:
    pyramid = AlignedPyramid([1, 1, 1], 1)
    for layer in pyramid.lateral:
        torch.nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    for layer in pyramid.smooth:
        torch.nn.init.dirac_(layer.weight)  # type: ignore[arg-type]
    top = torch.tensor([[1.0, 3.0], [5.0, 7.0]]).view(1, 1, 2, 2)
    p3, p4, _, _ = pyramid({"0": torch.zeros(1, 1, 5, 5), "1": torch.zeros(1, 1, 3, 3), "2": top}).values()
    assert p4[0, 0].tolist() == [[1, 2, 3], [3, 4, 5], [5, 6, 7]]
    assert p3[0, 0, 0].tolist() == [1, 1.5, 2, 2.5, 3]


def test_initial_loss_without_objects_is_that_of_the_class_prior() -> None:
    """A * K probabilities of 0.01 with target 0, each 0.75 * 0.01^2 * -log(0.99)."""
    detector: Any = small("retinanet")
    with torch.no_grad():
        detector.head.classification_head.cls_logits.weight.zero_()
    losses = detector.losses(torch.rand(2, 3, SIDE, SIDE), targets_of(torch.zeros(2, 0, 4), None, SIDE))
    anchors = 9 * (8 * 8 + 4 * 4 + 2 * 2 + 1 + 1)
    assert float(losses["class"].detach()) == pytest.approx(anchors * 3 * 0.75 * 1e-4 * 0.0100503, rel=1e-4)
    assert float(losses["box"].detach()) == 0


def objects(case: str) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(2, 500, 2, generator=generator) * 40
    many = torch.cat([corner, corner + 4 + torch.rand(2, 500, 2, generator=generator) * 20], dim=2)
    return {
        "M of 0": (torch.zeros(2, 0, 4), None),
        "no objects": (many[:, :3], torch.zeros(2, 3, dtype=torch.bool)),
        "one empty image": (many[:, :3], torch.tensor([[True] * 3, [False] * 3])),
        "500 objects": (many, None),
        "duplicates": (many[:, :1].expand(2, 6, 4), None),
        "a point": (torch.tensor([[[5.0, 5, 5, 5], [9, 9, 40, 40]]] * 2), None),
        "only a point": (torch.tensor([[[5.0, 5, 5, 5]]] * 2), None),
    }[case]


CASES = ["M of 0", "no objects", "one empty image", "500 objects", "duplicates", "a point", "only a point"]


@pytest.fixture(scope="module", params=FAMILIES)
def detectors(request: pytest.FixtureRequest) -> dict[int, Detector]:
    """Detectors of one family with one and with three classes."""
    return {classes: small(request.param, classes).train() for classes in (1, 3)}


@pytest.mark.parametrize("case", CASES)
def test_any_ground_truth_gives_finite_losses_and_gradients(case: str, detectors: dict[int, Detector]) -> None:
    detector = detectors[1 if case == "duplicates" else 3]
    boxes, mask = objects(case)
    side = side_of(detector)
    detector.zero_grad()
    losses = detector.losses(torch.rand(2, 3, side, side), targets_of(boxes, mask, side))
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    box_gradients = [v for k, v in gradients.items() if "regression_head" in k]
    if case in ("M of 0", "no objects", "only a point"):
        assert losses["box"] == 0
        assert all((gradient == 0).all() for gradient in box_gradients)
    else:
        assert losses["box"] > 0
        assert losses["class"] > 0
        assert any((gradient != 0).any() for gradient in box_gradients)


def test_padding_does_not_change_the_losses(detectors: dict[int, Detector]) -> None:
    detector = detectors[3]
    side = side_of(detector)
    images, (boxes, _) = torch.rand(2, 3, side, side), objects("500 objects")
    boxes, mask = boxes[:, :4], torch.tensor([[True, True, False, False], [False, True, True, True]])
    order = torch.tensor([0, 2, 1, 3])  # objects first, padding last
    found = []
    for rows, size in ((order, 4), (torch.arange(4), 9)):
        padded = torch.full((2, size, 4), 7.0)  # an invalid box, never read
        valid = torch.zeros(2, size, dtype=torch.bool)
        padded[:, :4], valid[:, :4] = boxes[:, rows], mask[:, rows]
        detector.eval()  # keeps BatchNorm's statistics
        found.append(detector.losses(images, targets_of(padded, valid, side)))
        detector.train()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=1e-6, atol=0)


def test_the_batch_normalizer_divides_by_the_positives_of_the_batch() -> None:
    """An image's loss is its sum over its n_i; the batch's is the sum of all over the sum of n_i."""
    images, (boxes, _) = torch.rand(2, 3, SIDE, SIDE), objects("500 objects")
    mask = torch.tensor([[True] * 5, [True, False, False, False, False]])
    targets = targets_of(boxes[:, :5], mask, SIDE)
    each, whole = (
        small("retinanet", loss_normalizer=name, low_quality_matches="unique").eval() for name in ("image", "batch")
    )
    single = [each.losses(images[i : i + 1], targets[i : i + 1])["box"] for i in range(2)]
    together, mean = whole.losses(images, targets)["box"], each.losses(images, targets)["box"]
    torch.testing.assert_close(mean, (single[0] + single[1]) / 2)
    fraction = ((together - single[1]) / (single[0] - single[1])).item()
    assert 0.5 < fraction < 1  # the image with more positives has the larger weight


def test_class_agnostic_nms_leaves_one_class_per_box() -> None:
    images = torch.rand(1, 3, SIDE, SIDE)
    sizes = ImageSizes(torch.tensor([[SIDE, SIDE]]), torch.tensor([[SIDE, SIDE]]))
    found = {}
    for agnostic in (False, True):
        detector = small("retinanet", class_agnostic_nms=agnostic, score_threshold=0.0).eval()
        with torch.inference_mode():
            found[agnostic] = detector.detect(images, sizes)[0]
    boxes = {agnostic: {tuple(box) for box in one.boxes.tolist()} for agnostic, one in found.items()}
    assert len(boxes[True]) == len(found[True].boxes)
    assert len(boxes[False]) < len(found[False].boxes)


FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero", "equal")


class SyncRecorder(TorchDispatchMode):
    """Records operations that synchronize: a data-dependent shape, or a value on the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [t for t in args[1] if t is not None and t.dtype == torch.bool] if name == "index" else []
        if name in FORBIDDEN or masks:
            self.seen.add(name)
        return func(*args, **kwargs or {})


def test_a_training_step_never_synchronizes(detectors: dict[int, Detector]) -> None:
    detector, (boxes, mask) = detectors[3], objects("one empty image")
    side = side_of(detector)
    images, targets = torch.rand(2, 3, side, side), targets_of(boxes, mask, side)
    with SyncRecorder() as recorder:
        losses = detector.losses(images, targets)
        torch.stack(list(losses.values())).sum().backward()
    assert recorder.seen == set()
    with SyncRecorder() as recorder:
        images[images > 0.5].sum().item()
    assert recorder.seen  # the recorder works


@pytest.fixture(scope="module", params=["retinanet", "retinanet_257", "fcos", "ssdlite320"])
def exported(request: pytest.FixtureRequest) -> tuple[Detector, Any]:
    detector = small(request.param).eval()

    class Core(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = detector

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return self.detector.core(images)

    side = side_of(detector)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(Core().eval(), (torch.rand(2, 3, side, side),), dynamic_shapes={"images": {0: batch}})
    return detector, program.module()


def test_core_is_exported_with_a_batch_of_any_size(exported: tuple[Detector, Any]) -> None:
    detector, module = exported
    side = side_of(detector)
    for count in (1, 3):
        images = torch.rand(count, 3, side, side)
        with torch.no_grad():
            expected, found = detector.core(images), module(images)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
