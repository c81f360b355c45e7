"""Shell and Python blocks of the pages: which are not run, and why."""

import re

from tests.docs.pages import ROOT, blocks

PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += [
    f"docs/{name}.md" for name in ("datasets", "finetuning", "experiments", "deployment", "score", "machines", "api")
]
WITH_OWN_TEST = {"docs/team.md": "tests/tracking/team/test_page.py"}


def test_every_page_is_looked_at() -> None:
    pages = [path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    with_blocks = {
        page for page in pages if re.search(r"^```(sh|python|bash|console)", (ROOT / page).read_text(), re.MULTILINE)
    }
    assert with_blocks == {*PAGES, *WITH_OWN_TEST}
    assert all((ROOT / test).is_file() for test in WITH_OWN_TEST.values())
    assert not re.search(
        r"^```(bash|console|shell)", "".join((ROOT / page).read_text() for page in pages), re.MULTILINE
    )


def test_every_page_is_followed() -> None:
    tests = "".join(path.read_text() for path in ROOT.glob("tests/docs/test_*_page*.py"))
    run = {page for page in PAGES if any(block.reason is None for block in blocks(page))}
    assert run == set(re.findall(r"\.follow\(\s*\"([^\"]+)\"", tests))


def test_what_is_not_run_and_why() -> None:
    assert {block.first: block.reason for page in PAGES for block in blocks(page) if block.reason} == {
        "make install": "installs packages",
        "dvc exp run -n coco -S model=fasterrcnn -S dataset=mine -S start.from=published": "needs published weights",
        "dvc exp run -S model=retinanet -S dataset=coco2017 -S start.from=published -S budgets.coco2017.epochs=0": (
            "needs COCO and published weights"
        ),
        "docker build --tag detection .": "needs Docker and the network",
        "DETECTION_NODES=2 DETECTION_RDZV=HOST:29500 dvc repro": "needs two machines, see tests/test_nodes.py",
    }
