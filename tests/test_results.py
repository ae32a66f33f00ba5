"""The committed tables are what their commands print, as far as that can be seen without running them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dho_plugin import table13

ROOT = Path(__file__).resolve().parent.parent
TABLES = sorted((ROOT / "scripts" / "results").glob("table13_*.md"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_a_table_of_the_paper_has_every_row_its_command_makes(path):
    text = path.read_text(encoding="utf-8")
    command = next(line for line in text.splitlines() if line.startswith("    python"))
    args = table13.parse([*shlex.split(command)[4:], "--dry-run"])
    assert args.table == f"scripts/results/{path.name}" and not args.rows and len(args.seeds) == 3
    assert "missing" not in text
    for method in table13.settle(args).methods:
        assert f"\n| {method.row} " in text, method.row


def test_readme_quotes_the_table():
    """Each number of README's extract stands in the row it belongs to."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = (ROOT / "scripts/results/table13_shapes.md").read_text(encoding="utf-8")
    extract = readme.partition("| base method | alone |")[2].partition("\n\n")[0]
    columns = ("", " + CasPL", " + DHO (labels)", " + DHO (+ unlabelled)")
    quoted = 0
    for line in extract.splitlines()[2:]:
        base, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for column, cell in zip(columns, cells, strict=True):
            if cell:
                row = base.partition(" (")[0] + column
                assert re.search(rf"^\| {re.escape(row)} +\| +{re.escape(cell)} \|", text, re.MULTILINE), row
                quoted += 1
    assert quoted == 17
