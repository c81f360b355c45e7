"""`detection download` from a local server: into DATA_ROOT, once, and anew where something is gone."""

import hashlib
import io
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from detection.commands import download as command
from detection.commands.download import download
from detection.data.download.archives import Archive, Source
from detection.errors import DataError


class Quiet(SimpleHTTPRequestHandler):
    def log_request(self, *_: object) -> None:
        asked.append(self.path)


asked: list[str] = []


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mirror that has a small VOC2007; the known places are dead."""
    archives = []
    (tmp_path / "served").mkdir()
    for name in ("trainval", "test"):
        path = tmp_path / "served" / f"{name}.tar"
        made = f"VOCdevkit/VOC2007/ImageSets/Main/{name}.txt"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo(made)
            member.size = 7
            tar.addfile(member, io.BytesIO(b"000005\n"))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        archives.append(
            Archive(path.name, path.stat().st_size, sha256, (f"http://127.0.0.1:9/{path.name}",), (made,))
        )
    monkeypatch.setattr(command, "SOURCES", {"voc2007": Source(".", tuple(archives))})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    asked.clear()
    yield f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    http.server_close()


def test_a_dataset_is_downloaded_unpacked_and_recognised(mirror: str, tmp_path: Path) -> None:
    said = download("voc2007", [mirror])
    assert "next: dvc exp run -S dataset=voc2007" in said
    lists = tmp_path / "raw/VOCdevkit/VOC2007/ImageSets/Main"
    assert sorted(path.name for path in lists.iterdir()) == ["test.txt", "trainval.txt"]
    assert asked == ["/trainval.tar", "/test.tar"]
    assert not list((tmp_path / "raw/archives").glob("*.tar*")), "the archives are deleted"
    assert "voc2007 is there already" in download("voc2007", [mirror])
    assert len(asked) == 2


def test_only_what_is_gone_is_fetched_again(mirror: str, tmp_path: Path) -> None:
    download("voc2007", [mirror], keep=True)
    (tmp_path / "raw/VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()
    download("voc2007", [mirror])
    assert len(asked) == 2, "the archive was kept"
    shutil.rmtree(tmp_path / "raw/VOCdevkit")
    download("voc2007", [mirror])
    assert asked[2:] == ["/test.tar"], "the other one is still kept from the first time"


def test_without_a_network_nothing_is_left_half_done(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trainval\.tar cannot be had .*--mirror URL") as raised:
        download("voc2007")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "raw/VOCdevkit").exists()


def test_a_small_disk_is_told_before_anything_is_asked(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5))  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"voc2007 needs 0\.0 GB at .*free some disk, or set DATA_ROOT"):
        download("voc2007", [mirror])
    assert asked == []


def test_a_note_that_is_torn_and_a_folder_that_cannot_be_made(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download("voc2007", [mirror])
    (tmp_path / "raw/archives/voc2007.json").write_text('{"trainval.tar": ')
    assert "voc2007 is there" in download("voc2007", [mirror])
    assert len(asked) == 4, "nobody knows what was unpacked"
    (tmp_path / "file").touch()
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "file/raw"))
    with pytest.raises(DataError, match=r"file/raw/archives cannot be made: .*; set DATA_ROOT"):
        download("voc2007", [mirror])


@pytest.mark.parametrize(
    "place", ["/mnt/archives", "example.com/voc", "http://[::1/voc", "http://bücher/voc"]
)
def test_a_mirror_that_is_no_url_costs_a_line(place: str) -> None:
    with pytest.raises(DataError, match=r"^--mirror .*: this is no URL; give one such as"):
        download("voc2007", [place])
