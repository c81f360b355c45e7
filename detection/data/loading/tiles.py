"""Overlapping windows of large images: an index of windows for a loader, and their detections on the whole images.

No files are written: a window is a row of an index, whose image is cropped when it is loaded.

Letters: N images, T boxes, W windows, D detections.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from detection.data.loading.index import Index
from detection.params.stages import Tiles

OWNER, LEFT, TOP, HEIGHT, WIDTH = range(5)
"""Columns of `Index.windows`: row of the image in the index of images, corner of the window, size of the image."""


def starts(length: int, tiles: Tiles) -> list[int]:
    """Left or top corners of the windows along a side of an image.

    Invariant: the windows cover the side, neighbors share at least `overlap * size` pixels, and the last one ends
    with the image. An object of at most that length is whole in some window.
    """
    if length <= tiles.size:
        return [0]
    step = max(1, tiles.size - int(np.ceil(tiles.overlap * tiles.size)))
    count = -(-(length - tiles.size) // step) + 1
    return [min(i * step, length - tiles.size) for i in range(count)]


def windows_of(height: int, width: int, tiles: Tiles) -> list[tuple[int, int]]:
    """Left and top corner of every window of an image, row by row."""
    return [(left, top) for top in starts(height, tiles) for left in starts(width, tiles)]


def cut(index: Index, tiles: Tiles) -> Index:
    """Index of the windows of all images; boxes are clipped, and those less visible than `min_visible` left out.

    Args:
        index: Images, not windows.
        tiles: Size and overlap of the windows.
    """
    by_image = [windows_of(height, width, tiles) for height, width in index.sizes.tolist()]
    owner = np.repeat(np.arange(len(index)), [len(one) for one in by_image])
    origins = np.array([origin for one in by_image for origin in one], dtype=np.int32).reshape(-1, 2)
    wholes = index.sizes[owner]
    cut_index = index.select(owner)  # every window has all objects of its image, then those that it shows
    boxes, corners = cut_index.boxes, np.concatenate([origins, origins], axis=1)
    shift = corners[cut_index.image_rows()].astype(np.float32)
    sizes = np.minimum(wholes, tiles.size)
    limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)[cut_index.image_rows()].astype(np.float32)
    clipped = np.clip(boxes - shift, 0, limits)
    shown = np.prod(clipped[:, 2:] - clipped[:, :2], axis=1, dtype=np.float64)
    whole = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, dtype=np.float64)
    visible = shown / np.maximum(whole, 1e-12)
    cut_index = replace(
        cut_index,
        sizes=sizes.astype(np.int32),
        boxes=clipped.astype(np.float32),
        areas=(cut_index.areas * visible).astype(np.float32),
        windows=np.concatenate([owner[:, None], origins, wholes], axis=1).astype(np.int32),
    )
    return cut_index.keep_boxes((shown > 0) & (visible >= tiles.min_visible))


EDGE_PX = 2.0
"""Distance from an inner edge of a window within which a detection counts as cut by it."""
MAX_COVERED = 0.5
"""Fraction of a cut detection that may lie in a whole one of its class."""


def touches_inner_edge(
    boxes: NDArray[np.float32], sizes: NDArray[np.int32], windows: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """[D] mask of detections in window coordinates that end at an edge inside the image, where the object may be cut.

    Args:
        boxes: [D, 4] detections.
        sizes: [D, 2] height and width of their windows.
        windows: [D, 5] their rows of `Index.windows`.
    """
    height, width = sizes.T
    left, top = boxes[:, 0] <= EDGE_PX, boxes[:, 1] <= EDGE_PX
    right, bottom = boxes[:, 2] >= width - EDGE_PX, boxes[:, 3] >= height - EDGE_PX
    inner = left & (windows[:, LEFT] > 0) | top & (windows[:, TOP] > 0)
    inner |= right & (windows[:, LEFT] + width < windows[:, WIDTH])
    inner |= bottom & (windows[:, TOP] + height < windows[:, HEIGHT])
    return np.asarray(inner)


def covered(cut_boxes: NDArray[np.float32], whole_boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """[D] mask of cut boxes of which more than `MAX_COVERED` lies in one of the whole boxes."""
    low = np.maximum(cut_boxes[:, None, :2], whole_boxes[None, :, :2])
    high = np.minimum(cut_boxes[:, None, 2:], whole_boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)  # [D, whole]
    areas = np.prod(cut_boxes[:, 2:] - cut_boxes[:, :2], axis=1)
    return np.asarray((shared > MAX_COVERED * areas[:, None]).any(axis=1))
