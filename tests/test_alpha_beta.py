"""The map against Eq. 11 in loops, and which points may be marked on it."""

from __future__ import annotations

import json
import random

import pytest
import reference
import runs
import torch
from made_answers import made, one_head

from dho_plugin.analysis.ablation import ablation, ablation_section
from dho_plugin.analysis.alpha_beta import accuracy_map, map_section, marked_points, mean_map, validation_of
from dho_plugin.analysis.answers import answers_of
from dho_plugin.errors import UsageError
from dho_plugin.interpolation import search_alpha_beta


def slow(answers, alpha: float, beta: float) -> float:
    rows = reference.interpolation(answers.ce, answers.kd, alpha, beta)
    right = sum(max(range(len(p)), key=lambda c: p[c]) == y for p, y in zip(rows, answers.labels.tolist(), strict=True))
    return 100 * right / len(rows)


def test_the_map_against_loops():
    answers = made(30, 5)
    found = accuracy_map(answers, (0.0, 0.3, 1.0), (0.1, 2.0))
    wanted = [[slow(answers, alpha, beta) for beta in found.betas] for alpha in found.alphas]
    assert found.accuracy.tolist() == wanted
    assert torch.equal(mean_map([found, found._replace(accuracy=found.accuracy + 2)]).accuracy, found.accuracy + 1)


def test_the_best_point_of_the_map_is_that_of_the_search_to_the_digit():
    for seed in range(5):
        answers = made(80, seed=seed)
        found = search_alpha_beta(answers.logits, answers.labels, split="test", allow_oracle=True)
        assert accuracy_map(answers).best() == found


def test_one_head_has_no_map():
    with pytest.raises(UsageError, match="one head"):
        accuracy_map(one_head(made()))


@pytest.mark.parametrize(
    ("chosen", "split", "validated", "sources"),
    [
        ("fixed", "test", True, ["fixed", "val", "oracle"]),
        ("fixed", "test", False, ["fixed", "oracle"]),
        ("val", "test", True, ["val", "oracle"]),
        ("oracle", "test", True, ["oracle", "val"]),
        ("fixed", "val", True, ["fixed", "val"]),
        ("fixed", "val", False, ["fixed"]),  # or a test set that is called validation set would give an oracle
    ],
)
def test_each_point_has_its_source(chosen, split, validated, sources):
    answers, validation = made(90, chosen=chosen)._replace(split=split), made(90, seed=1)
    found = marked_points(answers, accuracy_map(answers), validation if validated else None)
    assert [point.source for point in found] == sources
    assert [point.own for point in found] == [True, *([False] * (len(sources) - 1))]
    by_source = {point.source: point for point in found}
    assert by_source[chosen][:2] == (0.4, 0.5)
    for point in found:
        assert point.accuracy == pytest.approx(slow(answers, point.alpha, point.beta))
    if "val" in by_source and chosen != "val":
        best = search_alpha_beta(validation.logits, validation.labels, split="val")
        assert by_source["val"][:2] == best[:2]
    if "oracle" in by_source and chosen != "oracle":
        assert by_source["oracle"].accuracy == accuracy_map(answers).accuracy.max()


def test_ablation_has_each_head_and_names_the_oracle():
    answers = made(90)
    points = marked_points(answers, accuracy_map(answers), made(90, seed=1))
    found = ablation(answers, points)
    assert list(found) == [
        "CE head",
        "KD head",
        "combined (fixed)",
        "combined (validation)",
        "combined (oracle)",
    ]
    assert found["CE head"] == pytest.approx(slow(answers, 1.0, 1.0))
    assert found["KD head"] == pytest.approx(slow(answers, 0.0, 1.0))
    table, differences = ablation_section([found, found], [1, 2], "test").tables
    assert table.lines[4][0] == "combined (oracle)"
    pairs = [line[0] for line in differences.lines]
    assert "combined (fixed) minus CE head" in pairs and not any("oracle" in pair for pair in pairs)


def test_the_table_lists_where_the_points_of_each_seed_lie():
    found = [made(90, seed=seed) for seed in (0, 1)]
    maps = [accuracy_map(answers) for answers in found]
    marked = [marked_points(answers, of_set, None) for answers, of_set in zip(found, maps, strict=True)]
    section = map_section(maps, marked, "test (transductive)")
    (table,) = section.tables
    assert table.header == ("point", "alpha and beta", "top-1 on test (transductive), %")
    assert table.lines[0][:2] == ("fixed", "0.4 and 0.5")
    assert table.lines[1][0] == "oracle" and ", " in table.lines[1][1]
    first = section.details.lines[0]
    assert first[:2] == ("0", "0.1") and float(first[2]) == pytest.approx(
        mean_map(maps).accuracy[0, 0].item(), abs=1e-3
    )


@pytest.fixture(scope="module")
def validated(pets, tmp_path_factory):
    """A run whose validation images are its own draw."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    runs.run(pets, "LinearProbeDHO", folder, dataset="oxford_pets")
    return folder


def test_validation_images_are_those_of_the_run(validated, pets):
    random.seed(0)
    found = validation_of(validated)
    split = json.loads((validated / "split.json").read_text())["validation"]
    assert sorted(found.paths) == [f"{pets}/{path}" for path, _, _ in split] and found.split == "val"
    assert torch.equal(found.ce, answers_of(validated, "val").ce)


def test_other_validation_images_are_refused(validated):
    manifest = validated / "manifest.json"
    kept = manifest.read_text()
    said = json.loads(kept)
    said["validation"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(said))
    with pytest.raises(UsageError, match=r"on validation images: the run had 6, and the 6 of now are others"):
        validation_of(validated)
    manifest.write_text(kept)


def test_a_test_set_that_is_called_validation_set_is_refused(workspace, tmp_path):
    runs.run(workspace, "LinearProbeDHO", tmp_path)
    with pytest.raises(UsageError, match=r"alpha and beta on validation images: .* returns its test set"):
        validation_of(tmp_path)
