import csv
import math
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
import torch

from detection.errors import DivergedError, ParamsError
from detection.models.build import without_weights
from detection.params import load
from detection.params.recipe_base import Phase
from detection.params.stages import EarlyStop
from detection.tracking.run import NoRun
from detection.training import loop, state
from detection.training.loop import TrainingJob, fit
from detection.training.setup import check_parts
from detection.training.signals import StopSignals
from detection.training.validation import Validator

EPOCHS, BATCH, PICTURES = 3, 4, 12  # as conftest.py sets them
STEPS = EPOCHS * PICTURES // BATCH


class ListRow(NoRun):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float], int]] = []
        self.files: list[str] = []

    def log(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        self.points.append((step, dict(values), time_ms))

    def artifact(self, path: Path, folder: str | None) -> None:
        self.files.append(f"{folder}/{path.name}")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in job.detector.state_dict().items()}


def run(job: TrainingJob, row: NoRun | None = None) -> dict[str, Any]:
    with job.checkpoints.held(), StopSignals() as interrupts:
        return fit(job, row or NoRun(), interrupts)


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
    job, row = make_job(), ListRow()
    summary = run(job, row)
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
    steps = [step for step, values, _ in row.points if "loss" in values]
    assert steps == list(range(1, STEPS + 1))
    assert job.checkpoints.complete


def test_losses_fall_on_a_handful_of_pictures(make_job: Any, recipe: Any) -> None:
    job = make_job(recipe=replace(recipe, epochs=12, augmentation="none"), validate_every=100)
    run(job)
    losses = [float(one["loss"]) for one in rows(job.reports / "losses.csv")]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("after", [1, 4, 6])
def test_a_stopped_training_goes_on_to_bit_equal_weights(
    make_job: Any,
    undisturbed_run: TrainingJob,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    code: int,
    after: int,
) -> None:
    undisturbed = undisturbed_run
    first, row = make_job("stopped"), ListRow()
    with monkeypatch.context() as patch:
        stop_after(patch, after, number)
        with pytest.raises(SystemExit) as left:
            run(first, row)
    assert left.value.code == code
    assert len(rows(first.reports / "losses.csv")) == after
    second, again = make_job("stopped"), ListRow()
    run(second, again)
    for key, value in weights(undisturbed).items():
        assert torch.equal(value, weights(second)[key]), key
    curve = rows(second.reports / "losses.csv")
    assert [int(one["step"]) for one in curve] == list(range(1, STEPS + 1))
    for one, other in zip(curve, rows(undisturbed.reports / "losses.csv"), strict=True):
        assert one | {"time": ""} == other | {"time": ""}
    # the same points, first timestamps included (as text: NaN is not equal to itself)
    assert set(map(str, row.points)) <= set(map(str, again.points))


def test_phases_freeze_the_backbone_reload_the_best_and_go_on_bit_equal(
    make_job: Any, recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = (Phase(until=2, freeze_backbone=True), Phase(until=3, lr_factor=0.5, reload_best=True))
    phased = replace(recipe, schedule=replace(recipe.schedule, phases=phases))
    each, step, score = STEPS // EPOCHS, loop._step, Validator.score
    scores, seen = [1.0], []

    def falling(validator: Validator, *args: Any) -> Any:
        values, results = score(validator, *args)
        scores.append(scores[-1] / 2)  # so that the first epoch is the best
        return dict.fromkeys(values, scores[-1]), results

    def watched(job: TrainingJob, *args: Any) -> Any:
        seen.append({k: v.clone() for k, v in job.detector.named_parameters()})
        return step(job, *args)

    monkeypatch.setattr(Validator, "score", falling)
    whole = make_job("whole", recipe=phased)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", watched)
        run(whole)
    # it may thaw at once, from what the first epoch left
    body = [name for name in seen[0] if name.startswith("backbone.body.")]
    assert all(torch.equal(seen[2 * each][name], seen[0][name]) for name in body)
    # not each of them: a residual branch that begins as zero lets no gradient through to its convolutions
    assert not all(torch.equal(seen[2 * each + 1][name], seen[0][name]) for name in body)
    assert all(torch.equal(v, seen[each][name]) for name, v in seen[2 * each].items())
    assert not all(torch.equal(v, seen[each][name]) for name, v in seen[2 * each - 1].items())

    with monkeypatch.context() as patch:
        stop_after(patch, 2 * each, signal.SIGTERM)  # right where the second phase begins
        with pytest.raises(SystemExit):
            run(make_job("stopped", recipe=phased))
    again = make_job("stopped", recipe=phased)
    run(again)
    losses = [[one["loss"] for one in rows(job.reports / "losses.csv")] for job in (whole, again)]
    assert losses[0] == losses[1]
    ends = [job.checkpoints.load(loop.STATE)["model"] for job in (whole, again)]
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


def test_two_stages_log_their_meters_and_go_on_to_equal_bits(
    make_job: Any, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    chosen = without_weights(load(model="fasterrcnn_resnet18", dataset="shapes").recipe)
    few: dict[str, Any] = {"image_size": 64, "max_size": None, "fpn_channels": 16, "roi.hidden_channels": 16}
    few |= {
        "roi.batch_size_per_image": 16,
        "rpn.pre_nms_top_n.train": 50,
        "rpn.pre_nms_top_n.test": 10,
        "epochs": 1,
        "batch_size": BATCH,
    }
    two_stage, row = chosen.update(few), ListRow()
    whole = make_job("whole", recipe=two_stage)
    run(whole, row)
    (epoch,) = rows(whole.reports / "metrics.csv")
    names = {
        f"train/{part}_{rate}" for part in ("rpn", "roi") for rate in ("accuracy", "recall", "precision")
    }
    assert names | {"AP"} <= epoch.keys()
    assert all(0 <= float(epoch[name]) <= 1 or math.isnan(float(epoch[name])) for name in names)
    assert float(epoch["train/rpn_accuracy"]) > 0.3
    assert sum(names <= values.keys() for _, values, _ in row.points) == 1, "under their own names"

    with monkeypatch.context() as patch:
        stop_after(patch, 2, signal.SIGTERM)  # the epoch's third step is taken by another process
        with pytest.raises(SystemExit):
            run(make_job("stopped", recipe=two_stage))
    again = make_job("stopped", recipe=two_stage)
    empty = replace(again.validator, index=tiny.splits["val"].select(np.zeros(0, np.int64)))
    run(replace(again, validator=empty))  # without a val the meters are read all the same
    assert rows(again.reports / "metrics.csv") == [
        {name: epoch[name] for name in ("epoch", "step", *sorted(names))} | {"time": ANY}
    ]
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(whole).items())


def test_a_finished_training_is_not_done_again(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_job()
    summary = run(first)
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("a step was taken"))
    second = make_job()
    assert run(second) == summary
    assert all(torch.equal(v, weights(second)[k]) for k, v in weights(first).items())


def test_a_loss_that_is_not_finite_stops_with_the_pictures_names(
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
        run(job)
    named = [
        one for one in (tiny.splits["train"][i].file for i in range(PICTURES)) if one in str(raised.value)
    ]
    assert len(named) == BATCH
    assert len(rows(job.reports / "losses.csv")) == 4
    saved = job.checkpoints.load(loop.STATE)
    assert saved is not None
    assert saved["state"]["step"] == 1  # the last good one
    assert all(torch.isfinite(v).all() for v in saved["model"].values())


def test_early_stop_ends_when_val_no_longer_rises(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    early = EarlyStop(patience=1, min_delta=2.0)
    summary = run(make_job(early_stop=early))
    assert summary["epochs"] == 1
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("it had ended"))
    assert run(make_job(early_stop=early)) == summary, "killed before its detector was written, say"


def test_accumulation_gives_the_gradient_of_the_whole_batch(make_job: Any, recipe: Any) -> None:
    # with BatchNorm frozen the parts of a batch do not see one another; losses are means over pictures
    frozen = replace(recipe, bn="frozen")
    whole, parts = make_job("whole", recipe=frozen), make_job("parts", recipe=frozen, accumulate=2)
    batch = next(iter(whole.loader.epoch(0)))
    for job in (whole, parts):
        total, _ = loop._step(job, job.detector, torch.optim.SGD(job.detector.parameters(), 0.1), batch)
        assert torch.isfinite(total)
    for (name, a), b in zip(whole.detector.named_parameters(), parts.detector.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=name)


def test_an_ssdlite_is_not_trained_on_one_picture_at_a_time() -> None:
    ssdlite = load(model="ssdlite320").recipe
    for pictures, accumulate in ((2, 1), (4, 2), (6, 3)):
        check_parts(ssdlite, pictures, accumulate)
    for pictures, accumulate in ((1, 1), (4, 4), (5, 3)):  # five are two, two and one
        with pytest.raises(ParamsError, match="SSDlite cannot train on one picture at a time"):
            check_parts(ssdlite, pictures, accumulate)
    check_parts(load(model="ssd300").recipe, 1, 1)


def test_clipping_limits_the_gradient(make_job: Any) -> None:
    job = make_job(clip_gradients=1e-3)
    before = weights(job)
    batch = next(iter(job.loader.epoch(0)))
    loop._step(job, job.detector, torch.optim.SGD(job.detector.parameters(), 1.0), batch)
    names = [name for name, _ in job.detector.named_parameters()]
    moved = torch.sqrt(sum(((weights(job)[n] - before[n]) ** 2).sum() for n in names))
    assert float(moved) == pytest.approx(1e-3, rel=1e-2)


def test_the_average_of_the_weights_is_what_is_kept(make_job: Any) -> None:
    plain, averaged = make_job("plain", validate_every=100), make_job("averaged", validate_every=100, ema=0.9)
    run(plain)
    run(averaged)
    name = next(iter(dict(plain.detector.named_parameters())))
    start = dict(make_job("start").detector.named_parameters())[name]
    far = (dict(plain.detector.named_parameters())[name] - start).norm()
    near = (dict(averaged.detector.named_parameters())[name] - start).norm()
    assert 0 < near < far


def test_without_val_the_last_weights_count(make_job: Any, tiny: Any) -> None:
    job = make_job()
    job = replace(
        job, validator=replace(job.validator, index=tiny.splits["val"].select(np.zeros(0, np.int64)))
    )
    summary = run(job)
    assert "best_epoch" not in summary
    assert rows(job.reports / "metrics.csv") == []


def test_iterations_end_within_an_epoch(make_job: Any, recipe: Any) -> None:
    job = make_job(recipe=replace(recipe, epochs=None, iterations=4))
    assert run(job)["steps"] == 4
    assert len(rows(job.reports / "metrics.csv")) == 2  # after the first epoch and at the end


def test_sample_predictions_go_to_the_row(make_job: Any) -> None:
    job, row = make_job(), ListRow()
    job = replace(job, settings=replace(job.settings, sample_every_epochs=2, sample_images=2))
    run(job, row)
    assert row.files == ["samples/epoch_002.png"]


@pytest.mark.parametrize("at", [1, 3])
def test_a_training_killed_while_it_saves_goes_on_to_equal_bits_and_logs_every_step_once(
    make_job: Any, undisturbed_run: TrainingJob, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(state, "PAUSE_S", 0.0)
    monkeypatch.setattr(state, "PAUSES", 0)  # a checkpoint after every step
    lives, whole = [ListRow(), ListRow()], torch.save
    sent: Any = multiprocessing.get_context("fork").SimpleQueue()

    def killed() -> None:
        saves = [0]

        def half(state: dict[str, Any], file: Any) -> None:
            saves[0] += "state" in state
            if saves[0] > at:
                file.write(b"half of it")
                file.flush()
                sent.put(lives[0].points)
                os.kill(os.getpid(), signal.SIGKILL)
            whole(state, file)

        monkeypatch.setattr(torch, "save", half)
        run(make_job("killed"), lives[0])

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    points = sent.get()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    folder = make_job("killed").checkpoints.folder
    assert (folder / "state.pt.writing").read_bytes() == b"half of it"
    assert [step for step, values, _ in points if "loss" in values] == list(range(1, at + 1))

    again = make_job("killed")
    run(again, lives[1])
    assert not list(folder.glob("*.writing"))
    assert all(torch.equal(v, weights(again)[k]) for k, v in weights(undisturbed_run).items())
    both = {(step, time) for step, values, time in points + lives[1].points if "loss" in values}
    assert sorted(step for step, _ in both) == list(range(1, STEPS + 1)), "with one time each"


def test_the_best_weights_belong_to_the_state_that_names_them(make_job: Any) -> None:
    job = make_job()
    summary = run(job)
    assert [path.name for path in job.checkpoints.folder.glob("best*")] == [
        f"best_{summary['best_epoch']}.pt"
    ]
