"""Which classes can be the answer of two heads at any alpha and beta: few of many, for all of Eq. 11 to be asked of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .heads import DualHeadLogits


class Contenders(NamedTuple):
    """Of N images, the classes that can win.

    Attributes:
        classes: int64 (N, K), each image's in ascending order, and its first again where it has fewer than K.
        sizes: int64 (N,), how many it has, from 1 to K.
    """

    classes: Tensor
    sizes: Tensor


def contenders(logits: DualHeadLogits) -> Contenders:
    """The Pareto front of both heads' logits, image by image.

    A class that another beats in both logits is beaten at every alpha and beta, since Eq. 11 grows with either. Where
    two are equal in a sum, argmax takes the first; so a class leaves only if one that is above it in the CE head, or
    equal there and before it, is above it in the KD head. What stays has the argmax of all classes to the tie, as long
    as logits that differ do so by more than rounding: float32 or coarser, brought to float64.

    Args:
        logits: finite, each (N, C).
    """
    ce, kd = logits
    first_ce, first_kd = ce.argmax(dim=-1, keepdim=True), kd.argmax(dim=-1, keepdim=True)
    near = (kd >= kd.gather(-1, first_ce)) & (ce >= ce.gather(-1, first_kd))  # of 1,000 classes some 30, to be sorted
    images, classes = near.nonzero(as_tuple=True)
    order = ce[images, classes].argsort(descending=True, stable=True)
    order = order[images[order].argsort(stable=True)]
    images, classes = images[order], classes[order]
    places = _places(images, near.sum(dim=-1))
    above = kd.new_full((len(kd), int(places.max()) + 1), float("-inf"))
    above[images, places] = kd[images, classes]
    stay = above[images, places] >= above.cummax(dim=-1).values[images, places]
    kept = torch.zeros_like(near)
    kept[images[stay], classes[stay]] = True
    images, classes = kept.nonzero(as_tuple=True)
    sizes = kept.sum(dim=-1)
    places = _places(images, sizes)
    padded = kept.to(torch.uint8).argmax(dim=-1, keepdim=True).repeat(1, int(sizes.max()))
    padded[images, places] = classes
    return Contenders(padded, sizes)


def _places(images: Tensor, sizes: Tensor) -> Tensor:
    """The place of each of M entries within its image, from 0 on.

    Args:
        images: (M,) ascending. sizes: (N,), entries of each image.
    """
    return torch.arange(len(images), device=images.device) - (sizes.cumsum(0) - sizes)[images]
