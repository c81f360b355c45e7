"""Space of a hyper-parameter search: a YAML file whose keys are those of params.yaml, checked before anything runs."""

import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from detection import params
from detection.errors import ParamsError
from detection.experiments.seeds import content_key
from detection.params.bounds import Count, CountOrZero
from detection.params.reader import read_yaml
from detection.params.schema import build, pick, refuse, validate
from detection.pipeline import PARAMS
from detection.text import flatten

NAMED_SECTIONS = ("presets", "models", "datasets", "budgets")
VAL = "val/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Interval of numbers; whole numbers if all of its own are."""

    low: int | float
    """Smallest value."""
    high: int | float
    """Largest value."""
    log: bool = False
    """Sample the logarithm uniformly."""
    step: int | float | None = None
    """Distance between two values; null: any."""

    def __post_init__(self) -> None:
        """Check the rules between the fields."""
        if self.low >= self.high:
            raise ValueError(f"high: must be above low ({self.low}), not {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low: must be above 0 where log is true, not {self.low}")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError("step: must be above 0, and absent where log is true")

    def distribution(self) -> Any:
        """Optuna's distribution."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if all(isinstance(one, int) for one in (self.low, self.high, self.step or 1)):
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def ends(self) -> list[Any]:
        """Smallest and largest value."""
        return [self.low, self.high]

    def grid(self) -> list[Any] | None:
        """All values; None without a step."""
        if self.step is None:
            return None
        return [self.low + i * self.step for i in range(int((self.high - self.low) / self.step + 1e-9) + 1)]

    def decode(self, value: Any) -> Any:
        """Value for params.yaml."""
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """List of values of any type."""

    choices: tuple[Any, ...]
    """The values."""

    def __post_init__(self) -> None:
        """Check the number of values."""
        if len(self.choices) < 2:
            raise ValueError("choices: must be two or more values")

    def distribution(self) -> Any:
        """Optuna's distribution; of JSON texts, as Optuna stores no lists."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([json.dumps(one) for one in self.choices])

    def ends(self) -> list[Any]:
        """All values."""
        return list(self.choices)

    def grid(self) -> list[Any] | None:
        """All values, as Optuna stores them."""
        return [json.dumps(one) for one in self.choices]

    def decode(self, value: Any) -> Any:
        """Value for params.yaml."""
        return json.loads(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruner:
    """Stop of trainings whose best score so far is below the median of the others at the same epoch."""

    startup_trials: CountOrZero = 5
    """Finished trials before any is pruned."""
    warmup_epochs: CountOrZero = 1
    """Epochs of a training before it may be pruned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchFile:
    """Content of the file."""

    space: dict[str, Any]
    """Range or choices by key of params.yaml, dotted as for `dvc exp run -S`."""
    objective: Literal["val/AP", "val/AP50", "val/AP75", "val/voc_ap50_11pt", "val/voc_ap50_area"] = "val/AP"
    """Score to maximize, the best over the training; trials have it as `train.monitor`."""
    trials: Count = 20
    """Finished and pruned trials."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Tree-structured Parzen estimator, uniform, or all combinations of choices and steps."""
    seed: CountOrZero = 0
    """Seed of the sampler."""
    pruner: Pruner | None = field(default_factory=Pruner)
    """Median pruner; null: every training runs to its end."""


@dataclass(frozen=True, slots=True)
class Space:
    """A checked space, with the params.yaml that it changes."""

    file: Path
    """The YAML file."""
    settings: SearchFile
    """Its content."""
    dimensions: Mapping[str, Range | Choices]
    """Checked `settings.space`."""
    sections: Mapping[str, Any]
    """Content of params.yaml."""

    @property
    def metric(self) -> str:
        """Column of the curve on val."""
        return self.settings.objective.removeprefix(VAL)

    def distributions(self) -> dict[str, Any]:
        """Optuna's distributions."""
        return {key: one.distribution() for key, one in self.dimensions.items()}

    def grid(self) -> dict[str, list[Any]]:
        """Values of each key for the sampler `grid`."""
        return {key: one.grid() or [] for key, one in self.dimensions.items()}

    def budget(self) -> int:
        """Number of trials: `trials`, or all points of a smaller grid."""
        points = len(list(itertools.product(*self.grid().values())))
        return min(self.settings.trials, points) if self.settings.sampler == "grid" else self.settings.trials

    def changes(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        """Values for params.yaml, from those of an Optuna trial."""
        values = {key: self.dimensions[key].decode(value) for key, value in sampled.items()}
        monitor = (self.sections.get("train") or {}).get("monitor", "AP")
        return values | ({} if monitor == self.metric else {"train.monitor": self.metric})

    def overrides(self, changes: Mapping[str, Any]) -> list[str]:
        """Arguments of `dvc exp run -S`; a key that params.yaml does not list gets a +."""
        listed = flatten(self.sections)
        return [f"{'' if key in listed else '+'}{key}={json.dumps(value)}" for key, value in changes.items()]

    def load(self, changes: Mapping[str, Any]) -> params.Params:
        """Params of an experiment with these values.

        Raises:
            ParamsError: params.yaml does not allow them.
        """
        sections = json.loads(json.dumps(self.sections))
        for key, value in changes.items():
            *path, last = key.split(".")
            node = sections
            for part in path:
                if not isinstance(node.get(part), dict):
                    node[part] = {}
                node = node[part]
            node[last] = value
        with tempfile.TemporaryDirectory(prefix="detection-space-") as folder:
            file = Path(folder, PARAMS)
            file.write_text(json.dumps(sections), encoding="utf-8")  # YAML 1.2 contains JSON
            return params.load(file)

    def key(self, root: Path) -> str:
        """Hash of everything that decides the search: space, sampler, other params and code, but not the budget."""
        pinned = self.load({key: one.ends()[0] for key, one in self.dimensions.items()})
        values = {k: v for k, v in asdict(self.settings).items() if k != "trials"}
        text = json.dumps([values, pinned.seed, content_key(pinned, root)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:6]

    def study_name(self, root: Path) -> str:
        """Name of the file and the hash; experiments have the number of their trial too."""
        return f"{re.sub(r'[^A-Za-z0-9_]+', '-', self.file.stem).strip('-')}-{self.key(root)}"


def read(path: Path) -> Space:
    """Read a space, and check both ends of each range and every choice with the rules of params.yaml.

    Raises:
        ParamsError: Unknown key, or a value that params.yaml does not allow or that changes nothing.
    """
    if not path.is_file():
        raise ParamsError(f"{path} does not exist; docs/experiments.md (Search) has an example")
    raw = read_yaml(path)
    problems: list[str] = []
    settings = build(SearchFile, {"space": {}} | raw, "", problems)
    refuse([one.removeprefix(".") for one in problems], path.name)
    if not settings.space:
        raise ParamsError(f"{path.name}: space: missing; it has a range or choices for each key of params.yaml")
    dimensions: dict[str, Range | Choices] = {}
    for key, values in settings.space.items():
        cls: type[Any] = Choices if isinstance(values, Mapping) and "choices" in values else Range
        dimensions[key] = validate(cls, values, f"space.{key}", path.name)
    space = Space(path, settings, dimensions, read_yaml(PARAMS))
    data = params.load().data
    if getattr(data, "val", None) in ((), 0) and not getattr(data, "holdout_fraction", 0):
        raise ParamsError(f"{path.name}: the dataset has no val split to choose by; give it one, or a holdout_fraction")
    for key, one in dimensions.items():
        if settings.sampler == "grid" and one.grid() is None:
            raise ParamsError(f"{path.name}: space.{key}: a grid needs choices, or a step")
        _check_key(space, key)
        _check_values(space, key)
    return space


def _check_key(space: Space, key: str) -> None:
    """Refuse an unknown model, dataset, preset or budget; the loader of params.yaml refuses other typos."""
    section, _, rest = key.partition(".")
    entries = space.sections.get(section)
    if section in NAMED_SECTIONS and isinstance(entries, Mapping):
        pick(entries, rest.split(".")[0], f"space.{key}", f"name in {section}", space.file.name)


def _check_values(space: Space, key: str) -> None:
    results: dict[str, set[str]] = {}
    for value in space.dimensions[key].ends():
        for context in _contexts(space, key):
            try:
                flat = space.load(space.changes({}) | context | {key: value}).flat()
            except ParamsError as error:
                raise ParamsError(f"{space.file.name}: space.{key}: {value!r} is refused: {error}") from None
            results.setdefault(json.dumps(context), set()).add(json.dumps(flat, sort_keys=True, default=str))
    if all(len(one) == 1 for one in results.values()):
        chosen = params.load()
        raise ParamsError(
            f"{space.file.name}: space.{key}: changes nothing for {chosen.model} on {chosen.dataset}; a preset, "
            "override or budget replaces it (`detection check` lists them), or it is of another model or dataset"
        )


def _contexts(space: Space, key: str) -> Iterator[dict[str, Any]]:
    """Choices of the names that decide which other keys have an effect."""
    names = {one: space.dimensions[one].ends() for one in ("model", "dataset") if one in space.dimensions}
    names.pop(key, None)
    for values in itertools.product(*names.values()):
        yield dict(zip(names, values, strict=True))
