"""Downloads from a real HTTP server on this machine that breaks off, forgets, lies or is not there."""

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

from detection.data.download import fetch as downloading
from detection.data.download.archives import SOURCES, Archive
from detection.data.download.fetch import check_room, fetch, unpack
from detection.errors import DataError
from detection.params import load
from detection.params.datasets import CocoDataset, VocDataset

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class Server:
    """Serves `content` under any name, as badly as it is told to; keeps what it was asked."""

    def __init__(self) -> None:
        self.content, self.etag = CONTENT, '"one"'
        self.breaks_after: list[int] = []  # bytes of the next answers, after which the connection is cut
        self.knows_ranges, self.status = True, 200
        self.asked: list[dict[str, str]] = []
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
                server.asked.append(dict(self.headers))
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = 0
                same = self.headers.get("If-Range") in (None, server.etag)
                if server.knows_ranges and "Range" in self.headers and same:
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                body = server.content[start:]
                self.send_response(206 if start else 200)
                if start:
                    total = len(server.content)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("ETag", server.etag)
                self.end_headers()
                cut = server.breaks_after.pop(0) if server.breaks_after else len(body)
                self.wfile.write(body[:cut])
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


def get(what: Archive, folder: Path) -> list[int]:
    """Fetch; returns the bytes that were reported."""
    seen: list[int] = []
    path = fetch(what, folder, seen.append, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert [file.name for file in folder.iterdir()] == ["file.tar"]
    return seen


def starts(server: Server) -> list[int]:
    """From which byte each request asked for more."""
    ranges = (headers.get("Range", "bytes=0-") for headers in server.asked)
    return [int(one.removeprefix("bytes=").removesuffix("-")) for one in ranges]


def test_a_whole_file_comes_and_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    seen = get(archive(server.url), tmp_path)
    assert seen[-1] == len(CONTENT)
    assert seen == sorted(seen)
    get(archive(server.url), tmp_path)
    assert len(server.asked) == 1


def test_a_connection_that_breaks_off_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [1_000_000, 500_000, 1, 0]
    get(archive(server.url), tmp_path)
    assert starts(server) == [0, 1_000_000, 1_500_000, 1_500_001, 1_500_001]
    assert all(headers["If-Range"] == '"one"' for headers in server.asked[1:])


def test_the_next_command_goes_on_where_the_last_one_was_killed(server: Server, tmp_path: Path) -> None:
    server.breaks_after = [700_000, *[0] * downloading.TRIES]
    with pytest.raises(
        DataError, match=r"broke off at 700,000 of 3,000,000 bytes.*Run the same command again"
    ):
        get(archive(server.url), tmp_path)
    assert (tmp_path / "file.tar.part").stat().st_size == 700_000
    get(archive(server.url), tmp_path)
    assert starts(server)[-1] == 700_000


def test_a_server_that_ignores_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.breaks_after, server.knows_ranges = [1_000_000], False
    get(archive(server.url), tmp_path)
    assert starts(server) == [0, 1_000_000]


def test_two_versions_of_a_file_are_never_joined(server: Server, tmp_path: Path) -> None:
    server.content, server.breaks_after = bytes(len(CONTENT)), [1_000_000, *[0] * downloading.TRIES]
    with pytest.raises(DataError):
        get(archive(server.url), tmp_path)
    server.content, server.etag = CONTENT, '"two"'
    get(archive(server.url), tmp_path)
    assert len(server.asked) == downloading.TRIES + 2, "one more was enough"


def test_a_damaged_file_is_thrown_away_and_another_mirror_asked(
    server: Server, other: Server, tmp_path: Path
) -> None:
    server.content = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    get(archive(server.url, other.url), tmp_path)
    assert (len(server.asked), starts(other)) == (1, [0])
    with pytest.raises(DataError, match=r"cannot be had \(127\.0\.0\.1:\d+: gave a damaged file\)"):
        get(archive(server.url), tmp_path / "alone")
    assert list((tmp_path / "alone").iterdir()) == [tmp_path / "alone/file.tar.part.tag"]


def test_a_second_mirror_goes_on_where_the_first_died(server: Server, other: Server, tmp_path: Path) -> None:
    server.breaks_after = [2_000_000, *[0] * downloading.TRIES]
    get(archive(server.url, other.url), tmp_path)
    assert starts(other) == [2_000_000]
    assert "If-Range" not in other.asked[0], "another server has other names for versions"


def test_a_bad_beginning_of_another_place_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.tar.part").write_bytes(b"x" * 1000)
    get(archive(server.url), tmp_path)
    assert starts(server) == [1000, 0]


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_mirror_that_refuses_is_passed_over(
    server: Server, other: Server, tmp_path: Path, status: int
) -> None:
    server.status = status
    get(archive(server.url, other.url), tmp_path)
    assert len(server.asked) == (2 if status == 503 else 1)


def test_a_dead_mirror_is_passed_over_and_without_any_a_person_is_told_what_to_do(
    server: Server, tmp_path: Path
) -> None:
    dead = "http://127.0.0.1:9/file.tar"
    get(archive(dead, server.url), tmp_path)
    with pytest.raises(DataError) as raised:
        get(archive(dead, "http://no-such-host.invalid/file.tar"), tmp_path / "none")
    said = str(raised.value)
    assert "\n" not in said
    assert "127.0.0.1:9: is not reached" in said
    assert "no-such-host.invalid: is not reached" in said
    assert "--mirror URL" in said
    assert str(tmp_path / "none" / "file.tar") in said


def test_a_page_instead_of_the_file_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>please log in</html>"
    with pytest.raises(DataError, match="has 26 bytes under this name, not 3000000"):
        get(archive(server.url), tmp_path)


def test_archives_unpack(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "VOCdevkit/VOC2007/a.txt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("annotations/a.json", "{}")
    unpack(tmp_path / "a.tar", tmp_path / "out")
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/VOCdevkit/VOC2007/a.txt").read_text() == "hello"
    assert (tmp_path / "out/annotations/a.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "a/../../evil.txt"])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "good.txt")
        add(tar, name)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("good.txt", "hello")
        zipped.writestr(name, "hello")
    for file in ("a.tar", "a.zip"):
        with pytest.raises(DataError, match="would leave"):
            unpack(tmp_path / file, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []


def test_no_link_leads_out_of_the_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        tar.addfile(link)
    with pytest.raises(DataError, match="not the official archive"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("a.txt", "hello hello hello")
    whole = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole.replace(b"hello hello", b"hellO hello"))
    (tmp_path / "b.tar").write_bytes(b"no archive at all")
    for file in ("a.zip", "b.tar"):
        with pytest.raises(DataError, match=r"is damaged .*delete it and download again"):
            unpack(tmp_path / file, tmp_path / "out")


def test_a_disk_that_is_too_small_is_told_before_the_download(tmp_path: Path) -> None:
    check_room(tmp_path / "not/yet", 1000, "x")
    with pytest.raises(DataError, match=r"coco2017 needs 1000000000\.0 GB at .* GB are free; free some disk"):
        check_room(tmp_path / "not/yet", 10**18, "coco2017")


def test_what_is_unpacked_is_what_the_entries_of_params_look_for() -> None:
    root = Path(__file__).resolve().parents[2] / "params.yaml"
    for name, source in SOURCES.items():
        made = {f"{source.folder}/{path}".removeprefix("./") for one in source.archives for path in one.makes}
        data = load(root, dataset=name).data
        if isinstance(data, CocoDataset):
            assert {f"{data.path}/{part.annotations}" for part in (*data.train, *data.test)} <= made
            assert {f"{data.path}/{part.images}" for part in (*data.train, *data.test)} <= {
                str(Path(path).parent) for path in made
            }
        else:
            assert isinstance(data, VocDataset)
            folders = {f"{data.path}/{spec.partition('/')[0]}" for spec in (*data.train, *data.test)}
            assert folders == {path.partition("/ImageSets")[0] for path in made}


def test_known_sizes_are_those_of_the_published_archives() -> None:
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
