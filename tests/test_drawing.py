"""The style of all figures: colours that a page can replace, files that are the same byte for byte."""

from __future__ import annotations

import re
import sys
from itertools import combinations

import pytest

from dho_plugin.analysis import drawing
from dho_plugin.errors import UsageError


def draw(path, **keywords):
    with drawing.styled():
        figure, axes = drawing.panels(1, 2, width=3, height=2)
        axes[0, 0].plot([0, 1], [1, 2], label="one")
        axes[0, 0].legend()
        axes[0, 1].set_title("a title")
        drawing.save(figure, path, **keywords)
    return path.with_suffix(".svg").read_bytes()


def test_a_figure_is_the_same_file_each_time(tmp_path):
    assert draw(tmp_path / "new" / "a") == draw(tmp_path / "b")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_an_svg_has_ink_grid_and_series_for_colours_and_text_as_text(tmp_path):
    svg = draw(tmp_path / "a").decode()
    colours = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", svg))
    assert colours == {drawing.INK, drawing.GRID, drawing.PALETTE[0]}
    assert ">a title</text>" in svg
    assert "dc:date" not in svg


def test_a_background_is_drawn_where_one_is_asked_for(tmp_path):
    assert b"#fafafa" in draw(tmp_path / "a", background="#fafafa")


def test_matplotlibs_own_settings_are_left_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw(tmp_path / "a")
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'dho_plugin[report]'")):
        draw(tmp_path / "a")


def luminance(colour):
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#0d1117"])
def test_every_series_is_seen_on_white_and_on_near_black(background):
    """WCAG's contrast of graphical objects: 3 to 1."""
    for colour in drawing.PALETTE:
        low, high = sorted((luminance(colour), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour
    assert all(one != other for one, other in combinations(drawing.PALETTE, 2))
