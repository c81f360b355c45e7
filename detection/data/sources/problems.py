"""What is wrong with raw data, as a list: readers and checks note each fault and go on.

One fault at a time would cost a person a run each. What becomes of a kind stands in `params.yaml` at
`prepare.checks`: `error` refuses the dataset, `drop` leaves the object or picture out, `clip` cuts the box,
`keep` takes it as it is.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from detection.params.stages import Checks

KINDS = {
    "missing_annotation": "pictures or list entries without an annotation file",
    "broken_annotation": "annotations that cannot be read",
    "unsafe_name": "names that lead out of the dataset's folder",
    "duplicate_id": "ids used twice",
    "unknown_class": "objects of a class that the dataset does not have",
    "zero_area": "boxes without area, or inverted",
    "duplicate_object": "objects annotated twice",
    "missing_image": "pictures that are not there",
    "broken_image": "pictures that cannot be read, or end too early",
    "image_size_mismatch": "pictures of another size than their annotation says",
    "exif_rotation": "pictures that EXIF turns or mirrors",
    "box_outside_image": "boxes that reach out of their picture",
    "degenerate_box": "boxes thinner than a pixel, or 100 times longer than wide",
    "split_leak": "the same picture in two splits",
}
"""Every kind, in the order of a report; each is a key of `prepare.checks`."""
DONE = {"drop": " left out", "clip": " clipped", "keep": " kept as they are"}
EXAMPLES = 3


class Problem(NamedTuple):
    """One thing that is wrong."""

    kind: str
    """One of `KINDS`."""
    where: str
    """The file, relative to the dataset's folder; for COCO also the annotation in it."""
    detail: str
    """What about it, with its numbers."""

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"


class Problems:
    """The faults of one dataset, and what `prepare.checks` says about each.

    faults = Faults(checks)
    faults.add("unknown_class", "Annotations/a.xml", "'horze'")
    faults.refused()                 # {"unknown_class": 1}, if that is an error
    """

    def __init__(self, checks: Checks) -> None:
        self.found: list[Problem] = []
        self._checks = checks

    def add(self, kind: str, where: str, detail: str) -> None:
        """Note one fault."""
        assert kind in KINDS
        self.found.append(Problem(kind, where, detail))

    def action(self, kind: str) -> str:
        """`error`, `drop`, `clip` or `keep`."""
        action: str = getattr(self._checks, kind)
        return action

    def counts(self) -> dict[str, int]:
        """How often each kind was found, in the order of `KINDS`, those that were not left out."""
        counts = Counter(fault.kind for fault in self.found)
        return {kind: counts[kind] for kind in KINDS if counts[kind]}

    def refused(self) -> dict[str, int]:
        """The counts of the kinds that are errors."""
        return {kind: count for kind, count in self.counts().items() if self.action(kind) == "error"}

    def of(self, kind: str) -> list[Problem]:
        """The faults of one kind, in the order they were found."""
        return [fault for fault in self.found if fault.kind == kind]

    def summary(self) -> dict[str, Any]:
        """For the card: per kind its action, count and examples."""
        return {
            kind: {"action": self.action(kind), "count": count, "examples": self._examples(kind, EXAMPLES)}
            for kind, count in self.counts().items()
        }

    def lines(self, kinds: Iterable[str], examples: int = EXAMPLES) -> list[str]:
        """One line a kind: name, count, what was done about it, examples."""
        lines, counts = [], self.counts()
        for kind in kinds:
            done = DONE.get(self.action(kind), "")
            more = f"; and {counts[kind] - examples} more" if counts[kind] > examples else ""
            lines.append(f"{kind}: {counts[kind]}{done}: {'; '.join(self._examples(kind, examples))}{more}")
        return lines

    def message(self, name: str) -> str:
        """All kinds that are errors, with the mend; one line where it is one kind."""
        kinds = list(self.refused())
        lines = self.lines(kinds)
        mend = f"mend the data, or say in params.yaml what to do, such as prepare.checks.{kinds[0]}: "
        mend += "keep" if kinds[0] == "split_leak" else "drop"
        if len(lines) == 1 and self.refused()[kinds[0]] <= EXAMPLES:
            return f"dataset {name}: {lines[0]}; {mend}"
        more = f"{mend}; `detection doctor {name}` decodes the pictures too"
        head = f"dataset {name}: {len(lines)} {'kind' if len(lines) == 1 else 'kinds'} of faults"
        return "\n".join([head, *(f"  {line}" for line in lines), more])

    def _examples(self, kind: str, count: int) -> list[str]:
        return [str(fault) for fault in self.of(kind)[:count]]
