"""`python -m dho_plugin theory [RUN]`: what Appendix A of the paper says of temperatures, measured (docs/theory.md).

Without a run: pairs of logits for which Lemma A.4 fails, and how often it fails for random ones. With one: on how many
images it holds for the run's KD head and teacher, and how far its heads are from what Theorem A.3 assumes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..tables.command import write
from ..tables.summary import comma_separated
from .drawing import save, styled
from .theory_figure import figure_of
from .theory_of import TAUS, measure
from .theory_text import document, examples_table, numbers, random_table, shares_table, without_a_run


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        UsageError: a temperature that is none.
    """
    p = argparse.ArgumentParser(prog="python -m dho_plugin theory", description=__doc__)
    p.add_argument("run", nargs="?", default="", help="output folder of a finished run with two heads")
    p.add_argument("--split", default="test", help="test, val or a shift of the dataset")
    p.add_argument("--taus", type=float, nargs="+", default=list(TAUS), metavar="T", help="temperatures")
    p.add_argument("--root", default="", help="folder that holds the datasets now (default: the run's)")
    p.add_argument(
        "--output-dir", default="", help="default RUN/theory, for other sets RUN/theory/SPLIT, none without a run"
    )
    args = p.parse_args(argv)
    for tau in args.taus:
        if not 0 < tau < float("inf"):
            raise UsageError(f"--taus {tau:g}: expected temperatures above 0")
    return args


def main(argv: Sequence[str]) -> int:
    """Print the tables; leave them in a folder, those of a run with its figure."""
    args = parse(argv)
    folder = Path(args.output_dir).expanduser() if args.output_dir else None
    content: dict[str, Any]
    if args.run:
        folder = folder or Path(args.run).expanduser() / "theory" / ("" if args.split == "test" else args.split)
        with styled():  # what figures need is said before a model is asked
            found = measure(args.run, args.split, taus=args.taus, root=args.root)
            save(figure_of(found), folder / "theory")
        text, table, content = document(found), shares_table(found.shares), numbers(found)
    else:
        table = random_table(args.taus)
        text, content = without_a_run(table), {"examples": examples_table()._asdict(), "random": table._asdict()}
    print(text)
    if folder:
        write(
            folder, "theory", {"md": text, "csv": comma_separated(table), "json": json.dumps(content, indent=1) + "\n"}
        )
        print(f"Tables are in {folder}")
    return 0
