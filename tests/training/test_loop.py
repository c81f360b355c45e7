import csv
import math
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from detection import signals
from detection.errors import DivergedError, ParamsError
from detection.models.build import load_detector, without_weights
from detection.params import load
from detection.params.recipe_base import Phase
from detection.params.stages import EarlyStop
from detection.signals import StopSignals
from detection.tracking.run import NoRun
from detection.training import loop
from detection.training.common.checkpoint import STATE_FILE
from detection.training.loop import TrainingJob, fit
from detection.training.setup import check_batch_parts
from detection.training.validation import Validator, train_sample

EPOCHS, BATCH, IMAGES = 3, 4, 12  # as in conftest.py
STEPS = EPOCHS * IMAGES // BATCH


class ListRun(NoRun):
    """Run that records its updates and artifacts."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.files: list[str] = []

    def update(self, step: int) -> None:
        self.steps.append(step)

    def artifact(self, path: Path, folder: str | None) -> None:
        self.files.append(f"{folder}/{path.name}")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in job.detector.state_dict().items()}


def train(job: TrainingJob, run: NoRun | None = None) -> dict[str, Any]:
    with job.checkpoints.locked(), StopSignals() as stop:
        return fit(job, run or NoRun(), stop)


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, number: int) -> None:
    """Send this process a signal in the middle of a step."""
    taken, step = [0], loop._step

    def counted(*args: Any) -> Any:
        taken[0] += 1
        if taken[0] == steps:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # handlers may fire twice
        return step(*args)

    monkeypatch.setattr(loop, "_step", counted)


def test_a_training_leaves_its_curves_and_a_summary(make_job: Any) -> None:
    job, run = make_job(), ListRun()
    summary = train(job, run)
    losses = rows(job.reports / "losses.csv")
    assert [int(one["step"]) for one in losses] == list(range(1, STEPS + 1))
    assert list(losses[0])[:5] == ["step", "epoch", "time", "lr", "loss"]
    assert all(float(one["loss"]) == pytest.approx(float(one["class"]) + float(one["box"])) for one in losses)
    metrics = rows(job.reports / "metrics.csv")
    assert [int(one["epoch"]) for one in metrics] == list(range(1, EPOCHS + 1))
    assert {"AP", "AP50", "voc_ap50_area"} <= metrics[0].keys()
    assert summary["steps"] == STEPS
    assert summary["best_epoch"] in range(1, EPOCHS + 1)
    assert summary["AP"] == max(float(one["AP"]) for one in metrics)
    assert run.steps == [0, 1, STEPS], "at the start, after the first step and at the end"
    assert job.checkpoints.complete


def test_without_an_epoch_the_start_weights_are_validated_and_kept(make_job: Any, recipe: Any) -> None:
    job = make_job(recipe=recipe.update({"epochs": 0}))
    before = {name: value.clone() for name, value in job.detector.state_dict().items()}
    with job.checkpoints.locked():
        summary = fit(job, NoRun(), StopSignals())
    assert (summary["steps"], summary["best_epoch"]) == (0, 0)
    assert summary["AP"] >= 0
    assert all(torch.equal(value, before[name]) for name, value in job.detector.state_dict().items())


def test_losses_fall_on_a_few_images(make_job: Any, recipe: Any) -> None:
    job = make_job(recipe=replace(recipe, epochs=12, augmentation="none"), validate_every=100)
    train(job)
    losses = [float(one["loss"]) for one in rows(job.reports / "losses.csv")]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("after", [1, 4, 6])
def test_a_stopped_training_resumes_to_bit_equal_weights(
    make_job: Any,
    uninterrupted: TrainingJob,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
    after: int,
) -> None:
    first = make_job("stopped")
    with monkeypatch.context() as patch:
        stop_after(patch, after, number)
        with pytest.raises(SystemExit) as left:
            train(first)
    assert left.value.code == code
    before = rows(first.reports / "losses.csv")
    assert len(before) == after
    second, run = make_job("stopped"), ListRun()
    train(second, run)
    for key, value in weights(uninterrupted).items():
        assert torch.equal(value, weights(second)[key]), key
    curve = rows(second.reports / "losses.csv")
    assert [int(one["step"]) for one in curve] == list(range(1, STEPS + 1))
    for one, other in zip(curve, rows(uninterrupted.reports / "losses.csv"), strict=True):
        assert one | {"time": ""} == other | {"time": ""}
    assert curve[:after] == before, "first timestamps included"
    assert run.steps[0] == after


def test_phases_freeze_the_backbone_reload_the_best_weights_and_resume_bit_equal(
    make_job: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = (Phase(until=2, freeze_backbone=True), Phase(until=3, lr_factor=0.5, reload_best=True))
    phased = replace(recipe, schedule=replace(recipe.schedule, phases=phases))
    each, step, score = STEPS // EPOCHS, loop._step, Validator.validate
    scores, seen = [1.0], []

    def falling(validator: Validator, *args: Any) -> Any:
        values, results = score(validator, *args)
        scores.append(scores[-1] / 2)  # so that the first epoch is the best
        return dict.fromkeys(values, scores[-1]), results

    def watched(job: TrainingJob, *args: Any) -> Any:
        seen.append({k: v.clone() for k, v in job.detector.named_parameters()})
        return step(job, *args)

    monkeypatch.setattr(Validator, "validate", falling)
    whole = make_job("whole", recipe=phased)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", watched)
        train(whole)
    # the backbone is trained from the first step of the second phase, from the weights of epoch 1
    body = [name for name in seen[0] if name.startswith("backbone.body.")]
    assert all(torch.equal(seen[2 * each][name], seen[0][name]) for name in body)
    # not every parameter: a residual branch that starts at zero passes no gradient to its convolutions
    assert not all(torch.equal(seen[2 * each + 1][name], seen[0][name]) for name in body)
    assert all(torch.equal(v, seen[each][name]) for name, v in seen[2 * each].items())
    assert not all(torch.equal(v, seen[each][name]) for name, v in seen[2 * each - 1].items())

    with monkeypatch.context() as patch:
        stop_after(patch, 2 * each, signal.SIGTERM)  # at the start of the second phase
        with pytest.raises(SystemExit):
            train(make_job("stopped", recipe=phased))
    again = make_job("stopped", recipe=phased)
    train(again)
    losses = [[one["loss"] for one in rows(job.reports / "losses.csv")] for job in (whole, again)]
    assert losses[0] == losses[1]
    ends = [job.checkpoints.load(STATE_FILE)["model"] for job in (whole, again)]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_a_phase_may_start_with_a_new_optimizer_and_resumes_bit_equal(
    make_job: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = (Phase(until=1), Phase(until=EPOCHS, reset_optimizer=True))
    phased = replace(recipe, schedule=replace(recipe.schedule, phases=phases))
    each, step, moments = STEPS // EPOCHS, loop._step, []

    def watched(job: TrainingJob, model: Any, optimizer: torch.optim.Optimizer, batch: Any) -> Any:
        moments.append(len(optimizer.state))
        return step(job, model, optimizer, batch)

    whole = make_job("whole", recipe=phased)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", watched)
        train(whole)
    assert [i for i, count in enumerate(moments) if count == 0] == [0, each]
    with monkeypatch.context() as patch:
        stop_after(patch, each, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(make_job("stopped", recipe=phased))
    again = make_job("stopped", recipe=phased)
    train(again)
    ends = [weights(job) for job in (whole, again)]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_two_stage_meters_are_logged_and_resume_bit_equal(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    recipe = without_weights(load(model="fasterrcnn_resnet18", dataset="shapes").recipe)
    small: dict[str, Any] = {"image_size": 64, "max_size": None, "fpn_channels": 16, "roi.hidden_channels": 16}
    small |= {
        "roi.batch_size_per_image": 16,
        "rpn.pre_nms_top_n.train": 50,
        "rpn.pre_nms_top_n.test": 10,
        "epochs": 1,
        "batch_size": BATCH,
    }
    two_stage = recipe.update(small)
    whole = make_job("whole", recipe=two_stage)
    train(whole)
    (epoch,) = rows(whole.reports / "metrics.csv")
    names = {f"train/{part}_{rate}" for part in ("rpn", "roi") for rate in ("accuracy", "recall", "precision")}
    assert names | {"AP"} <= epoch.keys()
    assert all(0 <= float(epoch[name]) <= 1 or math.isnan(float(epoch[name])) for name in names)
    assert float(epoch["train/rpn_accuracy"]) > 0.3

    with monkeypatch.context() as patch:
        stop_after(patch, 2, signal.SIGTERM)  # the epoch's third step is taken after the resume
        with pytest.raises(SystemExit):
            train(make_job("stopped", recipe=two_stage))
    again = make_job("stopped", recipe=two_stage)
    empty = replace(again.validator, index=tiny.splits["val"].select(np.zeros(0, np.int64)))
    train(replace(again, validator=empty))  # the meters are read without val, too
    assert rows(again.reports / "metrics.csv") == [
        {name: epoch[name] for name in ("epoch", "step", *sorted(names))} | {"time": ANY}
    ]
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())


def test_a_finished_training_takes_no_further_step(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_job()
    summary = train(first)
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("a step was taken"))
    second = make_job()
    assert train(second) == summary
    assert all(torch.equal(v, weights(second)[k]) for k, v in weights(first).items())


def test_a_loss_that_is_not_finite_stops_with_the_names_of_the_images(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    job = make_job()
    losses = job.detector.losses
    calls = [0]

    def broken(*args: Any) -> dict[str, torch.Tensor]:
        calls[0] += 1
        values: dict[str, torch.Tensor] = losses(*args)
        return {k: v * float("nan") if calls[0] == 5 else v for k, v in values.items()}

    monkeypatch.setattr(job.detector, "losses", broken)
    with pytest.raises(DivergedError, match="step 5 is not finite") as raised:
        train(job)
    named = [one for one in (tiny.splits["train"][i].file for i in range(IMAGES)) if one in str(raised.value)]
    assert len(named) == BATCH
    assert len(rows(job.reports / "losses.csv")) == 4
    saved = job.checkpoints.load(STATE_FILE)
    assert saved is not None
    assert saved["state"]["step"] == 1  # the last checkpoint before it
    assert all(torch.isfinite(v).all() for v in saved["model"].values())


def test_early_stop_ends_a_training_that_no_longer_improves(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    early = EarlyStop(patience=1, min_delta=2.0)
    summary = train(make_job(early_stop=early))
    assert summary["epochs"] == 1
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("it had stopped"))
    assert train(make_job(early_stop=early)) == summary, "as after a kill before the detector was written"


def test_accumulation_gives_the_gradient_of_the_whole_batch(make_job: Any, recipe: Any) -> None:
    # with frozen BatchNorm the parts of a batch are independent; losses are means over images
    frozen = replace(recipe, bn="frozen")
    whole, parts = make_job("whole", recipe=frozen), make_job("parts", recipe=frozen, accumulate=2)
    batch = next(iter(whole.loader.epoch(0)))
    for job in (whole, parts):
        total, _ = loop._step(job, job.detector, torch.optim.SGD(job.detector.parameters(), 0.1), batch)
        assert torch.isfinite(total)
    for (name, a), b in zip(whole.detector.named_parameters(), parts.detector.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_ssdlite_is_not_trained_on_one_image_at_a_time() -> None:
    ssdlite = load(model="ssdlite320").recipe
    for images, accumulate in ((2, 1), (4, 2), (6, 3)):
        check_batch_parts(ssdlite, images, accumulate)
    for images, accumulate in ((1, 1), (4, 4), (5, 3)):  # five are split into two, two and one
        with pytest.raises(ParamsError, match="SSDlite"):
            check_batch_parts(ssdlite, images, accumulate)
    check_batch_parts(load(model="ssd300").recipe, 1, 1)


def test_clipping_limits_the_gradient(make_job: Any) -> None:
    job = make_job(clip_gradients=1e-3)
    before = weights(job)
    batch = next(iter(job.loader.epoch(0)))
    loop._step(job, job.detector, torch.optim.SGD(job.detector.parameters(), 1.0), batch)
    names = [name for name, _ in job.detector.named_parameters()]
    squares = [float(((weights(job)[n] - before[n]) ** 2).sum()) for n in names]
    assert math.sqrt(sum(squares)) == pytest.approx(1e-3, rel=1e-2)


def test_the_moving_average_of_the_weights_is_kept(make_job: Any) -> None:
    plain, averaged = make_job("plain", validate_every=100), make_job("averaged", validate_every=100, ema=0.9)
    train(plain)
    train(averaged)
    name = next(iter(dict(plain.detector.named_parameters())))
    start = dict(make_job("start").detector.named_parameters())[name]
    far = (dict(plain.detector.named_parameters())[name] - start).norm()
    near = (dict(averaged.detector.named_parameters())[name] - start).norm()
    assert 0 < near < far


def test_without_val_the_last_weights_are_kept(make_job: Any, tiny: Any) -> None:
    job = make_job()
    job = replace(job, validator=replace(job.validator, index=tiny.splits["val"].select(np.zeros(0, np.int64))))
    summary = train(job)
    assert "best_epoch" not in summary
    assert rows(job.reports / "metrics.csv") == []


def test_without_val_a_handful_of_training_images_is_scored_and_drawn(
    make_job: Any, tiny: Any, uninterrupted: TrainingJob
) -> None:
    job, run = make_job(), ListRun()
    sample = train_sample(job.validator, tiny.splits["train"])
    assert len(sample.index) == IMAGES
    empty = replace(job.validator, index=tiny.splits["val"].select(np.zeros(0, np.int64)))
    settings = replace(job.settings, sample_every_epochs=2, sample_images=2)
    train(replace(job, validator=empty, train_sample=sample, settings=settings), run)
    (row,) = rows(job.reports / "metrics.csv")
    assert (row["epoch"], row.keys() >= {"train/AP", "train/AP50"}) == ("2", True)
    assert run.files == ["samples/epoch_002.png"]
    assert (job.reports / "samples" / "epoch_002.png").is_file()
    expected = [one | {"time": ANY} for one in rows(uninterrupted.reports / "losses.csv")]
    assert rows(job.reports / "losses.csv") == expected, "scoring leaves the training alone"


def test_the_loss_on_val_is_recorded_and_changes_no_weights(make_job: Any, uninterrupted: TrainingJob) -> None:
    job = make_job(validation_loss=True)
    train(job)
    values = [float(row["val_loss"]) for row in rows(job.reports / "metrics.csv")]
    assert len(values) == EPOCHS
    assert values[-1] < values[0]
    assert "val_loss" not in rows(uninterrupted.reports / "metrics.csv")[0]
    state = uninterrupted.detector.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in job.detector.state_dict().items())
    loss = job.validator.loss(job.detector)
    assert loss == job.validator.loss(job.detector), "repeatable"


def test_weights_are_kept_every_few_epochs_also_when_resumed(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_job("whole", keep_every=1)
    train(whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 4, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(make_job("stopped", keep_every=1))
    resumed = make_job("stopped", keep_every=1)
    train(resumed)
    names = [f"epoch_{number:04d}.pt" for number in range(1, EPOCHS + 1)]
    assert sorted(path.name for path in (resumed.reports / "kept").iterdir()) == names
    states = []
    for name in names:
        first, second = (load_detector(job.reports / "kept" / name) for job in (whole, resumed))
        assert second.classes == whole.validator.classes
        states.append(first.detector.state_dict())
        assert all(torch.equal(value, states[-1][key]) for key, value in second.detector.state_dict().items())
    assert any(not torch.equal(value, states[0][key]) for key, value in states[-1].items())
    assert not list(resumed.checkpoints.folder.rglob("*.writing"))


def test_weights_are_kept_every_few_iterations_of_a_recipe_that_counts_these(make_job: Any, recipe: Any) -> None:
    job = make_job(recipe=replace(recipe, epochs=None, iterations=5), keep_every=2)
    train(job)
    assert {path.name for path in (job.reports / "kept").iterdir()} == {"iteration_0000002.pt", "iteration_0000004.pt"}


def test_iterations_end_within_an_epoch(make_job: Any, recipe: Any) -> None:
    job = make_job(recipe=replace(recipe, epochs=None, iterations=4))
    assert train(job)["steps"] == 4
    assert len(rows(job.reports / "metrics.csv")) == 2  # after the first epoch and at the end


def test_sample_images_are_artifacts_of_the_run(make_job: Any) -> None:
    job, run = make_job(), ListRun()
    job = replace(job, settings=replace(job.settings, sample_every_epochs=2, sample_images=2))
    train(job, run)
    assert run.files == ["samples/epoch_002.png"]


@pytest.mark.parametrize("at", [1, 3])
def test_a_training_killed_during_a_save_resumes_bit_equal_and_logs_every_step_once(
    make_job: Any, uninterrupted: TrainingJob, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(signals, "CHECKPOINT_INTERVAL_S", 0.0)
    monkeypatch.setattr(signals, "MIN_INTERVAL_PER_SAVE", 0)  # a checkpoint after every step
    run, save = ListRun(), torch.save
    received, sent = multiprocessing.get_context("fork").Pipe(duplex=False)

    def killed() -> None:
        saves = [0]

        def half(state: dict[str, Any], file: Any) -> None:
            saves[0] += "state" in state
            if saves[0] > at:
                file.write(b"half of it")
                file.flush()
                sent.send(run.steps)
                os.kill(os.getpid(), signal.SIGKILL)
            save(state, file)

        monkeypatch.setattr(torch, "save", half)
        train(make_job("killed"), run)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    assert received.poll(60), "no checkpoint"
    updates = received.recv()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    folder = make_job("killed").checkpoints.folder
    assert (folder / "state.pt.writing").read_bytes() == b"half of it"
    assert updates == list(range(at + 1)), "the run gets a step once a checkpoint holds it"

    again = make_job("killed")
    before = rows(again.reports / "losses.csv")[:at]
    train(again)
    assert not list(folder.glob("*.writing"))
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(uninterrupted).items())
    curve = rows(again.reports / "losses.csv")
    assert [int(row["step"]) for row in curve] == list(range(1, STEPS + 1))
    assert curve[:at] == before, "one timestamp per step"


def test_only_the_best_weights_that_the_state_names_are_kept(make_job: Any) -> None:
    job = make_job()
    summary = train(job)
    assert [path.name for path in job.checkpoints.folder.glob("best*")] == [f"best_{summary['best_epoch']}.pt"]
