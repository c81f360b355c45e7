"""Shell and Python blocks of the pages: those that cannot be run on one machine without the network name why."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += [
    f"docs/{name}.md" for name in ("datasets", "finetuning", "experiments", "deployment", "score", "machines", "api")
]
WITH_OWN_TEST = {"docs/team.md": "tests/tracking/team/test_page.py"}
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]*) -->\n)?^```(?P<language>sh|python)\n(?P<script>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
REGISTERED = "needs a registered detector, see tests/experiments/test_registry.py"


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    script: str
    reason: str | None
    """Why it is not run."""


def collect(pages: list[str]) -> list[Block]:
    found = []
    for page in pages:
        for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
            found.append(Block(page, match["language"], match["script"], match["reason"]))
    return found


BLOCKS = collect(PAGES)


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


def test_what_is_not_run_and_why() -> None:
    assert {block.script.split(" #")[0].split("\n")[0].strip(): block.reason for block in BLOCKS if block.reason} == {
        "make install": "installs packages",
        "make test": "runs this test",
        "dvc exp run -S model=retinanet -S dataset=coco2017 -S start.from=published -S budgets.coco2017.epochs=0": (
            "needs COCO and published weights"
        ),
        "import mlflow": "needs a trained detector, see tests/tracking/test_logged_model.py",
        "import detection": REGISTERED,
        "from pathlib import Path": REGISTERED,
        "export MLFLOW_TRACKING_URI=sqlite:///mlflow.db": REGISTERED,
        "docker build --tag detection .": "needs Docker and the network",
        "DETECTION_NODES=2 DETECTION_RDZV=HOST:29500 dvc repro": "needs two machines, see tests/test_nodes.py",
    }
