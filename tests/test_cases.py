"""Which head is right, which images are shown, and what is said of them, against plain loops."""

from __future__ import annotations

import pytest
import reference
import torch

from dho_plugin.analysis.answers import Answers
from dho_plugin.analysis.cases import CE, COMBINED, KD, MODEL, TEACHER, TITLES, cards_of, cases_of


def answers_from(ce, kd, labels, *, alpha=0.5, beta=1.0) -> Answers:
    paths = tuple(f"/data/test/{row}.png" for row in range(len(labels)))
    names = tuple(f"name {label}" for label in range(ce.shape[1]))
    return Answers(ce, kd, torch.as_tensor(labels), paths, names, alpha, beta, "fixed", "test")


def drawn(seed: int, images: int, classes: int, **at: float) -> Answers:
    rng = torch.Generator().manual_seed(seed)
    shape = (images, classes)
    ce, kd = (scale * torch.randn(shape, generator=rng, dtype=torch.float64) for scale in (1, 3))
    return answers_from(ce, kd, torch.randint(classes, (images,), generator=rng), **at)


def first(row) -> int:
    return max(range(len(row)), key=lambda c: float(row[c]))


def case_by_hand(answers: Answers, row: int) -> str:
    ce, kd = answers.ce[row : row + 1], answers.kd[row : row + 1]
    heads = (first(ce[0]), first(kd[0]), first(reference.interpolation(ce, kd, answers.alpha, answers.beta)[0]))
    right = "".join("r" if said == int(answers.labels[row]) else "w" for said in heads)
    # CE head, KD head, combination; both heads right and the combination wrong is missing on purpose
    return {
        "rwr": "ce",
        "wrr": "kd",
        "wwr": "combination",
        "rww": "ce-alone",
        "wrw": "kd-alone",
        "www": "wrong",
        "rrr": "right",
    }[right]


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.2, 0.5), (0.9, 4.0)])
def test_each_image_is_in_the_one_case_that_loops_find(alpha, beta):
    answers = drawn(0, 600, 4, alpha=alpha, beta=beta)
    found = {row: case.name for case in cases_of(answers) for row in case.rows}
    assert found == {row: case_by_hand(answers, row) for row in range(600)}
    assert sum(len(case.rows) for case in cases_of(answers)) == 600


def test_every_case_there_is_was_seen():
    assert [case.name for case in cases_of(drawn(0, 2000, 4)) if case.rows] == list(TITLES)


def test_the_combination_is_right_where_both_heads_are():
    """Eq. 11: p_y >= p_c and q_y >= q_c for all c gives alpha p_y + (1 - alpha) q_y >= alpha p_c + (1 - alpha) q_c."""
    seen = 0
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        alpha, beta = torch.rand(2, generator=rng).tolist()
        answers = drawn(seed, 500, 2 + seed % 9, alpha=alpha, beta=0.05 + 4 * beta)
        both = answers.ce.argmax(dim=1).eq(answers.labels) & answers.kd.argmax(dim=1).eq(answers.labels)
        assert answers.probabilities().argmax(dim=1)[both].eq(answers.labels[both]).all()
        seen += int(both.sum())
    assert seen > 1000
    # and of two heads that agree on a wrong class the combination is wrong as well
    agree = answers.ce.argmax(dim=1).eq(answers.kd.argmax(dim=1))
    assert answers.probabilities().argmax(dim=1)[agree].eq(answers.ce.argmax(dim=1)[agree]).all()


def test_the_most_confident_come_first_and_each_class_before_a_second_of_any():
    confident = torch.tensor([3.0, 5.0, 4.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    labels = [0, 0, 0, 1, 1, 2]
    ce = torch.zeros(6, 3, dtype=torch.float64)
    ce[range(6), labels] = confident
    right = cases_of(answers_from(ce, None, labels))[1]
    assert right.name == "right"
    # best of each class: 1 and 5 (a tie, by number), 4; then the second ones: 2, 3; then 0
    assert right.rows == (1, 5, 4, 2, 3, 0)


def test_cards_say_what_each_model_says():
    answers = drawn(3, 20, 5, alpha=0.3, beta=0.5)
    teacher = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    (card,) = cards_of(answers, [7], teacher=teacher, top=2)
    assert card.path == "/data/test/7.png" and card.file == "test/7.png" and card.label == answers.labels[7]
    ce, kd = answers.ce[7:8], answers.kd[7:8]
    wanted = {
        TEACHER: reference.softmax(teacher[7]),
        CE: reference.softmax(ce[0]),
        KD: reference.softmax(kd[0] / 0.5),
        COMBINED: reference.interpolation(ce, kd, 0.3, 0.5)[0],
    }
    assert list(card.says) == list(wanted)
    for who, row in wanted.items():
        ranked = sorted(range(5), key=lambda c: -float(row[c]))[:2]
        assert [label for label, _ in card.says[who]] == ranked
        assert [p for _, p in card.says[who]] == pytest.approx([float(row[c]) for c in ranked])


def test_a_model_of_one_head_is_right_or_wrong():
    answers = answers_from(torch.tensor([[2.0, 0.0], [0.0, 2.0], [3.0, 0.0]]).double(), None, [0, 0, 1])
    assert [(case.name, case.rows) for case in cases_of(answers)] == [("wrong", (2, 1)), ("right", (0,))]
    (card,) = cards_of(answers, [2])
    assert list(card.says) == [MODEL] and card.says[MODEL][0][0] == 0


def test_no_images_have_no_cards():
    assert cards_of(drawn(0, 5, 3), [], teacher=torch.zeros(5, 3)) == []
