"""The server over real HTTP: answers, bad requests, limits, batches, reloads, and its end."""

import io
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import detection
from detection.models.build import build_detector, save_detector, without_weights
from detection.params import load
from detection.predictor import Predictor
from detection.serving.app import create_app
from detection.serving.limits import Limits
from detection.serving.model_source import ModelSource
from tests.soak.bad_requests import answer, cases

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("ring", "cross", "leaf")


def write_detector(path: Path, seed: int) -> None:
    recipe = without_weights(load(ROOT / "params.yaml", model="retinanet_resnet18", dataset="shapes").recipe)
    recipe = replace(recipe, image_size=64, max_size=96, score_threshold=0.0)
    torch.manual_seed(seed)
    save_detector(path, build_detector(recipe, 3, None).state_dict(), recipe, CLASSES, "retinanet_resnet18")


@dataclass
class Client:
    """A running server and its files."""

    port: int
    detector: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as response:
            content: str = response.read().decode()
        return content

    def post(self, body: bytes, kind: str, path: str = "/predict") -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def predict(self, *files: tuple[str, bytes], path: str = "/predict") -> tuple[int, Any]:
        lines = b""
        for name, content in files:
            head = f'--XX\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
            lines += head.encode() + content + b"\r\n"
        code, answer = self.post(lines + b"--XX--\r\n", "multipart/form-data; boundary=XX", path)
        return code, json.loads(answer) if answer[:1] == b"{" else answer


@contextmanager
def serving(source: ModelSource, limits: Limits) -> Iterator[int]:
    """Serve in a thread; yields the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(create_app(source, source.load(), limits), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    path = tmp_path_factory.mktemp("serve") / "detector.pt"
    write_detector(path, seed=0)
    limits = Limits(body_bytes=2_000_000, pixels=1_000_000, images=4, waiting=16, timeout_s=60, reload_s=0.2)
    with serving(ModelSource(str(path), "cpu"), limits) as port:
        yield Client(port, path)


def png(seed: int = 0, size: tuple[int, int] = (60, 80)) -> bytes:
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rows + chunk(b"IEND", b"")


def test_answers_are_those_of_the_python_api(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    (tmp_path / "b.png").write_bytes(png(1, (90, 50)))
    files = [(name, (tmp_path / name).read_bytes()) for name in ("a.png", "b.png")]
    code, answer = client.predict(*files, path="/predict?threshold=0.005")
    assert code == 200
    predictor = detection.load(client.detector, device="cpu")
    for entry, image in zip(answer["images"], predictor.predict(tmp_path, score_threshold=0.005), strict=True):
        assert image.path
        assert entry["file"] == image.path.name
        assert (entry["height"], entry["width"]) == image.size
        assert len(entry["detections"]) == len(image) > 0
        np.testing.assert_allclose([one["box"] for one in entry["detections"]][:5], image.boxes[:5], atol=0.02)
    code, raw = client.post(png(0), "image/png", "/predict?threshold=0.005")
    assert json.loads(raw)["images"][0]["detections"] == answer["images"][0]["detections"]
    code, drawn = client.predict(files[1], path="/predict?annotated=true")
    assert Image.open(io.BytesIO(drawn)).format == "PNG"


TRUNCATED = png()[:-300]
JPEG = io.BytesIO()
Image.new("RGB", (64, 64)).save(JPEG, "JPEG")


@pytest.mark.parametrize(
    ("files", "path", "expected", "words"),
    [
        ([], "/predict", 400, "no image"),
        ([("e.png", b"")], "/predict", 400, "e.png is empty"),
        ([("t.txt", b"hello")], "/predict", 400, "t.txt is not an image"),
        ([("t.png", TRUNCATED)], "/predict", 400, "t.png"),
        ([("t.jpg", JPEG.getvalue()[:300])], "/predict", 400, "t.jpg"),
        ([("h.jpg", JPEG.getvalue()[:20])], "/predict", 400, "h.jpg"),
        ([("b.png", bomb(20_000, 10_000))], "/predict", 413, "200,000,000 pixels"),
        ([("b.png", bomb(2**31 - 1, 2**31 - 1))], "/predict", 413, "pixels"),
        ([("c.png", bomb(30, 30))], "/predict", 400, "c.png"),
        ([("l.png", png(size=(1001, 1000)))], "/predict", 413, "bytes that are accepted"),
        ([("a.png", png(size=(8, 8)))] * 5, "/predict", 413, "5 images"),
        ([("a.png", png(size=(8, 8))), ("t.txt", b"x")], "/predict", 400, "t.txt"),
        ([("a.png", png(size=(8, 8)))], "/predict?threshold=2", 422, "threshold=2"),
        ([("a.png", png(size=(8, 8)))], "/predict?threshold=high", 422, "threshold=high"),
        ([("a.png", png(size=(8, 8)))], "/predict?treshold=0.3", 422, "did you mean 'threshold'?"),
    ],
)
def test_bad_requests_get_one_line(
    client: Client, files: list[tuple[str, bytes]], path: str, expected: int, words: str
) -> None:
    code, answer = client.predict(*files, path=path)
    assert code == expected, answer
    assert words in answer["detail"]
    assert "\n" not in answer["detail"]
    assert client.predict(("a.png", png()))[0] == 200


@pytest.mark.parametrize(
    ("body", "kind", "expected"),
    [
        (b"a=1", "application/x-www-form-urlencoded", 415),
        (b"{}", "application/json", 415),
        (b"no parts", "multipart/form-data; boundary=XX", 400),
        (b"no boundary", "multipart/form-data", 400),
        (b"GIF89a", "image/gif", 400),
    ],
)
def test_other_bodies_are_refused(client: Client, body: bytes, kind: str, expected: int) -> None:
    code, answer = client.post(body, kind)
    assert code == expected, answer
    assert json.loads(answer)["detail"]


def test_the_bad_requests_of_the_soak_test_get_the_right_status(client: Client) -> None:
    slow = {"body of one byte per second", "chunked body without an end", "PNG, 48 megapixels in 140 kB (fine)"}
    for case in cases(2_000_000):
        if case.name not in slow:
            status, body = answer(client.port, case)
            assert status in case.expected, (case.name, body)


def test_requests_at_the_same_time_share_batches_and_too_many_get_503(client: Client) -> None:
    files = [(f"{i}.png", png(i)) for i in range(4)]
    with ThreadPoolExecutor(12) as pool:
        codes = [code for code, _ in pool.map(lambda _: client.predict(*files), range(24))]
    assert set(codes) <= {200, 503}
    assert codes.count(200) >= 4
    metrics = client.get("/metrics")
    batches = float(re.findall(r"^detection_batch_images_count (\S+)", metrics, re.M)[0])
    images = float(re.findall(r"^detection_images_total (\S+)", metrics, re.M)[0])
    assert images > batches  # some batches had several images
    assert float(re.findall(r'^detection_requests_total{code="400"} (\S+)', metrics, re.M)[0]) > 0


def test_health_page_and_api(client: Client) -> None:
    assert json.loads(client.get("/healthz"))["classes"] == list(CLASSES)
    assert "Drop images here" in client.get("/")
    predict = json.loads(client.get("/openapi.json"))["paths"]["/predict"]["post"]
    assert {"200", "400", "413", "415", "422", "503", "504"} <= set(predict["responses"])
    assert set(predict["requestBody"]["content"]) == {"multipart/form-data", "image/*"}


@pytest.mark.skipif(not shutil.which("schemathesis"), reason="schemathesis is not installed (pip install schemathesis)")
def test_generated_requests_follow_the_api(client: Client, tmp_path: Path) -> None:
    """Valid and invalid requests made from the OpenAPI document: documented answers, and no error of the server."""
    command = ["schemathesis", "run", f"http://127.0.0.1:{client.port}/openapi.json", "--max-examples", "25"]
    command += ["--seed", "0", "--checks", "all"]
    command += ["--exclude-checks", "positive_data_acceptance"]  # the document cannot say which bytes are an image
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""})
    print(done.stdout[-2000:])  # noqa: T201
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert client.predict(("a.png", png()))[0] == 200


def test_the_detector_always_runs_in_one_thread(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread that ever ran it would keep memory of its own."""
    threads, detect = set(), Predictor.predict

    def recorded(*args: Any, **options: Any) -> Any:
        threads.add(threading.get_ident())
        return detect(*args, **options)

    monkeypatch.setattr(Predictor, "predict", recorded)
    with ThreadPoolExecutor(4) as pool:
        assert {code for code, _ in pool.map(lambda i: client.predict(("a.png", png(i))), range(12))} == {200}
    assert len(threads) == 1


def test_another_detector_is_loaded_without_a_restart(client: Client, tmp_path: Path) -> None:
    before = client.predict(("a.png", png()), path="/predict?threshold=0")[1]
    client.detector.with_name("half").write_bytes(b"half a file")
    shutil.move(client.detector.with_name("half"), client.detector)  # cannot be loaded: the old one stays
    time.sleep(0.6)
    after = client.predict(("a.png", png()), path="/predict?threshold=0")[1]
    assert after["images"] == before["images"]
    write_detector(tmp_path / "new.pt", seed=1)
    shutil.move(tmp_path / "new.pt", client.detector)
    deadline = time.monotonic() + 30
    while client.predict(("a.png", png()), path="/predict?threshold=0")[1]["images"] == before["images"]:
        assert time.monotonic() < deadline, "the new detector was not loaded"
        time.sleep(0.2)


def test_sigterm_ends_the_command(tmp_path: Path) -> None:
    write_detector(tmp_path / "detector.pt", seed=0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "detection.cli", "serve", str(tmp_path / "detector.pt"), "--port", str(port)]
    process = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.DEVNULL, env=dict(os.environ))
    client = Client(port, tmp_path)
    deadline = time.monotonic() + 120
    while True:
        try:
            client.get("/healthz")
            break
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.predict, *[(f"{i}.png", png(i, (300, 300))) for i in range(4)])
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert answer.result()[0] == 200  # the request that was being answered
    assert process.wait(60) in (0, -signal.SIGTERM)
