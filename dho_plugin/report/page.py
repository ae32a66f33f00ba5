"""The page: its sections in order, one file with nothing outside of it."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from . import sections
from .collect import ZERO_SHOT, Problem, Run
from .comparison import Comparison
from .control import Explored
from .inline import Picture
from .markup import Markup, join, tag
from .pictures import OfRow
from .protocol import CAVEATS, caveats


class Content(NamedTuple):
    """What a page is made of.

    Attributes:
        comparisons: see comparison.py. explored: what the alpha-beta control shows. heads: figures and tables of rows.
        curves: by title of comparison, a figure for each row. conflict: of gradients, by comparison.
        problems: what is left out, and why. files: tables by ending. notes: how the page was made, where its files are.
    """

    title: str
    comparisons: Sequence[Comparison]
    explored: Sequence[Explored]
    heads: Sequence[OfRow]
    curves: Mapping[str, Sequence[Picture]]
    conflict: Sequence[Picture]
    problems: Sequence[Problem]
    files: Mapping[str, str]
    notes: Sequence[str]


def document(content: Content) -> str:
    """The page as HTML."""
    parts = [
        *((f"table-{i}", one.title, sections.comparison(one)) for i, one in enumerate(content.comparisons)),
        ("control", "Alpha and beta", sections.alpha_beta(content.explored)),
        ("heads", "Both heads", sections.heads(content.heads)),
        ("conflict", "Gradient conflict", join(*map(sections.figure, content.conflict))),
        ("curves", "Training", sections.curves(content.curves)),
        ("missing", "Not in this page", sections.missing(content.problems)),
    ]
    shown = [part for part in parts if part[2]]
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in shown]
    toggle = tag("button", "Dark", id="theme", type="button", aria_pressed="false")
    body = tag(
        "body",
        tag("a", "Skip to the results", href="#main", class_="skip"),
        tag("div", toggle, class_="bar"),
        tag("header", *_heading(content), tag("nav", tag("ul", *links), aria_label="Contents")),
        tag("main", *(_section(*part) for part in shown), id="main"),
        tag("footer", *_footer(content)),
        tag("script", Markup(_own("page.js"))),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", content.title),
        tag("style", Markup(_own("page.css"))),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _section(name: str, title: str, inside: Markup) -> Markup:
    return tag("section", tag("h2", title, id=f"{name}-title"), inside, id=name, aria_labelledby=f"{name}-title")


def _heading(content: Content) -> list[Markup]:
    runs = [run for comparison in content.comparisons for run in comparison.runs]
    found = {word: [run for run in runs if word in run.caveats] for word in caveats(runs)}
    said = [
        tag("p", tag("span", word, class_="badge"), f" {len(own)} of {len(runs)} runs: {CAVEATS[word]}.")
        for word, own in found.items()
    ]
    warning = [tag("div", *said, class_="warning", role="note")] if said else []
    return [tag("h1", content.title), tag("p", lede(runs), class_="lede"), *warning]


def lede(runs: Sequence[Run]) -> str:
    """What a page is about, in a sentence."""
    trained = [run for run in runs if run.trainer != ZERO_SHOT] or runs
    seeds = [str(seed) for seed in sorted({run.seed for run in trained})]
    many = f"{len(runs)} run{'s' if len(runs) > 1 else ''} on {_listed(run.dataset for run in runs)}"
    labels = _listed(run.labels for run in trained).replace("all", "all labels")
    which = f"{labels}; seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"
    return f"{many}: {_listed(run.trainer for run in runs)}; {which}."


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(set(words), key=str.casefold))


def _footer(content: Content) -> list[Markup]:
    links = [
        tag("a", name, download=f"tables.{ending}", href=f"data:{kind};base64,{_base64(content.files[ending])}")
        for ending, name, kind in (
            ("md", "Markdown", "text/markdown"),
            ("tex", "LaTeX", "text/x-tex"),
            ("csv", "CSV", "text/csv"),
        )
    ]
    tables = tag("p", "All tables of this page: ", join(*links, by=", "), ".")
    return [tables, *(tag("p", note, class_="small") for note in content.notes)]


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
