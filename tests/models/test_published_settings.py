import pytest

from detection.params.reader import read_yaml
from tests.models.published import Setting, actual, settings

OUR_OWN = {"fasterrcnn_resnet18", "retinanet_resnet18"}  # published nowhere


@pytest.mark.parametrize("setting", list(settings()), ids=lambda one: f"{one.model}-{one.dataset}-{one.name}")
def test_a_recipe_has_the_published_setting(setting: Setting) -> None:
    assert actual(setting) == setting.ours
    assert bool(setting.why) == (setting.ours != setting.published)


def test_every_recipe_is_held_to_its_original() -> None:
    assert {one.model for one in settings()} == set(read_yaml("params.yaml")["models"]) - OUR_OWN
