"""Import closure of a module: files of our own packages that running it can come to import or read.

Modules are parsed, not imported, so that an import inside a function counts too.
"""

import ast
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

PACKAGES = ("detection", "stages")


def closure(module: str, root: Path, opaque: Collection[str] = ()) -> list[str]:
    """Files of `PACKAGES` that `python -m module` can come to import or read.

    Args:
        module: Dotted name, such as `stages.train`.
        root: Folder that holds the packages.
        opaque: Files and folders whose own imports are not followed.

    Returns:
        Sorted paths relative to `root`: the module itself, every package's `__init__.py`, and the data files
        beside a module that names one of them in a string (`"page.html"`).
    """
    found: set[Path] = set()
    beside: set[Path] = set()
    waiting = [module]
    while waiting:
        for path in _files(waiting.pop(), root):
            if path not in found:
                found.add(path)
                if lies_in(path.relative_to(root).as_posix(), opaque):
                    continue
                tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
                # a package's lazy exports are imported by the modules that use them
                nodes = list(tree.body if path.name == "__init__.py" else _running(tree))
                waiting += _imports(nodes, path.relative_to(root).parent.parts)
                beside |= _beside(nodes, path.parent)
    return sorted(path.relative_to(root).as_posix() for path in found | beside)


def lies_in(path: str, folders: Iterable[str]) -> bool:
    """Return True if a path is one of some files, or below one of some folders."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _files(module: str, root: Path) -> Iterator[Path]:
    """Files that importing a dotted name runs: each package's `__init__.py`, then the module."""
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
    """Imported dotted names, at the top or inside functions; `from a import b` may name the module `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _beside(nodes: Iterable[ast.AST], folder: Path) -> set[Path]:
    """Data files of a folder, if a string names one of them: a page template includes its style sheet."""
    strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
    files = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    return files if any(path.name in strings for path in files) else set()


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING:`, which never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _running(node)
