"""`detection compare`: experiments beside each other, and which of them is better."""

import tempfile
from pathlib import Path

from detection.errors import DataError


def compare(experiments: list[str], out: Path, rounds: int) -> str:
    """Compare experiments with the first of them.

    Args:
        experiments: Two or more: names that `dvc exp show` shows, ids or names of rows, git revisions, or
            `workspace`.
        out: The page.
        rounds: Of the bootstrap over pictures.

    Returns:
        The comparison as text.

    Raises:
        DataError: An experiment is not there or was not evaluated, or the test data differs.
        TrackingError: The store of the rows cannot be asked.
    """
    if len(experiments) < 2:
        raise DataError("a comparison needs two experiments or more: detection compare workspace HEAD")
    if rounds < 100:
        raise DataError(f"--rounds {rounds}: an interval needs 100 rounds or more")

    from detection.experiments import compare_page, compare_text, verdict
    from detection.experiments.compare_content import check_same_test, read
    from detection.experiments.find import find
    from detection.experiments.repository import Repository

    repository = Repository()
    found = [find(name, repository) for name in experiments]
    with tempfile.TemporaryDirectory(prefix="detection-compare-") as folder:
        contents = []
        for i, one in enumerate(found):
            place = Path(folder) / str(i)
            place.mkdir()
            contents.append(read(one, place))
    check_same_test(contents)
    verdicts = verdict.judge(contents, rounds)
    compare_page.write(out, contents, verdicts)
    return f"{compare_text.write(contents, verdicts)}\n\nthe same with curves: {out}"
