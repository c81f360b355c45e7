"""Pages of the site whose text is elsewhere: README, results, changelog, the notebook, the command line's help."""

import argparse
import json
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
    "examples/quickstart.ipynb": "notebook.md",
}
"""Page of the site by file of the repository; files of docs/ have their own name."""
FENCED = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the examples that pages link to."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        content = notebook_markdown(text) if source.endswith(".ipynb") else text
        files.append(File.generated(config, page, content=content))
    files.append(File.generated(config, "cli.md", content=command_line()))
    for path in [ROOT / "Dockerfile", *sorted((ROOT / "examples").rglob("*.*"))]:
        name = path.relative_to(ROOT).as_posix()
        if "." not in path.parent.name:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    sources = {target: source for source, target in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(lambda link: site_path(link[1], source), part) for part in parts[::2]]
    return "".join(parts)


def site_path(link: str, source: str) -> str:
    """Path in the site of a link in a file of the repository."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return PAGES.get(target, target.removeprefix("docs/"))


def notebook_markdown(text: str) -> str:
    """Cells of a notebook, and a link to the file."""
    parts = []
    for cell in json.loads(text)["cells"]:
        content = "".join(cell["source"])
        parts.append(content if cell["cell_type"] == "markdown" else f"```python\n{content}\n```")
    parts.append('<a href="examples/quickstart.ipynb" download>Download the notebook</a>')
    return "\n\n".join(parts)


def command_line() -> str:
    """Help of `detection` and of each command."""
    sys.path.insert(0, str(ROOT))
    from detection.cli import COMMANDS, build_parser

    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    parser, commands = build_parser(COMMANDS)

    def block(one: argparse.ArgumentParser) -> str:
        return f"```text\n{one.format_help().rstrip()}\n```\n"

    parts = ["# Command line\n", block(parser)]
    for name, (_, summary) in COMMANDS.items():
        parts.append(f"## detection {name}\n\n{summary[0].upper()}{summary[1:]}.\n\n{block(commands[name])}")
    return "\n".join(parts)
