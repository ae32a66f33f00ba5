"""Batch normalisation over the batch that all processes share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .distributed import averaged, world_size
from .errors import UsageError

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class WholeBatchNorm(_BatchNorm):
    """What nn.BatchNorm computes of the joined batch of all processes, on the CPU, where nn.SyncBatchNorm refuses.

    All processes have parts of one shape: (N, C, ...). In eval mode it is nn.BatchNorm. Its state is the same.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        dims, shape = [0, *range(2, input.dim())], (1, -1, *[1] * (input.dim() - 2))
        wide = input.double()  # in which torch sums on the CPU, too
        mean = _Average.apply(wide.mean(dims))
        centred = wide - mean.view(shape)
        variance = _Average.apply(centred.square().mean(dims))
        if self.track_running_stats:
            self._note(mean.detach(), variance.detach(), world_size() * input.numel() // input.shape[1])
        out = (centred * torch.rsqrt(variance + self.eps).view(shape)).to(input.dtype)
        return out * self.weight.view(shape) + self.bias.view(shape) if self.affine else out

    def _note(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked += 1
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), momentum)


class _Average(torch.autograd.Function):
    """The mean over processes; a symmetric linear map, and so its own gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return averaged(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return averaged(gradients[0])


def synchronised(module: nn.Module) -> nn.Module:
    """The module with every batch normalisation over the whole batch; as it is where one process takes it alone.

    Layers are replaced in place and keep their parameters and the keys of their state. Call it when the module is on
    its device, before DistributedDataParallel.

    Raises:
        UsageError: a batch normalisation of a kind that is not known.
    """
    if world_size() == 1:
        return module
    if isinstance(module, _BatchNorm) and not isinstance(module, (nn.SyncBatchNorm, WholeBatchNorm)):
        return _replaced(module)
    for name, child in module.named_children():
        setattr(module, name, synchronised(child))
    return module


def _replaced(layer: _BatchNorm) -> _BatchNorm:
    with_activation = hasattr(layer, "act") and hasattr(layer, "drop")  # timm's
    if type(layer) not in PLAIN and not with_activation:
        raise UsageError(
            f"{type(layer).__name__} normalises over the batch in a way of its own, which several processes cannot "
            "share: train this student in one process"
        )
    kind = nn.SyncBatchNorm if _device(layer).type == "cuda" else WholeBatchNorm
    new = kind(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
    new._parameters, new._buffers = layer._parameters, layer._buffers
    new.train(layer.training)
    if with_activation:
        new.drop, new.act = layer.drop, layer.act
        new.register_forward_hook(_act)
    return new


def _device(layer: _BatchNorm) -> torch.device:
    return next((tensor.device for tensor in [*layer.parameters(), *layer.buffers()]), torch.device("cpu"))


def _act(layer: Any, _: Any, out: Tensor) -> Tensor:
    return layer.act(layer.drop(out))
