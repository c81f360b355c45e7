"""How far scores move when nothing but the seed changes: the same experiment, queued with several seeds."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detection import pipeline
from detection.errors import DataError
from detection.experiments.repository import Repository
from detection.params import Params

NO_SCORES = ("check", "plots")
"""Stages that decide no score."""
TEST, METRICS = "data/prepared/test.npz", "reports/evaluation/metrics.json"


def key(params: Params, root: Path) -> str:
    """A hash over all that decides the scores but the seed: params, and the modules of the stages."""
    values = {name: value for name, value in params.flat().items() if name != "seed"}
    sha = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    decisive = [stage for stage in pipeline.stages(root) if stage not in NO_SCORES]
    files = pipeline.code_files(decisive, root)
    pipeline.update_hash(sha, ((file.relative_to(root).as_posix(), file) for file in files))
    return sha.hexdigest()[:8]


def name(key: str, seed: int) -> str:
    """What the experiment of one seed is called in DVC."""
    return f"noise-{key}-{seed}"


def finished(repository: Repository, names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """The test scores of those experiments that are done, by name.

    Raises:
        DataError: They were not all scored on the same test data.
    """
    scores: dict[str, dict[str, float | None]] = {}
    data = {}
    for one in repository.experiments():
        if one.name in names and one.name not in scores:
            metrics = repository.show(one.rev, METRICS)
            if metrics is not None:
                scores[one.name] = json.loads(metrics)
                data[one.name] = pipeline.locked_outs(repository.show(one.rev, "dvc.lock")).get(TEST)
    if len(set(data.values())) > 1:
        raise DataError(
            f"the test data changed between {' and '.join(sorted(data))}: they are not one experiment; "
            f"remove the older ones (dvc exp remove NAME) and give the command again"
        )
    return scores


def waiting(repository: Repository) -> dict[str, str]:
    """`Queued`, `Running` or `Failed` of every experiment in DVC's queue, by name."""
    from dvc.repo import Repo

    with Repo(str(repository.root)) as repo:
        tasks: list[dict[str, Any]] = repo.experiments.celery_queue.status()
    return {str(one["name"]): str(one["status"]) for one in tasks if one["status"] != "Success"}


def queue(repository: Repository, seeds: dict[str, int]) -> None:
    """Put this workspace's experiment into DVC's queue, once for each name and seed."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(str(repository.root)) as repo:
        for one, seed in seeds.items():
            try:
                repo.experiments.run(queue=True, name=one, params=[f"seed={seed}"])
            except DvcException as error:
                raise DataError(f"dvc exp run --queue -n {one} -S seed={seed}: {error}") from None
