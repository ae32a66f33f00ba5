"""Training curves from the lines that CoOp's and Dassl's trainers print, and figures inside a page."""

from __future__ import annotations

import re

import pytest

from dho_plugin.analysis import drawing
from dho_plugin.report.curves import VALIDATION, Curve, band, curves_figure, panels_of, read_curves
from dho_plugin.report.inline import inline

LINE = (
    "epoch [{e}/{E}] batch [{b}/2] time 0.1 (0.2) data 0.0 (0.1) loss {v:.4f} ({m:.4f}) "
    "loss_kd 1.0 (2.0) acc 50.0 ({a}) lr {lr} eta 0:00:01"
)


def log(folder, epochs, offset=0.0, evaluated=False):
    lines = ["Loading trainer: CoOp", "* accuracy: 1.0%"]
    for epoch in range(1, epochs + 1):
        for batch in (1, 2):
            m, lr = 10 * epoch + batch + offset, f"{1e-3 / epoch:.4e}"
            lines.append(LINE.format(e=epoch, E=epochs, b=batch, v=0, m=m, a=60 + epoch, lr=lr))
        if evaluated:
            lines += ["Evaluate on the *val* set", "=> result", f"* accuracy: {70.5 + epoch}%", "* error: 1.0%"]
    lines += ["Finish training", "Evaluate on the *test* set", "* accuracy: 99.0%", "epoch [half a li"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text("\n".join(lines))
    return folder


def test_means_are_taken_at_the_end_of_each_epoch(tmp_path):
    found = read_curves(log(tmp_path, 3, evaluated=True) / "log.txt")
    assert found["loss"] == Curve([2, 4, 6], [12.0, 22.0, 32.0])
    assert found["acc"] == Curve([2, 4, 6], [61.0, 62.0, 63.0])
    assert found["lr"].steps == [1, 2, 3, 4, 5, 6] and found["lr"].values[0] == pytest.approx(1e-3)
    assert found[VALIDATION] == Curve([2, 4, 6], [71.5, 72.5, 73.5])


def test_of_one_epoch_every_line_counts(tmp_path):
    assert read_curves(log(tmp_path, 1) / "log.txt")["loss"] == Curve([1, 2], [11.0, 12.0])


def test_a_log_without_steps_has_no_curves(tmp_path):
    (tmp_path / "log.txt").write_text("error: no dataset\nEvaluate on the *val* set\n")
    assert read_curves(tmp_path / "log.txt") == {}
    assert curves_figure([tmp_path, tmp_path / "nowhere"]) is None


def test_the_band_spans_the_seeds_where_they_share_steps():
    steps, (low, mean, high) = band([Curve([1, 2, 3], [1.0, 2.0, 3.0]), Curve([2, 3, 4], [4.0, 5.0, 6.0])])
    assert steps == [2, 3]
    assert (low.tolist(), mean.tolist(), high.tolist()) == ([2.0, 3.0], [3.0, 4.0], [4.0, 5.0])


def test_losses_share_a_panel(tmp_path):
    found = panels_of([read_curves(log(tmp_path, 2, evaluated=True) / "log.txt")])
    assert found == [
        ("losses", ["loss", "loss_kd"]),
        ("accuracy on the batches, %", ["acc"]),
        (VALIDATION, [VALIDATION]),
        ("learning rate", ["lr"]),
    ]


def test_a_figure_in_a_page_has_ids_of_its_own_and_the_pages_colours(tmp_path):
    with drawing.styled():
        figure = curves_figure([log(tmp_path / "1", 3), log(tmp_path / "2", 3, offset=1.0)])
        one, two = (inline(figure, name, 'a "figure" of <b>') for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    for svg, own in zip((one, two), ids, strict=True):
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg)
        assert used and {a or b for a, b in used} <= own
    assert drawing.INK not in one and drawing.GRID not in one and drawing.PALETTE[0] in one
    assert "var(--ink)" in one and "var(--grid)" in one
    assert not re.search(r"https?:|<style|<metadata|xmlns|<!--", one)
    assert one.startswith('<svg role="img" aria-label="a &quot;figure&quot; of &lt;b&gt;"')
