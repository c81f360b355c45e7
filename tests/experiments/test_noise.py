"""`detection noise` with DVC's real queue."""

import pytest

from detection.commands.experiments import noise
from detection.errors import DataError
from tests.experiment_projects import Project


def test_seeds_are_queued_once_and_reported_when_finished(project: Project) -> None:
    first = noise(2)
    assert "retinanet_resnet18 on shapes: 0 of 2 seeds finished" in first
    assert first.count("queued now") == 2
    assert "dvc queue start" in first
    names = [line.split(":")[0].strip() for line in first.splitlines() if "queued now" in line]
    queued = project.run("dvc", "queue", "status").stdout
    assert all(queued.count(name) == 1 for name in names)

    again = noise(2)
    assert again.count(": queued\n") == 2, "nothing is queued twice"
    assert project.run("dvc", "queue", "status").stdout.count("noise-") == 2

    project.run("dvc", "exp", "run", "--run-all")
    report = noise(2)
    assert "2 of 2 seeds finished" in report
    assert "queue start" not in report
    line = next(line for line in report.splitlines() if line.startswith("AP50"))
    mean, spread, between, _, *values = map(float, line.split()[1:])
    assert mean == pytest.approx(sum(values) / 2, abs=1e-3)
    assert spread == pytest.approx(abs(values[0] - values[1]) / 2**0.5 / 0.7979, abs=2e-3)
    assert between == pytest.approx(12.706 * abs(values[0] - values[1]), abs=2e-2)

    more = noise(3)
    assert "2 of 3 seeds finished" in more
    assert more.count("queued now") == 1, "only the missing seed"
    project.run("dvc", "queue", "remove", "--all")


def test_one_seed_is_refused() -> None:
    with pytest.raises(DataError, match="two or more seeds"):
        noise(1)
