"""`detection noise`: the same experiment with several seeds, and what of a score's difference is chance."""

from collections.abc import Mapping

from detection import params
from detection.errors import DataError
from detection.experiments import seeds as seeds_of
from detection.experiments.repository import Repository
from detection.experiments.seed_variance import LEVEL, c4, spread

SCORES = ("AP", "AP50", "AP75", "voc_ap50_11pt")
NOTES = """\
spread  standard deviation s over the seeds, divided by c4({n}) = {c4:.3f}: few runs hide some of it
1 vs 1  smallest difference of two single runs that means anything; a smaller one may be their seeds
        alone ({level:.0%}: s, times the root of 2, times Student's t with {single} degrees of freedom)
{n} vs {n}  the same of the means of {n} runs each (root of 2/{n}, {means} degrees of freedom)"""
RETRY = "its log: dvc queue logs {0}; to try again: dvc queue remove {0}, then this command"


def noise(seeds: int) -> str:
    """Report on the seeds that are done, and queue those that are missing.

    Args:
        seeds: How many: 0, 1, …

    Returns:
        The report, and what to type next.

    Raises:
        DataError: Fewer than two seeds, or experiments that cannot be one.
        ParamsError: A slip in params.yaml.
    """
    if seeds < 2:
        raise DataError(f"--seeds {seeds}: a spread needs two seeds or more")
    chosen, repository = params.load(), Repository()
    key = seeds_of.key(chosen, repository.root)
    names = {seeds_of.name(key, seed): seed for seed in range(seeds)}
    scores = seeds_of.finished(repository, tuple(names))
    missing = {name: seed for name, seed in names.items() if name not in scores}
    tasks = seeds_of.waiting(repository) if missing else {}
    new = {name: seed for name, seed in missing.items() if name not in tasks}
    seeds_of.queue(repository, new)
    lines = [f"{chosen.model} on {chosen.dataset}: {len(scores)} of {seeds} seeds are done"]
    lines += [f"  {name}: {'queued now' if name in new else tasks[name].lower()}" for name in missing]
    lines += [f"  {RETRY.format(name)}" for name in missing if tasks.get(name) == "Failed"]
    if any(tasks.get(name, "Queued") == "Queued" for name in missing):
        lines.append("  start them: dvc queue start (-j 2: two at a time); this command then reports")
    if len(scores) > 1:
        lines += ["", *_report(scores, names)]
    return "\n".join(lines)


def _report(scores: Mapping[str, Mapping[str, float | None]], seeds: Mapping[str, int]) -> list[str]:
    n = len(scores)
    order = sorted(scores, key=lambda name: seeds[name])
    lines = [f"{'on test':<14}{'mean':>8}{'spread':>8}{'1 vs 1':>8}{f'{n} vs {n}':>8}    each seed"]
    for metric in SCORES:
        values = [scores[name].get(metric) for name in order]
        known = [value for value in values if value is not None]
        if len(known) == n:
            one = spread(known)
            lines.append(
                f"{metric:<14}{one.mean:>8.3f}{one.deviation:>8.3f}{one.between_runs:>8.3f}"
                f"{one.between_means:>8.3f}    {' '.join(f'{value:.3f}' for value in known)}"
            )
    return [
        *lines,
        "",
        NOTES.format(n=n, c4=c4(n), level=LEVEL, single=n - 1, means=2 * n - 2),
    ]
