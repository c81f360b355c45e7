"""Draw what the other stages left into `reports/plots/`, `reports/index.html` and `reports/model_card.md`."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from detection import params
from stages.entry import run

if TYPE_CHECKING:
    from detection.report.images.gallery import Album

log = logging.getLogger(__name__)
REPORTS = Path("reports")
FOLDER = REPORTS / "plots"
PAGE, CARD = REPORTS / "index.html", REPORTS / "model_card.md"


def main() -> None:
    """Draw charts, test pictures, the page and the model card; hand them to the row that `evaluate` named."""
    chosen = params.load()
    settings = chosen.plots
    from detection.report import model_card
    from detection.report.charts import charts
    from detection.report.page import html
    from detection.report.page.advice import advise

    shutil.rmtree(FOLDER, ignore_errors=True)  # no figure of an earlier experiment stays
    FOLDER.mkdir(parents=True)
    figures = charts.draw(REPORTS, FOLDER, settings.smoothing)
    html.write(PAGE, REPORTS, figures, _album(settings), advise(REPORTS))
    model_card.write(CARD, REPORTS)
    log.info("the whole experiment on one page: %s", PAGE)

    from detection.tracking.lifecycle import log_figures

    log_figures(chosen)


def _album(settings: params.Plots) -> "Album | None":
    """Draw the galleries, and a sheet of test pictures as PNG; without the pictures, nothing."""
    from detection.data.prepared import Prepared
    from detection.errors import DataError
    from detection.report.images import gallery, image_matches, sample_sheet
    from detection.report.readers import read_json

    prepared = Prepared.load()
    index = prepared.index("test")
    results = image_matches.read_detections(REPORTS, index)
    if results is None:
        return None
    score = settings.score_threshold
    if score is None:
        best = read_json(REPORTS / "evaluation/analysis.json").get("threshold", {}).get("score")
        score = 0.5 if best is None else best
    rows = gallery.typical(index, settings.sample_images)
    try:
        prepared.check_unchanged("test")
        if rows:
            chosen = image_matches.judge(index, results, rows, len(prepared.classes)).values()
            sheet = sample_sheet.contact_sheet(list(chosen), prepared.root, prepared.classes, score)
            sheet.save(FOLDER / "samples.png")
        return gallery.build(REPORTS, prepared, index, results, score, settings.sample_images)
    except DataError as error:
        log.warning("the page shows no test pictures: %s", error)
        return None


if __name__ == "__main__":
    run(main)
