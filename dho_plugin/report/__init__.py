"""`python -m dho_plugin report`: one page about a run, a grid or a table, in one file that needs no network."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..sealed import write_whole
from .asking import Asking
from .collect import collect
from .comparison import told_apart
from .explorer import explore
from .files import details, texts
from .page import Content, document
from .pictures import draw
from .tables_left import comparisons


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin report", description=__doc__)
    p.add_argument("runs", nargs="+", metavar="RUN_OR_GRID", help="output folder of a run, or one that holds such")
    p.add_argument("--output", default="", metavar="FILE.html", help="default RUN_OR_GRID/report/index.html")
    p.add_argument("--root", default="", help="folder that holds the datasets, where it is another than a run's own")
    p.add_argument("--no-answers", action="store_true", help="look at no image: logits that runs have kept, or none")
    p.add_argument("--title", default="", help="heading of the page")
    return p


def main(argv: Sequence[str]) -> int:
    """Make the page and its files; 0 also where runs are broken or not over, which the page then names."""
    args = parser().parse_args(argv)
    output = Path(args.output or Path(args.runs[0], "report", "index.html")).expanduser()
    if output.suffix != ".html":
        raise UsageError(f"--output {args.output}: expected the name of an .html file")
    sources = collect(args.runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    found = told_apart([comparison for source in sources for comparison in comparisons(source)])
    problems = [problem for source in sources for problem in source.problems]
    asking = Asking(not args.no_answers, args.root, problems)
    beside = output.with_name(f"{output.stem}_files")
    drawn = draw(found, beside, asking)
    title = args.title or f"Runs on {', '.join(dict.fromkeys(comparison.dataset for comparison in found))}"
    made = f"Made by {shlex.join(['python', '-m', 'dho_plugin', 'report', *argv])}."
    content = Content(
        title,
        found,
        explore(found, asking),
        drawn.heads,
        drawn.curves,
        drawn.conflict,
        problems,
        texts(title, found, drawn.heads),
        (made, drawn.note),
    )
    write_whole(output, document(content))
    for ending, text in content.files.items():
        write_whole(output.with_suffix(f".{ending}"), text)
    for name, text in details(drawn.heads).items():
        beside.mkdir(exist_ok=True)
        write_whole(beside / name, text)
    print(f"{output} ({output.stat().st_size / 2**20:.1f} MiB), and beside it {output.stem}.md, .tex, .csv")
    print(drawn.note)
    return 0
