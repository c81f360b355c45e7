"""Test pictures twice: what is there, and what the detector found, in the colours of right and wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from detection.data.decode import decode
from detection.data.index import Index
from detection.evaluation import voc
from detection.evaluation.results import Results
from detection.reporting.drawing import draw_boxes

RIGHT, WRONG, IGNORED = "#009E73", "#D55E00", "#8c8c8c"
"""Right or found, wrong or missed, not counted: told apart with the common kinds of colour blindness."""
LONGEST = 640
"""Side in pixels that a large picture is reduced to."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts at IoU 0.5, difficult and crowd objects left out."""

    right: int
    wrong: int
    missed: int

    def __str__(self) -> str:
        return f"{self.right} right, {self.wrong} wrong, {self.missed} missed"


@dataclass(frozen=True, slots=True)
class Sample:
    """One test picture."""

    file: str
    """The picture, relative to the dataset's folder."""
    tally: Tally
    hard: bool
    """Chosen for its mistakes; otherwise for its place in the split."""
    truth: Image.Image
    """With the objects: found, missed, or not counted."""
    found: Image.Image
    """With the detections: right, wrong, or not counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Review:
    """Detections above a score, and what is right and wrong with them."""

    index: Index
    results: Results
    judged: voc.Judgement

    @classmethod
    def of(cls, index: Index, results: Results, threshold: float) -> "Review":
        """Judge the detections whose score is at least the threshold."""
        kept = results.select(results.scores >= threshold)
        return cls(index, kept, voc.judge(index, kept))

    def total(self) -> Tally:
        """Over all pictures."""
        counted = ~(self.index.difficult | self.index.crowd)
        right, wrong = int(self.judged.right.sum()), int(self.judged.wrong.sum())
        return Tally(right, wrong, int((counted & ~self.judged.found).sum()))

    def mistakes(self) -> NDArray[np.int64]:
        """[N], wrong detections and missed objects of each picture."""
        pictures = len(self.index)
        owners = np.repeat(np.arange(pictures), np.diff(self.index.offsets))
        missed = ~(self.index.difficult | self.index.crowd | self.judged.found)
        wrong = np.bincount(self.results.images[self.judged.wrong], minlength=pictures)
        return np.asarray(wrong + np.bincount(owners[missed], minlength=pictures))


def choose(review: Review, count: int) -> tuple[list[int], list[int]]:
    """Choose pictures, the same ones for the same detections.

    Returns:
        Rows from the whole length of the split, and rows with most mistakes, at most a third of all.
    """
    filled = np.flatnonzero(np.diff(review.index.offsets))
    if len(filled) == 0 or count <= 0:
        return [], []
    mistakes = review.mistakes()
    spread_count = min(count - count // 3, len(filled))
    spread = filled[np.unique(np.linspace(0, len(filled) - 1, spread_count).astype(int))].tolist()
    worst = np.argsort(-mistakes, kind="stable")
    hard = [int(row) for row in worst if mistakes[row] > 0 and row not in spread]
    return spread, hard[: count // 3]


def draw(review: Review, root: Path, classes: Sequence[str], count: int) -> list[Sample]:
    """Draw some pictures.

    Args:
        review: Of the test split.
        root: Folder that its files are relative to.
        classes: Names, in label order.
        count: How many pictures.

    Raises:
        DataError: A picture cannot be read.
    """
    spread, hard = choose(review, count)
    return [_sample(review, root, classes, row, row in hard) for row in [*spread, *hard]]


def contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """All samples on one picture, two columns of pairs as wide as the widest."""
    pairs = [_pair(sample) for sample in samples]
    width, gap = max(pair.width for pair in pairs), 16
    rows = [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
    heights = [max(pair.height for pair in row) + gap for row in rows]
    page = Image.new("RGB", (2 * width + 3 * gap, sum(heights) + gap), "white")
    for top, row in zip(np.cumsum([gap, *heights]), rows, strict=False):
        for column, pair in enumerate(row):
            page.paste(pair, (gap + column * (width + gap), int(top)))
    return page


def _sample(review: Review, root: Path, classes: Sequence[str], row: int, hard: bool) -> Sample:
    index, judged = review.index, review.judged
    record, mine = index[row], review.results.images == row
    objects = slice(int(index.offsets[row]), int(index.offsets[row + 1]))
    counted = ~(record.difficult | record.crowd)
    found, right, wrong = judged.found[objects], judged.right[mine], judged.wrong[mine]
    results = review.results.select(mine)
    picture = decode(root / record.file, (record.height, record.width))
    picture.thumbnail((LONGEST, LONGEST))
    scale = picture.width / record.width
    return Sample(
        file=record.file,
        tally=Tally(int(right.sum()), int(wrong.sum()), int((counted & ~found).sum())),
        hard=hard,
        truth=draw_boxes(
            picture, record.boxes * scale, record.labels, classes, colours=_colours(found, counted & ~found)
        ),
        found=draw_boxes(
            picture,
            results.boxes * scale,
            results.labels,
            classes,
            results.scores,
            colours=_colours(right, wrong),
        ),
    )


def _colours(good: NDArray[np.bool_], bad: NDArray[np.bool_]) -> list[str]:
    return [RIGHT if g else WRONG if b else IGNORED for g, b in zip(good, bad, strict=True)]


def _pair(sample: Sample) -> Image.Image:
    """Truth and detections side by side under a line of text."""
    width, height, bar = sample.truth.width, sample.truth.height, 26
    pair = Image.new("RGB", (2 * width + 6, height + bar), "white")
    write, font = ImageDraw.Draw(pair), ImageFont.load_default(size=15)
    write.text((2, 4), "there is", fill="black", font=font)
    write.text((width + 8, 4), f"found: {sample.tally}", fill="black", font=font)
    pair.paste(sample.truth, (0, bar))
    pair.paste(sample.found, (width + 6, bar))
    return pair
