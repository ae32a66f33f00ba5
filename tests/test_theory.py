"""Appendix A of the paper: its theorems on random draws and at their extremes, and where its lemma fails."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import reference
import runs
import torch
import torch.nn.functional as F

from dho_plugin.__main__ import main as command
from dho_plugin.analysis import theory_text
from dho_plugin.analysis.answers import answers_of, teacher_of
from dho_plugin.analysis.drawing import styled
from dho_plugin.analysis.theorems import errors, examples, matching, random_pairs, single_head_optimum
from dho_plugin.analysis.theory_figure import figure_of
from dho_plugin.analysis.theory_of import measure
from dho_plugin.heads import DualHeadLogits
from dho_plugin.losses import distillation_loss, supervised_loss

DRAWS = [
    (seed, classes, ce_weight, tau)
    for seed, classes in enumerate((2, 3, 10, 100, 1000))
    for ce_weight in (0.0, 0.3, 0.5, 0.9)
    for tau in (0.5, 1.0, 2.0, 8.0)
]


def drawn(seed: int, images: int, classes: int, *, scale: float = 3.0):
    """Three sets of logits (images, classes) and labels."""
    rng = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, images, classes, dtype=torch.float64, generator=rng)
    return *logits, torch.randint(classes, (images,), generator=rng)


# Theorem A.1


def single_head_loss(logits, teacher, labels, ce_weight, tau, eta=1.0):
    """Eq. 12: one head whose softmax is compared with the label and with the teacher's probabilities at tau.

    At eta = 1 the head itself is at temperature 1, as in the theorem; the method trains with both at eta.
    """
    softened = distillation_loss(logits, teacher * eta / tau, temperature=eta)
    return ce_weight * supervised_loss(logits, labels) + (1 - ce_weight) * softened


def gradient(logits, *args, **keywords):
    logits = logits.clone().requires_grad_()
    (found,) = torch.autograd.grad(single_head_loss(logits, *args, **keywords), logits)
    return found * len(logits)  # of each image's own loss


@pytest.mark.parametrize(("seed", "classes", "ce_weight", "tau"), DRAWS)
def test_a1_the_mixture_is_stationary(seed, classes, ce_weight, tau):
    """The theorem is about one image with a label. A head trained on others too has only its p_tau there, and what a
    network can reach is another question."""
    other, teacher, _, labels = drawn(seed, 8, classes)
    optimum = single_head_optimum(teacher, labels, ce_weight=ce_weight, tau=tau)
    torch.testing.assert_close(optimum.sum(dim=1), torch.ones(8, dtype=torch.float64))
    assert gradient(optimum.log(), teacher, labels, ce_weight, tau).abs().max() < 1e-12
    assert gradient(other, teacher, labels, ce_weight, tau).abs().max() > 1e-2


@pytest.mark.parametrize(("seed", "classes", "ce_weight", "tau"), DRAWS)
def test_a1_no_other_distribution_is_better(seed, classes, ce_weight, tau):
    """And what another one costs more is its divergence from the mixture."""
    _, teacher, step, labels = drawn(seed, 1, classes)
    best = single_head_optimum(teacher, labels, ce_weight=ce_weight, tau=tau).log()
    least = single_head_loss(best, teacher, labels, ce_weight, tau)
    for size in (1e-3, 1e-1, 1.0, 10.0):
        other = best + size * step
        more = single_head_loss(other, teacher, labels, ce_weight, tau) - least
        assert more > 0
        assert more.item() == pytest.approx(
            reference.distillation(other, best, 1.0, t2=False).item(), rel=1e-5, abs=1e-11
        )


def test_a1_descent_ends_at_the_mixture():
    start, teacher, _, labels = drawn(0, 5, 7)
    logits = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([logits], lr=1, max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = single_head_loss(logits, teacher, labels, 0.4, 2.0)
        loss.backward()
        return loss

    solver.step(closure)
    wanted = [
        [0.4 * (c == int(y)) + 0.6 * float(p) for c, p in enumerate(reference.softmax(row / 2))]
        for row, y in zip(teacher, labels, strict=True)
    ]
    torch.testing.assert_close(logits.softmax(dim=1), torch.tensor(wanted, dtype=torch.float64), atol=1e-5, rtol=0)


def test_a1_is_not_about_a_loss_at_eta():
    """With the student softened too, as the method trains, neither p_1 nor p_eta in the mixture is stationary."""
    _, teacher, _, labels = drawn(0, 50, 10)
    for tau in (1.0, 2.0):
        optimum = single_head_optimum(teacher, labels, ce_weight=0.5, tau=tau)
        assert gradient(optimum.log(), teacher, labels, 0.5, 2.0, eta=2.0).abs().max(dim=1).values.min() > 1e-3


# Theorem A.3: alpha = lambda, the KD head and the teacher at one temperature


def distances_by_hand(ce, kd, teacher, label, ce_weight, tau):
    p, q, t = reference.softmax(ce), reference.softmax(kd / tau), reference.softmax(teacher / tau)
    combined = reference.interpolation(ce[None], kd[None], ce_weight, tau)[0]
    y = [float(c == label) for c in range(len(ce))]
    best = [ce_weight * a + (1 - ce_weight) * b for a, b in zip(y, t, strict=True)]
    return [float(sum(abs(a - b) for a, b in zip(*pair, strict=True))) for pair in ((p, y), (q, t), (combined, best))]


@pytest.mark.parametrize(("seed", "classes", "ce_weight", "tau"), DRAWS)
def test_a3_the_combination_is_no_further_than_the_heads(seed, classes, ce_weight, tau):
    """It bounds the distance of two distributions. It does not say that the heads come near their targets, nor that
    what one head would learn is its optimum; for an image with a label that the CE head gets wrong, epsilon is over 1.
    """
    ce, kd, teacher, labels = drawn(seed, 40, classes)
    kd = teacher + 0.1 * (seed + 1) * kd
    found = errors(DualHeadLogits(ce, kd), teacher, labels, ce_weight=ce_weight, tau=tau)
    epsilon = torch.maximum(found.ce, found.kd)
    assert (found.combined <= ce_weight * found.ce + (1 - ce_weight) * found.kd + 1e-12).all()
    assert (found.combined <= epsilon + 1e-12).all()
    by_hand = distances_by_hand(ce[3], kd[3], teacher[3], int(labels[3]), ce_weight, tau)
    assert [float(error[3]) for error in found] == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("ce_weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 0.6])
def test_a3_is_reached_where_both_heads_err_the_same_way(classes, ce_weight, epsilon):
    """Each head takes epsilon / 2 from the true class and gives it to others: the combination errs by epsilon too."""
    away = torch.full((1, classes), 1 / (classes - 1), dtype=torch.float64)
    away[0, 0] = -1
    label = F.one_hot(torch.tensor([0]), classes).double()
    target = torch.linspace(3, 1, classes, dtype=torch.float64)[None].softmax(dim=1)
    target = 0.5 * target + 0.5 * label  # enough in the true class to take from
    heads = DualHeadLogits((label + epsilon / 2 * away).log(), (target + epsilon / 2 * away).log())
    found = errors(heads, target.log(), torch.tensor([0]), ce_weight=ce_weight, tau=1.0)
    assert [float(error) for error in found] == pytest.approx([epsilon] * 3, rel=1e-9)


def test_a3_needs_alpha_to_be_lambda():
    """Perfect heads, epsilon near 0: at another alpha the combination is another mixture."""
    teacher, label = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    perfect = DualHeadLogits(torch.tensor([[50.0, 0.0, 0.0]], dtype=torch.float64), teacher)
    at_lambda = errors(perfect, teacher, label, ce_weight=0.5, tau=1.0)
    assert max(float(error) for error in at_lambda) < 1e-12
    optimum = single_head_optimum(teacher, label, ce_weight=0.5, tau=1.0)
    other = reference.interpolation(perfect.ce, perfect.kd, 0.2, 1.0)[0]
    assert float((other - optimum[0]).abs().sum()) > 0.4


# Lemma A.4


def test_a_pair_is_measured_as_loops_do():
    kd, _, teacher, _ = drawn(1, 30, 6)
    found = matching(kd, teacher, 2.5, at=1.5)
    for row in range(30):
        one, other = kd[row : row + 1], teacher[row : row + 1]
        p, q = reference.softmax(other[0] / 2.5), reference.softmax(one[0] / 2.5)
        wanted = (
            float(reference.distillation(one, other, 1.5, t2=False)),
            float(reference.distillation(one, other, 2.5, t2=False)),
            float(sum(abs(a - b) for a, b in zip(p, q, strict=True))),
            max(max(one[0]) - min(one[0]), max(other[0]) - min(other[0])).item(),
            (max(one[0] - other[0]) - min(one[0] - other[0])).item(),
        )
        assert [float(value[row]) for value in found[2:]] == pytest.approx(wanted, rel=1e-9)
    assert found.delta.mean().item() == pytest.approx(
        distillation_loss(kd, teacher, temperature=1.5, scale_by_t2=False).item()
    )


def test_at_the_temperature_of_training_the_bound_is_pinskers():
    for seed in range(40):
        pair = random_pairs(200, 2 + seed**2 % 300, scale=0.5 + seed / 4, error=0.1 + seed % 7, seed=seed)
        for at in (0.5, 1.0, 2.0):
            assert matching(*pair, at, at=at).holds.all()


def test_the_counter_examples_by_hand():
    """With its numbers in plain arithmetic: two distributions that differ in one class and the rest."""
    wanted = []
    for tau, classes, teacher, kd in ((0.5, 2, 0.1, -0.1), (2.0, 100, 20.0, 10.0), (10.0, 2, 20.0, 10.0)):

        def first(lead, t, others=classes - 1):
            return 1 / (1 + others * math.exp(-lead / t))

        p, q = first(teacher, 1), first(kd, 1)
        delta = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        wanted.append((tau, math.sqrt(2 * delta), 2 * abs(first(teacher, tau) - first(kd, tau))))
    for pair, (tau, bound, distance) in zip(examples(), wanted, strict=True):
        found = matching(pair.kd, pair.teacher, pair.tau)
        assert pair.tau == tau and not found.holds and not found.certain
        assert found.bound.item() == pytest.approx(bound, rel=1e-6)
        assert found.distance.item() == pytest.approx(distance, rel=1e-9)
        assert distance > 1.9 * bound
    assert [round(distance / bound) for _, bound, distance in wanted] == [2, 8, 31]


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9, 1.1, 1.25, 1.5, 2.0, 4.0, 20.0])
def test_every_other_temperature_has_a_counter_example(tau):
    """One class leads K others by a, in the teacher by a little more; m and n are its probabilities at tau and at 1.

    The distance is 2 m (1 - m) / (tau sqrt(n (1 - n))) times the bound. For two tied classes that is 1 / tau, enough
    below 1. Above, K = exp(a / tau) makes it cosh(a (1 - 1 / tau) / 2) / tau, as large as one likes.
    """
    others, lead = 1, 0.0
    if tau > 1:
        lead = 2 * math.acosh(1.1 * tau) / (1 - 1 / tau)
        others = round(math.exp(lead / tau))
    m, n = (1 / (1 + others * math.exp(-lead / at)) for at in (tau, 1))
    first = F.one_hot(torch.tensor([0]), 1 + others).double()
    found = matching((lead - 0.005) * first, (lead + 0.005) * first, tau)
    assert not found.holds
    times = 2 * m * (1 - m) / (tau * math.sqrt(n * (1 - n)))
    assert times > 1.03 and (found.distance / found.bound).item() == pytest.approx(times, rel=1e-3)


@pytest.mark.parametrize("tau", [0.25, 0.5, 0.75, 1.5, 2.0, 4.0, 16.0])
def test_random_search_finds_them_too(tau):
    scale, error = (10, 3) if tau > 1 else (1, 0.3)
    pairs = [random_pairs(500, 10, scale=scale, error=error, seed=seed) for seed in range(10)]
    assert not all(matching(*pair, tau).holds.all() for pair in pairs)


def hard_pairs():
    for seed in range(60):
        scale, error = math.exp(seed % 5 - 2), math.exp(seed % 7 - 3)
        yield random_pairs(200, 2 + seed * seed % 70, scale=scale, error=error, seed=seed)
    for pair in examples():
        yield pair.kd, pair.teacher


@pytest.mark.parametrize("tau", [0.25, 0.9, 1.0, 1.5, 4.0, 30.0])
@pytest.mark.parametrize("at", [1.0, 2.0])
def test_what_holds_instead(tau, at):
    """The bound times a factor that grows with the range of the logits; and one by how far the logits are apart."""
    certain = 0
    for kd, teacher in hard_pairs():
        found = matching(kd, teacher, tau, at=at)
        known = found.delta > 1e-12  # below, the divergence is rounding
        assert (found.distance <= found.factor * found.bound + 1e-12)[known].all()
        assert (found.distance <= 2 * torch.tanh(found.apart / (4 * tau)) + 1e-12).all()
        assert found.holds[found.certain & known].all()
        certain += int(found.certain.sum())
    assert bool(certain) == (tau >= at)


def test_it_holds_for_small_logits_above_1():
    """No two logits more than 2 apart: enough for every tau from 1 on, and a little more is not near 1."""
    for seed, tau in enumerate((1.0, 1.01, 1.5, 2.0, 5.0, 50.0)):
        kd, teacher = torch.rand(2, 3000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
        found = matching(kd, teacher, tau)
        assert found.certain.all() and found.holds.all()
    wider = matching(torch.tensor([[0.0, 2.2]]).double(), torch.tensor([[0.0, 0.1]]).double(), 1.01)
    assert wider.factor.item() > 1


def test_what_is_trained_at_eta_is_the_lemma_for_logits_over_eta():
    kd, _, teacher, _ = drawn(2, 50, 12)
    there, scaled = matching(kd, teacher, 1.0, at=2.0), matching(kd / 2, teacher / 2, 0.5)
    for name in ("delta", "distance", "softened", "bound", "factor"):
        torch.testing.assert_close(getattr(there, name), getattr(scaled, name))
    assert torch.equal(there.certain, scaled.certain)


# The command


@pytest.fixture(scope="module")
def run(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory") / "run"
    runs.run(workspace, "StudentDHO", folder)
    return folder


def test_without_a_run_it_prints_examples_and_random_pairs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(theory_text, "DRAWS", 50)
    monkeypatch.setattr(theory_text, "CLASSES", (2, 10))
    assert command(["theory", "--taus", "0.5", "1", "4", "--output-dir", str(tmp_path / "new")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith((tmp_path / "new" / "theory.md").read_text())
    assert len(json.loads((tmp_path / "new" / "theory.json").read_text())["examples"]["lines"]) == 3
    assert "100 classes, leads of 20 and 10" in printed and "0.791" in printed
    rows = [line.split("|")[2:-1] for line in printed.splitlines() if "errors" in line and line.startswith("|")]
    assert len(rows) == 6 and all(int(row[1]) == 0 for row in rows)
    assert any(int(row[0]) > 0 for row in rows) and any(int(row[2]) > 0 for row in rows)


def test_with_a_run_it_measures_its_head_and_teacher(run, capsys):
    assert command(["theory", str(run), "--taus", "0.5", "1", "2"]) == 0
    folder = run / "theory"
    assert {path.name for path in folder.iterdir()} == {f"theory.{end}" for end in ("md", "csv", "json", "svg", "png")}
    assert capsys.readouterr().out.startswith((folder / "theory.md").read_text())
    said = json.loads((folder / "theory.json").read_text())
    assert [(one["at"], one["tau"]) for one in said["shares"]] == [(at, tau) for at in (1, 2) for tau in (0.5, 1, 2)]
    kd, teacher = answers_of(run).kd.numpy(), teacher_of(run).numpy()

    def softmax(x):
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    for one in said["shares"]:
        p, q = softmax(teacher / one["at"]), softmax(kd / one["at"])
        bound = np.sqrt(2 * (p * np.log(p / q)).sum(axis=1))
        distance = np.abs(softmax(teacher / one["tau"]) - softmax(kd / one["tau"])).sum(axis=1)
        assert one["holds"] == pytest.approx(100 * (distance <= bound).mean())
        assert one["most"] == pytest.approx((distance / bound).max())
        assert one["middle"] == pytest.approx(np.median(distance / bound))
        assert (one["distance"], one["bound"]) == pytest.approx((distance.mean(), bound.mean()))
    assert (folder / "theory.csv").read_text().count("\n") == 7


def test_the_theorem_is_measured_at_the_runs_lambda_and_beta(run):
    found, answers = measure(run), answers_of(run)
    assert (found.ce_weight, found.beta) == (0.5, answers.beta)
    wanted = [
        distances_by_hand(ce, kd, teacher, int(y), 0.5, answers.beta)
        for ce, kd, teacher, y in zip(answers.ce, answers.kd, teacher_of(run), answers.labels, strict=True)
    ]
    for error, values in zip(found.errors, zip(*wanted, strict=True), strict=True):
        assert error.tolist() == pytest.approx(list(values), abs=1e-9)
    assert "combination to a single head's optimum" in theory_text.document(found)


def test_the_figure_shows_what_the_table_says(run):
    found = measure(run)
    with styled():
        figure = figure_of(found)
    lines = [line for line in figure.axes[0].lines if line.get_marker() in ("o", "s")]
    for line, at in zip(lines, (1.0, 2.0), strict=True):
        assert list(line.get_ydata()) == [one.holds for one in found.shares if one.at == at]


def test_one_head_has_nothing_to_measure(workspace, tmp_path, capsys):
    runs.run(workspace, "CE", tmp_path, "", "OPTIM.MAX_EPOCH 1")
    assert command(["theory", str(tmp_path)]) == 2
    assert "one head" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--taus", "0"], ["--taus", "inf"], ["nowhere"]])
def test_what_cannot_be_asked(words, capsys):
    assert command(["theory", *words]) == 2
    assert words[-1] in capsys.readouterr().err
