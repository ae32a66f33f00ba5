"""Gaussian-weighted average of what is learned over the epochs (PromptSRC, arXiv 2307.06948, Section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def gaussian_weights(epochs: int, *, mean: float, std: float) -> Tensor:
    """Weights of epochs 1 to `epochs`: a Gaussian of the epoch number, normalised to sum to one; float64 (epochs,)."""
    density = torch.tensor([math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, epochs + 1)]).double()
    return density / density.sum()


class WeightedAverage(nn.Module):
    """The running sum of weight * parameters.

    The sum lies in buffers, so that a checkpoint of this module carries it and a resumed run ends as an unbroken one.

    Args:
        parts: the learned modules, by name. weights: (epochs,) weights that sum to one.
    """

    def __init__(self, parts: Mapping[str, nn.Module], weights: Tensor) -> None:
        super().__init__()
        self._parts = dict(parts)  # a plain dict: the parts are not this module's to save
        self._weights = weights.tolist()
        for key, parameter in self._parameters_by_key().items():
            self.register_buffer(key, torch.zeros_like(parameter))

    def _parameters_by_key(self) -> dict[str, Tensor]:
        return {
            f"{part}__{name}".replace(".", "__"): parameter.detach()
            for part, module in self._parts.items()
            for name, parameter in module.named_parameters()
        }

    def add(self, epoch: int) -> None:
        """Add the parameters as they are after epoch `epoch` (counted from 0)."""
        for key, parameter in self._parameters_by_key().items():
            self.get_buffer(key).add_(parameter, alpha=self._weights[epoch])

    def deploy(self) -> None:
        """Write the average into the parameters."""
        for key, parameter in self._parameters_by_key().items():
            parameter.copy_(self.get_buffer(key))
