"""Lemma A.4 on a run as a figure: on how many images it holds by temperature, and how far it is missed."""

from __future__ import annotations

from typing import Any

from .drawing import INK, panels
from .theory_of import Measured

MARKERS = ("o", "s")


def figure_of(found: Measured) -> Any:
    """A figure, to be drawn within drawing.styled."""
    figure, ((left, right),) = panels(1, 2, width=3.6, height=2.9)
    for at, marker in zip(dict.fromkeys(one.at for one in found.shares), MARKERS, strict=False):
        shares = sorted((one for one in found.shares if one.at == at), key=lambda one: one.tau)
        taus = [one.tau for one in shares]
        left.plot(taus, [one.holds for one in shares], marker=marker, markersize=4, label=f"delta at {at:g}")
        (line,) = right.plot(taus, [one.middle for one in shares], marker=marker, markersize=4)
        quantiles = [one.low for one in shares], [one.high for one in shares]
        right.fill_between(taus, *quantiles, color=line.get_color(), alpha=0.2, linewidth=0)
    for axis in (left, right):
        axis.axvline(found.beta, color=INK, linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("temperature tau; dotted: the run's beta")
    left.set_title("images for which the bound holds, %")
    left.set_ylim(0, 104)
    left.legend(loc="lower right")
    right.axhline(1, color=INK, linewidth=0.8, linestyle="--")
    right.set_ylim(bottom=0)
    right.set_title("distance over bound: median, 5 to 95 %")
    figure.suptitle(found.title, x=0.01, ha="left", fontsize=9, fontweight="bold")
    return figure
