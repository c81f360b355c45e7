"""Plain mappings into the frozen dataclasses, with errors that a person can act on.

msgspec does the conversion: it imports in a hundredth of a second, where pydantic's half second would be all
the time that a message about a slip in `params.yaml` may take.

YAML 1.2's core schema on libyaml's parser: a tenth of the time that a parser in Python takes.

YAML 1.1, PyYAML's own dialect, reads `1e-05` (which DVC writes) as a word, `off` as false, `1:2` as 62 and
`010` as 8. YAML 1.2 (section 10.3.2), which DVC reads too, does none of that.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
import yaml

from detection.errors import ParamsError
from detection.text import did_you_mean

T = TypeVar("T")


def validate(kind: type[T], values: object, key: str, file: str) -> T:
    """Build `kind` from plain values.

    Values are taken strictly (the string "0.1" is no number); a list becomes a tuple, a whole number a float.

    Args:
        kind: A params dataclass.
        values: What the YAML holds at `key`.
        key: Dotted path in `file`, for messages.
        file: The params file, for messages.

    Raises:
        ParamsError: All faults at once, one a line, each with its key and the nearest valid spelling.
    """
    if faults := [f"{file}: {fault}" for fault in _faults(kind, values, key)]:
        raise ParamsError("\n".join(faults))
    return msgspec.convert(values, kind, strict=True)


def pick(mapping: Mapping[str, Any], name: object, key: str, what: str, file: str) -> Any:
    """`mapping[name]`, or an error that names the nearest valid name."""
    if isinstance(name, str) and name in mapping:
        return mapping[name]
    raise ParamsError(f"{file}: {key}: there is no {what} {name!r}; {did_you_mean(name, mapping)}")


def _faults(kind: Any, values: object, key: str) -> Iterator[str]:
    if not isinstance(values, Mapping):
        yield f"{key} must be a mapping of keys to values, not {values!r}"
        return
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            yield f"{key}.{name}: unknown key; {did_you_mean(name, known)}"
    for name, field in known.items():
        if name in values:
            yield from _value_faults(field.type, values[name], f"{key}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            yield f"{key}.{name}: this key is needed and missing"


def _value_faults(kind: Any, value: object, key: str) -> Iterator[str]:
    options = get_args(kind) if get_origin(kind) not in (None, Literal, tuple) else (kind,)
    nested = next((option for option in options if is_dataclass(option)), None)
    if nested is not None and not (value is None and type(None) in options):
        yield from _faults(nested, value, key)
        return
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        words = [word for option in options if get_origin(option) is Literal for word in get_args(option)]
        if words and isinstance(value, str):
            advice = did_you_mean(value, words)
            others = f" Possible: {', '.join(words)}" if advice.startswith("did") else ""
            yield f"{key}: {value!r} is not possible; {advice}{others}"
        else:
            reason = str(error).replace("`", "")
            yield f"{key}: {reason}: {value!r}"


BASES = {"0o": 8, "0x": 16}
SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}
"""Tags of plain scalars: what they look like, and the characters that they can begin with."""


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values only; a key that stands twice in a mapping is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name, filled below

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See PyYAML.

        Raises:
            ConstructorError: A key stands twice.
        """
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key.value!r} stands twice; keep one, with the entries of both",
                    key.start_mark,
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _whole_number(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, BASES.get(text[:2], 10))


for _name, (_pattern, _starts) in SCALARS.items():
    Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}",
        re.compile(f"^(?:{_pattern})$"),
        [start.strip("\0") for start in _starts],
    )
Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read(text: str) -> Any:
    """Plain values of a YAML document.

    Raises:
        yaml.YAMLError: It is none, or a key stands twice; may have a `problem` and a `problem_mark`.
    """
    return yaml.load(text, Loader)
