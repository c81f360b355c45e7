"""Write `reports/plots/`, `reports/index.html` and `reports/model_card.md` from the other reports."""

import logging
import shutil
from itertools import chain
from typing import TYPE_CHECKING

from detection import params
from detection.files import MODEL_CARD, REPORT_PAGE, REPORTS, REPORTS_PLOTS, read_json
from stages.entry import run

if TYPE_CHECKING:
    from detection.report.images.gallery import Album

log = logging.getLogger(__name__)


def main() -> None:
    """Draw the charts and test images, write the page and the model card, and log them to the MLflow run."""
    settings = params.load()
    from detection.report.charts.experiment_charts import draw_charts
    from detection.report.model_card import write_model_card
    from detection.report.page.advice import advise
    from detection.report.page.html import write_page

    shutil.rmtree(REPORTS_PLOTS, ignore_errors=True)  # figures of an earlier experiment
    REPORTS_PLOTS.mkdir(parents=True)
    charts = draw_charts(REPORTS, REPORTS_PLOTS, settings.plots.smoothing)
    write_page(REPORT_PAGE, REPORTS, charts, _album(settings.plots), advise(REPORTS))
    write_model_card(MODEL_CARD, REPORTS)
    log.info("report: %s", REPORT_PAGE)

    from detection.tracking.lifecycle import log_figures

    log_figures(settings)


def _album(settings: params.Plots) -> "Album | None":
    """Draw the galleries, and `samples.png`; None without detections or without the images."""
    from detection.data.loading.prepared import Prepared
    from detection.errors import DataError
    from detection.report.images.contact_sheet import contact_sheet, prediction_tiles
    from detection.report.images.gallery import build_album, sample_rows
    from detection.report.images.image_matches import match_images, read_detections

    prepared = Prepared.load()
    index = prepared.index("test")
    detections = read_detections(REPORTS, index)
    if detections is None:
        return None
    score = settings.score_threshold
    if score is None:
        best = read_json(REPORTS / "evaluation/tables/analysis.json").get("threshold", {}).get("score")
        score = 0.5 if best is None else best
    rows = sample_rows(index, settings.sample_images)
    try:
        prepared.check_unchanged("test")
        if rows:
            matches = match_images(index, detections, rows, len(prepared.classes)).values()
            tiles = chain.from_iterable(prediction_tiles(one, prepared.root, score) for one in matches)
            contact_sheet([*tiles], prepared.classes, columns=4).save(REPORTS_PLOTS / "samples.png")
        return build_album(REPORTS, prepared.root, prepared.classes, index, detections, score, settings.sample_images)
    except DataError as error:
        log.warning("no test images in the report: %s", error)
        return None


if __name__ == "__main__":
    run(main)
