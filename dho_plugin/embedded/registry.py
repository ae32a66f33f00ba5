"""Registries of trainers, datasets and evaluators by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from yacs.config import CfgNode

from ..errors import UsageError, did_you_mean


class Registry:
    """Maps the `__name__` of a class or function to it.

    Args:
        name: what is registered, for messages.
    """

    def __init__(self, name: str) -> None:
        self.kind = name
        self._entries: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register `obj`, or return a decorator that does.

        Raises:
            KeyError: the name is taken and `force` is not set.
        """

        def add(entry: Any) -> Any:
            name = entry.__name__
            if name in self._entries and not force:
                raise KeyError(f"{self.kind} registry: {name!r} is already registered")
            self._entries[name] = entry
            return entry

        if obj is None:
            return add
        add(obj)
        return None

    def get(self, name: str) -> Any:
        """Return the entry called `name`; KeyError if there is none."""
        if name not in self._entries:
            raise KeyError(f"{self.kind} registry: no {name!r}.{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def registered_names(self) -> list[str]:
        """Names in order of registration."""
        return list(self._entries)


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Raise UsageError (a ValueError) with the nearest name if `requested` is not in `available`."""
    names = list(available)
    if requested not in names:
        raise UsageError(f"unknown name {requested!r}: expected one of {names}.{did_you_mean(requested, names)}")


TRAINER_REGISTRY = Registry("TRAINER")
DATASET_REGISTRY = Registry("DATASET")
EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build(registry: Registry, name: str, cfg: CfgNode, **kwargs: Any) -> Any:
    """Call the entry called `name` with `cfg`; UsageError for an unknown name."""
    check_availability(name, registry.registered_names())
    if cfg.VERBOSE:
        print(f"Loading {registry.kind.lower()}: {name}")
    return registry.get(name)(cfg, **kwargs)
