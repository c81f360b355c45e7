"""`detection convert` on small generated shapes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command_line import detection, error_line

SHAPES = "  shapes: {format: shapes, path: shapes, image_size: 64, train: 6, val: 2, test: 3}"


@pytest.mark.parametrize("target_format", ["coco", "voc", "yolo"])
def test_the_printed_entry_reads_the_written_files(with_shapes: Callable[[str], Path], target_format: str) -> None:
    folder = with_shapes(SHAPES).parent
    out = f"data/raw/{target_format}"
    done = detection(folder, "convert", "shapes", "--to", target_format, out, "--link")
    assert done.returncode == 0, done.stderr
    counts, losses, entry = done.stdout.splitlines()[-3:]
    assert "train 6 images" in counts
    assert losses.startswith("not in these files: ")
    with_shapes(f"{SHAPES}\n  {entry.split('  ')[1].replace('NAME', 'other')}")
    (folder / "params.yaml").write_text(
        (folder / "params.yaml").read_text().replace("\nbudgets:\n", "\nbudgets:\n  other: {}\n")
    )
    again = detection(folder, "convert", "other", "--to", "coco", "again")
    assert again.returncode == 0, again.stderr
    left_out = 2 if target_format == "yolo" else 0  # shapes has difficult objects
    assert f"{left_out} objects marked crowd or difficult, left out" in losses or not left_out
    assert _objects(again.stdout.splitlines()[0]) == _objects(counts) - left_out
    assert "not an empty folder" in error_line(detection(folder, "convert", "other", "--to", "voc", "again"))


def _objects(line: str) -> int:
    return sum(int(one) for one in re.findall(r"(\d+) objects", line))
