"""A training step of several processes: DistributedDataParallel around a module whose forward is a trainer's losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import world_size


class Step(nn.Module):
    """Losses as a module that owns the parameters they train, and nothing else that would be sent around.

    Args:
        losses: a batch -> losses and whatever else. learned: the modules that are trained.
    """

    def __init__(self, losses: Callable[[Any], Any], learned: Iterable[nn.Module]) -> None:
        super().__init__()
        # Each once, though parts may share some. Buffers are equal in all processes by themselves (batch_norm.py).
        self.learned = nn.ParameterList(dict.fromkeys(p for module in learned for p in module.parameters()))
        self._losses = losses

    def forward(self, batch: Any) -> Any:
        return self._losses(batch)

    def no_sync(self) -> AbstractContextManager[None]:
        """As DistributedDataParallel's: of several backward passes the last one alone is shared."""
        return nullcontext()


def joint(losses: Callable[[Any], Any], learned: Iterable[nn.Module]) -> Any:
    """The step of this process, whose gradients are the mean over all processes; called and named as Step."""
    step = Step(losses, learned)
    if world_size() == 1 or not any(parameter.requires_grad for parameter in step.parameters()):
        return step
    return DistributedDataParallel(step, gradient_as_bucket_view=True)
