"""The gallery in words: as Markdown, and as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tables.summary import Table, markdown
from .cases import Card, Case
from .gallery_of import Gallery


def counts_table(cases: Sequence[Case]) -> Table:
    """How many images each case has, in words."""
    total = sum(len(case.rows) for case in cases)
    lines = [(case.title, f"{len(case.rows):,}", f"{100 * len(case.rows) / total:.1f}") for case in cases]
    return Table(("case", "images", "%"), tuple(lines))


def sentence(case: Case, shown: int) -> str:
    """How many images a case has, and how many of them are shown."""
    if not case.rows:
        return "No image of this set."
    which = "all of them are shown" if shown == len(case.rows) else f"{shown:,} are shown"
    return f"{len(case.rows):,} {'image' if len(case.rows) == 1 else 'images'}, {which}."


def cards_table(shown: Sequence[Card], names: Sequence[str]) -> Table:
    """The first class of each model for some images, at least one."""
    lines = []
    for card in shown:
        firsts = [f"{names[label]} {100 * probability:.0f} %" for (label, probability), *_ in card.says.values()]
        lines.append((card.file, names[card.label], *firsts))
    return Table(("image", "class", *shown[0].says), tuple(lines))


def document(gallery: Gallery) -> str:
    """The gallery as Markdown."""
    parts = [f"# {gallery.title}", " ".join(gallery.lead), markdown(counts_table(gallery.cases))]
    for case in gallery.cases:
        if case.name in gallery.shown:
            shown = gallery.shown[case.name]
            parts += [f"## {case.title}", sentence(case, len(shown))]
            parts += [markdown(cards_table(shown, gallery.names))] if shown else []
    return "\n\n".join(parts) + "\n"


def numbers(gallery: Gallery) -> dict[str, Any]:
    """What is shown, as plain values; a case that was not asked for has no "shown"."""

    def classes(said: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        return [{"class": gallery.names[label], "probability": probability} for label, probability in said]

    cases = []
    for case in gallery.cases:
        entry = {"name": case.name, "title": case.title, "images": len(case.rows)}
        if case.name in gallery.shown:
            entry["shown"] = [
                {
                    "image": card.path,
                    "class": gallery.names[card.label],
                    "says": {who: classes(said) for who, said in card.says.items()},
                }
                for card in gallery.shown[case.name]
            ]
        cases.append(entry)
    return {"title": gallery.title, "lead": list(gallery.lead), "cases": cases}
