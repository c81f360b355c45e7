from dataclasses import fields
from pathlib import Path

from detection.params import reference
from detection.params.recipe import ARCHITECTURES


def test_docs_are_current() -> None:
    """Update them with `python -m detection.params.reference > docs/params.md`."""
    assert Path("docs/params.md").read_text(encoding="utf-8") == reference.render()


def test_every_field_of_a_recipe_is_documented() -> None:
    text = reference.render()
    for cls in ARCHITECTURES.values():
        assert all(f"| `{field.name}` |" in text for field in fields(cls))
