"""Registries, and the builders that read a name from the configuration."""

from __future__ import annotations

import pytest

from dho_plugin import host


def _thing() -> str:
    return "made"


def test_a_decorated_and_a_passed_entry_are_found_in_order() -> None:
    registry = host.Registry("THING")

    @registry.register()
    class Other:
        pass

    registry.register(_thing)
    assert registry.registered_names() == ["Other", "_thing"]
    assert registry.get("Other") is Other
    assert registry.get("_thing")() == "made"


def test_a_taken_name_is_refused_unless_forced() -> None:
    registry = host.Registry("THING")
    registry.register(_thing)
    with pytest.raises(KeyError, match="_thing"):
        registry.register(_thing)
    registry.register(_thing, force=True)
    assert registry.registered_names() == ["_thing"]


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        host.Registry("THING").get("nothing")


def test_check_availability_suggests_the_nearest_name() -> None:
    host.check_availability("EuroSAT", ["EuroSAT", "Food101"])
    with pytest.raises(ValueError, match=r"(?i)did you mean|do you mean") as error:
        host.check_availability("EuroSaT", ["Food101", "EuroSAT"])
    assert "EuroSAT" in str(error.value).split("mean")[1]


@pytest.mark.parametrize(
    ("build", "key"),
    [("build_trainer", "TRAINER.NAME"), ("build_dataset", "DATASET.NAME"), ("build_evaluator", "TEST.EVALUATOR")],
)
def test_builders_refuse_unknown_names(config, build: str, key: str) -> None:
    with pytest.raises(ValueError, match="Nonexistent"):
        getattr(host, build)(config(key, "Nonexistent"))


def test_builders_say_what_they_load_unless_not_verbose(config, capsys: pytest.CaptureFixture[str]) -> None:
    host.build_evaluator(config())
    assert capsys.readouterr().out == "Loading evaluator: Classification\n"
    host.build_evaluator(config("VERBOSE", False))
    assert capsys.readouterr().out == ""
