"""What two heads' answers come to, drawn; each function is called within drawing.styled().

Of several runs a figure shows the mean, with the deviation as a whisker, or all their images together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

from ..manifest import called
from .agreement import Agreement
from .alpha_beta import AccuracyMap, Point, mean_map
from .by_class import ByClass, ends
from .drawing import INK, PALETTE, panels
from .predictors import CE, CHOSEN, CONTROL, KD, KD_AT_BETA
from .retention import retained

# By interpolation.SOURCES. The oracle is hollow.
MARKERS = {"fixed": ("s", PALETTE[0]), "val": ("o", PALETTE[2]), "oracle": ("D", PALETTE[1])}
LINES = {CE: (PALETTE[0], "-"), KD: (PALETTE[1], "-"), KD_AT_BETA: (PALETTE[1], ":"), CONTROL: (PALETTE[4], "-.")}
HOLLOW = {"facecolor": "none", "hatch": "///"}


def line_of(predictor: str) -> tuple[str, str]:
    """Colour and dashes; the combination's for a name that is none of LINES."""
    return LINES.get(predictor, (PALETTE[2], "--"))


def over_runs(found: Sequence[Any]) -> str:
    """What a title says of several runs."""
    return f", {len(found)} runs" if len(found) > 1 else ""


def map_figure(maps: Sequence[AccuracyMap], marked: Sequence[Sequence[Point]], column: str) -> Any:
    """A heat map, and on it the points of all runs (Fig. 10).

    Args:
        column: the set, with the caveats of its results.
    """
    whole = mean_map(maps)
    figure, axes = panels(1, 1, width=6.4, height=4.3)
    ax = axes[0, 0]
    ax.grid(False)
    image = ax.imshow(whole.accuracy.T.numpy(), origin="lower", aspect="auto", cmap="cividis", interpolation="nearest")
    every = max(1, len(whole.alphas) // 10)
    ax.set_xticks(range(0, len(whole.alphas), every), [f"{alpha:g}" for alpha in whole.alphas[::every]])
    ax.set_yticks(range(len(whole.betas)), [f"{beta:g}" for beta in whole.betas])
    ax.set(xlabel="alpha, weight of the CE head", ylabel="beta, temperature of the KD head")
    ax.set_title(f"Accuracy by alpha and beta{over_runs(maps)}")
    bar = figure.colorbar(image, ax=ax, label=f"top-1 on {column}, %")
    bar.outline.set_visible(False)
    for source in dict.fromkeys(point.source for points in marked for point in points):
        _mark(ax, whole, source, [point for points in marked for point in points if point.source == source])
    figure.legend(loc="outside lower left", labelspacing=0.8)
    return figure


def _mark(ax: Any, whole: AccuracyMap, source: str, points: Sequence[Point]) -> None:
    """The points of one source; a beta between those of the grid lies between its rows."""
    from matplotlib.patheffects import withStroke

    marker, colour = MARKERS[source]
    hollow = source == "oracle"
    places = list(dict.fromkeys(f"({point.alpha:g}, {point.beta:g})" for point in points))
    label = f"{CHOSEN[source]} {', '.join(places)}: {mean(point.accuracy for point in points):.1f} %"
    ax.scatter(
        np.interp([point.alpha for point in points], whole.alphas, range(len(whole.alphas))),
        np.interp([point.beta for point in points], whole.betas, range(len(whole.betas))),
        130 if hollow else 60,  # so that it is seen around another
        marker=marker,
        facecolor="none" if hollow else colour,
        edgecolor=colour,
        linewidth=1.8,
        path_effects=[withStroke(linewidth=3.5, foreground="white")],
        label=label,
    )


def ablation_figure(found: Sequence[Mapping[str, float]], column: str) -> Any:
    """A bar for each head alone and for each combination; that of an oracle is hollow (Fig. 8).

    Args:
        found: accuracy in percent by name, of each run.
    """
    rows = list(found[0])
    figure, axes = panels(1, 1, width=6.4, height=0.9 + 0.32 * len(rows))
    ax = axes[0, 0]
    for place, row in enumerate(rows):
        values = [one[row] for one in found]
        look = HOLLOW if "oracle" in row else {"facecolor": line_of(row)[0]}
        _bar(ax, place, values, edgecolor=line_of(row)[0], **look)
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set(xlabel=f"top-1 on {column}, %", title=f"Each head alone, and both{over_runs(found)}")
    ax.margins(x=0.12)
    return figure


def _bar(ax: Any, place: float, values: Sequence[float], **look: Any) -> None:
    """A horizontal bar as long as the mean, with its number behind it."""
    spread = stdev(values) if len(values) > 1 else 0.0
    ax.barh(place, mean(values), height=0.7, xerr=spread or None, ecolor=INK, capsize=2, **look)
    number = f"{mean(values):.1f}{f' ±{spread:.1f}' if spread else ''}"
    ax.annotate(number, (mean(values) + spread, place), (4, 0), textcoords="offset points", va="center")


def agreement_figure(counts: Sequence[Agreement], column: str) -> Any:
    """Images by which head is right, and how often the combination still fails where one head does (Fig. 15)."""
    figure, axes = panels(1, 2, width=4.0, height=2.9)
    _quarters(axes[0, 0], counts)
    axes[0, 0].set_title(f"Which head is right on {column}{over_runs(counts)}")
    ax = axes[0, 1]
    for place, (name, case) in enumerate(((KD, "ce_alone"), (CE, "kd_alone"))):
        for row, part in enumerate(("images", "wrong")):
            values = [one.share(getattr(getattr(one, case), part)) for one in counts]
            look = {"facecolor": line_of(name)[0]} if part == "images" else {"facecolor": line_of("")[0]}
            _bar(ax, 2.4 * place + row, values, **look)
    names = [f"{KD} fails, {CE} not", "both combined still fail", f"{CE} fails, {KD} not", "both combined still fail"]
    ax.set_yticks([0, 1, 2.4, 3.4], names)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.margins(x=0.25)
    ax.set(xlabel="of all images, %", title="Error reduction")
    return figure


def _quarters(ax: Any, counts: Sequence[Agreement]) -> None:
    """Two by two: the share of each case, and how often the combination is right in it."""
    from matplotlib.colors import to_rgba

    cases = (("both", "ce_alone"), ("kd_alone", "neither"))
    colours = ((line_of("")[0], line_of(CE)[0]), (line_of(KD)[0], INK))
    ax.imshow([[to_rgba(colour, 0.25) for colour in line] for line in colours], aspect="auto")
    for y, line in enumerate(cases):
        for x, case in enumerate(line):
            share = mean(one.share(getattr(one, case).images) for one in counts)
            images, right = (sum(getattr(getattr(one, case), part) for one in counts) for part in ("images", "right"))
            kept = f"of these, combined\nright on {100 * right / images:.1f} %" if images else ""
            ax.text(x, y - 0.13, f"{share:.1f} %", ha="center", va="center", fontsize=13)
            ax.text(x, y + 0.2, kept, ha="center", va="center", fontsize=7.5)
    ax.grid(False)
    ax.set_xticks([0, 1], [f"{KD} right", f"{KD} wrong"])
    ax.set_yticks([0, 1], [f"{CE} right", f"{CE} wrong"])
    ax.tick_params(length=0)


def per_class_figure(found: Sequence[ByClass], column: str) -> Any:
    """A panel for each difference: a bar for each class at either end of it, gains to the right.

    Args:
        found: of each run, with a difference at least. column: the set, with the caveats of its results.
    """
    differences, classes = ends(found), len(found[0].names)
    rows = max(map(len, differences.values()))
    figure, axes = panels(1, len(differences), width=3.3, height=0.9 + 0.17 * rows)
    for ax, (name, values) in zip(axes[0], differences.items(), strict=True):
        places = range(len(values))
        colours = [PALETTE[2] if value >= 0 else PALETTE[1] for value in values.values()]
        ax.barh(places, list(values.values()), color=colours, height=0.75)
        ax.axvline(0, color=INK, linewidth=0.8)
        ax.set_yticks(places, list(values), fontsize=7)
        ax.invert_yaxis()
        ax.grid(False, axis="y")
        shown = f"{len(values)} of {classes:,} classes" if len(values) < classes else f"all {classes} classes"
        ax.set_title(f"{name}: {shown}{over_runs(found)}".replace(" minus", "\nminus"))
        ax.set_xlabel(f"points of top-1 on {column}")
    return figure


def retention_figure(found: Sequence[Mapping[str, Mapping[str, float]]], caveats: Sequence[str] = ()) -> Any:
    """For each shift a line from the test set to it by predictor, and what is left there.

    Args:
        found: accuracy in percent by predictor and set, of each run. caveats: of these results.
    """
    sets = [name for name in next(iter(found[0].values())) if name != "test"]
    figure, axes = panels(1, len(sets), width=max(1.75, 6.4 / len(sets)), height=3.4)
    highest = 1.05 * max(mean(one[predictor][at] for one in found) for predictor in found[0] for at in ("test", *sets))
    for ax, name in zip(axes[0], sets, strict=True):
        for predictor in found[0]:
            colour, dashes = line_of(predictor)
            ends = [mean(one[predictor][at] for one in found) for at in ("test", name)]
            left = mean(retained(one[predictor])[name] for one in found)
            ax.plot([0, 1], ends, dashes, color=colour, marker="o", markersize=4, label=f"{left:.0f} % left")
        ax.set_xticks([0, 1], ["test", name])
        ax.set(xlim=(-0.15, 1.15), ylim=(0, highest), title=name)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), fontsize=7, handlelength=2.2)
    figure.legend(axes[0, 0].lines, list(found[0]), loc="outside lower center", ncols=4)
    axes[0, 0].set_ylabel("top-1, %")
    title = f"Accuracy on the test set and its shifts{over_runs(found)}"
    figure.suptitle(called(title, caveats), fontsize=9, x=0.02, ha="left")
    return figure
