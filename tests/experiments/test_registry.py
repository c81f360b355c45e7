"""MLflow's real registry: promote, load in a process that has only the model's own code, and predict."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection import params as parameters
from detection import predictor
from detection.commands.predict import predict
from detection.errors import DataError, TrackingError
from detection.experiments import start_source
from detection.experiments.find import Experiment
from detection.experiments.registry import promote
from detection.files import md5
from detection.tracking.store import connect

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("ring", "cross")
ELSEWHERE = f"""
import json, sys
from pathlib import Path
sys.path = [one for one in sys.path if Path(one).resolve() != Path({str(ROOT)!r})]
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/detector-shapes@champion", model_config={{"device": "cpu"}})
import detection
assert Path({str(ROOT)!r}) not in Path(detection.__file__).parents, detection.__file__
images = pandas.DataFrame({{"image": [Path(name).read_bytes() for name in sys.argv[1:]]}})
found = model.predict(images, params={{"threshold": 0.0}})
print("found", found.to_json(orient="records"))
print("example", len(model.predict(model.input_example)))
mlflow.pyfunc.load_model("models:/" + model.metadata.model_id, model_config={{"device": "cpu"}})
print("unregistered", model.metadata.model_id)
"""


@dataclass
class InMemory:
    """An experiment's files."""

    content: dict[str, bytes] = field(default_factory=dict)

    def read(self, path: str) -> bytes | None:
        return self.content.get(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from detection.models.build import build_detector, save_detector

    torch.manual_seed(0)
    recipe = parameters.load(ROOT / "params.yaml").recipe
    file = tmp_path_factory.mktemp("weights") / "detector.pt"
    save_detector(file, build_detector(recipe, len(CLASSES), None).state_dict(), recipe, CLASSES, "toy")
    return file


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return connect()


@pytest.fixture
def experiment(store: Any, weights: Path) -> Experiment:
    run = store.client.create_run(store.experiment, tags={"mlflow.source.git.commit": "c0ffee"})
    store.client.set_terminated(run.info.run_id, "FINISHED")
    content: dict[str, Any] = {
        "reports/evaluation/metrics.json": {"AP": 0.5, "AP50": 0.75, "AP_small": None},
        "reports/evaluation/run.json": {"run_id": run.info.run_id},
        "reports/train/recipe.json": {"model": "toy", "dataset": "shapes"},
        "reports/dataset/card.json": {"license": "MIT", "digest": "d1ge57", "classes": list(CLASSES)},
    }
    files = {path: json.dumps(one).encode() for path, one in content.items()}
    files["models/detector.pt"] = weights.read_bytes()
    return Experiment(name="lucid-oxen", rev="beef", files=InMemory(files))


def artifact_folder(model: Any) -> Path:
    return Path(model.artifact_location.removeprefix("file://"))


def test_a_promoted_detector_predicts_in_another_process(
    store: Any, experiment: Experiment, weights: Path, tmp_path: Path
) -> None:
    message = promote(experiment, None, "champion")
    assert "version 1 of detector-shapes" in message
    assert "models:/detector-shapes@champion" in message
    version = store.client.get_model_version_by_alias("detector-shapes", "champion")
    assert version.run_id == experiment.run_id()
    assert version.tags["git.commit"] == "c0ffee"
    assert version.tags["dvc.rev"] == "beef"
    assert version.tags["digest.data"] == "d1ge57"
    assert version.tags["license"] == "MIT"
    assert version.tags["test/AP50"] == "0.7500"
    assert "toy on shapes" in version.description
    assert store.client.get_run(version.run_id).info.status == "FINISHED"

    rng = np.random.default_rng(0)
    names = [str(tmp_path / name) for name in ("a.png", "b.jpg")]
    for name, size in zip(names, ((90, 120), (64, 80)), strict=True):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(name)
    command = [sys.executable, "-c", ELSEWHERE, *names]
    uri = {"MLFLOW_TRACKING_URI": store.uri, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=uri, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    assert lines["example"] == "1"
    found = json.loads(lines["found"])
    for name, one in zip(names, found, strict=True):
        predict(Path(name), weights, tmp_path / "out", 0.0, "cpu")
        (expected,) = json.loads((tmp_path / "out/detections.json").read_text())
        assert len(expected["detections"]) > 0
        assert one == {key: expected[key] for key in ("width", "height", "detections")}

    (model,) = store.client.search_logged_models([store.experiment])
    assert version.source == f"models:/{model.model_id}"
    assert lines["unregistered"] == model.model_id
    assert (model.status, model.source_run_id, model.tags["digest.detector"]) == ("READY", version.run_id, md5(weights))
    folder = artifact_folder(model)
    assert {"MLmodel", "model_card.md", "requirements.txt"} <= {one.name for one in folder.iterdir()}
    assert not list(folder.rglob("uv.lock"))
    requirements = folder / "requirements.txt"
    assert all("==" in line and "+" not in line for line in requirements.read_text().split())

    source = start_source._resolve_uri(f"models:/{model.model_id}")
    assert (source["type"], source["md5"], source["run_id"]) == ("model", md5(weights), version.run_id)

    again = promote(experiment, None, "challenger")
    assert "version 1 of detector-shapes" in again
    assert len(store.client.search_model_versions("name = 'detector-shapes'")) == 1


def test_the_experiments_model_card_is_stored(store: Any, experiment: Experiment) -> None:
    assert isinstance(experiment.files, InMemory)
    experiment.files.content["reports/model_card.md"] = b"# Rings and crosses\n" + b"x" * 6000
    promote(experiment, "own", "champion")
    version = store.client.get_model_version_by_alias("own", "champion")
    assert version.description.startswith("# Rings and crosses")
    assert len(version.description) == 5000
    (model,) = store.client.search_logged_models([store.experiment])
    card = artifact_folder(model) / "model_card.md"
    assert len(card.read_bytes()) == 6020, "complete in the artifacts"


def test_serve_loads_the_version_that_an_alias_moves_to(store: Any, experiment: Experiment, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    from detection.serving.limits import Limits
    from detection.serving.model_source import ModelSource
    from tests.serving.test_server import Client, png, serving, write_detector

    files = experiment.files
    assert isinstance(files, InMemory)

    def promoted(seed: int) -> None:
        write_detector(tmp_path / f"{seed}.pt", seed)
        files.content["models/detector.pt"] = (tmp_path / f"{seed}.pt").read_bytes()
        promote(experiment, None, "champion")

    promoted(0)
    source = ModelSource("models:/detector-shapes@champion", "cpu")
    with serving(source, Limits(reload_s=0.1)) as port:
        client = Client(port, tmp_path)
        first = client.predict(("a.png", png()), path="/predict?threshold=0")[1]
        assert first["version"] == "1"
        promoted(1)
        deadline = time.monotonic() + 60
        while json.loads(client.get("/healthz"))["version"] == "1":
            assert time.monotonic() < deadline, "the new version was not loaded"
            time.sleep(0.2)
        second = client.predict(("a.png", png()), path="/predict?threshold=0")[1]
        assert second["version"] == "2"
        assert second["images"] != first["images"]
        (expected,) = predictor.load(tmp_path / "1.pt").predict([Image.open(io.BytesIO(png()))], score_threshold=0)
        assert second["images"][0]["detections"] == expected.to_json()
        store.client.set_registered_model_alias("detector-shapes", "champion", "1")  # back
        while json.loads(client.get("/healthz"))["version"] == "2":
            assert time.monotonic() < deadline, "the old version was not loaded again"
            time.sleep(0.2)
        again = client.predict(("a.png", png()), path="/predict?threshold=0")[1]
        assert again["images"] == first["images"]


def test_errors_of_promote(store: Any, experiment: Experiment) -> None:
    assert isinstance(experiment.files, InMemory)
    with pytest.raises(TrackingError, match="MLflow refuses x@latest"):
        promote(experiment, "x", "latest")
    content = dict(experiment.files.content)
    experiment.files.content["reports/evaluation/run.json"] = b'{"run_id": "0123456789abcdef"}'
    with pytest.raises(TrackingError, match=r"0123456789abcdef.*detection sync"):
        promote(experiment, None, "champion")
    experiment.files.content = {key: one for key, one in content.items() if "detector" not in key}
    with pytest.raises(DataError, match="lucid-oxen has no evaluated detector"):
        promote(experiment, None, "champion")


def test_a_version_survives_its_run(store: Any, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner
    from mlflow.cli import cli

    promote(experiment, None, "champion")
    run_id = experiment.run_id()
    store.client.delete_run(run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    done = CliRunner().invoke(cli, ["gc", "--backend-store-uri", store.uri, "--run-ids", str(run_id)])
    assert done.exit_code == 0, done.output
    assert "lucid-oxen" not in done.output
    from detection.experiments.registry import download_detector

    folder = Path("downloaded")
    folder.mkdir()
    file = download_detector("models:/detector-shapes@champion", folder)
    assert isinstance(experiment.files, InMemory)
    assert file.read_bytes() == experiment.files.content["models/detector.pt"]


def test_mlflow_serves_a_promoted_detector(store: Any, experiment: Experiment, weights: Path, tmp_path: Path) -> None:
    """A real HTTP request with an image as base64 gets the detections of `detection predict`."""
    promote(experiment, None, "champion")
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)).save(image)
    predict(image, weights, tmp_path / "out", 0.0, "cpu")
    (expected,) = json.loads((tmp_path / "out/detections.json").read_text())
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/detector-shapes@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store.uri, "CUDA_VISIBLE_DEVICES": ""}
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, env=environment, start_new_session=True
        )
    try:
        body: dict[str, Any] = {"dataframe_records": [{"image": base64.b64encode(image.read_bytes()).decode()}]}
        body["params"] = {"threshold": 0.0}
        answer = _post(f"http://127.0.0.1:{port}/invocations", body, process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
    (found,) = answer["predictions"]
    assert found == {key: expected[key] for key in ("width", "height", "detections")}


def _post(url: str, body: dict[str, Any], process: "subprocess.Popen[bytes]") -> Any:
    """Post JSON as soon as the server answers."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    until = time.monotonic() + 240
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError:
            raise
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.5)
