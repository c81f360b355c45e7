"""`python -m benchmarks.device` on a CPU: the figures of a few recipes, resumed where it was cut off."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.device import CUT_OFF, TINY


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.device", "--device", "cpu", "--tiny", "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def figures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    ran = run(folder)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def test_every_figure_is_a_line(folder: Path) -> None:
    lines = {line["figure"]: line for line in figures(folder)}
    assert tuple(lines) == TINY
    assert not any("error" in line for line in lines.values())
    step = lines["step/fasterrcnn_mobilenet_320"]
    assert step["ratio"] == step["ours"]["images_per_s"] / step["torchvision"]["images_per_s"]
    assert step["kernels_ms"][0][2] > 0
    assert lines["agreement/ssdlite320"]["bitwise"] is True
    assert lines["agreement/ssdlite320"]["outputs"] < 1e-5
    assert lines["train/ssdlite320"]["steps"] == 2
    evaluation = lines["evaluate/ssdlite320"]
    assert evaluation["workers_fp32"]["AP"] == evaluation["nvjpeg_fp32"]["AP"]


def test_only_what_is_missing_is_measured_again(folder: Path) -> None:
    *kept, last = sorted(figures(folder), key=lambda line: line["figure"] == "loader/ssdlite320")
    lines = "".join(json.dumps(line) + "\n" for line in kept)
    (folder / "figures.jsonl").write_text(lines + json.dumps(last)[:40])  # cut off while writing
    assert run(folder, "--minutes", "0").returncode == CUT_OFF
    assert run(folder).returncode == 0
    assert figures(folder)[:-1] == kept
    assert figures(folder)[-1]["figure"] == last["figure"]


def test_the_table_has_a_row_per_figure(folder: Path) -> None:
    rows = run(folder, "--table").stdout.splitlines()
    assert {row.split("|")[1].strip(" `") for row in rows[2:]} == set(TINY)
