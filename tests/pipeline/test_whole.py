"""The whole pipeline, as a person uses it: repro, nothing to do, a changed word, a temporary workspace.

The tests build on each other, in this order, as a person's session does.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

Command = Callable[..., subprocess.CompletedProcess[str]]
Rows = Callable[[], list[Any]]
SCORES = {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100"}
SCORES |= {"AR_small", "AR_medium", "AR_large", "voc_ap50_11pt", "voc_ap50_area"}


@pytest.fixture(scope="module")
def repro(command: Command) -> str:
    """What the first `dvc repro` says."""
    return command("dvc", "repro").stdout


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def run_id(folder: Path, stage: str) -> str:
    return str(json.loads((folder / "reports" / stage / "run.json").read_text())["run_id"])


def test_one_command_makes_everything(copy: Path, command: Command, repro: str) -> None:
    assert stages_run(repro) == ["check", "prepare", "pretrain", "train", "evaluate", "plots"]
    pipeline = YAML(typ="safe").load(copy / "dvc.yaml")["stages"]
    for stage in pipeline.values():
        for out in stage.get("outs", []) + stage.get("metrics", []):
            path = out if isinstance(out, str) else next(iter(out))
            assert (copy / path).exists(), path
    assert set(json.loads((copy / "reports/evaluation/metrics.json").read_text())) == SCORES
    assert command("dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    changed = command("git", "status", "--porcelain", "-uall").stdout.splitlines()
    assert {line[3:] for line in changed} == {
        "dvc.lock",
        "reports/train/run.json",
        "reports/evaluation/metrics.json",
        "reports/evaluation/run.json",
    }, "all else is ignored by git, and is kept by DVC or is local"


def test_the_experiment_is_one_row(copy: Path, repro: str, rows: Rows) -> None:
    (row,) = rows()
    assert row.info.run_id == run_id(copy, "train") == run_id(copy, "evaluation")
    assert row.info.status == "FINISHED"
    assert {"loss", "lr", "val/AP50", "test/AP50", "test/voc_ap50_11pt"} <= row.data.metrics.keys()
    assert row.data.params["model"] == row.data.tags["model"]
    assert len(row.data.params) > 60
    assert {one.tags[0].value for one in row.inputs.dataset_inputs} == {"train", "val", "test"}
    artifacts = Path(row.info.artifact_uri.removeprefix("file://"))
    stored = {path.relative_to(artifacts).as_posix() for path in artifacts.rglob("*") if path.is_file()}
    assert {
        "models/detector.pt",
        "dvc.lock",
        "params.yaml",
        "train/losses.csv",
        "dataset/card.json",
        "evaluation/metrics.json",
        "plots/losses.png",
        "plots/index.html",
        "model_card.md",
    } <= stored


def test_nothing_to_do_does_nothing(command: Command, repro: str, rows: Rows) -> None:
    assert stages_run(command("dvc", "repro").stdout) == []
    assert len(rows()) == 1


def test_dvc_shows_the_metrics_and_plots(copy: Path, command: Command, repro: str) -> None:
    shown = json.loads(command("dvc", "metrics", "show", "--json").stdout)
    scores = shown[""]["data"]["reports/evaluation/metrics.json"]["data"]
    assert SCORES - scores.keys() <= {"AP_large", "AR_large"}, "null, as there is no large object"
    plots = json.loads(command("dvc", "plots", "show", "--json").stdout)
    assert not plots.get("errors")
    assert "Precision over recall on test (IoU 0.5)" in plots["data"]


def test_a_slip_is_told_before_any_stage_runs(copy: Path, command: Command, repro: str) -> None:
    before = (copy / "params.yaml").read_text()
    for override in ("model=siblin", "dataset=shape"):
        done = command("dvc", "exp", "run", "-S", override, check=False)
        assert done.returncode != 0
        assert stages_run(done.stdout) == ["check"]
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "did you mean" in said
        assert "Traceback" not in done.stderr
        (copy / "params.yaml").write_text(before)
    assert (copy / "models" / "detector.pt").is_file()


def test_one_changed_word_is_one_more_row(copy: Path, command: Command, repro: str, rows: Rows) -> None:
    done = command("dvc", "exp", "run", "-n", "other-model", "-S", "model=sibling")
    assert stages_run(done.stdout) == ["check", "pretrain", "train", "evaluate", "plots"]
    assert "pretraining of resnet18: reusing the finished result" in done.stdout
    first, second = rows()
    assert second.info.run_name == second.data.tags["dvc.exp_name"] == "other-model"
    assert (second.info.status, second.data.params["model"]) == ("FINISHED", "sibling")
    assert second.info.run_id == run_id(copy, "evaluation") != first.info.run_id
    shown = command("dvc", "exp", "show", "--csv", "--only-changed").stdout
    assert second.info.run_id in shown
    assert "sibling" in shown


def test_a_temporary_workspace_forks_a_row_for_other_settings(
    copy: Path, command: Command, repro: str, rows: Rows
) -> None:
    before = rows()
    override = ("-S", "model=sibling", "-S", "evaluate.batch_size=2")
    done = command("dvc", "exp", "run", "--temp", "-n", "elsewhere", *override)
    assert stages_run(done.stdout)[-2:] == ["evaluate", "plots"]
    assert "train" not in stages_run(done.stdout), "restored from the run-cache"
    assert "WARNING" not in done.stderr, "the workspace knows dvc.lock, and no output is empty"
    fork = rows()[-1]
    assert len(rows()) == len(before) + 1
    assert fork.info.run_name == "elsewhere"
    assert fork.info.status == "FINISHED"
    assert fork.data.tags["forked_from"] == before[-1].info.run_id
    assert fork.data.params == before[-1].data.params | {"evaluate.batch_size": "2"}
    of_evaluation = ("system/", "test/", "speed/")
    of_training = {name for name in before[-1].data.metrics if not name.startswith(of_evaluation)}
    assert {name: fork.data.metrics.get(name) for name in of_training} == {
        name: before[-1].data.metrics[name] for name in of_training
    }
    artifacts = Path(fork.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "plots" / "index.html").is_file()


def test_plots_of_two_experiments_need_no_network(copy: Path, command: Command, repro: str) -> None:
    command("dvc", "plots", "diff", "other-model", "elsewhere")
    html = (copy / "dvc_plots/index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in html
    assert not re.search(r"<script[^>]*\ssrc=", html)
    pipeline = YAML(typ="safe").load(copy / "dvc.yaml")
    titles = [next(iter(plot)) for plot in pipeline["plots"] if not isinstance(plot, str)]
    specs = [json.loads(spec) for spec in re.findall(r"var spec = (.*);\n", html)]
    drawn = {text["text"] if isinstance(text := spec["title"], dict) else text: spec for spec in specs}
    assert set(drawn) == set(titles)
    for spec in specs:
        assert {row["rev"] for row in spec["data"]["values"]} == {"other-model", "elsewhere"}
    assert {row["class"] for row in drawn["Precision over recall on test (IoU 0.5)"]["data"]["values"]} > {
        "all"
    }


def test_going_back_restores_and_adds_no_row(copy: Path, command: Command, repro: str, rows: Rows) -> None:
    before = len(rows())
    command("git", "checkout", "params.yaml")
    assert stages_run(command("dvc", "repro").stdout) == []
    assert run_id(copy, "evaluation") == rows()[0].info.run_id
    assert len(rows()) == before


def test_rows_on_an_emptied_store_come_back_from_dvc_alone(
    copy: Path, command: Command, repro: str, rows: Rows
) -> None:
    named = {row.info.run_name: row for row in rows()}
    before, base = named["elsewhere"], named["other-model"]
    for file in copy.glob("mlflow.db*"):
        file.unlink()
    from mlflow import MlflowClient

    emptied = MlflowClient(f"sqlite:////{copy}/mlflow.db")  # by another name: the old one stays open here

    def made() -> list[Any]:
        return list(emptied.search_runs([one.experiment_id for one in emptied.search_experiments()]))

    shutil.rmtree(copy / ".checkpoints")
    said = command("detection", "sync", "elsewhere").stdout
    assert said.startswith("elsewhere: row ")
    assert "points of its curves and the evaluation sent" in said
    (row,) = made()
    assert (row.info.run_name, row.info.status) == ("elsewhere", "FINISHED")
    assert row.data.params == before.data.params
    assert row.data.metrics == {k: v for k, v in before.data.metrics.items() if not k.startswith("system/")}
    assert row.data.tags["dvc.baseline_rev"] == before.data.tags["dvc.baseline_rev"]
    assert "nothing was missing" in command("detection", "sync", "elsewhere").stdout
    assert row.data.tags["replaces_run"] == before.info.run_id
    command("detection", "sync", "other-model")
    again = {one.info.run_name: one for one in made()}
    assert again.keys() == {"elsewhere", "other-model"}
    assert again["other-model"].data.params == base.data.params
    assert again["elsewhere"].data.params == before.data.params
    done = command("detection", "sync", "nowhere", check=False)
    assert done.stderr.startswith("error: there is no experiment or git revision 'nowhere'")
    assert done.stderr.count("\n") == 1
