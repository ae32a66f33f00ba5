"""Numerical precision, decided from the device: what was asked for never crashes where it cannot be had."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import check_choice

CHOICES = ("fp32", "fp16", "amp")
# Where half precision is faster; a CPU could compute in it, several times slower than in fp32.
HALF_DEVICES: tuple[str, ...] = ("cuda",)


class Precision:
    """How a run computes.

    fp32: everything in float32. amp: float32 weights under autocast with loss scaling. fp16: the same, with the frozen
    towers stored in float16 (learned parameters stay float32, which CoOp's fp16 does not do). On a CPU both become
    fp32 with one warning.

    Args:
        asked: CoOp's PREC. device: where the model is.
    """

    def __init__(self, asked: str, device: torch.device) -> None:
        check_choice("precision", asked, CHOICES)
        self.name = asked if device.type in HALF_DEVICES else "fp32"
        if self.name != asked:
            warnings.warn(
                f"PREC {asked} needs a GPU; this run is on the {device.type} and computes in fp32", stacklevel=2
            )
        self.device_type = device.type
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name != "fp32")

    def store(self, frozen: nn.Module) -> nn.Module:
        """Store a frozen module as this precision wants it."""
        return frozen.half() if self.name == "fp16" else frozen

    def autocast(self) -> AbstractContextManager[None]:
        """The context for forward passes."""
        return torch.autocast(self.device_type, dtype=torch.float16, enabled=self.name != "fp32")

    def backward_and_update(self, loss: Tensor, optimizers: Iterable[Optimizer]) -> None:
        """Backward pass and one step of each optimiser; gradients must have been cleared.

        Raises:
            FloatingPointError: the loss is not finite; no parameter has changed.
        """
        finite = read_later(torch.isfinite(loss.detach()).all())
        self.scaler.scale(loss).backward()
        if not finite():
            raise FloatingPointError("Loss is infinite or NaN!")
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()


def read_later(flag: Tensor) -> Callable[[], bool]:
    """A flag that is on its way from the device: the call waits for it alone, and not for what was begun after it."""
    if flag.device.type != "cuda":
        return lambda: bool(flag)
    here = torch.empty_like(flag, device="cpu", pin_memory=True)
    here.copy_(flag, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> bool:
        arrived.synchronize()
        return bool(here)

    return wait
