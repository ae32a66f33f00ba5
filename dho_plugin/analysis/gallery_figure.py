"""A case of the gallery as a figure (Fig. 9): each image beside what teacher, heads and combination say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from .cases import Card
from .drawing import GRID, PALETTE, panels

PAIRS = 2  # of an image and its bars, side by side
BAR, GAP = 0.19, 0.14  # inches: a bar's height, and what is between two models
LONGEST = 30  # letters of a class name that a bar has room for


def case_figure(shown: Sequence[Card], images: Mapping[str, Image.Image], names: Sequence[str], title: str) -> Any:
    """A figure of some images, to be drawn within drawing.styled; the true class is bold and has a mark and a colour.

    Args:
        shown: at least one. images: by path. names: of the classes. title: of the case.
    """
    bars = sum(len(said) for said in shown[0].says.values())
    height = bars * BAR + len(shown[0].says) * GAP + 0.35
    rows = -(-len(shown) // PAIRS)
    figure, axes = panels(rows, 2 * PAIRS, width=2.3, height=height)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    for place, (left, right) in enumerate(axes.reshape(-1, 2)):
        for axis in (left, right):
            axis.set_axis_off()
        if place < len(shown):
            card = shown[place]
            left.imshow(images[card.path], interpolation="nearest")
            left.set_title(names[card.label], fontsize=8, fontweight="bold")
            left.text(0, -0.03, card.file, fontsize=6, va="top", transform=left.transAxes)
            _bars(right, card, names)
    return figure


def _bars(axis: Any, card: Card, names: Sequence[str]) -> None:
    """Probabilities by model, from the top down, in inches of height."""
    y = 0.0
    for who, said in card.says.items():
        axis.text(0, y, who, fontsize=7, va="center", fontstyle="italic")
        y += BAR
        for label, probability in said:
            true = label == card.label
            axis.barh(y, 1, height=0.8 * BAR, color=GRID, alpha=0.3)
            axis.barh(y, probability, height=0.8 * BAR, color=PALETTE[0] if true else GRID, alpha=0.6 if true else 1)
            name = names[label] if len(names[label]) <= LONGEST else f"{names[label][: LONGEST - 1]}…"
            font = {"fontsize": 7, "va": "center", "fontweight": "bold" if true else "normal"}
            axis.text(0.02, y, f"{'✓ ' * true}{name}", **font)
            axis.text(1.02, y, f"{100 * probability:.0f} %", **font)
            y += BAR
        y += GAP
    axis.set_xlim(0, 1.2)
    axis.set_ylim(y, -BAR)
