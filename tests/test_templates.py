from __future__ import annotations

import pytest

from dho_plugin.classes import TEMPLATES
from dho_plugin.errors import UsageError
from dho_plugin.templates import NAMED, named_templates
from dho_plugin.vlm import imagenet_templates


def test_named_sets_and_own_prompts_in_their_order():
    assert named_templates((), "ImageNet") == ()
    assert named_templates(["imagenet"], "Food101") == imagenet_templates()
    seven = named_templates(["tip-adapter"], "ImageNet")
    assert len(set(seven)) == 7 and set(seven) <= set(imagenet_templates())
    assert named_templates(["a {}.", "tip-adapter"], "ImageNetV2") == ("a {}.", *seven)


@pytest.mark.parametrize("dataset", [*TEMPLATES, "Caltech101", "SUN397", "StanfordCars", "Shapes"])
def test_tip_adapter_takes_one_prompt_for_any_other_dataset(dataset):
    assert named_templates(["tip-adapter"], dataset) == (TEMPLATES.get(dataset, "a photo of a {}."),)


@pytest.mark.parametrize(("given", "near"), [("image-net", NAMED[0]), ("tip_adapter", NAMED[1])])
def test_an_entry_that_is_no_prompt_is_refused(given, near):
    with pytest.raises(UsageError, match=rf"TEMPLATES '{given}'.*Did you mean '{near}'"):
        named_templates(["a {}.", given], "ImageNet")
