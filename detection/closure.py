"""Which of our own modules a script really imports, and the `deps` of dvc.yaml made from that.

A stage that lists too little is not run again after an edit; one that lists a whole package trains again
because a figure got another colour. Modules are read, not imported, so a late import counts too.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PACKAGES = ("detection", "stages")


def closure(module: str, root: Path) -> list[str]:
    """Files that `python -m module` can come to import or read, out of `PACKAGES`.

    Args:
        module: Dotted name, such as `stages.train`.
        root: Folder that holds the packages.

    Returns:
        Sorted paths relative to `root`, the module itself and every package's `__init__.py` among them, and
        the other files beside a module that names one in a string (`"page.html"`).
    """
    found: set[Path] = set()
    beside: set[Path] = set()
    waiting = [module]
    while waiting:
        for path in _files(waiting.pop(), root):
            if path not in found:
                found.add(path)
                nodes = list(_running(ast.parse(path.read_text(encoding="utf-8"), str(path))))
                waiting += _imports(nodes, path.relative_to(root).parent.parts)
                beside |= _beside(nodes, path.parent)
    return sorted(path.relative_to(root).as_posix() for path in found | beside)


def stage_deps(stage: dict[str, Any], root: Path) -> list[str]:
    """The `deps` that a stage of dvc.yaml should have: its data as listed, its code as imported."""
    data = [dep for dep in stage.get("deps", []) if dep.split("/")[0] not in PACKAGES]
    return data + closure(stage["cmd"].split()[-1], root)


def rewrite(pipeline: Path) -> list[str]:
    """Bring the `deps` in a dvc.yaml up to date, leaving all else as it is; returns the changed stages."""
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 110
    document = yaml.load(pipeline)
    changed = []
    for name, stage in document["stages"].items():
        deps = stage_deps(stage, pipeline.parent)
        if deps != list(stage["deps"]):
            stage["deps"] = deps
            changed.append(name)
    if changed:
        yaml.dump(document, pipeline)
    return changed


def _files(module: str, root: Path) -> Iterator[Path]:
    """The files that importing a dotted name runs: each package's `__init__.py`, then the module."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    for length in range(1, len(parts) + 1):
        path = root.joinpath(*parts[:length])
        if path.is_dir():
            if (path / "__init__.py").is_file():
                yield path / "__init__.py"
        elif path.with_suffix(".py").is_file():
            yield path.with_suffix(".py")


def _imports(nodes: Iterable[ast.AST], package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that are imported, at the top or later; `from a import b` may name the module `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _beside(nodes: Iterable[ast.AST], folder: Path) -> set[Path]:
    """All files of a folder that are no modules, if a string names one of them: a page includes its style."""
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    files = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    return files if any(path.name in strings for path in files) else set()


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _running(node)
