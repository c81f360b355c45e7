"""Validation of plain values against the params dataclasses, and the YAML reader.

msgspec converts the values; its import takes 0.01 s, pydantic's 0.5 s.

YAML is read with the core schema of YAML 1.2 (section 10.3.2), as DVC does, on libyaml's parser, which takes
a tenth of the time of a parser in Python. PyYAML's own dialect, YAML 1.1, reads `1e-05` (which DVC writes) as
a string, `off` as false, `1:2` as 62 and `010` as 8.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec
import yaml

from detection.errors import ParamsError
from detection.text import did_you_mean

T = TypeVar("T")
UNIONS = (Union, UnionType)


def validate(cls: type[T], values: object, key: str, file: str) -> T:
    """Build a params dataclass from the plain values at a dotted `key` of `file`.

    Types are strict (the string "0.1" is not a number); a list becomes a tuple, a whole number a float.

    Raises:
        ParamsError: All problems at once, one per line, each with its key and the nearest valid spelling.
    """
    problems: list[str] = []
    built: T = build(cls, values, key, problems)
    refuse(problems, file)
    return built


def check_keys(cls: type, values: object, key: str, file: str) -> None:
    """Validate a part of the fields, without required keys and without the rules between fields."""
    problems: list[str] = []
    _fields(cls, values, key, problems)
    refuse(problems, file)


def refuse(problems: Sequence[str], file: str) -> None:
    """Raise a ParamsError with one line per problem, if any."""
    if problems:
        raise ParamsError("\n".join(f"{file}: {problem}" for problem in problems))


def pick(mapping: Mapping[str, Any], name: object, key: str, what: str, file: str) -> Any:
    """`mapping[name]`, or an error with the nearest valid name."""
    if isinstance(name, str) and name in mapping:
        return mapping[name]
    raise ParamsError(f"{file}: {key}: unknown {what} {name!r}; {did_you_mean(name, mapping)}")


def build(cls: Any, values: object, key: str, problems: list[str]) -> Any:
    """Validate, but append the problems to a list and return None if there are any."""
    before = len(problems)
    built = _fields(cls, values, key, problems)
    if isinstance(values, Mapping):
        required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        problems += [f"{key}.{key_of(name)}: missing; this key is required" for name in required if name not in built]
    if len(problems) > before:
        return None
    try:
        return cls(**built)
    except ValueError as error:  # a rule of __post_init__
        problems.append(f"{key}.{error}")


def _fields(cls: Any, values: object, key: str, problems: list[str]) -> dict[str, Any]:
    """Convert the values of known fields; collect the problems of all."""
    if not isinstance(values, Mapping):
        problems.append(f"{key}: must be a mapping of keys to values, not {values!r}")
        return {}
    known = {key_of(field.name): field for field in fields(cls)}
    problems += [f"{key}.{name}: unknown key; {did_you_mean(name, known)}" for name in values if name not in known]
    return {
        field.name: _convert(field.type, values[name], f"{key}.{name}", problems)
        for name, field in known.items()
        if name in values
    }


def key_of(field: str) -> str:
    """Key in the file of a field: the field `from_`, a keyword of Python without the underscore, has the key `from`."""
    return field.rstrip("_")


def _convert(annotation: Any, value: object, key: str, problems: list[str]) -> Any:
    options = get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)
    for option in options:
        items = get_args(option)
        if is_dataclass(option) and value is not None:
            return build(option, value, key, problems)
        if get_origin(option) is tuple and is_dataclass(items[0]) and isinstance(value, list | tuple):
            return tuple(build(items[0], one, f"{key}[{i}]", problems) for i, one in enumerate(value))
    try:
        converted = msgspec.convert(value, annotation, strict=True)
    except msgspec.ValidationError as error:
        words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
        if words and isinstance(value, str):
            advice = did_you_mean(value, words)
            others = f" Possible: {', '.join(words)}" if advice.startswith("did") else ""
            problems.append(f"{key}: {value!r} is not possible; {advice}{others}")
        else:
            reason = str(error).replace("`", "")
            if reason.startswith("Expected str, got"):
                reason += " (put text that looks like a number or a flag in quotes)"
            problems.append(f"{key}: {reason}: {value!r}")
        return None
    problems += [f"{key}: {problem}" for problem in dict.fromkeys(_out_of_bounds(annotation, converted))]
    return converted


def _out_of_bounds(annotation: Any, value: Any) -> Iterator[str]:
    """Problems of the numbers in a value, however deep its tuples."""
    if get_origin(annotation) is Annotated:
        _, bounds = get_args(annotation)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not bounds.allow(value):
            yield f"must be {bounds}, not {value}"
    elif isinstance(value, tuple):
        for one in value:
            yield from _out_of_bounds(get_args(annotation)[0], one)
    elif get_origin(annotation) in UNIONS:
        for option in get_args(annotation):
            yield from _out_of_bounds(option, value)


BASES = {"0o": 8, "0x": 16}
FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (FLOAT, "-+0123456789."),
    "merge": (r"<<", "<"),
}
"""Tags of plain scalars: pattern, and possible first characters."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loader of plain values; a duplicate key is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's attribute, filled below

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping; a duplicate key raises ConstructorError."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                problem = f"duplicate key {key.value!r}; keep one, with the entries of both"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _whole_number(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, BASES.get(text[:2], 10))


for _name, (_pattern, _starts) in SCALARS.items():
    _first = [start.strip("\0") for start in _starts]
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read(text: str) -> Any:
    """Plain values of a YAML document.

    Raises:
        yaml.YAMLError: Invalid YAML or a duplicate key; may have a `problem` and a `problem_mark`.
    """
    return yaml.load(text, Loader)
