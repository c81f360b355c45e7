"""The whole pipeline with real DVC: repro, nothing to do, a changed model, a temporary workspace, sync.

Every module fixture runs one command of a session, after the fixture before it, and records what changes
later. The tests only read these records, so that they are independent of each other and of their order.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from detection.files import EVALUATION_RUN_JSON, TRAIN_RUN_JSON
from detection.params import schema

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]
Runs = Callable[[], list[Any]]
METRICS = {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100"}
METRICS |= {"AR_small", "AR_medium", "AR_large", "voc_ap50_11pt", "voc_ap50_area"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A command, and the state that it leaves."""

    stdout: str
    stderr: str
    stages: list[str]
    """Stages that ran."""
    runs: list[Any]
    """MLflow runs, oldest first."""
    artifacts: set[str]
    """Paths of the newest run's artifacts."""
    models: list[Any]
    """LoggedModels, oldest first."""
    run_ids: dict[str, str]
    """MLflow run id in `run.json` of the train and the evaluation report."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The workspace after the first `dvc repro`."""

    missing_outs: list[str]
    metrics: dict[str, Any]
    dvc_status: str
    git_changes: set[str]


@dataclass(frozen=True, kw_only=True)
class Synced:
    """Runs that `detection sync` restores in an empty store."""

    first: Done
    """Sync of the experiment `elsewhere`."""
    runs: list[Any]
    second: Done
    """The same command again."""
    runs_of_both: list[Any]
    """Runs after the sync of `other-model` too."""
    unknown: Done
    """Sync of a name that does not exist."""


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def execute(copy: Path, command: Command, runs: Runs, models: Runs) -> Callable[..., Step]:
    """Run a command in the clone and record the state after it."""

    def run_id(path: Path) -> str:
        return str(json.loads((copy / path).read_text())["run_id"])

    def execute(*words: str) -> Step:
        done, after = command(*words), runs()
        folder = Path(after[-1].info.artifact_uri.removeprefix("file://"))
        return Step(
            stdout=done.stdout,
            stderr=done.stderr,
            stages=stages_run(done.stdout),
            runs=after,
            artifacts={path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()},
            models=models(),
            run_ids={"train": run_id(TRAIN_RUN_JSON), "evaluation": run_id(EVALUATION_RUN_JSON)},
        )

    return execute


@pytest.fixture(scope="module")
def repro(execute: Callable[..., Step]) -> Step:
    return execute("dvc", "repro")


@pytest.fixture(scope="module")
def workspace(copy: Path, command: Command, repro: Step) -> Workspace:
    outs = []
    for stage in schema.read((copy / "dvc.yaml").read_text())["stages"].values():
        for out in stage.get("outs", []) + stage.get("metrics", []):
            outs.append(out if isinstance(out, str) else next(iter(out)))
    status = command("dvc", "status").stdout.strip()
    changed = command("git", "status", "--porcelain", "-uall").stdout.splitlines()
    return Workspace(
        missing_outs=[path for path in outs if not (copy / path).exists()],
        metrics=json.loads((copy / "reports/evaluation/metrics.json").read_text()),
        dvc_status=status,
        git_changes={line[3:] for line in changed},
    )


@pytest.fixture(scope="module")
def unchanged(execute: Callable[..., Step], workspace: Workspace) -> Step:
    """`dvc repro` with nothing to do."""
    return execute("dvc", "repro")


@pytest.fixture(scope="module")
def shown(command: Command, unchanged: Step) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and plots as DVC shows them."""
    metrics = json.loads(command("dvc", "metrics", "show", "--json").stdout)
    return metrics, json.loads(command("dvc", "plots", "show", "--json").stdout)


@pytest.fixture(scope="module")
def typos(copy: Path, command: Command, shown: Any) -> list[Done]:
    """Experiments with a misspelled model and a misspelled dataset; the trained detector is still there."""
    before, done = (copy / "params.yaml").read_text(), []
    for override in ("model=siblin", "dataset=shape"):
        done.append(command("dvc", "exp", "run", "-S", override, check=False))
        (copy / "params.yaml").write_text(before)
    assert (copy / "models" / "detector.pt").is_file()
    return done


@pytest.fixture(scope="module")
def other_model(execute: Callable[..., Step], typos: Any) -> Step:
    return execute("dvc", "exp", "run", "-n", "other-model", "-S", "model=sibling")


@pytest.fixture(scope="module")
def experiments_table(command: Command, other_model: Step) -> str:
    return command("dvc", "exp", "show", "--csv", "--only-changed").stdout


@pytest.fixture(scope="module")
def temporary(execute: Callable[..., Step], experiments_table: str) -> Step:
    """An experiment in a temporary workspace that differs in the evaluation alone."""
    override = ("-S", "model=sibling", "-S", "evaluate.batch_size=2")
    return execute("dvc", "exp", "run", "--temp", "-n", "elsewhere", *override)


@pytest.fixture(scope="module")
def plots_page(copy: Path, command: Command, temporary: Step) -> str:
    command("dvc", "plots", "diff", "other-model", "elsewhere")
    return (copy / "dvc_plots/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def returned(command: Command, execute: Callable[..., Step], plots_page: str) -> Step:
    """`dvc repro` after params.yaml is what it was at first."""
    command("git", "checkout", "params.yaml")
    return execute("dvc", "repro")


@pytest.fixture(scope="module")
def started(execute: Callable[..., Step], returned: Step) -> Step:
    """The detector of an earlier experiment, evaluated as it is in a temporary workspace."""
    override = ("-S", "model=sibling", "-S", "start.from=other-model", "-S", "budgets.shapes.epochs=0")
    return execute("dvc", "exp", "run", "--temp", "-n", "started", *override)


@pytest.fixture(scope="module")
def synced(copy: Path, command: Command, returned: Step, started: Step) -> Synced:
    """`detection sync` after the MLflow store and the checkpoints are lost."""
    from mlflow import MlflowClient

    for file in copy.glob("mlflow.db*"):
        file.unlink()
    emptied = MlflowClient(f"sqlite:////{copy}/mlflow.db")  # another spelling: the old database is still open here

    def runs() -> list[Any]:
        return list(emptied.search_runs([one.experiment_id for one in emptied.search_experiments()]))

    shutil.rmtree(copy / ".checkpoints")
    first = command("detection", "sync", "elsewhere")
    after = runs()
    second = command("detection", "sync", "elsewhere")
    command("detection", "sync", "other-model")
    both = runs()
    unknown = command("detection", "sync", "nowhere", check=False)
    return Synced(first=first, runs=after, second=second, runs_of_both=both, unknown=unknown)


def test_one_command_runs_all_stages_and_makes_all_outputs(repro: Step, workspace: Workspace) -> None:
    assert repro.stages == ["check", "prepare", "pretrain", "train", "evaluate", "plots"]
    assert workspace.missing_outs == []
    assert workspace.metrics.keys() == METRICS
    assert workspace.dvc_status.split() == ["check:", "always", "changed"]
    assert workspace.git_changes == {
        "dvc.lock",
        "reports/train_run.json",
        "reports/evaluation/metrics.json",
        "reports/evaluation/run.json",
    }, "git ignores all other outputs: DVC keeps them, or they are local"


def test_the_experiment_is_one_run(repro: Step) -> None:
    (run,) = repro.runs
    assert run.info.run_id == repro.run_ids["train"] == repro.run_ids["evaluation"]
    assert run.info.status == "FINISHED"
    assert {"loss", "lr", "val/AP50", "test/AP50", "test/voc_ap50_11pt"} <= run.data.metrics.keys()
    assert run.data.params["model"] == run.data.tags["model"]
    assert len(run.data.params) > 60
    assert {one.tags[0].value for one in run.inputs.dataset_inputs} == {"train", "val", "test"}
    assert {
        "dvc.lock",
        "params.yaml",
        "train/losses.csv",
        "dataset/card.json",
        "evaluation/metrics.json",
        "plots/losses.png",
        "plots/index.html",
        "model_card.md",
    } <= repro.artifacts
    (model,) = repro.models
    assert (model.name, model.source_run_id, model.status) == (run.data.params["model"], run.info.run_id, "READY")
    scores = {one.key: one.value for one in model.metrics if one.dataset_name == run.data.params["dataset"]}
    assert scores == {key: value for key, value in run.data.metrics.items() if key.startswith("test/")}
    assert model.tags["mlflow.note.content"] == run.data.tags["mlflow.note.content"] != ""


def test_with_nothing_to_do_only_check_runs(unchanged: Step) -> None:
    assert unchanged.stages == ["check"]
    assert len(unchanged.runs) == 1


def test_dvc_shows_the_metrics_and_plots(shown: tuple[dict[str, Any], dict[str, Any]]) -> None:
    metrics, plots = shown
    values = metrics[""]["data"]["reports/evaluation/metrics.json"]["data"]
    assert METRICS - values.keys() <= {"AP_large", "AR_large"}, "null, as no object is large"
    assert not plots.get("errors")
    assert "Precision-recall curves on test (IoU 0.5)" in plots["data"]


def test_a_typo_is_an_error_before_any_other_stage_runs(typos: list[Done]) -> None:
    for done in typos:
        assert done.returncode != 0
        assert stages_run(done.stdout) == ["check"]
        (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "did you mean" in message
        assert "Traceback" not in done.stderr


def test_another_model_is_another_run(other_model: Step, experiments_table: str) -> None:
    assert other_model.stages == ["check", "pretrain", "train", "evaluate", "plots"]
    assert re.search(r"pretraining of resnet18: .*reus", other_model.stdout)
    first, second = other_model.runs
    assert second.info.run_name == second.data.tags["dvc.exp_name"] == "other-model"
    assert (second.info.status, second.data.params["model"]) == ("FINISHED", "sibling")
    assert second.info.run_id == other_model.run_ids["train"] == other_model.run_ids["evaluation"]
    assert second.info.run_id != first.info.run_id
    assert second.info.run_id in experiments_table
    assert "sibling" in experiments_table


def test_other_evaluation_settings_in_a_temporary_workspace_are_a_new_run_of_the_same_training(
    other_model: Step, temporary: Step
) -> None:
    assert temporary.stages[-2:] == ["evaluate", "plots"]
    assert "train" not in temporary.stages, "restored from the run-cache"
    assert "WARNING" not in temporary.stderr, "the workspace has dvc.lock, and no output is empty"
    base, fork = other_model.runs[-1], temporary.runs[-1]
    assert len(temporary.runs) == len(other_model.runs) + 1
    assert fork.info.run_name == "elsewhere"
    assert fork.info.status == "FINISHED"
    assert fork.data.tags["forked_from"] == base.info.run_id
    own = {"evaluate.batch_size": "2", "evaluation_key": fork.data.tags["evaluation_key"]}
    assert fork.data.params == base.data.params | own
    assert len(temporary.models) == len(other_model.models) == 2
    assert {one.run_id for one in temporary.models[-1].metrics} == {base.info.run_id, fork.info.run_id}
    of_evaluation = ("system/", "test/", "speed/")
    of_training = {name for name in base.data.metrics if not name.startswith(of_evaluation)}
    assert {name: fork.data.metrics.get(name) for name in of_training} == {
        name: base.data.metrics[name] for name in of_training
    }
    assert "plots/index.html" in temporary.artifacts


def test_plots_of_two_experiments_need_no_network(copy: Path, plots_page: str) -> None:
    assert "default-src 'none'" in plots_page
    assert not re.search(r"<script[^>]*\ssrc=", plots_page)
    pipeline = schema.read((copy / "dvc.yaml").read_text())
    titles = [next(iter(plot)) for plot in pipeline["plots"] if not isinstance(plot, str)]
    specs = [json.loads(spec) for spec in re.findall(r"var spec = (.*);\n", plots_page)]
    plots = {text["text"] if isinstance(text := spec["title"], dict) else text: spec for spec in specs}
    assert plots.keys() == set(titles)
    for spec in specs:
        assert {row["rev"] for row in spec["data"]["values"]} == {"other-model", "elsewhere"}
    recall = plots["Precision-recall curves on test (IoU 0.5)"]
    assert {row["class"] for row in recall["data"]["values"]} > {"all"}


def test_the_first_params_again_restore_the_outputs_and_add_no_run(temporary: Step, returned: Step) -> None:
    assert returned.stages == ["check"]
    assert returned.run_ids["evaluation"] == returned.runs[0].info.run_id
    assert len(returned.runs) == len(temporary.runs)


def test_a_detector_of_an_earlier_experiment_is_evaluated_as_it_is(other_model: Step, started: Step) -> None:
    source, run = other_model.runs[-1], started.runs[-1]
    scores = {k: v for k, v in source.data.metrics.items() if k.startswith("test/")}
    assert {k: v for k, v in run.data.metrics.items() if k.startswith("test/")} == scores
    assert run.info.run_name == "started"
    assert run.data.tags["start.run_id"] == source.info.run_id
    assert run.data.params["start.from"] == "other-model"
    assert "classes carried over" in started.stdout
    assert "trained 0 steps" in started.stdout


def test_sync_restores_runs_in_an_empty_store_from_dvc_alone(returned: Step, synced: Synced) -> None:
    named = {run.info.run_name: run for run in returned.runs}
    before, base = named["elsewhere"], named["other-model"]
    (run,) = synced.runs
    assert synced.first.stdout.startswith(f"elsewhere: run {run.info.run_id}: ")
    assert "curve points" in synced.first.stdout
    assert "evaluation" in synced.first.stdout
    assert (run.info.run_name, run.info.status) == ("elsewhere", "FINISHED")
    assert run.data.params == before.data.params
    assert run.data.metrics == {k: v for k, v in before.data.metrics.items() if not k.startswith("system/")}
    assert run.data.tags["dvc.baseline_rev"] == before.data.tags["dvc.baseline_rev"]
    assert run.data.tags["replaces_run"] == before.info.run_id
    assert "up to date" in synced.second.stdout
    both = {one.info.run_name: one for one in synced.runs_of_both}
    assert both.keys() == {"elsewhere", "other-model"}
    assert both["other-model"].data.params == base.data.params
    assert both["elsewhere"].data.params == before.data.params


def test_sync_of_an_unknown_experiment_is_one_line(synced: Synced) -> None:
    assert synced.unknown.returncode != 0
    assert synced.unknown.stderr.startswith("error: ")
    assert "'nowhere'" in synced.unknown.stderr
    assert synced.unknown.stderr.count("\n") == 1
