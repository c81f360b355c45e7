"""`detection download` from a local server."""

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
from detection.data.archives import Archive, Source
from detection.errors import DataError


class Handler(SimpleHTTPRequestHandler):
    def log_request(self, *_: object) -> None:
        requests.append(self.path)


requests: list[str] = []


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mirror with a tiny VOC2007; the known addresses are unreachable."""
    archives = []
    (tmp_path / "served").mkdir()
    for name in ("trainval", "test"):
        path = tmp_path / "served" / f"{name}.tar"
        created = f"VOCdevkit/VOC2007/ImageSets/Main/{name}.txt"
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo(created)
            member.size = 7
            tar.addfile(member, io.BytesIO(b"000005\n"))
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        archives.append(
            Archive(path.name, path.stat().st_size, sha256, (f"http://127.0.0.1:9/{path.name}",), (created,))
        )
    monkeypatch.setattr(command, "SOURCES", {"voc2007": Source(".", tuple(archives))})
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served")))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    requests.clear()
    yield f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    http.server_close()


def test_a_dataset_is_downloaded_and_extracted_once(mirror: str, tmp_path: Path) -> None:
    message = download("voc2007", [mirror])
    assert "dvc exp run -S dataset=voc2007" in message
    lists = tmp_path / "raw/VOCdevkit/VOC2007/ImageSets/Main"
    assert sorted(path.name for path in lists.iterdir()) == ["test.txt", "trainval.txt"]
    assert requests == ["/trainval.tar", "/test.tar"]
    assert not list((tmp_path / "raw/archives").glob("*.tar*")), "the archives are deleted"
    assert "voc2007 is complete" in download("voc2007", [mirror])
    assert len(requests) == 2


def test_only_missing_archives_are_downloaded_again(mirror: str, tmp_path: Path) -> None:
    download("voc2007", [mirror], keep=True)
    (tmp_path / "raw/VOCdevkit/VOC2007/ImageSets/Main/test.txt").unlink()
    download("voc2007", [mirror])
    assert len(requests) == 2, "the archive was kept"
    shutil.rmtree(tmp_path / "raw/VOCdevkit")
    download("voc2007", [mirror])
    assert requests[2:] == ["/test.tar"], "the other archive is kept from the first call"


def test_without_a_network_nothing_is_extracted(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"trainval\.tar cannot be downloaded .*--mirror URL") as raised:
        download("voc2007", [])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "raw/VOCdevkit").exists()


def test_disk_space_is_checked_before_any_request(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 5))
    with pytest.raises(DataError, match=r"voc2007 needs 0\.0 GB at .*set DATA_ROOT"):
        download("voc2007", [mirror])
    assert requests == []


def test_an_invalid_record_and_a_folder_that_cannot_be_created(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download("voc2007", [mirror])
    (tmp_path / "raw/archives/voc2007.json").write_text('{"trainval.tar": ')
    assert "voc2007 is downloaded" in download("voc2007", [mirror])
    assert len(requests) == 4, "both archives are downloaded again"
    (tmp_path / "file").touch()
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "file/raw"))
    with pytest.raises(DataError, match=r"file/raw/archives cannot be created: .*set DATA_ROOT"):
        download("voc2007", [mirror])


@pytest.mark.parametrize("url", ["/mnt/archives", "example.com/voc", "http://[::1/voc", "http://bücher/voc"])
def test_a_mirror_must_be_a_url(url: str) -> None:
    with pytest.raises(DataError, match=r"^--mirror .*: not a URL"):
        download("voc2007", [url])
