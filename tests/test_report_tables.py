"""Tables of the page: the words of summary.py, what is best, tied and missing; what the protocol says."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from report_cells import PART, cell

from dho_plugin.report import files, papers, tables
from dho_plugin.report.comparison import Comparison, of_dataset
from dho_plugin.report.markup import Markup
from dho_plugin.report.protocol import protocol
from dho_plugin.tables import summary
from dho_plugin.tables.summary import Paper, Record

SEEDS = (1, 2, 3)
VALUES = {
    "teacher": {"test": (90.0, 90.0, 90.0), "V2": (80.0, 80.0, 80.0)},
    "CoOp": {"test": (60.0, 62.0, 64.0), "V2": (50.0, 52.0, 54.0)},
    "CoOpDHO": {"test": (63.0, 65.1, 66.9), "V2": (51.0, 51.0, 54.5)},
    "VPT": {"test": (1.0, 2.0, 4.0), "V2": ()},
}
PAPER = Paper(("Val", "V2"), {"CoOp": (71.5, 64.2), "CoOpDHO": (72.8, None)})


class Cells(HTMLParser):
    """The text of each row's cells, of which `bold` has those that are marked, and each tag's attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._bold = False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._bold = tag == "strong" or (self._bold and tag != "td")

    def handle_endtag(self, tag):
        self._bold = self._bold and tag != "strong"

    def handle_data(self, data):
        if self.rows:
            self.rows[-1][-1] += data
        if self._bold:
            self.bold.append(data)


@pytest.fixture
def compared(tmp_path) -> Comparison:
    kinds = {"teacher": "ZeroshotCLIP", "CoOp": "CoOp", "CoOpDHO": "CoOpDHO", "VPT": "VPT"}
    rows = {
        row: [cell(tmp_path / f"{row}{seed}", {}, trainer=trainer, row=row, seed=seed) for seed in SEEDS]
        for row, trainer in kinds.items()
    }
    records = [
        Record(row, column, seed, value)
        for row, columns in VALUES.items()
        for column, values in columns.items()
        for seed, value in zip(SEEDS, values, strict=False)
    ]
    return Comparison("t", rows, ["test", "V2"], records, [("CoOpDHO", "CoOp"), ("VPT", "CoOp")], PAPER)


def test_accuracies_are_summarys_words_and_the_papers_stand_behind(compared):
    found = Cells(tables.results_html(compared, lambda row: Markup()))
    wanted = summary.results_table(compared.records, list(compared.rows), compared.columns, PAPER)
    for row, words in zip(found.rows[1:], wanted.lines, strict=True):
        for place, cell_text in enumerate(row[1:]):
            ours, papers_own = words[1 + place], words[3 + place]
            tie = " tie" if (words[0], place) in (("CoOp", 1), ("CoOpDHO", 1)) else ""
            assert cell_text == f"{ours}{tie}{papers_own.removeprefix('-')}"
    assert found.rows[4][2] == "missing"


def test_the_best_trained_row_is_marked_only_where_it_is_clear(compared):
    found = Cells(tables.results_html(compared, lambda row: Markup()))
    assert found.bold == [summary.results_table(compared.records, ["CoOpDHO"], ["test"]).lines[0][1]]
    assert tables.leaders(compared, "V2") == tables.Leaders("", ("CoOpDHO", "CoOp"))
    one_seed = compared._replace(records=[record for record in compared.records if record.seed == 1])
    assert tables.leaders(one_seed, "test") == tables.Leaders("", ())


def test_a_cell_says_how_many_seeds_it_has_where_some_are_missing(compared):
    fewer = [record for record in compared.records if record[:3] != ("CoOp", "test", 3)]
    found = Cells(tables.results_html(compared._replace(records=fewer), lambda row: Markup()))
    assert found.rows[2][1].startswith("61.0 ±1.4 2 of 3") and " of " not in "".join(found.rows[2][2:])


def test_differences_are_summarys_words_and_ties_are_called_so(compared):
    found = Cells(tables.differences_html(compared))
    wanted = summary.differences_table(compared.records, compared.pairs, compared.columns, PAPER)
    (dho, vpt), (line, other) = found.rows[1:], wanted.lines
    assert line[1].endswith("* (+1.3)") and dho[1] == line[1]
    assert "*" not in line[2] and dho[2] == f"{line[2]} tie"
    assert (vpt[1], vpt[2]) == (other[1], "missing") and "*" in vpt[1]


def test_a_column_can_be_sorted_and_what_is_missing_has_no_number(compared):
    found = Cells(tables.results_html(compared, lambda row: Markup()))
    heads = [attributes for tag, attributes in found.tags if tag == "th" and attributes.get("scope") == "col"]
    assert [head["aria-sort"] for head in heads] == ["none"] * 3
    assert sum(tag == "button" for tag, _ in found.tags) == 3
    values = [attributes.get("data-value") for tag, attributes in found.tags if tag == "td"]
    assert values == ["90.0", "80.0", "62.0", "52.0", "65.0", "52.2", "2.3", None]


def test_files_hold_the_same_tables(compared):
    found = files.texts("Title", [compared, compared._replace(title="u", pairs=[])], [])
    words = summary.results_table(compared.records, list(compared.rows), compared.columns, PAPER)
    assert found["md"].count(summary.markdown(words)) == 2 and found["md"].startswith("# Title\n")
    assert found["tex"].count(summary.latex(words)) == 2
    lines = found["csv"].splitlines()
    assert lines[0] == "table,row,column,mean,sd,n,paper,control,difference,se"
    assert "t,CoOpDHO,test,65,1.95192,3,72.8,CoOp,3,0.0577350"[:40] in found["csv"] and len(lines) == 1 + 2 * 8


# The paper's numbers


def test_the_papers_numbers_by_what_a_row_was_trained_with(tmp_path):
    flags = "--dataset imagenet --backbone resnet18"
    rows = {
        "CoOpDHO": cell(tmp_path / "1", {}, trainer="CoOpDHO", flags="--dataset imagenet"),
        "CoOpDHO (labels)": cell(tmp_path / "2", {}, trainer="CoOpDHO", flags="--dataset imagenet --labels-only"),
        "VPT": cell(tmp_path / "3", {}, trainer="VPT", flags="--dataset imagenet TRAINER.VPT.PROMPT_DEPTH 3"),
        "LP": cell(tmp_path / "4", {}, trainer="LinearProbe", row="LP", flags="--dataset imagenet"),
        "mine": cell(tmp_path / "5", {}, trainer="MaPLe", flags="--dataset imagenet"),
    }
    found = papers.paper_beside(rows, ["test", "Sketch"])
    assert found.columns == ("Val", "Sketch")
    assert {row: found.value(row, 1) for row in rows} == {
        "CoOpDHO": 49.5,
        "CoOpDHO (labels)": 49.3,
        "VPT": 47.7,
        "LP": 47.0,
        "mine": None,
    }
    students = {name: cell(tmp_path / name, {}, trainer=name, flags=flags) for name in ("StudentDHO", "CEKD")}
    shots = papers.paper_beside(students, ["1-shot", "16-shot"])
    assert [shots.value(name, 1) for name in students] == [54.5, 51.2]
    assert papers.paper_beside(students, ["1-shot", "all"]) == papers.paper_beside(rows, ["other"]) == summary.NO_PAPER


# Protocol


def test_what_all_share_is_said_once_and_what_differs_by_row(tmp_path):
    def part(number):
        return {"images": 12, "sha256": f"{number}" * 64}

    runs = [
        cell(
            tmp_path / f"{trainer}{seed}",
            {"test": 1.0},
            trainer=trainer,
            seed=seed,
            labeled=part(seed),
            unlabeled=PART if trainer == "CoOpDHO" else {"images": 0, "sha256": "0" * 64},
            interpolation={"alpha": 0.5, "beta": 1.0, "chosen": chosen} if trainer == "CoOpDHO" else None,
            transductive=seed == 2,
        )
        for trainer, chosen in (("CoOp", ""), ("CoOpDHO", "oracle"))
        for seed in (1, 2)
    ]
    shared, by_row = protocol(of_dataset("Shapes", "Shapes", runs))
    assert shared["labelled images"] == "12" and shared["student"] == "shapes-student"
    assert shared["labelled images, hash"] == "seed 1: 1111111111; seed 2: 2222222222"  # the same for all of a seed
    assert by_row["CoOp"]["unlabelled images"] == "0" and by_row["CoOpDHO"]["unlabelled images"] == "12"
    assert by_row["CoOpDHO"]["alpha and beta"] == "0.5 and 1, ORACLE, searched on the test images"
    assert by_row["CoOpDHO"]["caveats"] == "oracle; oracle, transductive"
    assert by_row["CoOp"]["caveats"] == "none; transductive"
    assert set(shared).isdisjoint(by_row["CoOp"])
