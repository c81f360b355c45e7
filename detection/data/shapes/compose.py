"""What stands where in a picture of the shapes dataset: one to six objects, some overlapping, cut or hidden.

Objects are drawn in order, each on top of what stands already. An object's box is the tight box of its
silhouette inside the picture, hidden parts included.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from detection.data.shapes import render

SIDES = (0.12, 0.60)
"""Longer side of a box, as a share of the picture's side."""
LEAST_VISIBLE = 0.2
"""What is hidden more than that is not kept: nobody could name it."""
DIFFICULT_VISIBLE = 0.4
"""Below this visible share an object is `difficult`."""
WAYS = {"free": 0.58, "overlap": 0.16, "cut": 0.14, "hide": 0.07, "faint": 0.05}
"""How often each is tried. They fail unequally often; the dataset card has what came of it."""
TRIES = 12

Box = tuple[int, int, int, int]


@dataclass
class Thing:
    """One object in the picture."""

    shape: str
    box: Box
    """`x1, y1, x2, y2`, 0-based, half-open."""
    inside: NDArray[np.bool_]
    """[S, S], the silhouette."""
    visible: NDArray[np.bool_]
    """[S, S], what later objects left of it."""
    truncated: bool
    """The picture's border cuts it."""
    faint: bool
    """Drawn with hardly any contrast."""

    def visible_share(self) -> float:
        """Share of the silhouette in the picture that nothing covers."""
        return float(self.visible.sum() / self.inside.sum())

    @property
    def difficult(self) -> bool:
        """VOC's flag: hard even for a person, and not counted by the scores."""
        return self.faint or self.visible_share() < DIFFICULT_VISIBLE

    @property
    def occluded(self) -> bool:
        """VOC's flag."""
        return self.visible_share() < 0.95


def compose(size: int, rng: Generator) -> tuple[Image.Image, list[Thing]]:
    """Draw one picture.

    Args:
        size: Side of the picture in pixels.
        rng: Source of everything random in it.

    Returns:
        The picture (RGB) and its objects, one to six.
    """
    picture = render.background(size, rng)
    for _ in range(int(rng.integers(1, 6))):
        render.clutter(picture, rng)
    things: list[Thing] = []
    for _ in range(int(rng.integers(1, 7))):
        _place(picture, things, rng)
    while not things:
        _place(picture, things, rng)
    if rng.random() < 0.3:
        render.strokes(picture, rng)
    return picture, things


def _place(picture: Image.Image, things: list[Thing], rng: Generator) -> None:
    """Add one object, or none where no place is found for it."""
    way = str(rng.choice(list(WAYS), p=list(WAYS.values())))
    if not things and way in ("overlap", "hide"):
        way = "free"
    shape = str(rng.choice(render.CLASSES))
    for _ in range(TRIES):
        target = things[int(rng.integers(len(things)))] if way in ("overlap", "hide") else None
        mask = render.silhouette(shape, _side(picture.width, target, rng), rng)
        corner = _corner(way, mask.size, picture.width, target, rng)
        thing = _stand(shape, mask, corner, picture.width, faint=way == "faint")
        if thing is not None and _fits(way, thing, things, target):
            _draw(picture, thing, mask, corner, rng)
            for other in things:
                other.visible &= ~thing.inside
            things.append(thing)
            return


def _side(size: int, target: Thing | None, rng: Generator) -> int:
    """A longer side, log-uniform: small objects are as frequent as in photographs."""
    low, high = (math.log(share * size) for share in SIDES)
    if target is not None:  # near the size of what it covers
        own = math.log(max(target.box[2] - target.box[0], target.box[3] - target.box[1]))
        low, high = max(low, own - 0.4), min(high, own + 0.3)
    return round(math.exp(float(rng.uniform(low, high))))


def _corner(
    way: str, extent: tuple[int, int], size: int, target: Thing | None, rng: Generator
) -> tuple[int, int]:
    """Upper left corner `x, y` of the silhouette; may lie outside the picture."""
    if target is not None:
        reach = (0.0, 0.6) if way == "hide" else (0.5, 1.1)
        angle, far = float(rng.uniform(0, 2 * math.pi)), float(rng.uniform(*reach))
        x1, y1, x2, y2 = target.box
        centre = (
            (x1 + x2 + math.cos(angle) * far * (x2 - x1)) / 2,
            (y1 + y2 + math.sin(angle) * far * (y2 - y1)) / 2,
        )
        return round(centre[0] - extent[0] / 2), round(centre[1] - extent[1] / 2)
    corner = [int(rng.integers(1, size - side)) for side in extent]  # a pixel away from the border
    if way == "cut":
        axis = int(rng.integers(2))
        out = round(extent[axis] * float(rng.uniform(0.1, 0.5)))
        corner[axis] = -out if rng.random() < 0.5 else size - extent[axis] + out
    return corner[0], corner[1]


def _stand(shape: str, mask: Image.Image, corner: tuple[int, int], size: int, *, faint: bool) -> Thing | None:
    """The object at its place, or None where too little of it is in the picture."""
    canvas = Image.new("L", (size, size))
    canvas.paste(mask, corner)
    inside = np.asarray(canvas) >= 128  # a pixel belongs to the object where that covers half of it
    whole = int((np.asarray(mask) >= 128).sum())
    share = float(inside.sum() / whole)
    box = canvas.point([0] * 128 + [255] * 128).getbbox()
    if box is None or share < 0.4:
        return None
    longer = max(box[2] - box[0], box[3] - box[1])
    if not SIDES[0] * size <= longer <= SIDES[1] * size:
        return None
    return Thing(shape, box, inside, inside.copy(), truncated=share < 1, faint=faint)


def _fits(way: str, thing: Thing, things: list[Thing], target: Thing | None) -> bool:
    """Whether an object may stand there: touching nothing, or covering its target just so much."""
    if (way == "cut") != thing.truncated:
        return False
    for other in things:
        covered = thing.inside & other.visible
        if other is not target:
            if covered.any():
                return False
            continue
        left = float((other.visible & ~thing.inside).sum() / other.inside.sum())
        low, high = (LEAST_VISIBLE, DIFFICULT_VISIBLE) if way == "hide" else (0.55, 0.93)
        if not low <= left < high:
            return False
    return True


def _draw(
    picture: Image.Image, thing: Thing, mask: Image.Image, corner: tuple[int, int], rng: Generator
) -> None:
    """Paint the object in a colour that stands out from what is there, or hardly does where it is faint."""
    ground = np.asarray(picture)[thing.inside].mean(axis=0)
    colour, apart = render.object_colour(thing.shape, rng), 0.0
    for _ in range(10):
        apart = math.dist(colour, ground.tolist())
        if apart >= 80:
            break
        colour = render.object_colour(thing.shape, rng)
    if thing.faint:
        opacity = min(1.0, 26 / max(apart, 1.0))
        mask = mask.point([round(value * opacity) for value in range(256)])
    picture.paste(render.fill(mask, colour, rng), corner, mask)
