"""Several ranks train one detector: losses as in one process, bit-equal after a stop and resume."""

import ast
import csv
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from detection import distributed, launch
from detection.data.loading.batch import Targets
from detection.data.loading.loader import BatchSampler
from detection.device import pick_devices
from detection.errors import ParamsError
from detection.models.backbones import FrozenStatsBatchNorm, make_backbone
from detection.models.build import build_detector
from detection.models.heads import ConfusionMeter
from detection.params import load
from detection.signals import StopSignals
from detection.tracking.run import NoRun
from detection.training import loop
from detection.training.common import data_parallel
from detection.training.common.checkpoint import Checkpoints
from detection.training.loop import fit
from tests.training.conftest import job_maker, small_recipe

NAMES = ("alone", "uninterrupted")
FORK = multiprocessing.get_context("fork")


def run_ranks(count: int, folder: Path, work: Callable[[], Any]) -> list[str]:
    """Run `work` in `count` forked ranks over gloo; return each rank's result as text, or its traceback."""
    results: Any = FORK.Queue()

    def rank(number: int) -> None:
        try:
            store = f"file://{folder}/rendezvous"
            dist.init_process_group("gloo", init_method=store, rank=number, world_size=count)
            results.put((number, repr(work())))
            dist.destroy_process_group()
        except BaseException:
            results.put((number, traceback.format_exc()))
        finally:
            results.close()
            results.join_thread()
            os._exit(0)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    processes = [FORK.Process(target=rank, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    outcomes = dict(results.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    return [outcomes[number] for number in range(count)]


def result(text: str) -> Any:
    """Result of a rank; fails on a traceback."""
    if text.startswith("Traceback"):
        pytest.fail(text)
    return ast.literal_eval(text)


def losses(folder: Path) -> list[dict[str, float]]:
    with (folder / "reports" / "losses.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folder of this module's trainings."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("ranks")
        patch.setenv("DVC_ROOT", str(path))
        yield path


@pytest.fixture(scope="module")
def train(tiny: Any, folder: Path) -> Callable[..., list[str]]:
    """Train `name` on several ranks, each building its own job, as a restarted process does.

    The images of a batch are independent: BatchNorm is frozen, losses are means over images.
    """
    recipe = small_recipe()
    recipe = replace(recipe, bn="frozen", epochs=2, optimizer=replace(recipe.optimizer, lr=0.001))

    def run(count: int, name: str, before: Callable[[], None] = lambda: None) -> list[str]:
        def work() -> Any:
            before()
            job = job_maker(tiny, recipe, folder)(name, validate_every=2, ema=0.9)
            with launch.reports_folder(job.reports) as reports:
                job = replace(job, reports=reports)
                with job.checkpoints.locked(), StopSignals() as stop:
                    summary = fit(job, NoRun(), stop)
                if distributed.is_main():
                    torch.save(job.detector.state_dict(), folder / f"{name}.pt")
            summary.pop("seconds")
            return summary

        return run_ranks(count, folder / f"{name}-{count}", work)

    return run


@pytest.fixture(scope="module")
def uninterrupted(train: Any) -> list[str]:
    """Results of two ranks that were never stopped; they trained as `uninterrupted`."""
    results: list[str] = train(2, "uninterrupted")
    return results


def test_two_processes_train_as_one_does(train: Any, uninterrupted: list[str], folder: Path) -> None:
    (alone,), (first, second) = train(1, "alone"), uninterrupted
    assert first == second
    assert result(first) == pytest.approx(result(alone), rel=1e-3)
    for one, two in zip(losses(folder / "alone"), losses(folder / "uninterrupted"), strict=True):
        noise = 1e-6 if one["step"] == 1 else 2e-4  # rounding differences grow with the steps
        assert two == pytest.approx(one, rel=noise), one["step"]
    expected, actual = (torch.cat([v.flatten() for v in weights(folder / f"{name}.pt").values()]) for name in NAMES)
    assert float((actual - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_a_loss_per_positive_is_normalized_over_the_whole_batch(family: str, folder: Path) -> None:
    base = replace(small_recipe(), bn="frozen")
    if family == "retinanet":
        recipe = base.update({"loss_normalizer": "batch", "fpn_channels": 64})
    else:
        changes = {"backbone": "resnet18", "fpn_channels": 64, "image_size": 64, "max_size": None}
        changes |= {"trainable_layers": 5, "bn": "frozen"}
        recipe = load(model="fcos", dataset="shapes").recipe.update(changes)
    torch.manual_seed(0)
    detector = build_detector(recipe, 3, None).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    boxes = torch.tensor([[[8.0, 8, 40, 40], [20, 4, 60, 50]], [[30, 30, 60, 62], [0, 0, 0, 0]]])
    mask = torch.tensor([[True, True], [True, False]])  # the ranks have unequal numbers of positives
    targets = Targets(boxes, torch.zeros(2, 2, dtype=torch.int64), mask, torch.full((2, 2), 64))

    def work() -> list[float]:
        part = slice(distributed.rank(), None, distributed.world_size())
        values = detector(images[part], targets[part]).values()
        return [float(distributed.mean(value)) for value in values]

    alone, two = run_ranks(1, folder / f"{family}-1", work), run_ranks(2, folder / f"{family}-2", work)
    assert result(two[0]) == pytest.approx(result(alone[0]), rel=1e-5)
    assert result(two[0]) == result(two[1])


def test_ranks_stop_after_the_same_step_and_resume_bit_equal(
    train: Any, uninterrupted: list[str], folder: Path
) -> None:
    def stop_rank_1() -> None:
        taken, step = [0], loop._step

        def counted(*args: Any) -> Any:
            taken[0] += 1
            if taken[0] == 4 and distributed.rank() == 1:
                os.kill(os.getpid(), 15)
            return step(*args)

        patch.object(loop, "_step", counted).start()  # in this forked process alone

    stopped = train(2, "stopped", before=stop_rank_1)
    assert all("SystemExit: 143" in text for text in stopped), stopped
    assert len(losses(folder / "stopped")) == 4
    assert train(2, "stopped") == uninterrupted
    for name, value in weights(folder / "uninterrupted.pt").items():
        assert torch.equal(value, weights(folder / "stopped.pt")[name]), name
    assert losses(folder / "stopped") == losses(folder / "uninterrupted")


def test_machines_without_a_shared_disk_resume_from_rank_0(
    train: Any, uninterrupted: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank whose disk has no checkpoint would otherwise begin at step 0 with fresh weights."""

    def stop() -> None:
        own_disk()
        taken, step = [0], loop._step

        def counted(*args: Any) -> Any:
            taken[0] += 1
            if taken[0] == 4:
                os.kill(os.getpid(), 15)
            return step(*args)

        patch.object(loop, "_step", counted).start()

    def own_disk() -> None:
        os.environ["DVC_ROOT"] = str(folder / f"machine_{distributed.rank()}")

    assert all("SystemExit: 143" in text for text in train(2, "machines", before=stop))
    assert not (folder / "machine_1").exists()
    assert train(2, "machines", before=own_disk) == uninterrupted
    for name, value in weights(folder / "uninterrupted.pt").items():
        assert torch.equal(value, weights(folder / "machines.pt")[name]), name


def test_ranks_that_start_differently_are_refused(tmp_path: Path) -> None:
    def work() -> None:
        model = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(model.weight, 1.0)
        torch.nn.init.constant_(model.bias, float(distributed.rank()) if differs == "weights" else 0.0)
        data_parallel.check_same_start(distributed.rank() if differs == "step" else 0, model)

    for differs in ("weights", "step", "nothing"):
        outcomes = run_ranks(2, tmp_path, work)
        if differs == "nothing":
            assert outcomes == ["None", "None"]
        else:
            assert all("CheckpointError" in text and "rank 1 at step" in text for text in outcomes), outcomes


def test_a_damaged_checkpoint_is_an_error_on_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    path = tmp_path / ".checkpoints/train/damaged/state.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a checkpoint")
    outcomes = run_ranks(2, tmp_path, lambda: Checkpoints("train", "damaged").load("state.pt"))
    assert all("CheckpointError" in text and "cannot be read" in text for text in outcomes), outcomes


def test_a_loss_that_is_not_finite_names_the_images_of_all_ranks(train: Any, tiny: Any, folder: Path) -> None:
    def break_rank_1() -> None:
        step = loop._step

        def broken(job: Any, network: Any, *args: Any) -> Any:
            if distributed.rank() == 1:
                with torch.no_grad():
                    next(network.parameters()).fill_(torch.nan)
            return step(job, network, *args)

        patch.object(loop, "_step", broken).start()

    errors = train(2, "broken", before=break_rank_1)
    assert all("DivergedError" in error for error in errors), errors
    named = [file for file in map(bytes.decode, tiny.splits["train"].files) if file in errors[0]]
    assert len(named) == 4  # the whole batch
    assert not (folder / ".checkpoints/train/broken/state.pt").exists()


def test_collective_operations(tmp_path: Path) -> None:
    def work() -> Any:
        mine = distributed.rank() + 1
        total = distributed.mean(torch.tensor([mine, 10 * mine]))
        sent = distributed.broadcast({"tensor": torch.tensor([mine])})["tensor"].tolist()
        most = distributed.maximum(mine, -mine)
        return (total.tolist(), most, distributed.gather(mine), sent, distributed.is_main())

    first, second = map(result, run_ranks(2, tmp_path, work))
    assert first == ([1.5, 15.0], [2, -1], [1, 2], [1], True)
    assert second == ([1.5, 15.0], [2, -1], [1, 2], [1], False)
    assert distributed.mean(torch.tensor([3])).tolist() == [3.0]
    assert (distributed.rank(), distributed.world_size(), distributed.gather("x"), distributed.maximum(7)) == (
        0,
        1,
        ["x"],
        [7],
    )


def test_meters_are_summed_over_the_ranks(tmp_path: Path) -> None:
    def work() -> Any:
        meter, samples = ConfusionMeter("rpn", 2), torch.ones(1 + distributed.rank(), dtype=torch.int64)
        meter.reset(torch.tensor([[5, 0], [0, 0]]))  # the sum over both ranks, from a checkpoint
        meter.add(samples, samples * distributed.rank(), samples.bool())
        return meter.total().tolist()

    first, second = map(result, run_ranks(2, tmp_path, work))
    assert first == second == [[5, 0], [1, 2]]


def test_the_ranks_shares_are_equal_and_make_up_the_batch(tmp_path: Path) -> None:
    shares = [result(one) for one in run_ranks(2, tmp_path, lambda: list(BatchSampler(13, 4, seed=3)))]
    alone = list(BatchSampler(13, 4, seed=3))
    assert len(alone) == 3
    for one, two, whole in zip(*shares, alone, strict=True):
        assert len(one) == len(two) == 2
        assert sorted(one + two) == sorted(whole)
    (first, _) = run_ranks(2, tmp_path, lambda: [len(batch) for batch in BatchSampler(5, 2, seed=None)])
    assert result(first) == [2, 2, 1], "without shuffling each rank gets all batches"


def test_a_batch_that_cannot_be_split_equally_is_refused(tmp_path: Path) -> None:
    errors = run_ranks(3, tmp_path, lambda: BatchSampler(12, 4, seed=0))
    assert all("ParamsError" in error and "train.devices" in error for error in errors)


def test_sync_batch_norm_replaces_live_statistics_only() -> None:
    with torch.device("meta"):
        for bn, synced in (("live", True), ("frozen_stats", False)):
            network = make_backbone("resnet18", bn=bn)
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
            assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in network.modules()) == synced
    norm = FrozenStatsBatchNorm(2).train()
    norm(torch.randn(4, 2, 3, 3))
    assert norm.state_dict().keys() == torch.nn.BatchNorm2d(2).state_dict().keys()
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0]


def test_number_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert pick_devices("auto", cpu, 8) == 1
    assert pick_devices(3, cpu, 8) == 3
    with pytest.raises(ParamsError, match=r"train\.devices"):
        pick_devices(0, cpu, 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    counts = [pick_devices("auto", torch.device("cuda"), batch) for batch in (16, 4, 6, 1)]
    assert counts == [8, 4, 6, 1], "as many as split the batch equally"
