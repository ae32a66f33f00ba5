"""The page itself: all of it in one file, nothing outside of it, whatever names hold, whatever is missing."""

from __future__ import annotations

import json
import re
import sys
from contextlib import redirect_stdout
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runs
import torch
from report_cells import cell
from test_slider import CASES, counted

from dho_plugin import report
from dho_plugin.__main__ import main
from dho_plugin.analysis import conflict_log, drawing
from dho_plugin.analysis.alpha_beta import Point
from dho_plugin.analysis.answers import answers_of
from dho_plugin.analysis.over_seeds import Section
from dho_plugin.heads import DualHeadLogits
from dho_plugin.interpolation import ALPHA_GRID, BETA_GRID
from dho_plugin.report import explorer, pictures
from dho_plugin.report.collect import Problem
from dho_plugin.report.comparison import of_dataset
from dho_plugin.report.control import Explored
from dho_plugin.report.inline import Picture
from dho_plugin.report.markup import Markup, tag
from dho_plugin.report.page import Content, document
from dho_plugin.report.pictures import OfRow
from dho_plugin.report.slider import packed, slider
from dho_plugin.tables.summary import Table

EVIL = '</script><script>alert("1")</script><img src=x onerror=alert(1)> & "quoted" \'single\' -->'


class Elements(HTMLParser):
    """Every element with its attributes, the text of scripts by id, and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._script = dict(attributes).get("id", tag) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text += data
        else:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data


def check_alone(page: str) -> Elements:
    """No address, no other file, each id once, each link to an id that there is."""
    assert not re.search(r"https?://", page)
    found = Elements(page)
    ids = [attributes["id"] for _, attributes in found.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name, attributes in found.found:
        assert name not in ("link", "iframe", "object", "embed", "base")
        for key in ("src", "href", "xlink:href", "srcset", "data", "action"):
            target = attributes.get(key) or "#"
            assert target.startswith("data:") or target == "#" or target[1:] in ids, (name, target)
        assert not any(key.startswith("on") for key in attributes)
    for script in ("page.css", "page.js"):
        assert not re.search(r"url\(|@import|fetch\(|import\(", Path(report.__file__).with_name(script).read_text())
    return found


@pytest.fixture
def content(tmp_path) -> Content:
    """A page of two runs whose names hold what ends a script."""
    compared = of_dataset(
        "Shapes",
        EVIL,
        [
            cell(tmp_path / "1", {"test": 60.0}, row=EVIL, trainer="CoOpDHO", student={"name": EVIL}),
            cell(tmp_path / "2", {}, row="other", finished=None, transductive=True, results=None),
        ],
    )
    logits, labels = CASES["plain"]
    points = [Point(0.5, 1.0, "fixed", True, 60.0), Point(0.3, 0.6, "oracle", False, 61.0)]
    explored = [Explored(EVIL, 1, "test", points, json.dumps(packed(slider(logits, labels))))]
    section = Section("map", EVIL, (Table(("a", EVIL), ((EVIL, "1.0"),)),), (EVIL,), Table((), ()))
    picture = Picture("name", EVIL, EVIL, Markup("<svg></svg>"))
    heads = [OfRow("row", EVIL, [EVIL], [(section, [picture._replace(name="other")])])]
    return Content(
        EVIL,
        [compared],
        explored,
        heads,
        {EVIL: [picture]},
        [],
        [Problem(EVIL, EVIL)],
        {"md": EVIL, "tex": EVIL, "csv": EVIL},
        (EVIL,),
    )


def test_names_can_hold_anything(content):
    found = check_alone(document(content))
    assert {name for name, _ in found.found}.isdisjoint({"img"})
    assert set(found.scripts) == {"slider-data", "slider-0", "script", "style"}
    assert found.text.count(EVIL) >= 12
    assert json.loads(found.scripts["slider-data"])["runs"][0]["row"] == EVIL


def test_attributes_and_text_are_escaped_and_markup_is_not():
    assert tag("a", "<b>", tag("br"), href='"&', class_="x", hidden=True, title=None, open=False) == (
        '<a href="&quot;&amp;" class="x" hidden>&lt;b&gt;<br></a>'
    )


def test_the_page_says_what_it_is_about_and_warns(content):
    page = document(content)
    found = Elements(page)
    assert "2 runs on Shapes: CoOp, CoOpDHO; 16-shot; seed 1." in found.text
    assert "1 of 2 runs: the model has learned from test images" in found.text
    assert page.count('class="badge"') == 2  # in the heading and beside the row
    landmarks = {name for name, _ in found.found}
    assert {"header", "nav", "main", "footer", "h1", "title"} <= landmarks
    assert ("html", {"lang": "en"}) in found.found
    assert next(attributes for name, attributes in found.found if name == "a")["href"] == "#main"


def test_missing_cells_are_called_missing(content):
    assert "missing" in Elements(document(content)).text


def test_gradient_conflict_is_drawn_where_runs_were_looked_at(tmp_path):
    rows = [
        cell(tmp_path / trainer, {"test": 1.0}, trainer=trainer, flags="--dataset shapes --shots 4")
        for trainer in ("StudentDHO", "CEKD", "CE")
    ]
    for run in rows[:2]:
        for step in (1, 2, 3):
            conflict_log.append(run.folder, conflict_log.Observation(1, step, *[0.1 * step] * 9))
    compared = of_dataset("Shapes", "Shapes", rows)
    with drawing.styled():
        found = pictures.of_conflict(0, compared, tmp_path / "files")
        assert pictures.of_conflict(0, of_dataset("Shapes", "Shapes", rows[2:]), tmp_path / "files") is None
    assert ">StudentDHO</text>" in found.svg and ">CEKD</text>" in found.svg and ">CE</text>" not in found.svg
    assert (tmp_path / "files" / "conflict0.png").is_file()


def test_sets_that_do_not_fit_are_left_out_and_said(monkeypatch):
    sets = [Explored("row", 1, split, [], "x" * size) for split, size in (("val", 60), ("test", 60), ("V2", 200))]
    monkeypatch.setattr(explorer, "SET_BYTES", 100)
    monkeypatch.setattr(explorer, "PAGE_BYTES", 100)
    problems: list[Problem] = []
    assert [kept.split for kept in explorer.fitting(sets, problems)] == ["test"]  # before others, whatever the order
    assert {problem.name for problem in problems} == {"row, seed 1, val", "row, seed 1, V2"}


@pytest.mark.parametrize("related", [True, False])
def test_the_data_of_a_set_is_small(related):
    """Per image; 50,000 images are 25 times as many, whatever the number of classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(200, (2000,), generator=generator)
    heads = torch.randn(2, 2000, 200, generator=generator)
    if related:
        heads[1] = 0.8 * heads[0] + 0.6 * heads[1]
    heads[:, torch.arange(2000), labels] += 3
    data = json.dumps(packed(slider(DualHeadLogits(*(2 * heads.double())), labels)))
    assert 25 * len(data) < 5 * 2**20


# The command


@pytest.fixture(scope="module")
def trained(workspace, tmp_path_factory) -> Path:
    """A grid of one finished StudentDHO and its control, and of what went wrong."""
    folder = tmp_path_factory.mktemp("grid")
    for trainer in ("StudentDHO", "CEKD"):
        run = folder / trainer / "seed1"
        run.mkdir(parents=True)
        with (run / "log.txt").open("w") as log, redirect_stdout(log):
            runs.run(workspace, trainer, run, "--ood")
    (folder / "broken").mkdir()
    (folder / "broken" / "log.txt").write_text("error\n")
    return folder


@pytest.fixture(scope="module")
def page(trained) -> Elements:
    assert main(["report", str(trained)]) == 0
    return check_alone((trained / "report" / "index.html").read_text(encoding="utf-8"))


def test_a_page_of_real_runs(trained, page):
    for part in ("Alpha and beta", "Both heads", "Training", "Not in this page", "Paired differences", "Protocol"):
        assert part in page.text
    assert str(trained / "broken") in page.text and "StudentDHO minus CEKD" in page.text
    sets = json.loads(page.scripts["slider-data"])["runs"][0]["seeds"][0]["sets"]
    assert [found["name"] for found in sets] == ["test", "V2", "Sketch", "R", "A"]  # ImageNet's validation is its test
    own = next(point for point in sets[0]["points"] if point["own"])
    accuracy = json.loads((trained / "StudentDHO" / "seed1" / "manifest.json").read_text())["results"]["test"]
    at = json.loads(page.scripts[sets[0]["id"]])
    place = ALPHA_GRID.index(own["alpha"]), BETA_GRID.index(own["beta"])
    assert 100 * at["hits"][place[0]][place[1]] / at["images"] == pytest.approx(accuracy)


def test_the_stored_hits_are_those_of_the_stored_logits(trained, page):
    sets = json.loads(page.scripts["slider-data"])["runs"][0]["seeds"][0]["sets"]
    answers = answers_of(trained / "StudentDHO" / "seed1", "A")
    name = next(found["id"] for found in sets if found["name"] == "A")
    assert json.loads(page.scripts[name])["hits"] == counted(answers.logits, answers.labels)


def test_tables_and_figures_lie_beside_it(trained, page):
    folder = trained / "report"
    assert {path.name for path in folder.iterdir()} == {
        *(f"index.{ending}" for ending in ("html", "md", "tex", "csv")),
        "index_files",
    }
    names = {path.name for path in (folder / "index_files").iterdir()}
    heads = {f"heads0_StudentDHO_{name}" for name in ("map.svg", "map.png", "reliability.png", "ablation.csv")}
    assert heads | {"curves0_CEKD.svg"} <= names
    markdown = (folder / "index.md").read_text(encoding="utf-8")
    assert "StudentDHO minus CEKD" in markdown and "### One head and both (Fig. 8)" in markdown


def test_without_matplotlib_there_are_numbers_and_a_note(trained, page, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["report", str(trained), "--output", str(tmp_path / "p.html"), "--title", "Mine"]) == 0
    found = check_alone((tmp_path / "p.html").read_text(encoding="utf-8"))
    assert "matplotlib is not installed" in found.text and "matplotlib is not installed" in capsys.readouterr().out
    assert "svg" not in {name for name, _ in found.found} and not list((tmp_path / "p_files").glob("*.svg"))
    assert "One head and both" in found.text and "Mine" in found.text


def test_no_image_is_looked_at_when_none_may_be(workspace, tmp_path, monkeypatch):
    runs.run(workspace, "StudentDHO", tmp_path / "run")
    monkeypatch.setattr("dho_plugin.analysis.answers.load_run", lambda *_: pytest.fail("looked"))
    assert main(["report", str(tmp_path / "run"), "--no-answers"]) == 0
    found = Elements((tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8"))
    assert "slider-data" not in found.scripts and "has kept no logits" in found.text


def test_what_cannot_be_meant_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "expected the output folder" in capsys.readouterr().err
    cell(tmp_path / "run", {"test": 1.0})
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.pdf")]) == 2
    assert "expected the name of an .html file" in capsys.readouterr().err
