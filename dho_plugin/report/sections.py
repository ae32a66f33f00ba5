"""The sections of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..tables.summary import Table
from . import tables
from .collect import Problem, Run
from .comparison import Comparison
from .control import Explored, control
from .inline import Picture
from .markup import Markup, join, tag
from .pictures import OfRow
from .protocol import KEY, Facts, caveats, protocol


def comparison(compared: Comparison) -> Markup:
    """The tables of a comparison, and how they came about."""

    def badges(row: str) -> Markup:
        return join(*(join(" ", tag("span", word, class_="badge")) for word in caveats(compared.rows[row])))

    parts = [tables.results_html(compared, badges), tag("p", tables.legend(compared), class_="note")]
    if compared.pairs:
        meaning = tag("p", tables.differences_legend(compared).replace("`", ""), class_="note")
        parts += [tag("h3", "Paired differences"), tables.differences_html(compared), meaning]
    return join(*parts, tag("h3", "Protocol"), *_protocol(compared))


def _protocol(compared: Comparison) -> list[Markup]:
    """What is the same for all at once; what differs by row; the rest, and every run, to be unfolded."""
    shared, by_row = protocol(compared)
    key = {name: shared.pop(name) for name in KEY if name in shared}
    every = {
        f"{row}, seed {run.seed}": [str(run.folder), _began(run), run.manifest.get("finished") or "not over"]
        for row, runs in compared.rows.items()
        for run in runs
        if run.manifest
    }
    runs = _words("Every run", ["Run", "folder", "started", "finished"], every)
    return [
        _facts(key),
        _by_row(by_row, at_once=True),
        _unfolded_by("Settings and hashes that differ between rows", _by_row(by_row, at_once=False)),
        _unfolded_by("Settings, hashes, versions and command that all share", _facts(shared)),
        _unfolded_by(f"Every trained run ({len(every)})", runs),
    ]


def _by_row(by_row: Mapping[str, Facts], *, at_once: bool) -> Markup:
    """The facts of KEY that differ between rows, or the others."""
    names = list(dict.fromkeys(name for facts in by_row.values() for name in facts if (name in KEY) is at_once))
    rows = {row: [facts.get(name, "") for name in names] for row, facts in by_row.items() if facts}
    return _words("What differs between rows", ["Row", *names], rows) if names else Markup()


def _unfolded_by(summary: str, inside: Markup) -> Markup:
    return tag("details", tag("summary", summary), inside) if inside else Markup()


def _began(run: Run) -> str:
    return (run.manifest.get("started") or {}).get("time", "-")


def _facts(facts: Mapping[str, str]) -> Markup:
    lines = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()]
    return tag("dl", *lines, class_="facts") if lines else Markup()


def _words(caption: str, header: Sequence[str], rows: Mapping[str, Sequence[str]]) -> Markup:
    """A table of words."""
    head = tag("thead", tag("tr", *(tag("th", word, scope="col") for word in header)))
    lines = [
        tag("tr", tag("th", row, scope="row"), *(tag("td", word) for word in words)) for row, words in rows.items()
    ]
    table = tag("table", tag("caption", caption, class_="unseen"), head, tag("tbody", *lines), class_="words")
    return tables.scrolling(table, caption)


def alpha_beta(explored: Sequence[Explored]) -> Markup:
    """The control, and what it shows."""
    if not explored:
        return Markup()
    said = (
        "Top-1 accuracy with alpha * softmax(CE) + (1 - alpha) * softmax(KD / beta), Eq. 11, computed in this page "
        "from what both heads answered. The square is fixed by the configuration, the circle was searched on "
        "validation images; the hollow diamond is an oracle, searched on the very images that it is shown on, and no "
        "result."
    )
    return join(tag("p", said), control(explored))


def heads(rows: Sequence[OfRow]) -> Markup:
    """For each row with two heads what they come to, the first unfolded."""
    return join(*(_of_row(row, unfolded=i == 0) for i, row in enumerate(rows)))


def _of_row(row: OfRow, *, unfolded: bool) -> Markup:
    asked = tag("ul", *(tag("li", note) for note in row.notes), class_="note")
    parts = [tag("details", tag("summary", "What was asked, and what was not"), asked)]
    for section, pictures in row.sections:
        shown = [plain_table(section.heading, table) for table in section.tables]
        said = [tag("p", text.replace("`", ""), class_="note") for text in section.text]
        parts.append(join(tag("h3", section.heading), *map(figure, pictures), *shown, *said))
    return tag("details", tag("summary", row.title), *parts, open=unfolded)


def plain_table(caption: str, table: Table) -> Markup:
    """A table as it is."""
    return tables.html(caption, table, lambda line, column, word: join(word), lambda line: join(table.lines[line][0]))


def figure(picture: Picture) -> Markup:
    """A figure with what is seen in it."""
    title = tag("h3", picture.title) if picture.title else ""
    drawing = tables.scrolling(picture.svg, picture.title or picture.caption)
    return tag("figure", title, drawing, tag("figcaption", picture.caption), id=f"figure-{picture.name}")


def curves(by_title: Mapping[str, Sequence[Picture]]) -> Markup:
    """Training curves, the first of each comparison unfolded."""
    parts = []
    for title, pictures in by_title.items():
        rows = [
            tag("details", tag("summary", picture.title), figure(picture._replace(title="")), open=i == 0)
            for i, picture in enumerate(pictures)
        ]
        parts.append(join(tag("h3", title), *rows))
    return join(*parts)


def missing(problems: Sequence[Problem]) -> Markup:
    """What is left out, and why."""
    names: dict[str, list[str]] = {}
    for problem in problems:
        names.setdefault(problem.what, []).append(problem.name)
    lines = [tag("li", f"{what}: ", join(*(tag("code", name) for name in own), by=", ")) for what, own in names.items()]
    return tag("ul", *lines) if lines else Markup()
