"""YAML 1.2's core schema on libyaml's parser: a tenth of the time that a parser in Python takes.

YAML 1.1, PyYAML's own dialect, reads `1e-05` (which DVC writes) as a word, `off` as false, `1:2` as 62 and
`010` as 8. YAML 1.2 (section 10.3.2), which DVC reads too, does none of that.
"""

import re
from typing import Any

import yaml

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
