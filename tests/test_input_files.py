"""Images and videos named on the command line."""

import logging
from pathlib import Path

import pytest

from detection.errors import DataError
from detection.input_files import find_inputs, image_files


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path, files: list[Path]) -> list[str]:
    return [str(file.relative_to(root)) for file in files]


def test_hidden_files_folders_and_folders_named_like_images_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    touch(tmp_path, "b.jpg", "A.JPG", "._b.jpg", ".hidden.png", ".git/c.jpg", "__MACOSX/._d.jpg", "e.jpg/f.jpg")
    touch(tmp_path, "notes.txt", "clip.mp4", "no suffix")
    assert names(tmp_path, image_files(tmp_path)) == ["A.JPG", "b.jpg"]
    assert names(tmp_path, image_files(tmp_path, recursive=True)) == ["A.JPG", "b.jpg", "e.jpg/f.jpg"]
    assert "3 files of other types left out (.mp4, .txt, no suffix)" in caplog.text


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path, "photos/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/dangling.jpg").symlink_to(tmp_path / "nowhere")
    found = names(tmp_path, image_files(tmp_path / "photos", recursive=True))
    assert len(found) == 3
    assert {Path(name).name for name in found} == {"a.jpg", "b.jpg", "dangling.jpg"}
    matched = find_inputs([tmp_path / "photos/**/*.jpg"]).images  # glob runs into the loop
    assert len({file.name for file in matched}) == len(matched) == 3


def test_files_are_listed_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.mp4", "deep/a.jpg", "a [1].jpg", "ü ñ.png")
    monkeypatch.chdir(tmp_path)
    files = find_inputs([Path("b.jpg"), Path("deep/../b.jpg"), Path(), Path("*.mp4"), Path("a [1].jpg"), Path("deep")])
    assert [str(file) for file in files.images] == ["b.jpg", "a [1].jpg", "a.jpg", "ü ñ.png", "deep/a.jpg"]
    assert files.videos == [Path("c.mp4")]


def test_results_inside_a_searched_folder_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out/a.jpg", "out/deep/b.jpg", "other/b.jpg")
    assert names(tmp_path, find_inputs([tmp_path], True, tmp_path / "out").images) == ["a.jpg", "other/b.jpg"]
    assert names(tmp_path, find_inputs([tmp_path / "**/*.jpg"], False, tmp_path / "out").images) == [
        *("a.jpg", "other/b.jpg")
    ]
    assert len(find_inputs([tmp_path / "out"], True, tmp_path / "out").images) == 2  # named itself
    assert len(find_inputs([tmp_path / "other"], True, tmp_path).images) == 1  # results above the images


def test_patterns_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.jpg", "in/b.png", "in/notes.md", "in/deep/c.jpg", "d.jpg")
    monkeypatch.chdir(tmp_path)
    assert find_inputs([Path("in/*")]).images == [Path("in/a.jpg"), Path("in/b.png")]
    assert find_inputs([Path("i?")]).images == [Path("in/a.jpg"), Path("in/b.png")]
    (tmp_path / "in/list.txt").write_text("a.jpg\r\n\n  deep/c.jpg \nd.jpg\nmissing.jpg\n", "utf-8-sig")
    listed = find_inputs([Path("in/list.txt")]).images
    assert listed == [Path("in/a.jpg"), Path("in/deep/c.jpg"), Path("d.jpg"), Path("in/missing.jpg")]


@pytest.mark.parametrize("source", ["nowhere", "empty", "nowhere/*.jpg", "empty.txt"])
def test_sources_without_images(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=source.replace("*", r"\*")):
        find_inputs([tmp_path / source])
