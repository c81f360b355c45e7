"""Commands on experiments: compare, noise, apply, promote."""

import argparse
from collections.abc import Mapping

from detection import params
from detection.commands import Command
from detection.errors import DataError
from detection.experiments import seeds as seeds_of
from detection.experiments.find import find
from detection.experiments.repository import Repository
from detection.experiments.restore import restore
from detection.experiments.seeds import CONFIDENCE_LEVEL, c4, seed_variance

MIN_ROUNDS = 100
METRICS = ("AP", "AP50", "AP75", "voc_ap50_11pt")
NOTES = """\
spread  standard deviation s over the seeds, divided by c4({n}) = {c4:.3f} to correct the bias of few runs
1 vs 1  critical difference of two single runs; a smaller one may be due to their seeds alone
        ({level:.0%}: s times the root of 2, times Student's t with {single} degrees of freedom)
{n} vs {n}  the same for the means of {n} runs each (root of 2/{n}, {means} degrees of freedom)"""
RETRY = "log: dvc queue logs {0}; to retry: dvc queue remove {0}, then repeat this command"


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "experiments",
        nargs="+",
        metavar="EXPERIMENT",
        help="name in `dvc exp show`, id or name of an MLflow run, git revision, or workspace",
    )
    parser.add_argument("--rounds", type=int, default=1000, help="bootstrap rounds; default: %(default)s")


def compare(experiments: list[str], rounds: int) -> str:
    """Compare experiments with the first of them.

    Args:
        experiments: Two or more names, as `find` takes them.
        rounds: Bootstrap rounds over images.

    Raises:
        DataError: An experiment does not exist or was not evaluated, or the test data differs.
        TrackingError: The MLflow store cannot be read.
    """
    if len(experiments) < 2:
        raise DataError("a comparison needs two or more experiments: detection compare workspace HEAD")
    if rounds < MIN_ROUNDS:
        raise DataError(f"--rounds {rounds}: an interval needs {MIN_ROUNDS} or more rounds")

    from detection.experiments import comparison

    repository = Repository()
    data = comparison.read_all([find(name, repository) for name in experiments])
    return comparison.write(data, comparison.compare(data, rounds))


def _add_noise(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="0 to N - 1; default: %(default)s")


def noise(seeds: int) -> str:
    """Report the finished seeds, and queue the missing ones.

    Args:
        seeds: Number of seeds, counted from 0.

    Returns:
        Status per seed, statistics, and the next command.

    Raises:
        DataError: Fewer than two seeds, or the experiments were evaluated on different test data.
        ParamsError: An invalid value in params.yaml.
    """
    if seeds < 2:
        raise DataError(f"--seeds {seeds}: a standard deviation needs two or more seeds")
    chosen, repository = params.load(), Repository()
    key = seeds_of.content_key(chosen, repository.root)
    names = {seeds_of.experiment_name(key, seed): seed for seed in range(seeds)}
    scores = seeds_of.finished(repository, tuple(names))
    missing = {name: seed for name, seed in names.items() if name not in scores}
    tasks = seeds_of.queued(repository) if missing else {}
    new = {name: seed for name, seed in missing.items() if name not in tasks}
    seeds_of.queue(repository, new)
    lines = [f"{chosen.model} on {chosen.dataset}: {len(scores)} of {seeds} seeds finished"]
    lines += [f"  {name}: {'queued now' if name in new else tasks[name].lower()}" for name in missing]
    lines += [f"  {RETRY.format(name)}" for name in missing if tasks.get(name) == "Failed"]
    if any(tasks.get(name, "Queued") == "Queued" for name in missing):
        lines.append("  start them: dvc queue start (-j 2: two at a time), then repeat this command")
    if len(scores) > 1:
        lines += ["", *_report(scores, names)]
    return "\n".join(lines)


def _report(scores: Mapping[str, Mapping[str, float | None]], seeds: Mapping[str, int]) -> list[str]:
    n = len(scores)
    order = sorted(scores, key=lambda name: seeds[name])
    lines = [f"{'on test':<14}{'mean':>8}{'spread':>8}{'1 vs 1':>8}{f'{n} vs {n}':>8}    per seed"]
    for metric in METRICS:
        values = [scores[name].get(metric) for name in order]
        known = [value for value in values if value is not None]
        if len(known) == n:
            one = seed_variance(known)
            lines.append(
                f"{metric:<14}{one.mean:>8.3f}{one.deviation:>8.3f}{one.between_runs:>8.3f}"
                f"{one.between_means:>8.3f}    {' '.join(f'{value:.3f}' for value in known)}"
            )
    return [*lines, "", NOTES.format(n=n, c4=c4(n), level=CONFIDENCE_LEVEL, single=n - 1, means=2 * n - 2)]


def _add_apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="RUN", help="id or name of an MLflow run, or name of an experiment")


def _add_promote(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="as for compare")
    parser.add_argument("--alias", default="champion", help="alias of the version; default: %(default)s")
    parser.add_argument("--name", help="registered model; default: detector-DATASET")


def promote(experiment: str, name: str | None, alias: str) -> str:
    """Register an experiment's detector; see `detection.experiments.registry.promote`."""
    found = find(experiment, Repository())
    from detection.experiments import registry

    return registry.promote(found, name, alias)


COMMANDS = {
    "compare": Command(_add_compare, lambda args: compare(args.experiments, args.rounds)),
    "noise": Command(_add_noise, lambda args: noise(args.seeds)),
    "apply": Command(_add_apply, lambda args: restore(args.name, Repository())),
    "promote": Command(_add_promote, lambda args: promote(args.experiment, args.name, args.alias)),
}
