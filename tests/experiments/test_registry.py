"""MLflow's real registry: promote, load in a process that has only the model's own code, and predict."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detection import params as parameters
from detection.commands.predict import predict
from detection.errors import DataError, TrackingError
from detection.experiments.find import Experiment
from detection.experiments.registry import promote
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

    artifacts = {one.path for one in store.client.list_artifacts(version.run_id, "registered")}
    assert {"registered/MLmodel", "registered/model_card.md", "registered/requirements.txt"} <= artifacts
    requirements = Path(store.client.download_artifacts(version.run_id, "registered/requirements.txt"))
    assert all("==" in line and "+" not in line for line in requirements.read_text().split())

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
    card = Path(store.client.download_artifacts(version.run_id, "registered/model_card.md"))
    assert len(card.read_bytes()) == 6020, "complete in the artifacts"


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
