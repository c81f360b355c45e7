"""Several processes that train one detector: the same losses as one process, stopped, killed and resumed."""

import ast
import csv
import multiprocessing
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from detection import distributed
from detection.data.loading.batch import Targets
from detection.data.loading.loader import BatchSampler
from detection.device import pick_devices
from detection.errors import DetectionError, ParamsError
from detection.models.backbones import FrozenStatsBatchNorm, make_backbone
from detection.models.build import build_detector
from detection.models.train_meters import ConfusionMeter
from detection.params import load
from detection.tracking.run import NoRun
from detection.training import launch, loop
from detection.training.loop import fit
from detection.training.signals import StopSignals
from tests.training.conftest import job_maker, small_recipe

NAMES = ("alone", "undisturbed")
TOGETHER = multiprocessing.get_context("fork")


def together(count: int, folder: Path, work: Callable[[], Any]) -> list[str]:
    """Do `work` in so many forked ranks over gloo; returns what each of them said."""
    heard: Any = TOGETHER.Queue()

    def rank(number: int) -> None:
        try:
            store = f"file://{folder}/rendezvous"
            dist.init_process_group("gloo", init_method=store, rank=number, world_size=count)
            heard.put((number, repr(work())))
            dist.destroy_process_group()
        except BaseException:
            heard.put((number, traceback.format_exc()))
        finally:
            heard.close()
            heard.join_thread()
            os._exit(0)

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rendezvous").unlink(missing_ok=True)
    processes = [TOGETHER.Process(target=rank, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    said = dict(heard.get(timeout=300) for _ in processes)
    for process in processes:
        process.join(60)
    return [said[number] for number in range(count)]


def answer(said: str) -> Any:
    """What a rank said, if it came to its end."""
    if said.startswith("Traceback"):
        pytest.fail(said)
    return ast.literal_eval(said)


def losses(folder: Path) -> list[dict[str, float]]:
    with (folder / "reports" / "losses.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the trainings of this module leave everything."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("together")
        patch.setenv("DVC_ROOT", str(path))
        yield path


@pytest.fixture(scope="module")
def train(tiny: Any, folder: Path) -> Callable[..., list[str]]:
    """Train in so many processes as `name`, each making its own job, as a restarted process would.

    Nothing couples the pictures of a batch: BatchNorm is frozen, losses are means over pictures.
    """
    chosen = small_recipe()
    chosen = replace(chosen, bn="frozen", epochs=2, optimizer=replace(chosen.optimizer, lr=0.001))

    def run(count: int, name: str, before: Callable[[], None] = lambda: None) -> list[str]:
        def work() -> Any:
            before()
            job = job_maker(tiny, chosen, folder)(name, validate_every=2, ema=0.9)
            with launch.folder(job.reports) as reports:
                job = replace(job, reports=reports, checkpoints=launch.checkpoints("train", name))
                with job.checkpoints.held(), StopSignals() as interrupts:
                    summary = fit(job, NoRun(), interrupts)
                if distributed.is_main():
                    torch.save(job.detector.state_dict(), folder / f"{name}.pt")
            summary.pop("seconds")
            return summary

        return together(count, folder / f"{name}-{count}", work)

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Any) -> list[str]:
    """What two ranks said that nobody stopped; they trained as `undisturbed`."""
    said: list[str] = train(2, "undisturbed")
    return said


def test_two_processes_train_as_one_does(train: Any, undisturbed: list[str], folder: Path) -> None:
    (alone,), (leader, follower) = train(1, "alone"), undisturbed
    assert leader == follower
    assert answer(leader) == pytest.approx(answer(alone), rel=1e-3)
    for one, two in zip(losses(folder / "alone"), losses(folder / "undisturbed"), strict=True):
        noise = 1e-6 if one["step"] == 1 else 2e-4  # it grows from step to step
        assert two == pytest.approx(one, rel=noise), one["step"]
    one, two = (torch.cat([v.flatten() for v in weights(folder / f"{name}.pt").values()]) for name in NAMES)
    assert float((two - one).norm() / one.norm()) < 1e-4


@pytest.mark.parametrize("family", ["retinanet", "fcos"])
def test_a_loss_over_the_batchs_positives_is_the_whole_batchs(family: str, folder: Path) -> None:
    chosen = small_recipe()
    chosen = replace(chosen, bn="frozen")
    if family == "retinanet":
        recipe: Any = replace(chosen, loss_normalizer="batch", fpn_channels=64)
    else:
        recipe = replace(load(model="fcos", dataset="shapes").recipe, backbone="resnet18", fpn_channels=64)
        recipe = replace(recipe, image_size=64, max_size=None, trainable_layers=5, bn="frozen")
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

    alone, two = together(1, folder / f"{family}-1", work), together(2, folder / f"{family}-2", work)
    assert answer(two[0]) == pytest.approx(answer(alone[0]), rel=1e-5)
    assert answer(two[0]) == answer(two[1])


def test_ranks_that_are_stopped_stop_after_the_same_step_and_go_on_to_equal_bits(
    train: Any, undisturbed: list[str], folder: Path
) -> None:
    def stop_rank_1() -> None:
        taken, step = [0], loop._step

        def counted(*args: Any) -> Any:
            taken[0] += 1
            if taken[0] == 4 and distributed.rank() == 1:
                os.kill(os.getpid(), 15)
            return step(*args)

        loop._step = counted  # in this forked process alone

    stopped = train(2, "stopped", before=stop_rank_1)
    assert all("SystemExit: 143" in said for said in stopped), stopped
    assert len(losses(folder / "stopped")) == 4
    assert train(2, "stopped") == undisturbed
    for name, value in weights(folder / "undisturbed.pt").items():
        assert torch.equal(value, weights(folder / "stopped.pt")[name]), name
    assert losses(folder / "stopped") == losses(folder / "undisturbed")


def test_a_loss_that_is_not_finite_names_the_pictures_of_all_ranks(
    train: Any, tiny: Any, folder: Path
) -> None:
    def break_rank_1() -> None:
        step = loop._step

        def broken(job: Any, network: Any, *args: Any) -> Any:
            if distributed.rank() == 1:
                with torch.no_grad():
                    next(network.parameters()).fill_(torch.nan)
            return step(job, network, *args)

        loop._step = broken

    said = train(2, "broken", before=break_rank_1)
    assert all("DivergedError" in one for one in said), said
    named = [file for file in map(bytes.decode, tiny.splits["train"].files) if file in said[0]]
    assert len(named) == 4  # the whole batch
    assert not (folder / ".checkpoints/train/broken/state.pt").exists()


def test_what_ranks_tell_each_other(tmp_path: Path) -> None:
    def work() -> Any:
        mine = distributed.rank() + 1
        total = distributed.mean(torch.tensor([mine, 10 * mine]))
        return (
            total.tolist(),
            distributed.maximum(mine, -mine),
            distributed.gather(mine),
            distributed.is_main(),
        )

    first, second = map(answer, together(2, tmp_path, work))
    assert first == ([1.5, 15.0], [2, -1], [1, 2], True)
    assert second == ([1.5, 15.0], [2, -1], [1, 2], False)
    assert distributed.mean(torch.tensor([3])).tolist() == [3.0]
    assert (
        distributed.rank(),
        distributed.world_size(),
        distributed.gather("x"),
        distributed.maximum(7),
    ) == (
        0,
        1,
        ["x"],
        [7],
    )


def test_ranks_add_up_what_their_meters_counted(tmp_path: Path) -> None:
    def work() -> Any:
        meter, samples = ConfusionMeter("rpn", 2), torch.ones(1 + distributed.rank(), dtype=torch.int64)
        meter.reset(torch.tensor([[5, 0], [0, 0]]))  # what a checkpoint holds of both
        meter.add(samples, samples * distributed.rank(), samples.bool())
        return meter.total().tolist()

    first, second = map(answer, together(2, tmp_path, work))
    assert first == second == [[5, 0], [1, 2]]


def test_the_ranks_shares_are_equal_and_make_up_the_batch(tmp_path: Path) -> None:
    shares = [answer(said) for said in together(2, tmp_path, lambda: list(BatchSampler(13, 4, seed=3)))]
    alone = list(BatchSampler(13, 4, seed=3))
    assert len(alone) == 3
    for one, two, whole in zip(*shares, alone, strict=True):
        assert len(one) == len(two) == 2
        assert sorted(one + two) == sorted(whole)
    (first, _) = together(2, tmp_path, lambda: [len(batch) for batch in BatchSampler(5, 2, seed=None)])
    assert answer(first) == [2, 2, 1], "what is not shuffled is not shared"


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    said = together(3, tmp_path, lambda: BatchSampler(12, 4, seed=0))
    assert all("3 devices cannot share a batch of 4 pictures equally" in one for one in said)


def test_several_gpus_join_live_statistics_and_leave_fixed_ones_alone() -> None:
    with torch.device("meta"):
        for name, freeze, joined in (("resnet18", "live", True), ("resnet18", "frozen_stats", False)):
            network = make_backbone(name, bn=freeze)
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in network.modules()) == joined
    norm = FrozenStatsBatchNorm(2).train()
    norm(torch.randn(4, 2, 3, 3))
    assert norm.state_dict().keys() == torch.nn.BatchNorm2d(2).state_dict().keys()
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == [0, 0]


def test_how_many_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert pick_devices("auto", cpu, 8) == 1
    assert pick_devices(3, cpu, 8) == 3
    with pytest.raises(ParamsError, match=r"train\.devices: 0"):
        pick_devices(0, cpu, 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    asked = [pick_devices("auto", torch.device("cuda"), batch) for batch in (16, 4, 6, 1)]
    assert asked == [8, 4, 6, 1], "as many as share the batch equally"


class Failure:
    """A rank's end, as torchrun tells it."""

    def __init__(self, rank: int, exitcode: int, timestamp: int, text: str = "", known: bool = False) -> None:
        self.local_rank, self.exitcode, self.timestamp = rank, exitcode, timestamp
        told = {"message": text, "extraInfo": {"known": known}}
        self.message: Any = told if text else "Signal"


def test_the_reason_is_what_came_first_and_not_what_it_brought_down() -> None:
    fell = Failure(0, 1, 100, "Connection closed by peer")

    def reason(*failures: Failure) -> BaseException:
        return launch._reason({one.local_rank: one for one in failures}, 2)

    killed = reason(fell, Failure(1, -9, 101))
    assert isinstance(killed, DetectionError)
    assert str(killed).startswith(
        "process 1 of 2 was ended by SIGKILL (was memory short?); the last checkpoint"
    )
    known = reason(fell, Failure(1, 1, 100, "a.jpg cannot be read", known=True))
    assert (type(known), str(known)) == (DetectionError, "a.jpg cannot be read")
    bug = reason(Failure(0, 1, 100, "IndexError"), Failure(1, -9, 130))  # ended by the launcher, 30 s later
    assert isinstance(bug, RuntimeError)
    assert "process 0 of 2 failed:\nIndexError" in str(bug)
    asked = reason(Failure(0, 143, 100), Failure(1, 143, 100))
    assert isinstance(asked, SystemExit)
    assert asked.code == 143
