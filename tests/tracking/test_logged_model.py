"""One LoggedModel per training, with scores by dataset; several clones at once make one of each."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detection.files import WEIGHTS_JSON, md5, write_json
from detection.params import Params
from detection.tracking import client as tracking
from detection.tracking import lifecycle, logged_model
from detection.tracking.client import EVALUATION_KEY, TRAINING_ID
from detection.tracking.lifecycle import log_evaluation, log_figures, log_training_artifacts, open_run, sync_workspace
from detection.tracking.run import Run
from detection.tracking.store import Store, connect, import_mlflow

Runs = Callable[[], list[Any]]
Train = Callable[[Run], None]
DETECTOR = Path("models/detector.pt")
CARD = {"splits": {"train": {"images": 9, "objects": 21, "objects_by_class": {"a": 20, "b": 1}, "overlapping": 0.5}}}


@pytest.fixture
def trained(params: Params, repo: Path, train: Train) -> Callable[[str, bytes], str]:
    """Train; returns the run's id."""

    def run_training(training_id: str, weights: bytes) -> str:
        write_json("reports/dataset/card.json", CARD)
        with open_run(params, {TRAINING_ID: training_id}) as run:
            train(run)
            DETECTOR.write_bytes(weights)
            write_json("reports/train/environment.json", {TRAINING_ID: training_id})
            write_json("reports/train/metrics.json", {"steps": 50})
            log_training_artifacts(run)
        assert run.id is not None
        return run.id

    return run_training


def models(store: Store, **query: Any) -> list[Any]:
    return list(store.client.search_logged_models([store.experiment], **query))


def test_a_training_makes_one_model(params: Params, trained: Any, client: Any) -> None:
    run_id = trained("abc", b"weights")
    trained("abc", b"weights")  # resumed after its end, by `dvc repro -f`
    store = connect()
    (model,) = models(store)
    assert (model.name, model.source_run_id, model.status) == (params.model, run_id, "READY")
    assert model.params["recipe.optimizer.lr"] == str(params.recipe.optimizer.lr)
    assert not any(key.startswith("evaluate") for key in model.params)
    assert model.tags["digest.detector"] == md5(DETECTOR)
    assert (model.tags["training_id"], model.tags["dataset"]) == ("abc", "shapes")
    (output,) = client.get_run(run_id).outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 50)
    paths = {one.path for one in client.list_logged_model_artifacts(model.model_id)}
    assert {"MLmodel", "code", "data", "requirements.txt", "input_example.json"} <= paths
    assert logged_model.read_detector(store, run_id) == b"weights"
    import mlflow.models

    import_mlflow().set_tracking_uri(store.uri)
    info = mlflow.models.get_model_info(f"models:/{model.model_id}")
    assert info.signature.inputs.input_names() == ["image"]


def test_the_best_detector_on_a_dataset_is_one_query(params: Params, trained: Any, client: Any, runs: Runs) -> None:
    for training_id, score in (("one", 0.3), ("two", 0.5), ("three", 0.4)):
        trained(training_id, training_id.encode())
        log_evaluation(params, {"test/AP": score, "speed/gflops": 7.0})
    store = connect()
    best = models(store, order_by=[{"field_name": "metrics.test/AP", "dataset_name": "shapes", "ascending": False}])
    assert [next(m.value for m in model.metrics if m.key == "test/AP") for model in best] == [0.5, 0.4, 0.3]
    (metric,) = [one for one in best[0].metrics if one.key.startswith("test/")]
    assert (metric.dataset_name, metric.dataset_digest, metric.run_id) == ("shapes", "3" * 32, runs()[1].info.run_id)
    assert models(store, datasets=[{"dataset_name": "other"}], filter_string="metrics.`test/AP` > 0") == []
    assert len(client.get_metric_history(metric.run_id, "test/AP")) == 1


def test_another_evaluation_is_a_run_with_the_model_as_input(
    params: Params, trained: Any, client: Any, runs: Runs
) -> None:
    trained("abc", b"weights")
    log_evaluation(params, {"test/AP": 0.4})
    log_evaluation(replace(params, evaluate=replace(params.evaluate, score_threshold=0.3)), {"test/AP": 0.3})
    first, fork = [client.get_run(run.info.run_id) for run in runs()]
    (model,) = models(connect())
    assert [one.model_id for one in first.outputs.model_outputs] == [model.model_id]
    assert first.inputs.model_inputs == []
    assert [one.model_id for one in fork.inputs.model_inputs] == [model.model_id]
    assert fork.outputs.model_outputs == []
    by_run = {one.run_id: one.value for one in client.get_logged_model(model.model_id).metrics}
    assert by_run == {first.info.run_id: 0.4, fork.info.run_id: 0.3}
    assert logged_model.read_detector(connect(), fork.info.run_id) == b"weights"


def test_a_started_training_has_the_model_of_its_source_as_input(params: Params, trained: Any, client: Any) -> None:
    source = trained("one", b"weights")
    write_json(WEIGHTS_JSON, {"start": {"from": "first", "type": "experiment", "md5": md5(DETECTOR), "run_id": source}})
    started = trained("two", b"better")
    (output,) = client.get_run(source).outputs.model_outputs
    assert [one.model_id for one in client.get_run(started).inputs.model_inputs] == [output.model_id]
    assert len(client.get_run(started).outputs.model_outputs) == 1
    assert len(models(connect())) == 2


def test_a_model_that_the_server_missed_is_sent_by_sync(
    params: Params, repo: Path, trained: Any, client: Any, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detection.tracking.run.CLOSE_TIMEOUT_S", 1.0)
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with open_run(params, {TRAINING_ID: "abc"}) as run:
            pass
        assert run.id is None
    write_json("reports/train/environment.json", {TRAINING_ID: "abc"})
    write_json("reports/train/metrics.json", {"steps": 50})
    DETECTOR.parent.mkdir()
    DETECTOR.write_bytes(b"weights")
    Path("reports/evaluation/tables").mkdir(parents=True)
    write_json("reports/evaluation/tables/mlflow_metrics.json", {"test/AP": 0.4})
    sent = sync_workspace(params).run_id
    sync_workspace(params)
    (model,) = models(connect())
    assert (model.source_run_id, model.status) == (sent, "READY")
    assert [(one.key, one.value, one.dataset_name) for one in model.metrics] == [("test/AP", 0.4, "shapes")]


def test_a_server_of_mlflow_2_gets_everything_but_the_model(
    params: Params, trained: Any, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its endpoints of LoggedModels answer 404 with a page, as those of 2.22.5 do."""
    import_mlflow()
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

    def absent(*_: Any, **__: Any) -> None:
        raise MlflowException("error code 404 != 200. Response body: '<!doctype html>", ENDPOINT_NOT_FOUND)

    for name in [name for name in dir(client) if "logged_model" in name]:
        monkeypatch.setattr(type(client), name, absent)
    run_id = trained("abc", b"weights")
    log_evaluation(params, {"test/AP": 0.4})
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["test/AP"]) == ("FINISHED", 0.4)
    assert "models" in {one.path for one in client.list_artifacts(run_id)}
    (told,) = {line for line in caplog.messages if "no LoggedModels" in line}
    assert told.endswith("it needs version 3: the detector is a file of its run instead")
    assert sync_workspace(params).points == 0


def test_the_head_of_the_model_card_describes_run_and_model(params: Params, trained: Any, client: Any) -> None:
    run_id = trained("abc", b"weights")
    log_evaluation(params, {"test/AP": 0.4})
    Path("reports/model_card.md").write_text("# Good detector\n\n## Scores\n\n| class | AP |\n|---|---|\n")
    log_figures(params)
    assert client.get_run(run_id).data.tags["mlflow.note.content"] == "# Good detector\n\n## Scores"
    (model,) = models(connect())
    assert model.tags["mlflow.note.content"].startswith("# Good detector")
    assert "model_card.md" in {one.path for one in client.list_logged_model_artifacts(model.model_id)}
    log_evaluation(replace(params, evaluate=replace(params.evaluate, score_threshold=0.3)), {"test/AP": 0.3})
    Path("reports/model_card.md").write_text("# Another threshold\n")
    log_figures(replace(params, evaluate=replace(params.evaluate, score_threshold=0.3)))
    (model,) = models(connect())
    assert model.tags["mlflow.note.content"].startswith("# Good detector"), "as its training was evaluated"


def test_mlflow_reads_the_datasets(params: Params, repo: Path, trained: Any, client: Any) -> None:
    import mlflow.data

    (repo / "data/raw" / params.data.path).mkdir(parents=True)
    inputs = client.get_run(trained("abc", b"weights")).inputs.dataset_inputs
    assert sorted(one.tags[0].value for one in inputs) == ["train", "val"]
    dataset = next(one.dataset for one in inputs if one.tags[0].value == "train")
    assert mlflow.data.get_source(dataset).load() == str(repo / "data/raw" / params.data.path)
    profile = json.loads(dataset.profile)
    assert (profile["images"], profile["objects_by_class"]) == (9, {"a": 20, "b": 1})
    columns = json.loads(dataset.schema)["mlflow_colspec"]
    assert [one["name"] for one in columns] == ["image", "objects"]


class Server:
    """A server that two clones write to: what one creates takes a while to be stored, however old its time is."""

    def __init__(self, client: Any, delays: "queue.SimpleQueue[float]") -> None:
        self._client, self._delays = client, delays

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        if name not in ("create_run", "create_logged_model"):
            return call

        def create(*args: Any, **kwargs: Any) -> Any:
            begun = time.time_ns() // 1_000_000
            time.sleep(self._delays.get())
            return call(*args, **kwargs, **({"start_time": begun} if name == "create_run" else {}))

        return create


def in_two_clones(store: Store, delay: float, call: Callable[[Store], Any]) -> list[Any]:
    """Results of a call in two threads; both begin at once, and the second one is stored `delay` seconds later."""
    delays: queue.SimpleQueue[float] = queue.SimpleQueue()
    results: list[Any] = []
    for seconds in (0.0, delay):
        delays.put(seconds)
    clones = [Store(Server(store.client, delays), store.experiment, "http://server") for _ in range(2)]
    threads = [threading.Thread(target=lambda one=one: results.append(call(one))) for one in clones]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return results


DELAYS = pytest.mark.parametrize("delay", [0.0, 0.3, 0.9, 1.2])


@pytest.fixture
def _settle_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "SETTLE_S", 0.8)


@DELAYS
@pytest.mark.usefixtures("_settle_soon")
def test_two_clones_that_create_a_run_at_once_share_it(params: Params, repo: Path, client: Any, delay: float) -> None:
    store = connect()
    one, other = in_two_clones(
        store, delay, lambda clone: tracking.create_run(clone, params, "train", {TRAINING_ID: "abc"}, TRAINING_ID)
    )
    assert one.info.run_id == other.info.run_id
    assert [run.info.run_id for run in client.search_runs([store.experiment])] == [one.info.run_id]


@DELAYS
@pytest.mark.usefixtures("_settle_soon")
def test_two_clones_that_create_a_model_at_once_share_it(params: Params, repo: Path, client: Any, delay: float) -> None:
    run = client.get_run(open_and_close(params))
    store = connect()
    Path("other.pt").write_bytes(b"other")
    one, other = in_two_clones(
        store, delay, lambda clone: logged_model.find_or_create(clone, run, Path("other.pt"), "abc")
    )
    assert one.model_id == other.model_id
    assert [model.model_id for model in models(store)] == [one.model_id]


def open_and_close(params: Params) -> str:
    with open_run(params, {TRAINING_ID: "abc"}) as run:
        pass
    assert run.id is not None
    return run.id


def test_what_another_clone_logs_at_the_same_moment_is_read_again() -> None:
    answers: Iterator[Any] = iter([RuntimeError("(sqlite3.IntegrityError) UNIQUE constraint failed"), "done"])

    def call() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert lifecycle._repeat_on_conflict(call) == "done"
    with pytest.raises(ValueError, match="no"):
        lifecycle._repeat_on_conflict(lambda: int("no"))


def test_one_of_two_evaluations_gets_the_run_of_the_training(params: Params, trained: Any, client: Any) -> None:
    run, store = client.get_run(trained("abc", b"weights")), connect()
    assert tracking.claim(store, run, "one")
    assert not tracking.claim(store, run, "two"), "although the run was read before the first claim"
    assert tracking.claim(store, run, "one")
    assert client.get_run(run.info.run_id).data.params[EVALUATION_KEY] == "one"
