"""Galleries show the images of `hard_examples.json`, with the boxes of the other files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detection.data.loading.index import pack
from detection.data.loading.prepared import Prepared
from detection.report.images.gallery import Album, build_album, sample_rows
from detection.report.images.image_matches import read_detections
from detection.report.page.html import write_page
from tests.report.images.test_image_matches import record
from tests.report.page_reader import parse, text_of

SCORE, COUNT = 0.5, 6
LISTS = {
    "worst": "worst",
    "confident": "confident_false_positives",
    "missed": "largest_missed",
    "suspects": "suspected_label_errors",
}


@pytest.fixture(scope="module")
def album(finished: Path) -> Album:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        patch.setenv("DATA_ROOT", str(finished / "raw"))
        prepared = Prepared.load()
        index = prepared.index("test")
        detections = read_detections(Path("reports"), index)
        assert detections is not None
        return build_album(Path("reports"), prepared.root, prepared.classes, index, detections, SCORE, COUNT)


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_sample_is_evenly_spaced_and_skips_images_without_objects(count: int) -> None:
    index = pack([record(i, [[20.0, 20.0, 80.0, 80.0]] if i != 3 else []) for i in range(12)])
    expected = {0: [], 1: [0], 3: [0, 6, 11], 100: [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]}
    assert sample_rows(index, count) == expected[count]


def test_images_are_those_of_the_file(finished: Path, album: Album) -> None:
    lists = json.loads((finished / "reports/evaluation/tables/hard_examples.json").read_text())
    shown = {gallery.name: gallery.cards for gallery in album.galleries}
    assert list(shown) == [*LISTS, "typical"]
    for name, key in LISTS.items():
        assert {card.image for card in shown[name]} <= {row["image"] for row in lists[key]}
    assert [card.image for card in shown["worst"]] == [row["image"] for row in lists["worst"][:COUNT]]
    folder = finished / "raw" / Prepared.load(finished / "data/prepared").meta["path"]
    for cards in shown.values():
        assert 0 < len(cards) <= COUNT
        assert all((folder / card.file).is_file() for card in cards)
    assert all(card.highlights and card.notes for card in shown["confident"])


def test_counts_are_those_of_the_file(finished: Path, album: Album) -> None:
    lists = json.loads((finished / "reports/evaluation/tables/hard_examples.json").read_text())
    score = lists["score"]
    cards = replace(album, score=score).galleries[0].cards
    for card, row in zip(cards, lists["worst"], strict=False):
        outcomes = [mark.outcome for mark in card.drawing.detections if mark.score >= score]
        assert outcomes.count("tp") == row["true_positives"]
        assert outcomes.count("fp") == row["false_positives"]
        missed = [m for m in card.drawing.objects if m.outcome == "object" and m.score < score]
        assert len(missed) == row["missed"]


def test_page_holds_each_image_once_and_its_boxes(finished: Path, album: Album, tmp_path: Path) -> None:
    page = parse(write_page(tmp_path / "index.html", finished / "reports", {}, album, {}))
    stored = [values["id"] for tag, values in page.attributes if tag == "image"]
    assert sorted(stored) == sorted(drawing.key for drawing in album.drawings())
    used = [values["href"][1:] for tag, values in page.attributes if tag == "use"]
    assert set(used) == set(stored)
    assert len(used) == 2 * sum(len(gallery.cards) for gallery in album.galleries)
    cards = [values["data-image"] for _, values in page.attributes if "data-image" in values]
    assert cards == [card.image for gallery in album.galleries for card in gallery.cards]
    text = text_of(page)
    for each in album.galleries:
        assert each.title in text
        for card in each.cards:
            assert f"{card.image} {card.counts}" in text
    marks = [values for tag, values in page.attributes if tag == "g" and "data-s" in values]
    assert {"low", "missed"} <= {word for values in marks for word in values["class"].split()}
    for values in marks:
        low = "low" in values["class"].split() or "missed" in values["class"].split()
        assert low == (float(values["data-s"]) < SCORE and values["class"] != "m ignored")
