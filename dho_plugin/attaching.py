"""`attach`: the DHO version of a Dassl trainer that knows nothing of DHO, and whose file stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, overload

from .errors import UsageError
from .host import HOST, TRAINER_REGISTRY, TrainerX, TrainerXU
from .trainers.attached import AttachedDHO
from .trainers.base import MethodTrainer


@overload
def attach(trainer_class: type, *, encoder: str = ..., name: str | None = ...) -> type: ...
@overload
def attach(trainer_class: None = None, *, encoder: str = ..., name: str | None = ...) -> Callable[[type], type]: ...
def attach(trainer_class: type | None = None, *, encoder: str = "image_encoder", name: str | None = None) -> Any:
    """Return the DHO version of a Dassl trainer, a subclass of it, registered so that `--trainer <Name>DHO` finds it.

    Also a class decorator, with or without arguments. TRAINER.DHO's keys are added to the host's configuration.

    Args:
        trainer_class: a TrainerX with `self.model`, one optimiser step for a batch, and class logits at test time.
        encoder: name in `self.model` of the module whose output (N, d) enters the classifier. name: of the new class.

    Raises:
        UsageError: the class cannot be attached, or the name is taken; what only its model shows is said when that
            is built.
    """
    if trainer_class is None:
        return partial(attach, encoder=encoder, name=name)
    _check_class(trainer_class)
    name = name or f"{trainer_class.__name__}DHO"
    bases = (AttachedDHO, trainer_class)
    if name in TRAINER_REGISTRY.registered_names():
        taken = TRAINER_REGISTRY.get(name)
        if taken.__bases__ == bases and taken.kd_encoder == encoder:
            return taken
        raise UsageError(
            f"a trainer {name} is registered already, {taken.__module__}.{taken.__name__}: give this one another name, "
            f"attach({trainer_class.__name__}, name='Attached{name}')"
        )
    about = f"{trainer_class.__name__} with a KD head on its image features."
    attached = type(name, bases, {"kd_encoder": encoder, "__module__": trainer_class.__module__, "__doc__": about})
    TRAINER_REGISTRY.register(attached)
    return attached


def _check_class(trainer_class: type) -> None:
    name = getattr(trainer_class, "__name__", repr(trainer_class))
    if not isinstance(trainer_class, type) or not issubclass(trainer_class, (TrainerX, TrainerXU)):
        raise UsageError(f"{name} is no TrainerX of the host in use ({HOST}): only its trainers can be attached")
    if issubclass(trainer_class, TrainerXU):
        raise UsageError(f"{name} is a TrainerXU, with unlabelled batches of its own: only a TrainerX can be attached")
    if issubclass(trainer_class, AttachedDHO):
        raise UsageError(f"{name} is attached already: use it as it is")
    if issubclass(trainer_class, MethodTrainer):
        raise UsageError(f"{name} is one of dho_plugin's own, which have DHO versions of their own (--trainer CoOpDHO)")
