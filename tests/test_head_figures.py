"""What the figures draw are the numbers; the oracle is called one; a figure is the same file each time."""

from __future__ import annotations

import numpy as np
import pytest
from made_answers import made, one_head

from dho_plugin.analysis import calibration_figures, drawing, head_figures
from dho_plugin.analysis.ablation import ablation
from dho_plugin.analysis.agreement import agreement
from dho_plugin.analysis.alpha_beta import accuracy_map, marked_points, mean_map
from dho_plugin.analysis.by_class import by_class, ends
from dho_plugin.analysis.predictors import CONTROL, calibration

ANSWERS = [made(200, 30, seed) for seed in range(2)]
MAPS = [accuracy_map(answers) for answers in ANSWERS]
POINTS = [marked_points(answers, of_set, ANSWERS[0]) for answers, of_set in zip(ANSWERS, MAPS, strict=True)]
ABLATIONS = [ablation(answers, points) for answers, points in zip(ANSWERS, POINTS, strict=True)]
COUNTS = [agreement(answers) for answers in ANSWERS]
BINS = [{name: one.bins for name, one in calibration(answers, 10).items()} for answers in ANSWERS]
CLASSES = [by_class(answers) for answers in ANSWERS]
SHIFTED = [
    {name: {"test": 60.0 + i, "V2": 45.0, "A": 20.0} for name in ("CE head", "KD head", CONTROL)} for i in (0, 2)
]

DRAWN = {
    "map": lambda n: head_figures.map_figure(MAPS[:n], POINTS[:n], "test"),
    "ablation": lambda n: head_figures.ablation_figure(ABLATIONS[:n], "test"),
    "agreement": lambda n: head_figures.agreement_figure(COUNTS[:n], "test"),
    "confidence": lambda n: calibration_figures.confidence_figure(BINS[:n], "test"),
    "reliability": lambda n: calibration_figures.reliability_figure(BINS[:n], "test"),
    "per class": lambda n: head_figures.per_class_figure(CLASSES[:n], "test"),
    "retention": lambda n: head_figures.retention_figure(SHIFTED[:n]),
}


@pytest.fixture(autouse=True)
def _style():
    with drawing.styled():
        yield


def svg(figure, path) -> str:
    drawing.save(figure, path)
    return path.with_suffix(".svg").read_text()


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("count", [1, 2])
def test_a_figure_is_the_same_file_each_time_and_says_how_many_runs(name, count, tmp_path):
    first, second = (svg(DRAWN[name](count), tmp_path / file) for file in ("a", "b"))
    assert first == second
    counted = name == "reliability" or ("2 runs" in first) == (count == 2)
    assert counted


def test_the_map_has_the_accuracies_and_the_points_where_they_lie(tmp_path):
    figure = DRAWN["map"](2)
    ax = figure.axes[0]
    assert np.allclose(ax.images[0].get_array(), mean_map(MAPS).accuracy.T)
    for drawn, source in zip(ax.collections, ("fixed", "val", "oracle"), strict=True):
        points = [point for of_run in POINTS for point in of_run if point.source == source]
        places = [(MAPS[0].alphas.index(point.alpha), MAPS[0].betas.index(point.beta)) for point in points]
        assert drawn.get_offsets().tolist() == [list(place) for place in places]
        assert (drawn.get_facecolor().size == 0) == (source == "oracle")  # hollow
    text = svg(figure, tmp_path / "map")
    assert ">fixed (0.4, 0.5): " in text and ">oracle (" in text and ">validation (" in text


def test_a_beta_beside_the_grid_lies_between_its_rows():
    point = POINTS[0][0]._replace(beta=0.4)
    ax = head_figures.map_figure(MAPS[:1], [[point]], "test").axes[0]
    assert ax.collections[0].get_offsets()[0][1] == pytest.approx(2.5)  # 0.3 and 0.5 are rows 2 and 3


def test_bars_are_as_long_as_the_accuracies_and_an_oracle_is_hollow():
    ax = DRAWN["ablation"](2).axes[0]
    wanted = [(ABLATIONS[0][row] + ABLATIONS[1][row]) / 2 for row in ABLATIONS[0]]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(wanted)
    hollow = [bar.get_facecolor()[3] == 0 for bar in ax.patches]
    assert hollow == ["oracle" in row for row in ABLATIONS[0]] and hollow[-1]


def test_agreement_shows_its_shares(tmp_path):
    figure = DRAWN["agreement"](1)
    text, found = svg(figure, tmp_path / "agreement"), COUNTS[0]
    for case in found[:4]:
        assert f">{found.share(case.images):.1f} %<" in text
    lengths = [bar.get_width() for bar in figure.axes[1].patches]
    cases = (found.ce_alone, found.kd_alone)
    assert lengths == pytest.approx([found.share(n) for case in cases for n in (case.images, case.wrong)])


def test_histograms_are_shares_of_all_images():
    for drawn, name in zip(DRAWN["confidence"](2).axes[0].patches, BINS[0], strict=True):
        counts = sum(one[name].images for one in BINS)
        assert drawn.get_data().values.tolist() == pytest.approx((100 * counts / 400).tolist())


def test_reliability_bars_reach_the_accuracy_and_gaps_the_confidence():
    for ax, name in zip(DRAWN["reliability"](1).axes, BINS[0], strict=True):
        bins = BINS[0][name]
        there = bins.images > 0
        right, gaps = ax.patches[: there.sum()], ax.patches[there.sum() :]
        assert [bar.get_height() for bar in right] == pytest.approx((100 * bins.accuracy[there]).tolist())
        tops = [bar.get_y() + bar.get_height() for bar in gaps]
        assert tops == pytest.approx((100 * bins.mean_confidence[there]).tolist())
        assert f"ECE {bins.error:.3f}" in ax.get_title(loc="left")


def test_classes_that_were_cut_are_said():
    figure = DRAWN["per class"](1)
    for ax, (name, values) in zip(figure.axes, ends(CLASSES[:1]).items(), strict=True):
        assert [bar.get_width() for bar in ax.patches] == list(values.values())
        assert ax.get_title(loc="left") == f"{name}: 20 of 30 classes".replace(" minus", "\nminus")
    few = by_class(made(100, 5))
    (ax, _) = head_figures.per_class_figure([few], "test").axes
    assert "all 5 classes" in ax.get_title(loc="left")


def test_slopes_go_from_the_test_set_to_the_shift():
    figure = DRAWN["retention"](2)
    assert len(figure.axes) == 2
    line = figure.axes[0].lines[0]
    assert list(line.get_ydata()) == [61.0, 45.0] and line.get_label() == "74 % left"
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()


def test_one_head_has_its_calibration_drawn(tmp_path):
    bins = [{name: one.bins for name, one in calibration(one_head(ANSWERS[0])).items()}]
    assert "the one head" in svg(calibration_figures.confidence_figure(bins, "test"), tmp_path / "a")
    assert "the one head" in svg(calibration_figures.reliability_figure(bins, "test"), tmp_path / "b")
