"""Code dependencies in dvc.yaml against the imports of the stages; no heavy import in a light stage."""

import ast
import subprocess
from pathlib import Path
from typing import Any

import pytest

from detection.params import schema
from detection.pipeline import PARAMS, code_files, is_code, paths
from tests.pipeline.import_closure import closure, lies_in

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, Any] = schema.read((ROOT / "dvc.yaml").read_text())["stages"]
HEAVY = {"torch", "torchvision", "mlflow", "pycocotools"}


NO_RESULT = (
    "detection/__init__.py",
    "detection/commands",
    "detection/doctor",
    "detection/errors.py",
    "detection/experiments",
    "detection/files.py",
    "detection/launch.py",
    "detection/nodes.py",
    "detection/pipeline.py",
    "detection/process_group.py",
    "detection/report",
    "detection/signals.py",
    "detection/text.py",
    "detection/tracking",
    "stages/__init__.py",
    "stages/entry.py",
)
"""Code that cannot change a stage's result: it logs, draws, finds files, starts processes or formats messages."""
RAW_DATA = ("detection/data/archives.py", "detection/data/sources")
"""Readers of raw data. After `prepare` their result is data/prepared, which is a dependency of its own."""
EXEMPT = {
    "check": (*NO_RESULT, "detection/data/archives.py", "detection/data/loading", "detection/ops"),
    "prepare": (*NO_RESULT, "detection/data/archives.py"),
    "pretrain": (*NO_RESULT, *RAW_DATA),
    "train": (*NO_RESULT, *RAW_DATA),
    "evaluate": (*NO_RESULT, *RAW_DATA),
    "plots": (*NO_RESULT, *RAW_DATA, "detection/data", "detection/ops", "detection/params"),
}
"""Code that a stage may import without depending on it in dvc.yaml."""


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_all_code_that_decides_its_result(name: str) -> None:
    listed = [dep for dep in STAGES[name]["deps"] if is_code(dep)]
    imported = closure(f"stages.{name}", ROOT, [one for one in EXEMPT[name] if one not in listed])
    packages = {path for path in imported if path.endswith("/__init__.py")}
    missing = [path for path in imported if not lies_in(path, [*listed, *EXEMPT[name]])]
    assert not set(missing) - packages, "add the file or its folder to the stage's deps in dvc.yaml"
    unused = [dep for dep in listed if not any(lies_in(path, [dep]) for path in imported)]
    assert not unused, "the stage imports nothing of these"
    assert not [dep for dep in listed if name != "plots" and lies_in(dep, NO_RESULT)]


@pytest.mark.parametrize("name", STAGES)
def test_packages_that_a_stage_imports_on_the_way_hold_no_code(name: str) -> None:
    listed = [dep for dep in STAGES[name]["deps"] if is_code(dep)]
    for path in closure(f"stages.{name}", ROOT, EXEMPT[name]):
        if path.endswith("/__init__.py") and not lies_in(path, [*listed, *EXEMPT[name]]):
            body = ast.parse((ROOT / path).read_text()).body
            assert all(isinstance(node, ast.Expr | ast.Import | ast.ImportFrom) for node in body), path


def stages_after_an_edit(path: str) -> set[str]:
    """Stages whose dependencies change with a file, without those that follow because outputs change."""
    return {name for name, stage in STAGES.items() if lies_in(path, stage["deps"])}


@pytest.mark.parametrize(
    ("folder", "stages"),
    [
        ("detection/report/page", {"plots"}),
        ("detection/tracking", set()),
        ("detection/commands", set()),
        ("detection/models", {"train", "evaluate"}),
        ("detection/training", {"train"}),
        ("detection/evaluation/analysis", {"evaluate", "plots"}),
        ("detection/data/sources", {"check", "prepare"}),
    ],
)
def test_which_stages_run_after_an_edit(folder: str, stages: set[str]) -> None:
    assert stages_after_an_edit(f"{folder}/new_module.py") == stages


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("models.${model}.architecture", {"pretrain"}),
        ("train.ema", {"train"}),
        ("train.precision", {"pretrain", "train"}),
        ("datasets.${dataset}.path", {"prepare"}),
        ("evaluate.batch_size", {"evaluate"}),
    ],
)
def test_which_stages_run_after_a_changed_param(key: str, stages: set[str]) -> None:
    listed = {name: stage.get("params", []) for name, stage in STAGES.items()}
    assert {name for name, params in listed.items() if any(f"{key}.".startswith(f"{p}.") for p in params)} == stages


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_one_exec_so_that_dvc_is_its_parent(name: str) -> None:
    assert STAGES[name]["cmd"] == f"exec python -m stages.{name}"


@pytest.mark.parametrize("name", STAGES)
def test_every_plain_out_is_cached_as_the_run_cache_restores_no_other(name: str) -> None:
    assert all(isinstance(out, str) for out in STAGES[name].get("outs", []))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_outputs_of_stages_and_files_of_the_repository(name: str) -> None:
    made = {out for stage in STAGES.values() for out in paths(stage, "outs", "metrics")}
    for dep in STAGES[name]["deps"]:
        assert (ROOT / dep).exists() if is_code(dep) or dep == PARAMS else any(lies_in(out, [dep]) for out in made), dep


@pytest.mark.parametrize(
    ("name", "forbidden"), [("check", HEAVY | {"numpy", "pandas"}), ("prepare", HEAVY), ("plots", HEAVY - {"mlflow"})]
)
def test_light_stages_import_no_heavy_package(name: str, forbidden: set[str]) -> None:
    opaque = ["detection/data/sources/dataset.py"] if name == "check" else []  # read only if pinned data has changed
    for path in closure(f"stages.{name}", ROOT, opaque):
        if path.endswith(".py") and path not in opaque:
            assert not _foreign(ROOT / path) & forbidden, path


def test_closure_follows_every_kind_of_import(tmp_path: Path) -> None:
    files = {
        "stages/__init__.py": "",
        "stages/go.py": "from detection import late\ndef f():\n    from detection.deep.one import thing\n",
        "detection/__init__.py": "import os",
        "detection/late.py": "import detection.plain\nPAGE = 'page.html'",
        "detection/page.html": "<style>{% include 'page.css' %}</style>",
        "detection/page.css": "",
        "detection/deep/notes.txt": "",
        "detection/plain.py": "from typing import *\nif TYPE_CHECKING:\n    import detection.typed\n",
        "detection/typed.py": "",
        "detection/unused.py": "",
        "detection/deep/__init__.py": "",
        "detection/deep/one.py": "from . import two\nfrom .two import x\nfrom ..beside import y\n",
        "detection/deep/two.py": "import torch",
        "detection/beside.py": "",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    left_out = {"detection/typed.py", "detection/unused.py", "detection/deep/notes.txt"}
    assert closure("stages.go", tmp_path) == sorted(files.keys() - left_out)


def _foreign(path: Path) -> set[str]:
    """Top-level names of the packages imported by a module itself, not inside its functions."""
    names: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                waiting += node.orelse
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.append(node)
    return names


def test_line_ends_of_a_checkout_change_no_dependency() -> None:
    """With `core.autocrlf` git would write CRLF, and every stage would run again."""
    code = [file.relative_to(ROOT).as_posix() for file in code_files(STAGES, ROOT)]
    files = [*code, "dvc.yaml", "dvc.lock", PARAMS]
    listed = subprocess.run(["git", "check-attr", "eol", *files], cwd=ROOT, capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines() == [f"{file}: eol: lf" for file in files]
