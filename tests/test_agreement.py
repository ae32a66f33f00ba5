"""Which head is right, against a loop over images; the paper's own numbers in the words of the docstring."""

from __future__ import annotations

import math

import pytest
from made_answers import made, one_head

from dho_plugin.analysis.agreement import Agreement, Case, agreement, agreement_section
from dho_plugin.errors import UsageError


def test_cases_against_a_loop():
    answers = made(200)
    counted = {case: [0, 0] for case in ("both", "ce_alone", "kd_alone", "neither")}
    same = 0
    for ce, kd, p, label in zip(answers.ce, answers.kd, answers.probabilities(), answers.labels, strict=True):
        of_ce, of_kd, of_both = (max(range(7), key=lambda c: row[c]) for row in (ce, kd, p))
        case = {(1, 1): "both", (1, 0): "ce_alone", (0, 1): "kd_alone", (0, 0): "neither"}
        name = case[int(of_ce == label), int(of_kd == label)]
        counted[name][0] += 1
        counted[name][1] += of_both == label
        same += of_ce == of_kd
    found = agreement(answers)
    assert {name: list(getattr(found, name)) for name in counted} == counted
    assert found.same_class == same and found.images == 200
    assert found.same_prediction == 100 * same / 200
    assert found.agree == pytest.approx(100 * (counted["both"][0] + counted["neither"][0]) / 200)
    assert all(counted[name][0] for name in counted)  # or the example says nothing


def test_the_papers_numbers_are_shares_of_all_images():
    """E.3 and Table 15: with shares of all images the parts add up to what the combination has."""
    ce, combined, kd_alone, still_ce, still_kd = 60.64, 65.37, 12.4, 2.5, 5.2
    assert ce + (kd_alone - still_kd) - still_ce == pytest.approx(combined, abs=0.1)
    paper = Agreement(Case(4914, 4914), Case(1150, 900), Case(1240, 720), Case(2706, 0), 7000)
    assert paper.agree == pytest.approx(76.2, abs=0.1)
    assert paper.share(paper.ce_alone.wrong) == pytest.approx(still_ce, abs=0.01)
    assert paper.share(paper.kd_alone.wrong) == pytest.approx(still_kd, abs=0.01)
    words = agreement_section([paper], "test").text[0]
    assert "The heads agree, both right or both wrong, on 76.1 %" in words
    assert "the KD head fails and the CE head does not on 11.5 % of the images, and there the combination" in words
    assert "still fails on 2.5 % of all images; the CE head fails" in words


def test_one_head_agrees_with_nobody():
    with pytest.raises(UsageError, match="one head"):
        agreement(one_head(made()))


def test_a_case_without_images_is_missing_and_no_zero():
    always = made(20)
    section = agreement_section([agreement(always._replace(kd=always.ce))], "test")
    lines = {line[0]: line for line in section.tables[0].lines}
    assert lines["CE head alone"][1:] == ("0.0", "missing", "0.0")
    assert not math.isnan(agreement(always).agree)
