"""What the training loop knows about tracking: five verbs. Imports no mlflow."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

Status = Literal["FINISHED", "FAILED", "KILLED"]


@runtime_checkable
class Run(Protocol):
    """A row of the tracking store, as the one that fills it sees it.

    No method raises or waits for a server: the curves stand in `reports/` first, the row is a view of them.
    Used as a context manager a row closes itself: FINISHED, or KILLED after `KeyboardInterrupt` and
    `SystemExit`, or FAILED after any other exception, which its tag `error` then names.
    """

    @property
    def id(self) -> str | None:
        """MLflow's run id, for the checkpoint and for `run.json`; None where there is no row."""

    def log(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """Add one step's values.

        The same step, values and time logged again are the same point and not a second one: after a
        resume, log the whole history again and every gap is closed.

        Args:
            step: Optimiser step, from 1.
            values: `loss`, `loss/<term>`, `lr`; after a validation `val/AP` and so on. NaN is skipped.
            time_ms: When the values were made, Unix time in milliseconds.
        """

    def artifact(self, path: Path, folder: str | None) -> None:
        """Store a copy of one file in a folder of the row, or at its top; it may change or go at once."""

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""

    def flush(self) -> None:
        """Send what is pending now; waits a few seconds at the most."""

    def close(self, status: Status) -> None:
        """Send the rest and set the final status. A second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def metric_of(column: str, prefix: str) -> str:
    """A curve's column as a metric's name: with the prefix, unless it brings one (`train/rpn_recall`)."""
    return column if "/" in column else prefix + column


class RunContext:
    """The context manager that every row is."""

    def close(self, status: Status) -> None:
        """See `Run.close`."""
        raise NotImplementedError

    def tag(self, key: str, value: str) -> None:
        """See `Run.tag`."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        elif issubclass(kind, Exception):
            self.tag("error", (str(error) or kind.__name__)[:1000])
            self.close("FAILED")
        else:
            self.close("KILLED")


class NoRun(RunContext):
    """The row where there is no store: takes everything, keeps nothing."""

    @property
    def id(self) -> str | None:
        """None."""
        return None

    def log(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """Nothing."""

    def artifact(self, path: Path, folder: str | None) -> None:
        """Nothing."""

    def tag(self, key: str, value: str) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def close(self, status: Status) -> None:
        """Nothing."""
