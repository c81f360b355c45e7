"""Hyper-parameter search: Optuna proposes params by ask and tell, and each trial is one DVC experiment.

The study in Optuna's storage is the only state. A trial belongs to the process in its attribute `owner`; one whose
owner has died is failed and asked again with the same params and the same experiment, whose checkpoint it resumes.
"""

import logging
import os
import threading
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.errors import DataError, DetectionError, ParamsError, reason
from detection.experiments.find import find
from detection.experiments.repository import Repository
from detection.experiments.search_parent import ParentRun
from detection.experiments.search_space import Space
from detection.experiments.search_trial import STORAGE_VARIABLE, TrialProcess, read_curve
from detection.files import LockedTemporaryDirectory, dvc_root, locked
from detection.params.reader import read_yaml
from detection.pipeline import PARAMS
from detection.tracking.store import is_alive, machine, masked, process_tags

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
STASH = "refs/exps/stash"
"""Ref of the experiments that `dvc exp run` is about to start."""
CURVE = "reports/train/metrics.csv"
SILENCE_S = 900.0
"""Time after which a trial of another machine counts as lost; it reports every `HEARTBEAT_S`."""
HEARTBEAT_S = 30.0
MAX_ATTEMPTS = 3
"""Starts of a training that signals keep killing."""
MAX_FAILURES = 3
"""Failed trainings in a row that stop the search."""


def search_folder() -> Path:
    """Folder of studies and logs; neither git nor DVC looks into it."""
    return dvc_root() / ".search"


def storage_url(given: str | None) -> str:
    """Database of the studies: the option, the environment, or SQLite in `.search`."""
    url = given or os.environ.get(STORAGE_VARIABLE) or f"sqlite:///{search_folder().resolve()}/studies.db"
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else url


def open_study(space: Space, name: str, url: str) -> "optuna.Study":
    """Open or create the study.

    Raises:
        DataError: Optuna is not installed, or the database cannot be opened.
    """
    try:
        import optuna
    except ImportError:
        raise DataError("search needs the package optuna: pip install 'optuna>=4'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search_folder().mkdir(exist_ok=True)
    wait = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    pruner: Any = optuna.pruners.NopPruner()
    if settings := space.settings.pruner:
        pruner = optuna.pruners.MedianPruner(settings.startup_trials, settings.warmup_epochs + 1)
    try:
        with locked(search_folder() / "lock"):
            storage = optuna.storages.RDBStorage(url, engine_kwargs=wait)
            return optuna.create_study(
                storage=storage,
                sampler=sampler(space),
                pruner=pruner,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
            )
    except Exception as error:  # drivers raise any type of error
        raise DataError(f"the storage {masked(url)} cannot be opened: {masked(reason(error))}") from None


def sampler(space: Space) -> Any:
    """Optuna's sampler with a seed per trial, so that an interrupted search proposes the same params."""
    import optuna

    class Reseeded(optuna.samplers.BaseSampler):  # type: ignore[misc]
        def _of(self, study: Any, trial: Any, name: str = "") -> Any:
            seed = zlib.crc32(f"{space.settings.seed} {rank(study, trial.number)} {name}".encode())
            if space.settings.sampler == "random":
                return optuna.samplers.RandomSampler(seed)
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(5, space.settings.trials // 4))

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            spaces: dict[str, Any] = self._of(study, trial).infer_relative_search_space(study, trial)
            return spaces

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            values: dict[str, Any] = self._of(study, trial).sample_relative(study, trial, search_space)
            return values

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            own = self._of(study, trial, param_name)
            return own.sample_independent(study, trial, param_name, param_distribution)

    class Grid(optuna.samplers.GridSampler):  # type: ignore[misc]
        def after_trial(self, *args: Any) -> None:
            """Do nothing: Optuna's stops `Study.optimize` after the last point, and fails outside of it."""

    if space.settings.sampler == "grid":
        return Grid(space.grid(), seed=space.settings.seed)
    return Reseeded()


def rank(study: "optuna.Study", number: int) -> int:
    """Position of a trial among those that count."""
    return sum(one.number < number and one.state.name != "FAIL" for one in study.get_trials(deepcopy=False))


class Search:
    """A search, or one worker of a search that several machines share.

    Args:
        space: What to search.
        study: Optuna's study.
        repository: This repository.
        parent: MLflow run of the search.
    """

    def __init__(self, space: Space, study: "optuna.Study", repository: Repository, parent: ParentRun) -> None:
        self.space, self.study, self.repository, self.parent = space, study, repository, parent
        self.stop = threading.Event()
        self._key, self._files, self._failures = space.key(repository.root), threading.Lock(), 0
        self._error: DetectionError | None = None

    def run(self, jobs: int) -> None:
        """Run trials until the budget is spent, `jobs` at a time.

        Raises:
            DetectionError: A training cannot run; the trials that were running are resumed by the next search.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the trainings have saved their checkpoints.
        """
        threads = [threading.Thread(target=self._work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.2) if threads[0].is_alive() else time.sleep(0.2)
        except BaseException:
            log.info("stopping: trainings save their checkpoints; repeat the command to resume")
            self.stop.set()
            raise
        finally:
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        try:
            while not self.stop.is_set() and (trial := self._next()) is not None:
                try:
                    self._run(trial)
                finally:
                    if self._frozen(trial).state.name == "RUNNING":  # stopped: for the next search, which need not wait
                        trial.set_user_attr("owner", {})
                        trial.set_user_attr("seen", 0)
        except DetectionError as error:
            self._error = error
            self.stop.set()
        except Exception as error:
            self._error = DataError(f"search: {type(error).__name__}: {masked(reason(error))}")
            self.stop.set()
            log.debug("search", exc_info=True)

    def _next(self) -> "optuna.Trial | None":
        """Ask for a trial and own it; None when the budget is spent."""
        if self.space.key(self.repository.root) != self._key or read_yaml(PARAMS) != self.space.sections:
            raise ParamsError("params.yaml or code changed while the search ran; undo it, or start another search")
        with locked(search_folder() / "lock"):  # across the processes of this machine; Optuna's rows across machines
            self._recover()
            states = [one.state.name for one in self.study.get_trials(deepcopy=False)]
            budget = self.space.budget()
            if "WAITING" not in states and len(states) - states.count("FAIL") >= budget:
                return None
            trial = self.study.ask(self.space.distributions())
            trial.set_user_attr("owner", process_tags())
            trial.set_user_attr("seen", time.time())
            if rank(self.study, trial.number) >= budget:  # another machine has asked at the same time
                self.study.tell(trial.number, state=_state("FAIL"))
                return None
            if "experiment" not in trial.user_attrs:
                trial.set_user_attr("experiment", f"{self.study.study_name}-{trial.number}")
        return trial

    def _recover(self) -> None:
        """Ask for the trials of dead processes again."""
        import optuna

        for lost in self.study.get_trials(states=(_state("RUNNING"),)):
            if not _is_lost(lost.user_attrs):
                continue
            try:
                self.study.tell(lost.number, state=_state("FAIL"))
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another machine was first
            with suppress(DataError):  # an experiment that was killed before its first stage: DVC would run it next
                self.repository.git("update-ref", "-d", STASH)
            kept = {key: value for key, value in lost.user_attrs.items() if key not in ("owner", "seen")}
            self.study.add_trial(
                optuna.trial.create_trial(
                    state=_state("WAITING"),
                    params=lost.params,
                    distributions=lost.distributions,
                    user_attrs=kept | {"experiment": kept.get("experiment", f"{self.study.study_name}-{lost.number}")},
                    system_attrs=lost.system_attrs,
                )
            )
            log.info("trial %d was interrupted: %s is resumed", lost.number, kept.get("experiment", ""))

    def _run(self, trial: "optuna.Trial") -> None:
        name, changes = trial.user_attrs["experiment"], self.space.changes(trial.params)
        if (same := self._finished_twin(trial)) is not None:
            trial.set_user_attr("experiment", same.user_attrs["experiment"])
            self._tell(trial, same.value, f"same params as trial {same.number}")
            return
        if self._result(trial):
            return
        try:
            self.space.load(changes)
        except ParamsError as error:
            self._tell(trial, None, f"refused: {error}")
            return
        overrides = self.space.overrides(changes)
        log.info("trial %d  %s  %s", rank(self.study, trial.number), name, " ".join(overrides))
        for _ in range(MAX_ATTEMPTS):
            process = TrialProcess(self.repository.root, name, overrides, search_folder() / "logs" / f"{name}.log")
            trial.set_user_attr("command", process.command)
            pruned, run_id = self._watch(trial, process)
            if process.finished and self._result(trial):
                self._failures = 0
                return
            if self.stop.is_set():
                return
            if pruned:
                self.parent.mark(run_id, pruned)
                self._tell(trial, None, pruned)
                return
            if not process.finished and not process.interrupted():
                self._fail(trial, process.failure())
                return
            log.info("%s was killed; it is started again and resumes its checkpoint", name)
        raise DataError(f"{name} was killed {MAX_ATTEMPTS} times; see {search_folder() / 'logs' / name}.log")

    def _watch(self, trial: "optuna.Trial", process: TrialProcess) -> tuple[str, str | None]:
        """Report the curve until the process ends; returns why it was pruned, and its MLflow run."""
        seen, pruned, run_id = time.monotonic(), "", None
        stopped = False
        while process.running():
            time.sleep(0.5)
            if self.stop.is_set() and not stopped:
                process.terminate()
                stopped = True
            if time.monotonic() - seen > HEARTBEAT_S:
                trial.set_user_attr("seen", time.time())
                seen = time.monotonic()
            if run_id is None and (run_id := process.run_id()) is not None:
                self.parent.adopt(run_id)
            if not pruned and not stopped:
                pruned = self._report(trial, process.curve().get(self.space.metric, {}))
                if pruned and not process.stop():
                    pruned = ""  # it has just been trained to its end
        return pruned, run_id

    def _report(self, trial: "optuna.Trial", curve: Mapping[int, float]) -> str:
        """Tell Optuna the new points of a curve; returns the reason if the trial is to be pruned."""
        known = self._frozen(trial).intermediate_values
        for epoch in sorted(set(curve) - set(known)):
            trial.report(curve[epoch], epoch)
            if trial.should_prune():
                best = max(value for at, value in curve.items() if at <= epoch)
                return (
                    f"pruned at epoch {epoch}: best {self.space.settings.objective} {best:.4f} is below the median "
                    "of the other trials"
                )
        return ""

    def _result(self, trial: "optuna.Trial") -> bool:
        """Tell the score of a finished experiment; returns False if there is none."""
        with self._files:
            named = self.repository.experiment(trial.user_attrs["experiment"])
            if named is None:
                return False
            content = find(named.name, self.repository).files.read(CURVE)
            if content is None:
                return False
            with LockedTemporaryDirectory("detection-curve-") as folder:
                path = Path(folder, "metrics.csv")
                path.write_bytes(content)
                curve = read_curve(path).get(self.space.metric, {})
            run_ids = self.repository.run_ids(named.rev)
        if not curve:
            return False
        self._report(trial, curve)
        for run_id in run_ids:
            self.parent.adopt(run_id)
        self._tell(trial, max(curve.values()), "")
        return True

    def _tell(self, trial: "optuna.Trial", value: float | None, why: str) -> None:
        if why:
            trial.set_user_attr("reason", why)
        state = _state("PRUNED" if value is None else "COMPLETE")
        try:
            self.study.tell(trial.number, value, state)
        except ValueError:  # another machine took this process for dead
            log.warning("trial %d was finished elsewhere", trial.number)
            return
        log.info("  %s", why if value is None else f"{self.space.settings.objective} {value:.4f}  {why}".rstrip())
        self.parent.progress(self.study)

    def _fail(self, trial: "optuna.Trial", why: str) -> None:
        self._tell(trial, None, f"failed: {why}")
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            raise DataError(f"{MAX_FAILURES} trials failed in a row, the last with: {why}")

    def _frozen(self, trial: "optuna.Trial") -> Any:
        return next(one for one in self.study.get_trials(deepcopy=False) if one.number == trial.number)

    def _finished_twin(self, trial: "optuna.Trial") -> Any:
        """Finished trial of the same params."""
        finished = self.study.get_trials(deepcopy=False, states=(_state("COMPLETE"),))
        return next((one for one in finished if one.params == trial.params), None)


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _is_lost(attributes: Mapping[str, Any]) -> bool:
    """Return True if the process of a trial has died, or another machine is silent."""
    owner = attributes.get("owner", {})
    if owner.get("machine") == machine():
        return not is_alive(owner)
    return time.time() - float(attributes.get("seen", 0)) > SILENCE_S
