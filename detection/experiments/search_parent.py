"""MLflow run of a search: the parent of its trials' runs, with the space and the best score."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detection.experiments.search_space import Space
from detection.tracking import client
from detection.tracking.store import connect, failure, process_tags, switched_off

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
STUDY, PARENT, STOPPED = "search.study", "mlflow.parentRunId", "search.stopped"
"""Tags: name of the study on its parent; MLflow's own of a child; why a trial's training was stopped."""


class ParentRun:
    """The run. A server that is down or switched off never stops a search; the trials then lack their parent.

    Args:
        space: The space.
        study: Name of the study.
    """

    def __init__(self, space: Space, study: str) -> None:
        self._store: Any = None
        self._id = ""
        if switched_off():
            return
        try:
            self._store = connect()
            run = client.find_by_tag(self._store, STUDY, study)
            if run is None:
                tags = {STUDY: study, "mlflow.source.name": f"detection search {space.file.name}"} | process_tags()
                run = self._store.client.create_run(self._store.experiment, run_name=study, tags=tags)
                self._log_params(run.info.run_id, space)
            else:
                client.reopen(self._store, run, rename=False)
            self._id = run.info.run_id
        except Exception as error:  # MLflow raises errors of any type
            self._give_up(error)

    def _log_params(self, run_id: str, space: Space) -> None:
        settings = space.settings
        values: dict[str, Any] = {"objective": settings.objective, "sampler": settings.sampler, "seed": settings.seed}
        values |= {f"space.{key}": json.dumps(one) for key, one in settings.space.items()}
        for key, value in values.items():
            self._store.client.log_param(run_id, client.metric_name(key), value)
        self._store.client.log_artifact(run_id, str(space.file))

    def adopt(self, run_id: str) -> None:
        """Make a run a child; one that already is a child of another search stays so."""
        if self._store is not None:
            try:
                if PARENT not in self._store.client.get_run(run_id).data.tags:
                    self._store.client.set_tag(run_id, PARENT, self._id)
            except Exception as error:
                self._give_up(error)

    def mark(self, run_id: str | None, why: str) -> None:
        """Record why a training was stopped."""
        if self._store is not None and run_id is not None:
            try:
                self._store.client.set_tag(run_id, STOPPED, why)
            except Exception as error:
                self._give_up(error)

    def progress(self, study: "optuna.Study") -> None:
        """Log the best score so far as a curve over the trials."""
        if self._store is None:
            return
        trials = study.get_trials(deepcopy=False)
        values = [one.value for one in trials if one.state.name == "COMPLETE" and one.value is not None]
        ended = len(values) + sum(one.state.name == "PRUNED" for one in trials)
        try:
            if values:
                self._store.client.log_metric(self._id, "search/best", max(values), step=ended)
            self._store.client.log_metric(self._id, "search/trials", ended, step=ended)
        except Exception as error:
            self._give_up(error)

    def close(self, status: str, best: str = "", page: Path | None = None) -> None:
        """Set the final status, the tag `search.best` and the report page."""
        if self._store is None:
            return
        try:
            if best:
                self._store.client.set_tag(self._id, "search.best", best)
            if page is not None:
                self._store.client.log_artifact(self._id, str(page))
            self._store.client.set_terminated(self._id, status)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        log.warning("%s; the search continues without its run", failure(error))
        self._store = None
