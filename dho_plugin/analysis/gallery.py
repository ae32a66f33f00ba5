"""`python -m dho_plugin gallery RUN`: images by which head is right, with what teacher, heads and combination say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..tables.command import write
from .cases import TITLES
from .drawing import save, styled
from .gallery_figure import case_figure
from .gallery_of import Gallery, gallery_of
from .gallery_page import cards, page
from .gallery_text import counts_table, document, numbers, sentence


def html(gallery: Gallery) -> str:
    """The gallery as one page, which needs no other file."""
    sections = [
        (case.name, case.title, sentence(case, len(shown)), cards(shown, gallery.images, gallery.names))
        for case in gallery.cases
        if (shown := gallery.shown.get(case.name)) is not None
    ]
    return page(gallery.title, gallery.lead, counts_table(gallery.cases), sections)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        UsageError: a number that cannot be meant.
    """
    p = argparse.ArgumentParser(prog="python -m dho_plugin gallery", description=__doc__)
    p.add_argument("run", help="output folder of a finished run")
    p.add_argument("--split", default="test", help="test, val or a shift of the dataset")
    p.add_argument("--cases", nargs="+", default=[], choices=TITLES, help="default: all but right")
    p.add_argument("--per-case", type=int, default=8, metavar="N", help="images of each case (default 8)")
    p.add_argument("--top", type=int, default=3, metavar="K", help="classes that each model names (default 3)")
    p.add_argument("--root", default="", help="folder that holds the datasets now (default: the run's)")
    p.add_argument("--output-dir", default="", help="default RUN/gallery, for other sets RUN/gallery/SPLIT")
    p.add_argument("--no-teacher", action="store_true", help="do not ask the teacher")
    args = p.parse_args(argv)
    for flag, value in (("--per-case", args.per_case), ("--top", args.top)):
        if value < 1:
            raise UsageError(f"{flag} {value}: expected 1 or more")
    return args


def main(argv: Sequence[str]) -> int:
    """Write page, figures, tables and numbers, and print the tables."""
    args = parse(argv)
    folder = Path(args.run).expanduser() / "gallery" / ("" if args.split == "test" else args.split)
    folder = Path(args.output_dir).expanduser() if args.output_dir else folder
    with styled():  # what figures need is said before a model is asked
        gallery = gallery_of(
            args.run,
            args.split,
            wanted=args.cases,
            per_case=args.per_case,
            top=args.top,
            root=args.root,
            teacher=not args.no_teacher,
        )
        for case in gallery.cases:
            if gallery.shown.get(case.name):
                figure = case_figure(gallery.shown[case.name], gallery.images, gallery.names, case.title)
                save(figure, folder / case.name)
    text, content = document(gallery), json.dumps(numbers(gallery), indent=1) + "\n"
    write(folder, "gallery", {"md": text, "html": html(gallery), "json": content})
    print(f"{text}\nThe page is {folder / 'gallery.html'}")
    return 0
