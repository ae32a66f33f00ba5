"""Optimisers and learning-rate schedules from the OPTIM section."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

from ..errors import UsageError, did_you_mean

_OPTIMISERS = ("adam", "amsgrad", "sgd", "rmsprop", "adamw")
_SCHEDULES = ("single_step", "multi_step", "cosine")
_WARMUPS = ("constant", "linear")


def build_optimizer(
    model: nn.Module | Iterable[Any], optim_cfg: CfgNode, param_groups: Any = None
) -> torch.optim.Optimizer:
    """Build the optimiser named by OPTIM.NAME.

    Args:
        model: module, or parameters (or parameter groups) themselves.
        optim_cfg: the OPTIM section.
        param_groups: used instead of `model` if given; OPTIM.STAGED_LR is then without effect.

    Raises:
        UsageError: unknown optimiser, or one that only real Dassl has.
    """
    name, lr, decay = optim_cfg.NAME, optim_cfg.LR, optim_cfg.WEIGHT_DECAY
    _check_optimiser(name)
    if param_groups is not None and optim_cfg.STAGED_LR:
        warnings.warn("OPTIM.STAGED_LR has no effect where param_groups are given", stacklevel=2)
    params = _parameters(model, optim_cfg) if param_groups is None else param_groups
    if name == "rmsprop":
        alpha, momentum = optim_cfg.RMSPROP_ALPHA, optim_cfg.MOMENTUM
        return torch.optim.RMSprop(params, lr=lr, momentum=momentum, weight_decay=decay, alpha=alpha)
    params = list(params)
    fused = True if _can_fuse(params) else None
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    optimizer: torch.optim.Optimizer
    if name == "sgd":
        optimizer = torch.optim.SGD(
            params,
            lr=lr,
            momentum=optim_cfg.MOMENTUM,
            weight_decay=decay,
            dampening=optim_cfg.SGD_DAMPNING,
            nesterov=optim_cfg.SGD_NESTEROV,
            fused=fused,
        )
    elif name == "adamw":
        optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=decay, betas=betas, fused=fused)
    else:
        optimizer = torch.optim.Adam(
            params, lr=lr, weight_decay=decay, betas=betas, amsgrad=name == "amsgrad", fused=fused
        )
    optimizer.register_load_state_dict_pre_hook(_keep_fused)
    return optimizer


def _keep_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Step as the optimiser was built, and not as that of a checkpoint: the loss scaler goes by how it was built."""
    fused = optimizer.defaults["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def _can_fuse(params: list[Any]) -> bool:
    """Whether one kernel can take the whole step, which on a GPU also spares the loss scaler a wait for it."""
    groups = [group["params"] if isinstance(group, dict) else [group] for group in params]
    tensors = [item for group in groups for item in (group if isinstance(group, list | tuple) else [None])]
    return all(isinstance(t, torch.Tensor) and t.device.type in ("cpu", "cuda") for t in tensors)


def _check_optimiser(name: str) -> None:
    if name == "radam":
        # torch.optim.RAdam skips the adaptive term where Dassl's degenerates to SGD: not the same steps.
        raise UsageError("OPTIM.NAME='radam' is Dassl's own optimiser; run with a Dassl checkout on PYTHONPATH")
    if name not in _OPTIMISERS:
        raise UsageError(f"OPTIM.NAME={name!r}: expected one of {_OPTIMISERS}.{did_you_mean(name, _OPTIMISERS)}")


def _parameters(model: nn.Module | Iterable[Any], optim_cfg: CfgNode) -> Any:
    if not optim_cfg.STAGED_LR:
        return model.parameters() if isinstance(model, nn.Module) else model
    if not isinstance(model, nn.Module):
        raise TypeError(f"OPTIM.STAGED_LR needs a module to find OPTIM.NEW_LAYERS in, got {type(model).__name__}")
    module = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = [optim_cfg.NEW_LAYERS] if isinstance(optim_cfg.NEW_LAYERS, str) else optim_cfg.NEW_LAYERS
    base: list[nn.Parameter] = []
    new: list[nn.Parameter] = []
    for name, child in module.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]


class WarmupScheduler(LRScheduler):
    """Holds a small learning rate for some epochs, then hands over to another schedule.

    "constant" holds `warmup_lr`; "linear" starts at `warmup_lr` and goes on with base * epoch / warmup_epoch.

    Args:
        optimizer: optimiser.
        successor: schedule after the warm-up, built on the same optimiser.
        warmup_epoch: number of warm-up epochs.
        kind: "constant" or "linear".
        warmup_lr: learning rate of the first (linear) or of every (constant) warm-up epoch.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, successor: LRScheduler, warmup_epoch: int, kind: str, warmup_lr: float
    ) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        self.kind = kind
        self.warmup_lr = warmup_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return one learning rate per parameter group."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        if self.kind == "constant" or self.last_epoch == 0:
            return [self.warmup_lr for _ in self.base_lrs]
        return [base * self.last_epoch / self.warmup_epoch for base in self.base_lrs]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch."""
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values only; see `warmup_state_dict`."""
        return warmup_state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        load_warmup_state_dict(self, state_dict)


def warmup_state_dict(scheduler: Any) -> dict[str, Any]:
    """Return the state of a warm-up scheduler with its successor's state dict nested in it.

    torch's default would nest the successor itself and, behind it, the optimiser: a pickle that a safe load refuses,
    and a second optimiser which a resumed successor would drive instead of the real one.
    """
    return {**LRScheduler.state_dict(scheduler), "successor": scheduler.successor.state_dict()}


def load_warmup_state_dict(scheduler: Any, state_dict: dict[str, Any]) -> None:
    """Restore a warm-up scheduler and its successor from `warmup_state_dict`."""
    state = dict(state_dict)
    nested = state.pop("successor")
    if not isinstance(nested, dict):
        raise UsageError(
            f"the scheduler state holds a {type(nested).__name__} object where a state dict is expected: it comes from "
            "an older Dassl checkpoint; write a converted copy with dho_plugin.host.convert_trusted_checkpoint"
        )
    scheduler.successor.load_state_dict(nested)
    LRScheduler.load_state_dict(scheduler, state)


def build_lr_scheduler(optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Build the schedule named by OPTIM.LR_SCHEDULER, with warm-up if OPTIM.WARMUP_EPOCH > 0; stepped once an epoch.

    Raises:
        UsageError: unknown schedule or warm-up.
        TypeError: OPTIM.STEPSIZE does not fit the schedule.
    """
    name = optim_cfg.LR_SCHEDULER
    if name not in _SCHEDULES:
        raise UsageError(f"OPTIM.LR_SCHEDULER={name!r}: expected one of {_SCHEDULES}.{did_you_mean(name, _SCHEDULES)}")
    schedule = _schedule(name, optimizer, optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return schedule
    kind = optim_cfg.WARMUP_TYPE
    if kind not in _WARMUPS:
        raise UsageError(f"OPTIM.WARMUP_TYPE={kind!r}: expected one of {_WARMUPS}.{did_you_mean(kind, _WARMUPS)}")
    if not optim_cfg.WARMUP_RECOUNT:
        schedule.last_epoch = optim_cfg.WARMUP_EPOCH
    warmup_lr = optim_cfg.WARMUP_CONS_LR if kind == "constant" else optim_cfg.WARMUP_MIN_LR
    return WarmupScheduler(optimizer, schedule, optim_cfg.WARMUP_EPOCH, kind, warmup_lr)


def _schedule(name: str, optimizer: torch.optim.Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    stepsize = optim_cfg.STEPSIZE
    if name == "cosine":
        return CosineAnnealingLR(optimizer, optim_cfg.MAX_EPOCH)
    if name == "multi_step":
        if not isinstance(stepsize, (list, tuple)):
            raise TypeError(f"OPTIM.STEPSIZE={stepsize!r}: multi_step expects a list of epochs")
        return MultiStepLR(optimizer, milestones=stepsize, gamma=optim_cfg.GAMMA)
    if isinstance(stepsize, (list, tuple)):
        stepsize = stepsize[-1]
    if not isinstance(stepsize, int):
        raise TypeError(f"OPTIM.STEPSIZE={stepsize!r}: single_step expects a whole number of epochs")
    return StepLR(optimizer, step_size=stepsize if stepsize > 0 else optim_cfg.MAX_EPOCH, gamma=optim_cfg.GAMMA)
