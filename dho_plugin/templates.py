"""Prompt sets by name: what an entry of TRAINER.DHO.TEACHER.TEMPLATES may say."""

from __future__ import annotations

from collections.abc import Sequence

from .classes import DEFAULT_TEMPLATE, TEMPLATES
from .errors import UsageError, did_you_mean
from .vlm import imagenet_templates

NAMED = ("imagenet", "tip-adapter")
# Found best on ImageNet by OpenAI, one after the other; Tip-Adapter and the public scripts of DHO take them.
_SEVEN_BEST = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def check_template(key: str, prompt: str) -> None:
    """Refuse a prompt that str.format would not fill with the class name alone.

    Args:
        key: the setting that it is from. prompt: with one "{}" for the name.

    Raises:
        UsageError: none or several "{}", or another brace.
    """
    if prompt.count("{}") != 1 or set("{}") & set(prompt.replace("{}", "")):
        raise UsageError(
            f"{key} {prompt!r}: expected one {{}} for the class name and no other brace, such as 'a photo of a {{}}.'"
        )


def named_templates(wanted: Sequence[str], dataset: str) -> tuple[str, ...]:
    """Prompts with "{}" for the class name; empty where `wanted` is.

    Args:
        wanted: each a prompt, or the name of a set: "imagenet", CLIP's 80; "tip-adapter", the set that Tip-Adapter
            takes for this dataset, seven for ImageNet and its variants, CoOp's single prompt for any other.
        dataset: its registered name.

    Raises:
        UsageError: an entry that is neither, or a prompt that check_template refuses.
    """
    prompts: list[str] = []
    for entry in wanted:
        if entry == "imagenet":
            prompts += imagenet_templates()
        elif entry == "tip-adapter":
            single = (TEMPLATES.get(dataset, DEFAULT_TEMPLATE),)
            prompts += _SEVEN_BEST if dataset.startswith("ImageNet") else single
        elif "{" in entry:
            check_template("TRAINER.DHO.TEACHER.TEMPLATES", entry)
            prompts.append(entry)
        else:
            raise UsageError(
                f"TRAINER.DHO.TEACHER.TEMPLATES {entry!r}: expected a prompt with {{}} for the class name, or one of "
                f"{NAMED}.{did_you_mean(entry, NAMED)}"
            )
    return tuple(prompts)
