"""Steps of training augmentation, and the named policies as lists of them.

`augmentation:` of a recipe is a name of `POLICIES` or a list of steps, each a mapping of one name to its settings:
`[{affine: {rotate: 10}}, {flip: {}}]`. `detection.data.loading.augment` applies them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from detection.params.bounds import Bounds, Count, Fraction, NonNegative, Positive

Range = tuple[Positive, Positive]
Angle = Annotated[float, Bounds(at_least=0, at_most=180)]
Shear = Annotated[float, Bounds(at_least=0, at_most=60)]
Hue = Annotated[float, Bounds(at_least=0, at_most=0.5)]


class _Scaled:
    """Settings with a range of scales."""

    __slots__ = ()
    scale: tuple[float, float]

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale: must be the smallest and the largest value, not {list(self.scale)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mosaic(_Scaled):
    """Four images around a random point; the canvas has the size of the first."""

    p: Fraction = 0.5
    """Probability."""
    until: Fraction = 1.0
    """Fraction of the training after which the step is off."""
    scale: Range = (0.75, 1.25)
    """Smallest and largest size of the four images relative to the canvas; 0.5 shows all of them, 0.75 and above leave
    no gap between images of equal shape."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Affine(_Scaled):
    """Scale, shift, rotation and shear around the center."""

    p: Fraction = 1.0
    """Probability."""
    rotate: Angle = 0.0
    """Largest rotation in degrees, to either side; a box becomes the box of its rotated corners."""
    scale: Range = (1.0, 1.0)
    """Smallest and largest scale, log-uniform."""
    translate: Fraction = 0.0
    """Largest shift as a fraction of the sides."""
    shear: Shear = 0.0
    """Largest shear in degrees, along both axes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoomOut:
    """The image at a random position of a larger canvas."""

    p: Fraction = 0.5
    """Probability."""
    max_ratio: Annotated[float, Bounds(at_least=1)] = 4.0
    """Largest side of the canvas relative to the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropByOverlap:
    """Crop around the center of some object that reaches a drawn minimum IoU with it, as SSD's."""

    p: Fraction = 1.0
    """Probability."""
    min_overlaps: tuple[Fraction, ...] = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    """Minimum IoUs, of which one is drawn; 1 keeps the whole image."""

    def __post_init__(self) -> None:
        """Refuse an empty list."""
        if not self.min_overlaps:
            raise ValueError("min_overlaps: is empty")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop(_Scaled):
    """Crop by area, at an aspect ratio of 3:4 to 4:3, stretched to a square of `image_size`."""

    scale: tuple[Fraction, Fraction] = (0.85, 1.0)
    """Smallest and largest fraction of the area."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Letterbox(_Scaled):
    """The image, stretched to about a square, on a gray square of `image_size`, or a part of it."""

    scale: Range = (0.25, 2.0)
    """Smallest and largest size of the image relative to the square."""
    jitter: Annotated[float, Bounds(at_least=0, below=1)] = 0.3
    """Change of the sides, whose ratio lies between (1 - jitter) / (1 + jitter) and its inverse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiscale(_Scaled):
    """A random short side instead of `image_size`, with `resize: keep`."""

    scale: Range = (0.6, 1.0)
    """Smallest and largest fraction of `image_size`."""
    count: Count = 11
    """Number of different sides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyPaste:
    """Objects of another image, cut out by their boxes, where they cover no other object; the smallest first."""

    p: Fraction = 0.3
    """Probability."""
    max_objects: Count = 5
    """Largest number of objects."""
    until: Fraction = 1.0
    """Fraction of the training after which the step is off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixup:
    """Weighted mean of two images, with the objects of both."""

    p: Fraction = 0.1
    """Probability."""
    alpha: Positive = 8.0
    """Both parameters of the weight's beta distribution; large values give weights near one half."""
    until: Fraction = 1.0
    """Fraction of the training after which the step is off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """Mirror or quarter turn."""

    horizontal: Fraction = 0.5
    """Probability of exchanging left and right."""
    vertical: Fraction = 0.0
    """Probability of exchanging top and bottom."""
    rotate90: Fraction = 0.0
    """Probability of a quarter turn to the left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Color:
    """One linear transform of RGB, clipped once."""

    brightness: NonNegative = 0.0
    """Largest change of the factor of all channels: 0.3 draws 0.7 to 1.3."""
    contrast: NonNegative = 0.0
    """The same for the distance from the mean gray level."""
    saturation: NonNegative = 0.0
    """The same for the distance of a pixel from its gray level."""
    hue: Hue = 0.0
    """Largest rotation of the hue as a fraction of the circle, in YIQ; the gray level stays."""
    grayscale: Fraction = 0.0
    """Probability of no color."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur with a sigma of 0.1 to 2 pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotometricDistort:
    """SSD's brightness, contrast, saturation, hue and channel order, each with probability 0.5."""

    clip: bool = True
    """Clip to 8 bits after each; false: arithmetic and range of a widely used SSD, which gives float images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HsvJitter:
    """Hue, saturation and value at once, of the padding as well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step: one name with its settings. Steps are applied in these groups, within a group in the order of the list.

    1. `mosaic`; 2. windows and flips, drawn on the boxes and applied by one crop and one resize, then rotation and
    shear; 3. `copy_paste`, then `mixup`; 4. colors, where there are fewer pixels.
    """

    mosaic: Mosaic | None = None
    """Four images in one."""
    affine: Affine | None = None
    """Scale, shift, rotation, shear."""
    zoom_out: ZoomOut | None = None
    """Larger canvas."""
    crop_by_overlap: CropByOverlap | None = None
    """SSD's crop."""
    crop: Crop | None = None
    """Crop by area."""
    letterbox: Letterbox | None = None
    """Stretched on a gray square."""
    multiscale: Multiscale | None = None
    """Random short side."""
    flip: Flip | None = None
    """Mirror, quarter turn."""
    copy_paste: CopyPaste | None = None
    """Objects of another image."""
    mixup: Mixup | None = None
    """Mean of two images."""
    color: Color | None = None
    """Brightness, contrast, saturation, hue, gray, blur."""
    photometric_distort: PhotometricDistort | None = None
    """SSD's colors."""
    hsv_jitter: HsvJitter | None = None
    """Colors of `letterbox`."""

    def __post_init__(self) -> None:
        """Refuse a step without a name, and one with two."""
        names = [one.name for one in fields(self) if getattr(self, one.name) is not None]
        if len(names) != 1:
            what = f"{' and '.join(names)} are one entry" if names else "has no settings"
            raise ValueError(f"{names[0] if names else 'step'}: {what}; write `- flip: {{}}`, an entry per step")

    @property
    def name(self) -> str:
        """Name of the step."""
        return next(one.name for one in fields(self) if getattr(self, one.name) is not None)

    @property
    def settings(self) -> Any:
        """Settings of the step, one of the classes above."""
        return getattr(self, self.name)


LEGACY_OVERLAPS = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
"""Effective values of a widely used SSD (77.43 on VOC2007): its list lacks 0.5, a bug accepts every crop."""
FLIP = Step(flip=Flip())
POLICIES: dict[str, tuple[Step, ...]] = {
    "none": (),
    "flip": (FLIP,),
    "multiscale": (Step(multiscale=Multiscale()), FLIP),
    "ssd": (
        Step(zoom_out=ZoomOut()),
        Step(crop_by_overlap=CropByOverlap()),
        FLIP,
        Step(photometric_distort=PhotometricDistort()),
    ),
    "ssd_legacy": (
        Step(zoom_out=ZoomOut()),
        Step(crop_by_overlap=CropByOverlap(min_overlaps=LEGACY_OVERLAPS)),
        FLIP,
        Step(photometric_distort=PhotometricDistort(clip=False)),
    ),
    "ssdlite": (Step(crop_by_overlap=CropByOverlap()), FLIP),
    "letterbox": (Step(letterbox=Letterbox()), FLIP, Step(hsv_jitter=HsvJitter())),
    "crop": (Step(crop=Crop()), FLIP),
}
"""Published policies. `flip`, `multiscale`, `ssd`, `ssdlite`: torchvision's detection references; `ssd`: Liu et al.
2015 (arXiv:1512.02325), section 2.2; `letterbox`, `crop`: the public implementations of Faster R-CNN (bubbliiiing,
commit 51f9b62) and RetinaNet (xytpai) whose settings the recipes use."""
Policy = Literal["none", "flip", "multiscale", "ssd", "ssd_legacy", "ssdlite", "letterbox", "crop"]
Augmentation = Policy | tuple[Step, ...]


def steps_of(augmentation: Augmentation) -> tuple[Step, ...]:
    """Steps of a policy's name or of a list."""
    return POLICIES[augmentation] if isinstance(augmentation, str) else augmentation


def has(steps: Iterable[Step], *names: str) -> bool:
    """Return True if one of the steps has one of the names."""
    return any(step.name in names for step in steps)


def describe(augmentation: Augmentation) -> str:
    """Name of a policy, or the names of the steps joined by `+`."""
    return augmentation if isinstance(augmentation, str) else " + ".join(one.name for one in augmentation) or "none"


def check_steps(augmentation: Augmentation, resize: str, fixed_size: bool) -> None:
    """Raise ValueError for steps that do not fit each other or the recipe's size."""
    steps = steps_of(augmentation)
    names = [step.name for step in steps]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"augmentation: {', '.join(sorted(repeated))} is listed twice; keep one")
    if has(steps, "multiscale") and (resize != "keep" or fixed_size):
        raise ValueError("augmentation: multiscale varies the short side; it needs resize: keep and fixed_size: false")
    floats = any(step.photometric_distort and not step.photometric_distort.clip for step in steps)
    if floats and has(steps, "copy_paste", "mixup", "color", "hsv_jitter"):
        raise ValueError("augmentation: photometric_distort with clip: false combines with no mixup, paste or colors")
