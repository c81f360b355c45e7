"""Dispatch of the command line: help, errors of one line, lazy imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detection.cli import COMMANDS
from tests.command_line import ROOT, detection, error_line

PROGRAM = """
import sys
from detection.cli import main
try:
    main(sys.argv[1:])
finally:
    print('loaded', {'torch', 'mlflow', 'dvc', 'matplotlib'} & sys.modules.keys())
"""


def run_main(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    """Run `main` and print which heavy packages it has imported."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "HOME": str(folder)}
    command = [sys.executable, "-c", PROGRAM, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_help_lists_all_commands_and_imports_nothing_heavy(tmp_path: Path) -> None:
    done = run_main(tmp_path, "--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded set()"


def test_an_unreadable_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").mkdir()
    assert "Is a directory: 'params.yaml'" in error_line(detection(tmp_path, "check"))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("compare", "one"), "two or more experiments"),
        (("noise", "--seeds", "1"), "two or more seeds"),
        (("apply", "one"), "not a DVC repository"),
        (("promote", "one"), "not a DVC repository"),
    ],
)
def test_an_invalid_argument_is_refused_before_heavy_imports(
    tmp_path: Path, args: tuple[str, ...], expected: str
) -> None:
    done = run_main(tmp_path, *args)
    assert expected in error_line(done)
    assert done.stdout.strip() == "loaded set()"


def test_a_missing_or_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    assert detection(tmp_path).returncode == 2
    assert detection(tmp_path, "predikt").returncode == 2
