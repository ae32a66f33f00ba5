"""Numerical precision, decided from the device: what was asked for never crashes where it cannot be had."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import check_choice

CHOICES = ("fp32", "fp16", "amp", "bf16")
# Where half precision is faster; a CPU could compute in it, several times slower than in fp32.
HALF_DEVICES: tuple[str, ...] = ("cuda",)


class Precision:
    """How a run computes.

    fp32: everything in float32. amp: float32 weights under autocast to float16 with loss scaling. fp16: the same, with
    the frozen towers stored in float16 (learned parameters stay float32, which CoOp's fp16 does not do). bf16: as fp16
    with bfloat16, whose range needs no loss scaling; only when asked for, so that amp means the same on every GPU. On a
    CPU all become fp32, on a GPU without bfloat16 bf16 becomes amp, with one warning. Heads compute in float32 always.

    Args:
        asked: CoOp's PREC. device: where the model is.
    """

    def __init__(self, asked: str, device: torch.device) -> None:
        check_choice("precision", asked, CHOICES)
        self.name = asked if device.type in HALF_DEVICES else "fp32"
        if self.name == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            self.name = "amp"
        if self.name != asked:
            warnings.warn(
                f"PREC {asked} needs {'a GPU of compute capability 8' if self.name == 'amp' else 'a GPU'}; this run is "
                f"on the {device.type} and computes in {self.name}",
                stacklevel=2,
            )
        self.device_type = device.type
        self.half = torch.bfloat16 if self.name == "bf16" else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.name in ("fp16", "amp"))

    def store(self, frozen: nn.Module) -> nn.Module:
        """Store a frozen module as this precision wants it."""
        return self.lay_out(frozen.to(self.half) if self.name in ("fp16", "bf16") else frozen)

    def lay_out(self, module: nn.Module) -> nn.Module:
        """On a GPU, put the channels of a convolutional network's weights last; the one convolution of a ViT stays.

        On a CPU the backward pass would be slower, and an image's feature would depend on who is in its batch.
        """
        several = sum(isinstance(part, nn.Conv2d) for part in module.modules()) > 1
        if self.device_type != "cuda" or not several:
            return module
        return module.to(memory_format=torch.channels_last)

    def autocast(self) -> AbstractContextManager[None]:
        """The context for forward passes."""
        return torch.autocast(self.device_type, dtype=self.half, enabled=self.name != "fp32")

    def backward(self, loss: Tensor) -> None:
        """Backward pass; gradients are added to those that are there."""
        self.scaler.scale(loss).backward()

    def update(self, optimizers: Iterable[Optimizer]) -> None:
        """One step of each optimiser; with loss scaling none where gradients have overflown."""
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
