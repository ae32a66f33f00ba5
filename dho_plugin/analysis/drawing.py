"""What all figures share: matplotlib, imported where a figure is drawn and nowhere else, one style, how one is saved.

Text, spines and ticks have one colour, INK, and the grid another, GRID, so that a page can replace both in an SVG for a
dark background; series take PALETTE, whose colours have a contrast of 3 or more on white and on near black.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UsageError

INK = "#1f2328"
GRID = "#d0d7de"
# Blue, orange, green, purple, brown: apart with any of the three colour-vision deficiencies, of which the fifth needs a
# marker or a dash of its own beside the second.
PALETTE = ("#2f7fd6", "#d9622b", "#149a78", "#a83a9b", "#8a6a45")
MISSING = "matplotlib is not installed, and figures need it: pip install 'dho_plugin[report]', or here '.[report]'"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],  # matplotlib brings the first along
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.6,
    "grid.color": GRID,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "dho_plugin",  # or the ids of every file would be others
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), INK),
}


@contextmanager
def styled() -> Iterator[None]:
    """Within this context what is drawn has the style of all figures, and matplotlib's own settings are left alone.

    Raises:
        UsageError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    colours = matplotlib.rcsetup.cycler("color", PALETTE)
    with matplotlib.rc_context({**STYLE, "axes.prop_cycle": colours}):
        yield


def panels(rows: int, columns: int, *, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes (rows, columns), to be called and drawn on within `styled`.

    Args:
        width, height: of a panel, in inches.
    """
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure and choose a display

    figure = Figure(figsize=(columns * width, rows * height))
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: str | Path, *, background: str = "none") -> None:
    """Write <path>.svg, byte for byte the same for the same figure, and <path>.png (150 dpi, on white).

    Args:
        path: without an ending; its folder is made. background: of the SVG, for one that stands on a page of its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with styled():
        svg, png = (path.with_name(f"{path.name}.{ending}") for ending in ("svg", "png"))
        figure.savefig(svg, facecolor=background, metadata={"Date": None})
        figure.savefig(png, facecolor="white", dpi=150)


def check_installed() -> None:
    """Raise UsageError where matplotlib is not there, for a command that draws when all else is done."""
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
        import matplotlib.rcsetup
    except ImportError:
        raise UsageError(MISSING) from None
    return matplotlib
