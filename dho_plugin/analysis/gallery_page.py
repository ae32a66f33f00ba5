"""The gallery as one HTML page without scripts or network: its cards can stand on other pages, with CARDS_CSS."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from PIL import Image

from ..tables.summary import Table
from .cases import Card

SMALL = 64  # pixels a side, up to which a picture is kept without loss, and enlarged without blurring
QUALITY = 88

# Colours are variables of the page: --ink, --paper, --muted, --accent, --line.
CARDS_CSS = """\
.cards { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.cards > li { border: 1px solid var(--line); border-radius: 6px; padding: .75rem; }
.cards figure { margin: 0 0 .5rem; display: flex; gap: .75rem; align-items: center; }
.cards img { width: 7.5rem; height: 7.5rem; object-fit: contain; border-radius: 3px; flex: none; }
.cards img.small { image-rendering: pixelated; }
.cards figcaption { min-width: 0; overflow-wrap: anywhere; }
.cards small { color: var(--muted); display: block; }
.cards dl { margin: 0; display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem .9rem; }
.cards dt { color: var(--muted); font-size: .8rem; }
.cards dd { margin: 0; }
.cards ol { list-style: none; margin: 0; padding: 0; font-size: .85rem; }
.cards ol li { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 .4rem; padding: .1rem 0; }
.cards ol span { overflow-wrap: anywhere; }
.cards data { font-variant-numeric: tabular-nums; }
.cards .bar { grid-column: 1 / -1; height: 3px; background: var(--line); }
.cards .bar i { display: block; height: 100%; background: var(--muted); }
.cards .true { font-weight: 700; }
.cards .true .bar i { background: var(--accent); }
"""

PAGE_CSS = """\
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --muted: #59636e; --accent: #2f7fd6;
  --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --muted: #9198a1; --accent: #58a6ff;
  --line: #3d444d; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; }
th { text-align: left; } tbody th { font-weight: 400; } td { text-align: right; font-variant-numeric: tabular-nums; }
thead th:not(:first-child) { text-align: right; }
a { color: var(--accent); }
"""


def picture(image: Image.Image) -> str:
    """An image as a data URI: PNG up to SMALL pixels a side, else JPEG."""
    file, kind = io.BytesIO(), "png" if max(image.size) <= SMALL else "jpeg"
    image.save(file, kind, **({"quality": QUALITY} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def cards(shown: Sequence[Card], images: Mapping[str, Image.Image], names: Sequence[str]) -> str:
    """A list of cards: an image, its class, and what each model says of it, the true class marked; "" for none.

    Args:
        images: by path. names: of the classes.
    """
    if not shown:
        return ""
    return f'<ul class="cards">\n{"".join(_card(card, images[card.path], names) for card in shown)}</ul>\n'


def page(title: str, lead: Sequence[str], counts: Table, sections: Sequence[tuple[str, str, str, str]]) -> str:
    """A whole page.

    Args:
        title: of the page. lead: sentences below it. counts: how many images each case has. sections: of each case its
            name, title, a sentence, and the HTML of its cards.
    """
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(' '.join(lead))}</p>", _table(counts)]
    for name, heading, text, content in sections:
        body.append(f'<section id="{name}">\n<h2>{escape(heading)}</h2>\n<p>{escape(text)}</p>\n{content}</section>')
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{PAGE_CSS}{CARDS_CSS}</style>
</head>
<body>
<main>
{chr(10).join(body)}
</main>
</body>
</html>
"""


def _table(shown: Table) -> str:
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in shown.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(word)}</td>" for word in words)}</tr>\n'
        for first, *words in shown.lines
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"


def _card(card: Card, image: Image.Image, names: Sequence[str]) -> str:
    name, (width, height) = escape(names[card.label]), image.size
    small = ' class="small"' if max(image.size) <= SMALL else ""
    says = ""
    for who, said in card.says.items():
        classes = "".join(_said(*one, card.label, names) for one in said)
        says += f"<div><dt>{escape(who)}</dt><dd><ol>\n{classes}</ol></dd></div>\n"
    return f"""\
<li>
<figure><img{small} src="{picture(image)}" width="{width}" height="{height}" alt="test image of the class {name}">
<figcaption><strong>{name}</strong><small>{escape(card.file)}</small></figcaption></figure>
<dl>
{says}</dl>
</li>
"""


def _said(label: int, probability: float, true: int, names: Sequence[str]) -> str:
    """A class, its probability as a number and a bar; the true one has a mark, weight and another colour."""
    right, mark = (' class="true"', "✓ ") if label == true else ("", "")
    percent = 100 * probability
    return (
        f'<li{right}><span>{mark}{escape(names[label])}</span><data value="{probability:.6f}">{percent:.0f} %</data>'
        f'<div class="bar"><i style="width:{percent:.1f}%"></i></div></li>\n'
    )
