"""The committed tables are what their commands print, as far as that can be seen without running them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from dho_plugin.tables import ablations, conflict, low_shot, students, table13

ROOT = Path(__file__).resolve().parent.parent
BY_SETS = {"table13": table13, "low_shot": low_shot}
TABLES = sorted(path for name in BY_SETS for path in (ROOT / "scripts" / "results").glob(f"{name}_*.md"))
CONFLICT = sorted((ROOT / "scripts" / "results").glob("conflict_*.md"))
BY_SHOTS = {
    path: {"students": students, "ablations": ablations}[path.name.partition("_")[0]]
    for path in sorted((ROOT / "scripts" / "results").glob("*.md"))
    if path not in (*TABLES, *CONFLICT)
}


def command_of(text: str) -> list[str]:
    """The words behind `python -m dho_plugin NAME` in a committed table."""
    return shlex.split(next(line for line in text.splitlines() if line.startswith("    python")))[4:]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_a_table_of_the_paper_has_every_row_its_command_makes(path):
    text = path.read_text(encoding="utf-8")
    table = BY_SETS[path.name.rpartition("_")[0]]
    args = table.parse([*command_of(text), "--dry-run"])
    assert args.table == f"scripts/results/{path.name}" and not args.rows and len(args.seeds) == 3
    assert "missing" not in text
    for method in table.settle(args).methods:
        assert f"\n| {method.row} " in text, method.row


@pytest.mark.parametrize("path", BY_SHOTS, ids=lambda path: path.name)
def test_a_table_by_shots_has_every_row_and_column_its_command_makes(path):
    text = path.read_text(encoding="utf-8")
    args = BY_SHOTS[path].parse([*command_of(text), "--dry-run"])
    assert args.table == f"scripts/results/{path.name}" and not args.rows and len(args.seeds) == 3
    assert "missing" not in text
    job, _ = BY_SHOTS[path].settle(args)
    sections = text.split("\n## ")
    for block in job.blocks:
        own = next(part for part in sections if part.startswith(block.heading)) if block.heading else text
        header = next(line for line in own.splitlines() if line.startswith("| top-1, % "))
        assert all(f" {column} " in header for column in job.columns()), header
        for method in block.methods:
            assert f"\n| {method.row} " in own, (block.name, method.row)


@pytest.mark.parametrize("path", CONFLICT, ids=lambda path: path.name)
def test_a_document_on_conflict_has_its_figure_and_every_seed_and_trainer(path):
    text = path.read_text(encoding="utf-8")
    args = conflict.parse(command_of(text))
    assert args.table == f"scripts/results/{path.name}" and len(args.seeds) >= 3
    for picture in re.findall(r"\]\((.*?)\)", text):
        assert (path.parent / picture).resolve() == (ROOT / f"{args.figure}.svg").resolve()
        assert (path.parent / picture).is_file()
    header = next(line for line in text.splitlines() if line.startswith("| last quarter of training "))
    assert all(f" seed {seed} " in header for seed in args.seeds)
    assert all(f"\n* {row}: the late cosine over the shared parameters is " in text for row in args.trainers)


def test_what_docs_say_of_conflict_is_in_its_documents():
    """Each row of the table of settings: the late cosines of its document."""
    docs = (ROOT / "docs" / "conflict.md").read_text(encoding="utf-8")
    for path in CONFLICT:
        text = path.read_text(encoding="utf-8")
        row = next(line for line in docs.splitlines() if f"results/{path.name}" in line and line.startswith("|"))
        found = re.findall(r"the late cosine over the shared parameters is (\S+ ±\S+), below zero in (\d+) of", text)
        assert [f"{cosine}, {below} of {len(conflict.parse(command_of(text)).seeds)}" for cosine, below in found] == [
            cell.strip() for cell in row.strip("|").split("|")
        ][-2:]


def test_the_page_on_students_quotes_the_tables():
    """Rows of its extract by shots are rows of the committed table; so are the lines on the kinds of teacher."""
    page = (ROOT / "docs" / "students.md").read_text(encoding="utf-8")
    shapes = (ROOT / "scripts/results/students_shapes.md").read_text(encoding="utf-8")
    extract = page.partition("| top-1, % | 1-shot |")[2].partition("\n\n")[0].splitlines()[2:]
    for line in extract:
        row, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        own = " +\\| +".join(map(re.escape, cells))
        assert re.search(rf"^\| {re.escape(row)} +\| +{own} \|", shapes, re.MULTILINE), row
    assert len(extract) == 5
    digits = (ROOT / "scripts/results/students_digits.md").read_text(encoding="utf-8").partition("## By teacher")[2]
    found = page.partition("| the teacher's errors | teacher | DHO minus CEKD")[2].partition("\n\n")[0]
    for line, kind in zip(found.splitlines()[2:], ("confused", "noisy", "clean"), strict=True):
        _, *numbers, counts = (cell.strip() for cell in line.strip("|").split("|"))
        own = next(line for line in digits.splitlines() if line.startswith(f"| {kind} "))
        assert [cell.strip() for cell in own.strip("|").split("|")][1:] == [*numbers, *counts.split(", ")]


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
