"""The alpha-beta control's data: for each image whose answer depends on alpha and beta, what its classes have.

Of an image that is right or wrong at every point of the grid a page needs to know just that. Of the others it needs
both heads' probabilities of the classes that win somewhere; whether the true one does at a point is then a matter of
two products and a sum in double precision, which a browser rounds as Python does.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..contenders import contenders
from ..heads import DualHeadLogits
from ..interpolation import ALPHA_GRID, BETA_GRID, kd_probabilities, mix

_ROWS = 2048  # images at a time
_DTYPES = (torch.float32, torch.float64)


class Contest(NamedTuple):
    """K images whose answer depends on alpha and beta, with M classes in all that win one of them somewhere.

    Attributes:
        true: int64 (K,), the place of the true class among the image's own; sizes: int64 (K,), how many it has.
        ce: (M,) probabilities, image by image, classes in ascending order. kd: (betas, M), at each beta.
    """

    true: Tensor
    sizes: Tensor
    ce: Tensor
    kd: Tensor


class Slider(NamedTuple):
    """What recomputes the accuracy of N images at each point of the grid.

    Attributes:
        images: N. always: how many are right everywhere. contests: the others that are right somewhere, in two parts:
            those that float32 probabilities decide as float64 ones do, and the rest.
        hits: int64 (alphas, betas), how many are right by the logits themselves.
    """

    images: int
    always: int
    contests: tuple[Contest, Contest]
    hits: Tensor


def slider(logits: DualHeadLogits, labels: Tensor) -> Slider:
    """The data of a set.

    Args:
        logits: both heads', float64 (N, C). labels: (N,).
    """
    parts = [_part(*rows) for rows in zip(*(tensor.split(_ROWS) for tensor in (*logits, labels)), strict=True)]
    contests = [_joined([part.contests[i] for part in parts]) for i in range(len(_DTYPES))]
    hits = torch.stack([part.hits for part in parts]).sum(dim=0)
    return Slider(len(labels), sum(part.always for part in parts), (contests[0], contests[1]), hits)


def _part(ce: Tensor, kd: Tensor, labels: Tensor) -> Slider:
    both = DualHeadLogits(ce, kd)
    classes, counts = contenders(both)
    there = torch.arange(classes.shape[1]) < counts[:, None]  # (N, K), where the classes are no padding
    p_ce = torch.softmax(ce, dim=-1).gather(-1, classes)
    p_kd = torch.stack([kd_probabilities(kd, beta=beta).gather(-1, classes) for beta in BETA_GRID])
    true = classes.eq(labels[:, None]) & there
    winners = _winners(p_ce, p_kd)
    right = true.gather(-1, winners.flatten(1)).view_as(winners)  # (N, alphas, betas)
    wins = torch.zeros_like(true).scatter_(-1, winners.flatten(1), True)
    some = right.flatten(1).any(dim=-1) & ~right.flatten(1).all(dim=-1)
    coarse = [tensor.to(_DTYPES[0]).double() for tensor in (p_ce, p_kd)]
    alike = _winners(*(tensor.where(wins, -1.0) for tensor in coarse)).eq(winners).flatten(1).all(dim=-1)
    contests = [
        _contest(true[chosen], wins[chosen], p_ce[chosen].to(dtype), p_kd[:, chosen].to(dtype))
        for chosen, dtype in zip((some & alike, some & ~alike), _DTYPES, strict=True)
    ]
    always = int(right.flatten(1).all(dim=-1).sum())
    return Slider(len(labels), always, (contests[0], contests[1]), right.sum(dim=0))


def _winners(p_ce: Tensor, p_kd: Tensor) -> Tensor:
    """The place of the class that wins at each point, int64 (N, alphas, betas).

    Args:
        p_ce: (N, K). p_kd: (betas, N, K).
    """
    points = [[mix(p_ce, of_beta, alpha=alpha).argmax(dim=-1) for of_beta in p_kd] for alpha in ALPHA_GRID]
    return torch.stack([torch.stack(of_alpha, dim=-1) for of_alpha in points], dim=1)


def _contest(true: Tensor, wins: Tensor, p_ce: Tensor, p_kd: Tensor) -> Contest:
    """Args: true, wins: (K, classes); p_ce: (K, classes); p_kd: (betas, K, classes)."""
    place = (wins.cumsum(dim=-1) - 1)[true]
    return Contest(place, wins.sum(dim=-1), p_ce[wins], p_kd[:, wins])


def _joined(contests: Sequence[Contest]) -> Contest:
    true, sizes, ce, kd = zip(*contests, strict=True)
    return Contest(torch.cat(true), torch.cat(sizes), torch.cat(ce), torch.cat(kd, dim=1))


def packed(data: Slider) -> dict[str, Any]:
    """As page.js reads it: numbers, and the bytes of little-endian arrays in base64."""
    return {
        "images": data.images,
        "always": data.always,
        "hits": data.hits.tolist(),
        "contests": [
            {
                "true": _bytes(contest.true, "u1"),
                "sizes": _bytes(contest.sizes, "u1"),
                "ce": _bytes(contest.ce, kind),
                "kd": _bytes(contest.kd, kind),
            }
            for contest, kind in zip(data.contests, ("<f4", "<f8"), strict=True)
        ],
    }


def _bytes(tensor: Tensor, kind: str) -> str:
    return base64.b64encode(tensor.numpy().astype(kind).tobytes()).decode()
