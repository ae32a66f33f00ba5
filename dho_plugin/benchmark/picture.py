"""Where the time of a step goes, as a picture: the peers' way and ours on one scale, and ours enlarged."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

WIDTH, LEFT, BAR, GAP, LEGEND = 900, 170, 34, 26, 22
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377")  # told apart by colour-blind readers (Paul Tol)


def draw(title: str, peers: Mapping[str, float], ours: Mapping[str, float]) -> str:
    """An SVG of three bars.

    Args:
        title: what was measured. peers, ours: seconds by part, the same parts.
    """
    before, now = sum(peers.values()), sum(ours.values())
    times = before / now
    bars = (
        ("peers' way", peers, before),
        ("here", ours, before),
        (f"here, {times:.0f} x enlarged", ours, now),
    )
    top = 44
    lines = [f'<text x="16" y="26" font-weight="bold">{escape(title)}</text>']
    for row, (name, parts, scale) in enumerate(bars):
        lines += _bar(name, parts, scale, top + row * (BAR + GAP))
    top += len(bars) * (BAR + GAP)
    for row, (name, colour) in enumerate(zip(peers, COLOURS, strict=True)):
        y = top + row * LEGEND
        share = f"{name}: {100 * peers[name] / before:.1f} % before, {100 * ours[name] / now:.1f} % now"
        lines.append(f'<rect x="{LEFT}" y="{y}" width="14" height="14" fill="{colour}"/>')
        lines.append(f'<text x="{LEFT + 22}" y="{y + 12}">{escape(share)}</text>')
    height = top + len(COLOURS) * LEGEND + 12
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(title, quote=True)}">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    )
    return "\n".join([head, *lines, "</svg>", ""])


def _bar(name: str, parts: Mapping[str, float], scale: float, y: int) -> list[str]:
    """A bar whose full width is `scale` seconds, named on its left, its sum behind it."""
    lines = [f'<text x="{LEFT - 8}" y="{y + 21}" text-anchor="end">{escape(name)}</text>']
    x, room = float(LEFT), WIDTH - LEFT - 90
    for seconds, colour in zip(parts.values(), COLOURS, strict=True):
        width = room * seconds / scale
        lines.append(f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{BAR}" fill="{colour}"/>')
        x += width
    lines.append(f'<text x="{x + 8:.2f}" y="{y + 21}">{_seconds(sum(parts.values()))}</text>')
    return lines


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
