"""The gallery of a run: a page that needs no network, figures, Markdown and JSON that agree; images that moved."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import runs
import tiny
from PIL import Image

from dho_plugin.__main__ import main as command
from dho_plugin.analysis import gallery, gallery_of
from dho_plugin.analysis.cases import TITLES, Card
from dho_plugin.analysis.drawing import styled
from dho_plugin.analysis.gallery_figure import case_figure
from dho_plugin.analysis.gallery_page import cards, page, picture
from dho_plugin.errors import UsageError
from dho_plugin.tables.summary import Table


@pytest.fixture(scope="module")
def home(workspace, tmp_path_factory):
    """A data root of its own, and a finished StudentDHO and CE on it."""
    root = tmp_path_factory.mktemp("gallery")
    tiny.imagenet_tree(root / "data")
    for name in ("student.safetensors", "teacher.pt"):
        shutil.copy(workspace / name, root / "data" / name)
    runs.run(root / "data", "StudentDHO", root / "dho")
    runs.run(root / "data", "CE", root / "ce", "", "OPTIM.MAX_EPOCH 1")
    return root


class Seen(HTMLParser):
    """What a page has: tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_command_leaves_page_figures_tables_and_numbers(home, capsys):
    assert command(["gallery", str(home / "dho"), "--per-case", "2", "--cases", *TITLES]) == 0
    folder = home / "dho" / "gallery"
    said = json.loads((folder / "gallery.json").read_text())
    assert [case["name"] for case in said["cases"]] == list(TITLES)
    assert sum(case["images"] for case in said["cases"]) == 12
    printed = capsys.readouterr().out
    assert printed.startswith((folder / "gallery.md").read_text())
    seen = Seen((folder / "gallery.html").read_text())
    assert seen.open == []
    assert [section["id"] for section in seen.all("section")] == list(TITLES)
    shown = [card for case in said["cases"] for card in case["shown"]]
    assert len(seen.all("img")) == len(shown) == sum(min(2, case["images"]) for case in said["cases"]) > 0
    for case in said["cases"]:
        figure = (folder / f"{case['name']}.svg", folder / f"{case['name']}.png")
        assert all(file.exists() == bool(case["shown"]) for file in figure)
        missing = "No image of this set." in printed.partition(f"## {case['title']}")[2].partition("##")[0]
        assert missing == (not case["shown"])
    for card in shown:
        assert list(card["says"]) == ["teacher", "CE head", "KD head", "combined"]
        assert all(len(classes) == 3 for classes in card["says"].values())


def test_the_page_needs_nothing_else_and_shows_the_images_themselves(home):
    seen = Seen(gallery.html(gallery_of.gallery_of(home / "dho", per_case=1)))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in seen.tags}
    for _, attributes in seen.tags:
        assert not any(str(value).startswith(("http", "//")) for value in attributes.values())
    policy = next(meta["content"] for meta in seen.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    for img in seen.all("img"):
        kind, content = re.fullmatch(r"data:image/(\w+);base64,(.+)", img["src"]).groups()
        image = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (kind, image.size) == ("png", (40, 40))  # the square of 48 x 40
        assert (img["width"], img["height"]) == ("40", "40") and img["alt"]


def test_a_large_image_is_a_jpeg_of_the_square_that_a_model_sees(tmp_path):
    image = Image.new("RGB", (900, 600), "red")
    image.paste("blue", (150, 0, 750, 600))
    image.save(tmp_path / "wide.png")
    square = gallery_of._square(str(tmp_path / "wide.png"), str(tmp_path), "")
    assert square.size == (256, 256) and square.getpixel((2, 128)) == square.getpixel((253, 128)) == (0, 0, 255)
    assert picture(square).startswith("data:image/jpeg;base64,")


def test_names_and_titles_are_escaped_and_the_true_class_is_marked():
    card = Card("/a/b&c.png", 1, {"CE <head>": ((0, 0.75), (1, 0.25))})
    names = ["x<script>", 'y"&']
    html = page(
        "<title>",
        ["a < b"],
        Table(("<c>", "n"), (("<d>", "1"),)),
        [("ce", "h&h", "s", cards([card], {card.path: Image.new("RGB", (8, 8))}, names))],
    )
    seen = Seen(html)
    assert seen.open == [] and not seen.all("script")
    assert all(text in seen.text for text in ("<title>", "a < b", "<c>", "<d>", "h&h", "x<script>", 'y"&', "a/b&c.png"))
    assert seen.all("img")[0]["alt"] == 'test image of the class y"&'
    true = [li for li in seen.all("li") if li.get("class") == "true"]
    assert len(true) == 1 and html.count("✓") == 1 and "✓ y" in seen.text
    assert [i["style"] for i in seen.all("i")] == ["width:75.0%", "width:25.0%"]


def test_a_figure_has_the_true_class_bold_and_marked_and_long_names_cut():
    card = Card("/a/b.png", 1, {"teacher": ((0, 0.6), (1, 0.4)), "CE head": ((1, 0.9), (0, 0.1))})
    with styled():
        figure = case_figure([card], {card.path: Image.new("RGB", (8, 8))}, ["a" * 40, "short"], "a case")
    texts = [text for axis in figure.axes for text in axis.texts]
    bold = [text.get_text() for text in texts if text.get_fontweight() == "bold"]
    assert bold == ["✓ short", "40 %", "✓ short", "90 %"]
    assert [text.get_text() for text in texts if "a" * 9 in text.get_text()] == ["a" * 29 + "…"] * 2
    widths = [bar.get_width() for axis in figure.axes for bar in axis.patches]
    assert widths == [1, 0.6, 1, 0.4, 1, 0.9, 1, 0.1]  # each before the whole width that it is a part of


def test_a_run_of_one_head_has_its_own_cases_and_no_teacher(home, capsys):
    assert command(["gallery", str(home / "ce"), "--output-dir", str(home / "out")]) == 0
    said = json.loads((home / "out" / "gallery.json").read_text())
    assert [case["name"] for case in said["cases"]] == ["wrong", "right"]
    assert {who for case in said["cases"] for card in case["shown"] for who in card["says"]} == {"model"}
    assert "The teacher was not asked" in capsys.readouterr().out
    assert command(["gallery", str(home / "ce"), "--cases", "ce"]) == 2
    assert "expected one of ('wrong', 'right')" in capsys.readouterr().err


def test_the_teacher_can_be_left_out(home):
    shown = gallery_of.gallery_of(home / "dho", teacher=False, top=1).shown
    assert {who for some in shown.values() for card in some for who in card.says} == {"CE head", "KD head", "combined"}
    assert set(shown) == set(TITLES) - {"right"}


def test_the_same_run_gives_the_same_files(home):
    for folder in ("one", "two"):
        assert command(["gallery", str(home / "dho"), "--output-dir", str(home / folder)]) == 0
    for file in sorted((home / "one").iterdir()):
        assert file.read_bytes() == (home / "two" / file.name).read_bytes(), file.name


def test_images_that_have_moved(home, capsys):
    before = gallery_of.gallery_of(home / "dho")
    (home / "data").rename(home / "moved")
    try:
        assert command(["gallery", str(home / "dho")]) == 2
        error = capsys.readouterr().err
        assert "cannot read the image" in error and "--root" in error and str(home / "data") in error
        shutil.rmtree(home / "ce" / "answers", ignore_errors=True)
        assert command(["gallery", str(home / "ce")]) == 2
        assert "--root" in capsys.readouterr().err
        there = gallery_of.gallery_of(home / "dho", root=str(home / "moved"))
        assert {path: image.tobytes() for path, image in there.images.items()} == {
            path: image.tobytes() for path, image in before.images.items()
        }
    finally:
        (home / "moved").rename(home / "data")


def test_an_image_that_cannot_be_read(home, capsys):
    path = next(iter(gallery_of.gallery_of(home / "dho").images))
    with open(path, "rb+") as file:
        content = file.read()
        file.truncate(100)
    try:
        assert command(["gallery", str(home / "dho")]) == 2
        assert path in capsys.readouterr().err
    finally:
        with open(path, "wb") as file:
            file.write(content)


@pytest.mark.parametrize("words", [["--per-case", "0"], ["--top", "0"], ["--split", "sketch"]])
def test_what_cannot_be_asked(home, words, capsys):
    assert command(["gallery", str(home / "dho"), *words]) == 2
    assert words[1] in capsys.readouterr().err


def test_without_matplotlib_nothing_is_asked(home, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setattr(gallery, "gallery_of", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UsageError, match="dho_plugin\\[report\\]"):
        gallery.main([str(home / "dho")])
