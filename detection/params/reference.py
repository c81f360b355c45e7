"""Reference of `params.yaml` in Markdown, made from the dataclasses and the docstrings of their fields.

python -m detection.params.reference > docs/params.md
"""

import ast
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args, get_origin

from detection.params.augmentation import Step
from detection.params.datasets import FORMATS, Budget
from detection.params.recipe import ARCHITECTURES
from detection.params.recipe_base import RecipeBase
from detection.params.schema import UNIONS, key_of
from detection.params.stages import Evaluate, Plots, Prepare, Pretrain, Start, Train

HEAD = """# Parameters

Every key of `params.yaml`. This file is generated: `python -m detection.params.reference > docs/params.md`.

* `model` and `dataset` name an entry of `models` and of `datasets`; `seed` is the seed of training.
* `presets.NAME` holds any keys that all recipes have, such as `optimizer.lr`.
* `models.NAME.overrides.NAME` holds any keys of the recipe, for a preset or a dataset.
* Precedence, the last wins: recipe, preset, overrides for the preset, overrides for the dataset, budget.
* `trainable_layers: all` is the number of the backbone's stages.
* `dvc exp run -S` changes a key that is in the file; for any other write a + before it (`-S +models...`).
"""
SECTIONS: dict[str, type[Any]] = {
    "`models.NAME`, `presets.NAME`": RecipeBase,
    **{
        f"`models.NAME` with `architecture: {name}`": cls
        for name, cls in ARCHITECTURES.items()
        if name != "ssdlite"  # in the table of ssd
    },
    "`augmentation` as a list": Step,
    **{f"`datasets.NAME` with `format: {name}`": cls for name, cls in FORMATS.items()},
    "`budgets.NAME`": Budget,
    **{f"`{cls.__name__.lower()}`": cls for cls in (Prepare, Pretrain, Start, Train, Evaluate, Plots)},
}


def render() -> str:
    """Markdown text: one table per section."""
    parts = [HEAD]
    common = {field.name for field in fields(RecipeBase)}
    for title, cls in SECTIONS.items():
        parts.append(f"## {title}\n\n{inspect.getdoc(cls)}\n\n| key | type | default | meaning |\n|---|---|---|---|")
        own = issubclass(cls, RecipeBase) and cls is not RecipeBase
        parts += [row for name, row in _rows(cls) if not (own and name.split(".")[0] in common)]
        parts.append("")
    return "\n".join(parts)


def _rows(cls: Any, prefix: str = "", group: Any = None) -> Iterator[tuple[str, str]]:
    """Keys and table rows of the fields; `group` is an instance with the defaults of a nested dataclass."""
    docs = {name: doc for base in reversed(cls.__mro__[:-1]) for name, doc in _docs(base).items()}
    for field in fields(cls):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        default = default if group is None else getattr(group, field.name)
        types = [one for one in (field.type, *get_args(field.type)) if isinstance(one, type)]
        nested = next(filter(is_dataclass, types), None)
        key = f"{prefix}{key_of(field.name)}"
        text = "required" if default is MISSING else "" if is_dataclass(default) else f"`{_text(default)}`"
        kind = "group" if nested else _type(field.type)
        yield key, f"| `{key}` | {kind} | {text} | {' '.join(docs[field.name].split())} |"
        if nested:
            many = "[]" if get_origin(field.type) is tuple else ""
            yield from _rows(nested, f"{key}{many}.", default if is_dataclass(default) else None)


def _docs(cls: type[Any]) -> dict[str, str]:
    """Docstrings of a class's own fields: the string after each."""
    body: Any = ast.parse(inspect.getsource(cls)).body[0]
    pairs: list[Any] = [(a, b) for a, b in pairwise(body.body) if isinstance(a, ast.AnnAssign)]
    return {a.target.id: ast.literal_eval(b.value) for a, b in pairs if isinstance(b, ast.Expr)}


def _type(annotation: Any) -> str:
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return f"{_type(parts[0])} {parts[1]}"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in parts)
    if get_origin(annotation) is tuple:
        return f"list of {_type(parts[0])}"
    if get_origin(annotation) in UNIONS:
        return " or ".join(map(_type, parts))
    return "null" if annotation is type(None) else str(annotation.__name__)


def _text(value: Any) -> str:
    return json.dumps(round(value, 4) if isinstance(value, float) else value)


if __name__ == "__main__":
    sys.stdout.write(render())
