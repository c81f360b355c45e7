"""Whether one experiment is better than another, or the test pictures just happened to suit it."""

from collections.abc import Sequence
from dataclasses import dataclass

from detection.comparison.content import Content
from detection.evaluation.bootstrap import LEVEL, Difference, Spread, paired
from detection.evaluation.matching import match
from detection.evaluation.overlaps import Overlaps
from detection.evaluation.resampling import Sample

DECIDES = "AP"
"""The score that says which experiment is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the paired bootstrap says of one experiment beside the first."""

    first: str
    name: str
    spread: Spread[Difference]
    """Differences of `AP`, `AP50` and `AP75`, and of each class."""

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
        words = {
            1: f"{self.name} is better than {self.first}",
            -1: f"{self.name} is worse than {self.first}",
            0: f"{self.name} and {self.first}: no difference that {self.spread.pictures:,} pictures can show",
        }
        return words[self.sign]

    @property
    def reason(self) -> str:
        """What it rests on."""
        one = self.decides
        return (
            f"{DECIDES} {one.value:+.3f}; {LEVEL:.0%} of {self.spread.rounds:,} draws of the same test "
            f"pictures for both lie from {one.low:+.3f} to {one.high:+.3f}, and {one.better:.0%} are above 0"
        )


def sign(one: Difference) -> int:
    """Which side of zero the whole interval lies on; 0 where it holds zero, or nothing was to be found."""
    return int(one.low > 0) - int(one.high < 0)


def judge(contents: Sequence[Content], rounds: int) -> list[Verdict]:
    """Compare every experiment with the first, picture by picture.

    Args:
        contents: Scored on the same test split.
        rounds: Of the bootstrap.
    """
    first, *others = (_sample(one) for one in contents)
    return [
        Verdict(first=contents[0].name, name=content.name, spread=paired(first, sample, rounds))
        for content, sample in zip(contents[1:], others, strict=True)
    ]


def _sample(content: Content) -> Sample:
    overlaps = Overlaps.of_index(content.truth, content.results, len(content.prepared.classes))
    return Sample.of(overlaps, match(overlaps), pictures=len(content.truth))
