"""`detection pin`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from detection.commands.data import _with_digest
from tests.command_line import detection, error_line


@pytest.mark.parametrize(
    ("entry", "pinned"),
    [
        ("shapes: {format: shapes, train: 4,", "shapes: {digest: DIGEST, format: shapes, train: 4,"),
        ("shapes: {train: 4, digest: null,", "shapes: {train: 4, digest: DIGEST,"),
        ("shapes: {train: 4, digest: aaaa, # why\n  ", "shapes: {train: 4, digest: DIGEST, # why\n  "),
    ],
)
def test_only_the_digest_changes(project: Path, with_shapes: Callable[[str], Path], entry: str, pinned: str) -> None:
    rest = "test: 2, val: 2, path: shapes" + (", format: shapes" if "format" not in entry else "")
    file = with_shapes(f"  {entry} {rest}}}")
    before = file.read_text()
    done = detection(project, "pin", "shapes")
    assert done.returncode == 0, done.stderr
    digest = done.stdout.split()[-1]
    assert file.read_text() == before.replace(entry, pinned.replace("DIGEST", digest))
    assert "pinned already" in detection(project, "pin", "shapes").stdout


def test_an_entry_in_block_style(project: Path, with_shapes: Callable[[str], Path]) -> None:
    block = "  shapes:\n    format: shapes  # drawn\n    path: shapes\n    train: 4\n    val: 2\n    test: 2\n"
    file = with_shapes(block)
    digest = detection(project, "pin", "shapes").stdout.split()[-1]
    assert f"  shapes:\n    digest: {digest}\n    format: shapes  # drawn\n" in file.read_text()
    assert "pinned already" in detection(project, "pin", "shapes").stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{a: {digest: , path: x}}", "{a: {digest: 1f , path: x}}"),
        ("a:\n  digest:  # none yet\n  path: x\n", "a:\n  digest: 1f  # none yet\n  path: x\n"),
        ("a:\n  path: x\n  digest:", "a:\n  path: x\n  digest: 1f"),
    ],
)
def test_an_empty_digest_is_filled(old: str, new: str) -> None:
    head = "datasets: " if old.startswith("{") else "datasets:\n  "
    assert _with_digest(head + old.replace("\n", "\n  "), "a", "1f") == head + new.replace("\n", "\n  ")


def test_an_unknown_dataset(project: Path) -> None:
    assert "did you mean 'shapes'?" in error_line(detection(project, "pin", "shape"))
