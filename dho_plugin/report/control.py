"""The alpha-beta control of a page: what it looks like before page.js fills it, and the data that go with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from ..analysis.alpha_beta import Point
from ..analysis.predictors import CHOSEN
from ..interpolation import ALPHA_GRID, BETA_GRID
from .markup import Markup, join, tag

MAP_LABELS = {0: "0", 10: "0.5", 20: "1"}  # below the columns of the map, by place in ALPHA_GRID


class Explored(NamedTuple):
    """A set of a run in the control. row: as the choice calls it. data: slider.packed as JSON."""

    row: str
    seed: int
    split: str
    points: Sequence[Point]
    data: str


def control(sets: Sequence[Explored]) -> Markup:
    """The control and its data, which stand in scripts that nothing runs."""
    index = {"alphas": ALPHA_GRID, "betas": BETA_GRID, "runs": _index(sets)}
    scripts = [_script("slider-data", json.dumps(index))]
    scripts += [_script(f"slider-{i}", explored.data) for i, explored in enumerate(sets)]
    left = tag(
        "div",
        tag("div", *_choice("row", "Run"), *_choice("seed", "Seed"), *_choice("set", "Images"), class_="choices"),
        tag(
            "div",
            *_slider("alpha", "alpha", len(ALPHA_GRID), "weight of the CE head"),
            *_slider("beta", "beta", len(BETA_GRID), "temperature of the KD head"),
            class_="sliders",
        ),
        tag("p", tag("output", "-", data_part="accuracy", aria_live="polite"), " % top-1", class_="number"),
        tag("p", tag("span", "", data_part="count"), class_="small"),
        tag("ul", data_part="points", class_="points"),
    )
    right = tag(
        "div",
        _map(),
        tag(
            "div",
            tag("span", "", data_part="low"),
            tag("i"),
            tag("span", "", data_part="high"),
            class_="scale",
        ),
        tag("p", "", data_part="check", class_="small", role="status"),
    )
    said = tag("p", "The control computes in the page and needs JavaScript.", class_="warning")
    nothing = tag("noscript", tag("style", ".control { display: none }"), said)
    return join(nothing, tag("div", left, right, class_="control", data_control=True), *scripts)


def _index(sets: Sequence[Explored]) -> list[dict[str, object]]:
    """Rows, their seeds, and their sets, each with the id of its data."""
    rows: dict[str, dict[int, list[dict[str, object]]]] = {}
    for i, explored in enumerate(sets):
        points = [_point(point) for point in explored.points]
        entry: dict[str, object] = {"name": explored.split, "id": f"slider-{i}", "points": points}
        rows.setdefault(explored.row, {}).setdefault(explored.seed, []).append(entry)
    return [
        {"row": row, "seeds": [{"seed": str(seed), "sets": found} for seed, found in seeds.items()]}
        for row, seeds in rows.items()
    ]


def _point(point: Point) -> dict[str, object]:
    own = "the run's own, " if point.own else ""
    return {**point._asdict(), "name": f"{own}{CHOSEN[point.source]}"}


def _script(name: str, data: str) -> Markup:
    # "</script>" in a name would end it, and "<!--" would hide its end.
    return Markup(f'<script type="application/json" id="{name}">{data.replace("<", chr(92) + "u003c")}</script>')


def _choice(part: str, label: str) -> tuple[Markup, Markup]:
    name = f"choose-{part}"
    return tag("label", label, for_=name), tag("select", id=name, data_part=part)


def _slider(part: str, label: str, points: int, meaning: str) -> tuple[Markup, Markup, Markup]:
    name = f"choose-{part}"
    slider = tag("input", type="range", id=name, data_part=part, min=0, max=points - 1, value=0, title=meaning)
    return tag("label", label, for_=name), slider, tag("output", "-", data_part=f"{part}-value", for_=name)


def _map() -> Markup:
    """A cell for each point: alpha to the right, beta upwards."""
    lines = [join(tag("span", f"{beta:g}"), *(tag("i") for _ in ALPHA_GRID)) for beta in reversed(BETA_GRID)]
    below = [tag("span", MAP_LABELS.get(i, ""), class_="below") for i in range(len(ALPHA_GRID))]
    named = "Accuracy over the grid, alpha to the right and beta upwards; the sliders reach the same points"
    inside = [*lines, tag("span", ""), *below]
    return join(
        tag("p", "\u2191 beta, temperature of the KD head", class_="axis"),
        tag("div", *inside, class_="map", data_part="map", role="img", aria_label=named),
        tag("p", "alpha, weight of the CE head \u2192", class_="axis across"),
    )
