"""Problems of raw data, collected by readers and checks so that one run reports them all.

`prepare.checks` in `params.yaml` sets an action per problem type: `error` refuses the dataset, `drop` leaves
out the object or image, `clip` clips the box, `keep` keeps it unchanged.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from detection.params.stages import Checks

PROBLEM_TYPES = {
    "missing_annotation": "images or list entries without an annotation file",
    "broken_annotation": "annotations that cannot be read",
    "unsafe_name": "names that point outside the dataset folder",
    "duplicate_id": "ids used twice",
    "unknown_class": "objects whose class is not in the dataset's classes",
    "zero_area": "boxes with zero or negative width or height",
    "duplicate_object": "objects annotated twice",
    "missing_image": "missing image files",
    "broken_image": "images that cannot be read or are truncated",
    "image_size_mismatch": "images whose size differs from their annotation",
    "exif_rotation": "images with an EXIF rotation",
    "box_outside_image": "boxes that extend beyond their image",
    "degenerate_box": "boxes thinner than a pixel, or with an aspect ratio above 100",
    "split_leak": "identical images in two splits",
}
"""Description of each problem type, in report order; each is a key of `prepare.checks`."""
MAX_COORDINATE = 1e9
"""Limit of the sum of a box's absolute coordinates in pixels, from which it is a `broken_annotation`."""
ACTION_SUFFIX = {"drop": " dropped", "clip": " clipped", "keep": " kept"}
MAX_EXAMPLES = 3


class Problem(NamedTuple):
    """A problem of one file or entry."""

    type: str
    """Key of `PROBLEM_TYPES`."""
    where: str
    """File relative to the dataset folder; for COCO also the entry."""
    detail: str
    """Description with the values concerned."""

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


class Problems:
    """Problems of one dataset and the action set for each type.

    problems = Problems(checks)
    problems.add("unknown_class", "Annotations/a.xml", "'horze'")
    problems.refused()                 # {"unknown_class": 1} if its action is `error`
    """

    def __init__(self, checks: Checks) -> None:
        self.entries: list[Problem] = []
        self._checks = checks

    def add(self, problem_type: str, where: str, detail: str) -> None:
        """Add a problem."""
        assert problem_type in PROBLEM_TYPES
        self.entries.append(Problem(problem_type, where, detail))

    def action(self, problem_type: str) -> str:
        """Return `error`, `drop`, `clip` or `keep`."""
        action: str = getattr(self._checks, problem_type)
        return action

    def counts(self) -> dict[str, int]:
        """Return the number of problems of each type that occurs, in the order of `PROBLEM_TYPES`."""
        counts = Counter(problem.type for problem in self.entries)
        return {name: counts[name] for name in PROBLEM_TYPES if counts[name]}

    def refused(self) -> dict[str, int]:
        """Return the counts of the types whose action is `error`."""
        return {name: count for name, count in self.counts().items() if self.action(name) == "error"}

    def of_type(self, problem_type: str) -> list[Problem]:
        """Return the problems of one type, in the order they were added."""
        return [problem for problem in self.entries if problem.type == problem_type]

    def summary(self) -> dict[str, Any]:
        """Return action, count and examples per type, for the dataset statistics."""
        return {
            name: {"action": self.action(name), "count": count, "examples": self._examples(name)}
            for name, count in self.counts().items()
        }

    def lines(self, problem_types: Iterable[str]) -> list[str]:
        """Return one line per type: name, count, action and examples."""
        lines, counts = [], self.counts()
        for name in problem_types:
            others = counts[name] - MAX_EXAMPLES
            more = f"; and {others} more" if others > 0 else ""
            action = ACTION_SUFFIX.get(self.action(name), "")
            lines.append(f"{name}: {counts[name]}{action}: {'; '.join(self._examples(name))}{more}")
        return lines

    def message(self, dataset: str) -> str:
        """Return the error message for a refused dataset: one line for a single type with few problems."""
        names = list(self.refused())
        lines = self.lines(names)
        action = "keep" if names[0] == "split_leak" else "drop"
        fix = f"fix the data, or set an action in params.yaml, such as prepare.checks.{names[0]}: {action}"
        if len(lines) == 1 and self.refused()[names[0]] <= MAX_EXAMPLES:
            return f"dataset {dataset}: {lines[0]}; {fix}"
        head = f"dataset {dataset}: {len(lines)} problem type{'s' * (len(lines) > 1)}"
        last = f"{fix}; `detection doctor {dataset}` also decodes the images"
        return "\n".join([head, *(f"  {line}" for line in lines), last])

    def _examples(self, problem_type: str) -> list[str]:
        return [str(problem) for problem in self.of_type(problem_type)[:MAX_EXAMPLES]]
