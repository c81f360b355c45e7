"""`detection search`: hyper-parameter search with Optuna, each trial one DVC experiment."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from detection.commands import Command
from detection.errors import DataError, DetectionError
from detection.experiments import comparison, seeds
from detection.experiments.find import find
from detection.experiments.repository import Repository
from detection.experiments.restore import restore
from detection.experiments.search import Search, open_study, storage_url
from detection.experiments.search_parent import ParentRun
from detection.experiments.search_space import Space, read
from detection.experiments.search_trial import STORAGE_VARIABLE
from detection.signals import stop_handler
from detection.text import number

if TYPE_CHECKING:
    import optuna

SHOWN = 10
"""Trials in the terminal; the page has all."""
ROUNDS = 1000
"""Rounds of the paired bootstrap of the two best."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.description = (
        "Search params with Optuna; each trial is one DVC experiment. Repeat the command to resume, or run it on "
        "other machines with the same storage. docs/experiments.md has an example of a space."
    )
    add("space", type=Path, metavar="SPACE.yaml", help="range or choices per key of params.yaml, sampler, trials")
    add("--jobs", type=int, default=1, metavar="N", help="trials at a time on this machine; default: %(default)s")
    add("--storage", metavar="URL", help=f"Optuna's database; default: ${STORAGE_VARIABLE}, else .search/studies.db")
    add("--no-apply", action="store_true", help="leave the workspace as it is")


def search(file: Path, jobs: int = 1, storage: str | None = None, apply: bool = True) -> str:
    """Run trials until the budget is spent, apply the best experiment, and write `reports/search/`.

    Args:
        file: The space.
        jobs: Trials at a time.
        storage: Database URL of the studies.
        apply: Restore the best experiment in the workspace.

    Raises:
        ParamsError: The space names a key or value that params.yaml does not allow; nothing has started.
        DataError: The storage cannot be opened, or trainings fail.
    """
    if jobs < 1:
        raise DataError(f"--jobs {jobs}: must be 1 or more")
    space, repository = read(file), Repository()
    name = space.study_name(repository.root)
    study = open_study(space, name, storage_url(storage))
    parent = ParentRun(space, name)
    try:
        with stop_handler(_interrupt):
            Search(space, study, repository, parent).run(jobs)
    except BaseException as error:
        parent.close("FAILED" if isinstance(error, DetectionError) else "KILLED")
        raise
    return _finish(space, study, repository, parent, apply)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _finish(space: Space, study: "optuna.Study", repository: Repository, parent: ParentRun, apply: bool) -> str:
    from detection.experiments.search_page import write_search_page

    trials = [one for one in study.get_trials(deepcopy=False) if one.state.name in ("COMPLETE", "PRUNED")]
    best = sorted((one for one in trials if one.state.name == "COMPLETE"), key=lambda one: -(one.value or 0))
    if not best:
        raise DataError(f"{study.study_name}: no trial of {len(trials)} finished; logs: .search/logs")
    verdict = _verdict(space, best, repository)
    page = write_search_page(space, study, verdict)
    running = sum(one.state.name in ("RUNNING", "WAITING") for one in study.get_trials(deepcopy=False))
    name = best[0].user_attrs["experiment"]
    parent.close("FINISHED" if not running else "RUNNING", name, page)
    lines = [
        f"{study.study_name}: {len(trials)} trials by {space.settings.sampler}, {len(best)} finished and "
        f"{len(trials) - len(best)} pruned or failed; best {space.settings.objective} {best[0].value:.4f}: {name}",
        *_table(space, best),
        "",
        *verdict,
        "",
        f"report: {page}",
    ]
    if running:
        return "\n".join([*lines, f"{running} trials run elsewhere; repeat the command when they have ended"])
    if apply:
        try:
            lines.append(restore(name, repository))
        except DetectionError as error:
            lines.append(f"the best experiment is not applied: {error}\nThen: detection apply {name}")
    return "\n".join(lines)


def _table(space: Space, best: Sequence[Any]) -> list[str]:
    rows = [["trial", space.settings.objective, *space.dimensions]]
    rows += [
        [str(one.number), number(one.value, ".4f"), *(_short(one.params[key]) for key in space.dimensions)]
        for one in best[:SHOWN]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.rjust, row, widths)) for row in rows]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _verdict(space: Space, best: Sequence[Any], repository: Repository) -> list[str]:
    """Whether the best is better than the next: over the choice of test images, and over seeds where they are known."""
    name = best[0].user_attrs["experiment"]
    following = next((one for one in best if one.user_attrs["experiment"] != name), None)
    if following is None:
        return ["Only one experiment finished: nothing to compare it with."]
    other = following.user_attrs["experiment"]
    lines, difference = [], None
    try:
        pair = comparison.read_all([find(one, repository) for one in (other, name)])
        compared = comparison.compare(pair, ROUNDS)[0]
        difference = abs(compared.decisive.value)
        lines.append(
            f"On test, {compared.sentence}: AP {compared.decisive.value:+.3f} "
            f"[{compared.decisive.low:+.3f}, {compared.decisive.high:+.3f}] (paired bootstrap over images)."
        )
    except DetectionError as error:
        lines.append(f"{name} and {other} are not compared on test: {error}")
    params = space.load(space.changes(best[0].params))
    prefix = f"noise-{seeds.content_key(params, repository.root)}-"
    names = [one.name for one in repository.experiments() if one.name.startswith(prefix)]
    scores = [one["AP"] for one in seeds.finished(repository, names).values() if one.get("AP") is not None]
    if len(scores) < 2 or difference is None:
        return [
            *lines,
            f"The best of {len(best)} is chosen by a score that varies with the seed. To know by how much, with the "
            f"best in the workspace: detection noise --seeds 5, dvc queue start, then detection search {space.file}",
        ]
    noise = seeds.seed_variance([float(one) for one in scores if one is not None])
    word = "more" if difference > noise.between_runs else "no more"
    lines.append(
        f"Two runs of the best that differ only in their seed differ by up to {noise.between_runs:.3f} AP "
        f"({noise.runs} seeds, {seeds.CONFIDENCE_LEVEL:.0%}), mean {noise.mean:.3f}: the best is {word} apart from "
        "the next than that."
    )
    return lines


COMMANDS = {
    "search": Command(_add_arguments, lambda args: search(args.space, args.jobs, args.storage, not args.no_apply))
}
