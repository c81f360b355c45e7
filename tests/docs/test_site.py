"""The site of `make docs`: it is complete, loads nothing from elsewhere, and broken links stop its build."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from detection import __all__ as exported
from detection.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
BUILD = [sys.executable, "-m", "mkdocs", "build"]
LOADED = re.compile(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"(?:https?:)?//|<link[^>]*href=\"(?:https?:)?//", re.I)


def build(config: Path, site: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(config.parent)}
    words = [*BUILD, "--config-file", str(config), "--site-dir", str(site)]
    return subprocess.run(words, cwd=config.parent, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html")]
    assert len(pages) > 15
    assert not [page.name for page in pages if LOADED.search(page.read_text(encoding="utf-8"))]
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not re.search(r"url\(['\"]?(https?:)?//", styles)


def test_references_are_complete(site: Path) -> None:
    commands = (site / "cli.html").read_text(encoding="utf-8")
    assert all(f'id="detection-{name}"' in commands for name in COMMANDS)
    assert "--score-threshold" in commands or "--threshold" in commands
    names = (site / "api.html").read_text(encoding="utf-8")
    for name in {*exported} - {"DetectionError", "__version__"}:
        assert f'id="detection.{name}"' in names
    assert 'id="detection.Predictor.export"' in names
    assert 'id="detection.errors.DataError"' in names


def test_links_between_files_lead_to_pages(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="experiments.html"' in home
    assert 'href="results.html"' in home
    machines = (site / "machines.html").read_text(encoding="utf-8")
    assert 'href="examples/slurm/train.sbatch"' in machines
    assert (site / "examples/slurm/train.sbatch").is_file()


def test_broken_links_stop_the_build(tmp_path: Path) -> None:
    for name in ("docs", "examples", "detection", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile"):
        shutil.copy(ROOT / name, tmp_path)
    links = ("nowhere.md", "datasets.md#nothing", "../benchmarks/nothing.md")
    with (tmp_path / "docs/score.md").open("a") as page:
        page.writelines(f"\n[x]({link})\n" for link in links)
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert all(Path(link).name in done.stderr for link in links)


def test_links_to_other_sites_are_well_formed() -> None:
    """Without the network: https, a host, no blanks or stray brackets."""
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")):
        for url in re.findall(r"\]\((https?:[^)]*)\)", page.read_text(encoding="utf-8")):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[^\s<>]*)?", url), (page.name, url)
