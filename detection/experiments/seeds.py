"""Variation of the scores over seeds: the same experiment queued with several seeds, and its statistics.

Letters: n runs, s their sample standard deviation (n - 1 in the denominator).
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detection import pipeline
from detection.errors import DataError
from detection.experiments.repository import Repository
from detection.params import Params

CONFIDENCE_LEVEL = 0.95
STAGES_WITHOUT_SCORES = ("check", "plots")
TEST, METRICS = "data/prepared/test.npz", "reports/evaluation/metrics.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedVariance:
    """Statistics of a score over n runs."""

    runs: int
    """Number of runs n."""
    mean: float
    """Mean score."""
    deviation: float
    """Standard deviation, corrected for the bias of few runs: s / c4(n)."""
    between_runs: float
    """Critical difference of two single runs at `CONFIDENCE_LEVEL`."""
    between_means: float
    """Critical difference of the means of two groups of n runs."""


def seed_variance(values: Sequence[float]) -> SeedVariance:
    """Estimate the variation of a score over seeds.

    The difference of two runs has the variance 2 sigma^2. With sigma estimated by s, it follows Student's t
    with n - 1 degrees of freedom, so its critical value is t s sqrt(2). The means of two groups of n runs
    differ with variance 2 sigma^2 / n, and their pooled s has 2n - 2 degrees of freedom.

    Args:
        values: Score of each run, two or more.
    """
    from scipy.stats import t as student

    runs, s = len(values), float(np.std(values, ddof=1))
    tail = (1 + CONFIDENCE_LEVEL) / 2
    return SeedVariance(
        runs=runs,
        mean=float(np.mean(values)),
        deviation=s / c4(runs),
        between_runs=float(student.ppf(tail, runs - 1)) * s * math.sqrt(2),
        between_means=float(student.ppf(tail, 2 * runs - 2)) * s * math.sqrt(2 / runs),
    )


def c4(runs: int) -> float:
    """Expected s of n normal values relative to sigma; 0.798 for two, 0.940 for five."""
    return math.sqrt(2 / (runs - 1)) * math.exp(math.lgamma(runs / 2) - math.lgamma((runs - 1) / 2))


def content_key(params: Params, root: Path) -> str:
    """Hash of everything but the seed that decides the scores: params and code."""
    values = {name: value for name, value in params.flat().items() if name != "seed"}
    sha = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    stages = [stage for stage in pipeline.stages(root) if stage not in STAGES_WITHOUT_SCORES]
    files = pipeline.code_files(stages, root)
    pipeline.update_hash(sha, ((file.relative_to(root).as_posix(), file) for file in files))
    return sha.hexdigest()[:8]


def experiment_name(key: str, seed: int) -> str:
    """Name of one seed's DVC experiment."""
    return f"noise-{key}-{seed}"


def finished(repository: Repository, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Test scores of the finished experiments among `names`.

    Raises:
        DataError: They were evaluated on different test data.
    """
    scores: dict[str, dict[str, float | None]] = {}
    test_data = {}
    for one in repository.experiments():
        if one.name in names and one.name not in scores:
            metrics = repository.show(one.rev, METRICS)
            if metrics is not None:
                scores[one.name] = json.loads(metrics)
                test_data[one.name] = pipeline.locked_outs(repository.show(one.rev, "dvc.lock")).get(TEST)
    if len(set(test_data.values())) > 1:
        raise DataError(
            f"the test data of {' and '.join(sorted(test_data))} differs; remove the older experiments "
            "(dvc exp remove NAME) and repeat the command"
        )
    return scores


def queued(repository: Repository) -> dict[str, str]:
    """`Queued`, `Running` or `Failed` for every experiment in DVC's queue, by name."""
    from dvc.repo import Repo

    with Repo(str(repository.root)) as repo:
        tasks: list[dict[str, Any]] = repo.experiments.celery_queue.status()
    return {str(one["name"]): str(one["status"]) for one in tasks if one["status"] != "Success"}


def queue(repository: Repository, seeds: dict[str, int]) -> None:
    """Queue the workspace's experiment once per name and seed.

    Raises:
        DataError: DVC refuses.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(str(repository.root)) as repo:
        for name, seed in seeds.items():
            try:
                repo.experiments.run(queue=True, name=name, params=[f"seed={seed}"])
            except DvcException as error:
                raise DataError(f"dvc exp run --queue -n {name} -S seed={seed}: {error}") from None
