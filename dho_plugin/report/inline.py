"""A matplotlib figure as an SVG inside a page: no file, no address, ids of its own, ink and grid the page's."""

from __future__ import annotations

import io
import re
from typing import Any, NamedTuple

from ..analysis import drawing
from .markup import Markup
from .markup import text as escaped

COLOURS = {drawing.INK: "var(--ink)", drawing.GRID: "var(--grid)"}
_NOT_HERE = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_ID = re.compile(r'\bid="([^"]+)"|url\(#([^)]+)\)|xlink:href="#([^"]+)"')


class Picture(NamedTuple):
    """A figure in the page. name: of its files. caption: what is seen."""

    name: str
    title: str
    caption: str
    svg: Markup


def inline(figure: Any, name: str, description: str) -> Markup:
    """The figure as an <svg> element.

    Args:
        name: what its ids begin with, another for each figure of a page. description: for who cannot see it.
    """
    file = io.StringIO()
    with drawing.styled():
        figure.savefig(file, format="svg", metadata={"Date": None})
    return svg(file.getvalue(), name, description)


def svg(text: str, name: str, description: str) -> Markup:
    """See inline; text: an SVG file as matplotlib writes it."""
    text = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = _ID.sub(lambda match: _renamed(match, name), text)
    text = text.replace('xlink:href="data:', 'href="data:')
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    wide = re.search(r'width="([\d.]+pt)"', text)
    width = f' style="--wide: {wide[1]}"' if wide else ""
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escaped(description)}"{width}', 1).strip())


def _renamed(match: re.Match[str], name: str) -> str:
    own, used, linked = match.groups()
    if own:
        return f'id="{name}-{own}"'
    return f"url(#{name}-{used})" if used else f'href="#{name}-{linked}"'
