"""dvc.yaml against what the stages really import, and what the light ones must never import."""

import ast
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from detection.closure import closure, rewrite

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
HEAVY = {"torch", "torchvision", "mlflow", "pycocotools"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_modules_it_imports_no_more_and_no_less(name: str) -> None:
    listed = {dep for dep in STAGES[name]["deps"] if dep.startswith(("detection/", "stages/"))}
    imported = set(closure(f"stages.{name}", ROOT))
    assert listed == imported, "`make deps` writes them anew"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_one_exec_so_that_dvc_is_its_parent(name: str) -> None:
    assert STAGES[name]["cmd"] == f"exec python -m stages.{name}"


@pytest.mark.parametrize("name", STAGES)
def test_every_plain_out_is_cached_as_the_run_cache_restores_no_other(name: str) -> None:
    assert all(isinstance(out, str) for out in STAGES[name].get("outs", []))


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_reads_is_made_by_a_stage_or_stands_in_git(name: str) -> None:
    made = {
        out for stage in STAGES.values() for out in _paths(stage.get("outs")) + _paths(stage.get("metrics"))
    }
    for dep in STAGES[name]["deps"]:
        assert dep in made or (ROOT / dep).is_file(), dep


def test_an_edit_of_figures_or_of_the_evaluations_log_does_not_train_again() -> None:
    drawn_while_training = {"detection/report/__init__.py", "detection/report/images/boxes_on_image.py"}
    for name in ("pretrain", "train"):
        deps = set(STAGES[name]["deps"]) - drawn_while_training
        assert not [dep for dep in deps if dep.startswith(("detection/report", "detection/commands"))]
        assert "detection/tracking/stages.py" not in deps


@pytest.mark.parametrize(
    ("name", "forbidden"),
    [("check", HEAVY | {"numpy", "pandas"}), ("prepare", HEAVY), ("plots", HEAVY - {"mlflow"})],
)
def test_light_stages_cannot_come_to_import_what_is_heavy(name: str, forbidden: set[str]) -> None:
    for path in closure(f"stages.{name}", ROOT):
        if path.endswith(".py"):
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


def test_rewrite_changes_code_deps_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "go.py").write_text("import stages.helper\n")
    (tmp_path / "stages" / "helper.py").write_text("")
    text = (
        "# a comment\nstages:\n  go:\n    cmd: exec python -m stages.go\n    deps:\n      - data/in.txt\n{}"
        "    outs:\n      - out.txt # kept\n"
    )
    old = "      - stages/gone.py\n"
    pipeline = tmp_path / "dvc.yaml"
    pipeline.write_text(text.format(old))
    assert rewrite(pipeline) == ["go"]
    assert pipeline.read_text() == text.format("      - stages/go.py\n      - stages/helper.py\n")
    assert rewrite(pipeline) == []


def _paths(entries: list[Any] | None) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries or []]


def _foreign(path: Path) -> set[str]:
    """First names of all that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
