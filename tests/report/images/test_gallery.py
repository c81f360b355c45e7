"""Galleries show the pictures that the evaluation names, with the boxes of its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from detection.data.prepared import Prepared
from detection.report.images import gallery
from detection.report.images.gallery import Album
from detection.report.images.image_matches import read_detections
from detection.report.page import html
from tests.reporting.page_reader import read, words

SCORE, COUNT = 0.5, 6


@pytest.fixture(scope="module")
def album(finished: Path) -> Album:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        patch.setenv("DATA_ROOT", str(finished / "raw"))
        prepared = Prepared.load()
        index = prepared.index("test")
        results = read_detections(Path("reports"), index)
        assert results is not None
        return gallery.build(Path("reports"), prepared, index, results, SCORE, COUNT)


def test_every_picture_is_one_that_the_files_name(finished: Path, album: Album) -> None:
    lists = json.loads((finished / "reports/evaluation/hard_examples.json").read_text())
    names = {
        "worst": "worst",
        "confident": "confident_false_positives",
        "missed": "largest_missed",
        "suspects": "suspected_label_errors",
    }
    shown = {gallery.name: gallery.cards for gallery in album.galleries}
    assert list(shown) == [*names, "typical"]
    for name, key in names.items():
        assert {card.picture for card in shown[name]} <= {row["image"] for row in lists[key]}
    assert [card.picture for card in shown["worst"]] == [row["image"] for row in lists["worst"][:COUNT]]
    for cards in shown.values():
        assert 0 < len(cards) <= COUNT
        for card in cards:
            assert (
                finished / "raw" / Prepared.load(finished / "data/prepared").meta["path"] / card.file
            ).is_file()
    assert all(card.rings and card.notes for card in shown["confident"])


def test_the_tally_is_that_of_the_file(finished: Path, album: Album) -> None:
    lists = json.loads((finished / "reports/evaluation/hard_examples.json").read_text())
    cards = replace(album, score=lists["score"]).galleries[0].cards
    for card, row in zip(cards, lists["worst"], strict=False):
        found = [mark for mark in card.drawing.found if mark.score >= lists["score"]]
        assert sum(mark.kind == "right" for mark in found) == row["true_positives"]
        assert sum(mark.kind == "wrong" for mark in found) == row["false_positives"]
        missed = [m for m in card.drawing.objects if m.kind == "object" and m.score < lists["score"]]
        assert len(missed) == row["missed"]


def test_the_page_holds_each_picture_once_and_its_boxes(finished: Path, album: Album, tmp_path: Path) -> None:
    reader = read(html.write(tmp_path / "index.html", finished / "reports", {}, album, {}))
    stored = [given["id"] for tag, given in reader.attributes if tag == "image"]
    assert sorted(stored) == sorted(drawing.key for drawing in album.drawings())
    used = [given["href"][1:] for tag, given in reader.attributes if tag == "use"]
    assert set(used) == set(stored)
    assert len(used) == 2 * sum(len(gallery.cards) for gallery in album.galleries)
    cards = [given["data-picture"] for _, given in reader.attributes if "data-picture" in given]
    assert cards == [card.picture for gallery in album.galleries for card in gallery.cards]
    text = words(reader)
    for each in album.galleries:
        assert each.title in text
        for card in each.cards:
            assert f"{card.picture} {card.tally}" in text
    marks = [given for tag, given in reader.attributes if tag == "g" and "data-s" in given]
    assert {"low", "missed"} <= {word for given in marks for word in given["class"].split()}
    for given in marks:
        if "low" in given["class"].split():
            assert float(given["data-s"]) < SCORE
