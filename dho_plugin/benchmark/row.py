"""A row of `python -m dho_plugin benchmark`: two ways to one result, which is compared before they are timed."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from typing import NamedTuple

from torch import Tensor

TOLERANCE = 1e-5  # of a feature or gradient, relative, in float32


class Row(NamedTuple):
    """Two ways to one result.

    Attributes:
        peers, ours: calls that do the work and return what is compared: features and gradients, or images.
        wanted: how many times faster ours is to be, None for no demand. tolerance: of the relative difference of any
        tensor. finish: what is done to ours before it is compared, untimed. scale: how many calls of the peers' do the
        work of one of ours. compared: whether the results are to be the same.
    """

    name: str
    peers: Callable[[], list[Tensor]]
    ours: Callable[[], list[Tensor]]
    wanted: float | None
    tolerance: float = TOLERANCE
    finish: Callable[[Tensor], Tensor] = Tensor.float
    scale: float = 1.0
    compared: bool = True


def difference(row: Row) -> float:
    """The largest relative difference of the two results, tensor by tensor; nan where they are not compared."""
    if not row.compared:
        return nan
    pairs = zip(map(Tensor.float, row.peers()), map(row.finish, row.ours()), strict=True)
    return max(float((a - b).norm() / a.norm().clamp_min(1e-12)) for a, b in pairs)
