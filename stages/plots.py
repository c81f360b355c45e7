"""Draw what the other stages left into `reports/plots/` and `reports/index.html`."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from detection import params
from stages.entry import run

if TYPE_CHECKING:
    from detection.reporting.samples import Review, Sample

log = logging.getLogger(__name__)
REPORTS = Path("reports")
FOLDER = REPORTS / "plots"
PAGE = REPORTS / "index.html"


def main() -> None:
    """Draw charts, test pictures and the page; hand them to the row that `evaluate` named."""
    settings = params.load().plots
    from detection.reporting import gallery, page, samples

    shutil.rmtree(FOLDER, ignore_errors=True)  # no figure of an earlier experiment stays
    FOLDER.mkdir(parents=True)
    figures = gallery.draw(REPORTS, FOLDER, settings.smoothing)
    review, shown = _samples(settings)
    if shown:
        samples.contact_sheet(shown).save(FOLDER / "samples.png")
    total = review.total() if review else None
    page.write(PAGE, REPORTS, figures, shown, total, settings.score_threshold)
    log.info("the whole experiment on one page: %s", PAGE)

    from detection.tracking.figures import log_figures

    log_figures(REPORTS / "evaluation/run.json", FOLDER, PAGE)


def _samples(settings: params.Plots) -> "tuple[Review | None, list[Sample]]":
    """Judge the detections on test and draw some; without the pictures, judge only."""
    import msgspec

    from detection.data.prepared import Prepared
    from detection.errors import DataError
    from detection.evaluation.results import Results
    from detection.reporting import samples

    detections = REPORTS / "evaluation/detections.json"
    if not detections.is_file():
        return None, []
    prepared = Prepared.load()
    index = prepared.index("test")
    rows = msgspec.json.decode(detections.read_bytes())
    review = samples.Review.of(index, Results.from_coco(index, rows), settings.score_threshold)
    try:
        prepared.check_unchanged("test")
        return review, samples.draw(review, prepared.root, prepared.classes, settings.samples)
    except DataError as error:
        log.warning("the page shows no test pictures: %s", error)
        return review, []


if __name__ == "__main__":
    run(main)
