"""Downloads from a local HTTP server that breaks connections, ignores ranges, or sends other content."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection.data.archives import MAX_IDLE_TRIES, SOURCES, Archive, check_disk_space, extract, fetch
from detection.errors import DataError
from detection.params import load
from detection.params.datasets import CocoDataset, VocDataset

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server:
    """Serves `content` under any name, with errors on request; records the headers of requests."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.breaks_after: list[int] = []  # bytes of the next responses after which the connection is closed
        self.supports_ranges, self.status = True, 200
        self.requests: list[dict[str, str]] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.tar"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(dict(self.headers))
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = 0
                if server.supports_ranges and "Range" in self.headers:
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                body = server.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    total = len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                end = server.breaks_after.pop(0) if server.breaks_after else len(body)
                self.wfile.write(body[:end])
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture
def other() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def archive(*urls: str, content: bytes = CONTENT) -> Archive:
    return Archive("file.tar", len(content), hashlib.sha256(content).hexdigest(), urls, ())


def get(file: Archive, folder: Path) -> list[int]:
    """Fetch; return the reported byte counts."""
    seen: list[int] = []
    path = fetch(file, folder, seen.append, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert [path.name for path in folder.iterdir()] == ["file.tar"]
    return seen


def starts(server: Server) -> list[int]:
    """First byte of each request."""
    ranges = (headers.get("Range", "bytes=0-") for headers in server.requests)
    return [int(one.removeprefix("bytes=").removesuffix("-")) for one in ranges]


def test_a_complete_file_is_not_downloaded_again(server: Server, tmp_path: Path) -> None:
    seen = get(archive(server.url), tmp_path)
    assert seen[-1] == len(CONTENT)
    assert seen == sorted(seen)
    get(archive(server.url), tmp_path)
    assert len(server.requests) == 1


def test_a_broken_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [1_000_000, 500_000, 1, 0]
    get(archive(server.url), tmp_path)
    assert starts(server) == [0, 1_000_000, 1_500_000, 1_500_001, 1_500_001]


def test_the_next_command_resumes_the_last_one(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [700_000, *[0] * MAX_IDLE_TRIES]
    with pytest.raises(DataError, match=r"700,000 of 3,000,000 bytes.*Run the same command again"):
        get(archive(server.url), tmp_path)
    assert (tmp_path / "file.tar.part").stat().st_size == 700_000
    get(archive(server.url), tmp_path)
    assert starts(server)[-1] == 700_000


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.breaks_after, server.supports_ranges = [1_000_000], False
    get(archive(server.url), tmp_path)
    assert starts(server) == [0, 1_000_000]


def test_two_versions_of_a_file_are_not_joined(server: Server, tmp_path: Path) -> None:
    server.content, server.breaks_after = bytes(len(CONTENT)), [1_000_000, *[0] * MAX_IDLE_TRIES]
    with pytest.raises(DataError):
        get(archive(server.url), tmp_path)
    server.content = CONTENT
    get(archive(server.url), tmp_path)
    assert starts(server)[-2:] == [1_000_000, 0], "downloaded again after the hash is wrong"


def test_a_damaged_file_is_deleted_and_the_next_mirror_used(server: Server, other: Server, tmp_path: Path) -> None:
    server.content = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    get(archive(server.url, other.url), tmp_path)
    assert (len(server.requests), starts(other)) == (1, [0])
    with pytest.raises(DataError, match=r"cannot be downloaded \(127\.0\.0\.1:\d+: .*damaged"):
        get(archive(server.url), tmp_path / "alone")
    assert not list((tmp_path / "alone").iterdir())


def test_the_next_mirror_resumes_the_file(server: Server, other: Server, tmp_path: Path) -> None:
    server.breaks_after = [2_000_000, *[0] * MAX_IDLE_TRIES]
    get(archive(server.url, other.url), tmp_path)
    assert starts(other) == [2_000_000]


def test_a_wrong_part_is_downloaded_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tar.part").write_bytes(b"x" * 1000)
    get(archive(server.url), tmp_path)
    assert starts(server) == [1000, 0]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_mirror_with_an_http_error_is_skipped(server: Server, other: Server, tmp_path: Path, status: int) -> None:
    server.status = status
    get(archive(server.url, other.url), tmp_path)
    assert len(server.requests) == (2 if status == 503 else 1)


def test_an_unreachable_mirror_is_skipped_and_the_error_names_all_mirrors(server: Server, tmp_path: Path) -> None:
    dead = "http://127.0.0.1:9/file.tar"
    get(archive(dead, server.url), tmp_path)
    with pytest.raises(DataError) as raised:
        get(archive(dead, "http://no-such-host.invalid/file.tar"), tmp_path / "none")
    message = str(raised.value)
    assert "\n" not in message
    assert "127.0.0.1:9: unreachable" in message
    assert "no-such-host.invalid: unreachable" in message
    assert "--mirror URL" in message
    assert str(tmp_path / "none" / "file.tar") in message


def test_another_size_is_refused_before_the_download(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>please log in</html>"
    with pytest.raises(DataError, match="has 26 bytes under this name, not 3000000"):
        get(archive(server.url), tmp_path)


def test_archives_are_extracted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "VOCdevkit/VOC2007/a.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("annotations/a.json", "{}")
    extract(tmp_path / "a.tar", tmp_path / "out")
    extract(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/VOCdevkit/VOC2007/a.txt").read_text() == "hello"
    assert (tmp_path / "out/annotations/a.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt"])
def test_members_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "good.txt")
        add(tar, name)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("good.txt", "hello")
        zipped.writestr(name, "hello")
    for file in ("a.tar", "a.zip"):
        with pytest.raises(DataError, match="would leave"):
            extract(tmp_path / file, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        tar.addfile(link)
    with pytest.raises(DataError, match="not the official archive"):
        extract(tmp_path / "a.tar", tmp_path / "out")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("a.txt", "hello hello hello")
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace(b"hello hello", b"hellO hello"))
    (tmp_path / "b.tar").write_bytes(b"no archive at all")
    for file in ("a.zip", "b.tar"):
        with pytest.raises(DataError, match=r"is damaged .*delete it and download again"):
            extract(tmp_path / file, tmp_path / "out")


def test_disk_space_is_checked_for_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    check_disk_space(tmp_path / "not/yet", 1000, "x")
    with pytest.raises(DataError, match=r"coco2017 needs 1000000000\.0 GB at .* GB are free"):
        check_disk_space(tmp_path / "not/yet", 10**18, "coco2017")


def test_sources_create_the_files_that_params_yaml_lists() -> None:
    root = Path(__file__).resolve().parents[3] / "params.yaml"
    for name, source in SOURCES.items():
        created = {f"{source.folder}/{path}".removeprefix("./") for one in source.archives for path in one.creates}
        data = load(root, dataset=name).data
        if isinstance(data, CocoDataset):
            assert {f"{data.path}/{part.annotations}" for part in (*data.train, *data.test)} <= created
            assert {f"{data.path}/{part.images}" for part in (*data.train, *data.test)} <= {
                str(Path(path).parent) for path in created
            }
        else:
            assert isinstance(data, VocDataset)
            folders = {f"{data.path}/{spec.partition('/')[0]}" for spec in (*data.train, *data.test)}
            assert folders == {path.partition("/ImageSets")[0] for path in created}


def test_sizes_and_addresses_of_the_archives() -> None:
    sizes = {one.name: one.size for source in SOURCES.values() for one in source.archives}
    assert sum(sizes.values()) == 460_032_000 + 451_020_800 + 1_999_639_040 + 252_907_541 + 815_585_330 + (
        19_336_861_798
    )
    for source in SOURCES.values():
        for one in source.archives:
            assert len(one.sha256) == 64
            assert len(one.urls) >= 3
            assert all(url.startswith("http") and url.endswith("/" + one.name) for url in one.urls)


def add(tar: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 5
    tar.addfile(member, io.BytesIO(b"hello"))
