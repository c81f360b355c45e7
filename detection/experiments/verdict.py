"""Whether one experiment is better than another, or the test pictures just happened to suit it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from detection.evaluation.analysis.bootstrap import (
    CONFIDENCE_LEVEL,
    BootstrapResult,
    BootstrapSample,
    Difference,
    paired,
)
from detection.evaluation.protocol.matching import match
from detection.evaluation.protocol.overlaps import Overlaps
from detection.evaluation.protocol.results import SplitDetections
from detection.experiments.compare_content import ExperimentData
from detection.experiments.differences import names

DECIDES = "AP"
"""The score that says which experiment is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the paired bootstrap says of one experiment beside the first."""

    first: str
    name: str
    spread: BootstrapResult[Difference]
    """Differences of `AP`, `AP50` and `AP75`, and of each class: `name` - `first`."""
    identical: bool
    """Both found the very same, box by box."""

    @property
    def decides(self) -> Difference:
        """The difference that counts."""
        return self.spread.stats[DECIDES]

    @property
    def sign(self) -> int:
        """1: better, -1: worse, 0: these pictures cannot tell."""
        return sign(self.decides)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        if self.identical:
            return f"{self.name} and {self.first} are identical: the same detections on every test picture"
        words = {
            1: f"{self.name} is better than {self.first}",
            -1: f"{self.name} is worse than {self.first}",
            0: f"{self.name} and {self.first}: no difference that {self.spread.images:,} pictures can show",
        }
        return words[self.sign]

    @property
    def reason(self) -> str:
        """What it rests on."""
        one = self.decides
        if self.identical:
            return "nothing to judge: there is no difference in any score"
        return (
            f"{DECIDES} {one.value:+.3f} ({self.name} - {self.first}); {CONFIDENCE_LEVEL:.0%} of "
            f"{self.spread.rounds:,} draws of the same test pictures for both lie from {one.low:+.3f} to "
            f"{one.high:+.3f}, and {one.better:.0%} are above 0"
        )


def sign(one: Difference) -> int:
    """Which side of zero the whole interval lies on; 0 where it holds zero, or nothing was to be found."""
    return int(one.low > 0) - int(one.high < 0)


def judge(contents: Sequence[ExperimentData], rounds: int) -> list[Comparison]:
    """Compare every experiment with the first, picture by picture.

    Args:
        contents: Scored on the same test split.
        rounds: Of the bootstrap.
    """
    samples, called = [_sample(one) for one in contents], names(contents)
    return [
        Comparison(
            first=called[0],
            name=called[i],
            spread=paired(samples[0], samples[i], rounds),
            identical=_same(contents[0].results, contents[i].results),
        )
        for i in range(1, len(contents))
    ]


def _same(one: SplitDetections, other: SplitDetections) -> bool:
    pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in fields(SplitDetections))
    return all(np.array_equal(*pair) for pair in pairs)


def _sample(content: ExperimentData) -> BootstrapSample:
    overlaps = Overlaps.of_index(content.truth, content.results, len(content.prepared.classes))
    return BootstrapSample.of(overlaps, match(overlaps), num_images=len(content.truth))
