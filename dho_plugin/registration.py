"""Registering names that a host repository may own."""

from __future__ import annotations

from typing import Any, TypeVar

from .config import extend_defaults
from .host import DATASET_REGISTRY, TRAINER_REGISTRY

T = TypeVar("T", bound=type)
_OURS = __name__.partition(".")[0] + "."


def register_trainer(cls: T) -> T:
    """Class decorator: put a trainer into Dassl's registry, unless the host repository has one of that name.

    Its `defaults` become the keys of cfg.TRAINER.<section> where the host has not defined them.
    """
    trainer: Any = cls
    extend_defaults(f"TRAINER.{trainer.section}", trainer.defaults)
    return _register(TRAINER_REGISTRY, cls)


def register_dataset(cls: T) -> T:
    """Class decorator: put a dataset into Dassl's registry, unless the host repository has one of that name."""
    return _register(DATASET_REGISTRY, cls)


def _register(registry: Any, cls: T) -> T:
    _let_hosts_replace_ours(registry)
    if cls.__name__ not in registry.registered_names():
        registry.register(cls)
    return cls


def _let_hosts_replace_ours(registry: Any) -> None:
    """Let a host register a name after us: its `import trainers.coop` may stand below the line that imports us.

    Dassl's registry raises on a duplicate; for a name that we hold, and only then, the newcomer now wins.
    """
    if "register" in vars(registry):
        return
    original = registry.register

    def register(obj: Any = None, force: bool = False) -> Any:
        if obj is None:  # used as a decorator
            return lambda cls: register(cls, force) or cls
        ours = obj.__name__ in registry.registered_names() and registry.get(obj.__name__).__module__.startswith(_OURS)
        return original(obj, force=force or ours)

    registry.register = register
