"""What was measured of Appendix A, in words: Markdown tables, and plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..tables.summary import Table, markdown
from .theorems import examples, matching, random_pairs
from .theory_of import Measured, Share, share_of

# Random pairs: how many, of how many classes, and the deviations of the teacher's logits and of the head's errors.
DRAWS, CLASSES, DEVIATIONS = 2000, (2, 10, 100, 1000), ((1.0, 0.3), (3.0, 1.0), (10.0, 3.0))
LEMMA = (
    "Lemma A.4: the l1 distance of KD head and teacher at temperature tau is at most sqrt(2 delta), where delta is "
    "their KL divergence at temperature 1. A bound of 2 or more says nothing."
)


def examples_table() -> Table:
    """Pairs that break the bound, by hand."""
    lines = []
    for pair in examples():
        found = matching(pair.kd, pair.teacher, pair.tau)
        values = (found.delta, found.bound, found.distance, found.distance / found.bound)
        lines.append((pair.words, f"{pair.tau:g}", *(f"{value.item():.3g}" for value in values)))
    return Table(("logits", "tau", "delta", "sqrt(2 delta)", "distance at tau", "times the bound"), tuple(lines))


def random_table(taus: Sequence[float], draws: int = DRAWS) -> Table:
    """Share of random pairs that break the bound, in percent."""
    lines = []
    for scale, error in DEVIATIONS:
        for classes in CLASSES:
            pairs = random_pairs(draws, classes, scale=scale, error=error)
            broken = (100 - share_of(matching(*pairs, tau)).holds for tau in taus)
            words = f"{classes} classes, logits {scale:g}, errors {error:g}"
            lines.append((words, *(f"{share:.0f}" for share in broken)))
    return Table(("bound broken, %, at tau", *(f"{tau:g}" for tau in taus)), tuple(lines))


def without_a_run(broken: Table) -> str:
    """Examples and random pairs (see random_table) as Markdown."""
    drawn = (
        f"{DRAWS:,} random pairs for each row: the teacher's logits are normal, the head's are these with a normal "
        "error; the numbers are standard deviations."
    )
    return "\n\n".join([LEMMA, markdown(examples_table()), drawn, markdown(broken)]) + "\n"


def shares_table(shares: Sequence[Share]) -> Table:
    """Lemma A.4 on a run."""
    lines = []
    for one in shares:
        percents = (f"{value:.1f}" for value in (one.holds, one.certain, one.nearer))
        numbers = (f"{value:.2f}" for value in (one.distance, one.bound, one.middle, one.most))
        lines.append((f"{one.at:g}", f"{one.tau:g}", *percents, *numbers))
    shown = ("bound holds, %", "is certain to, %", "KL at tau <= delta, %", "mean distance", "mean bound")
    return Table(("delta at", "tau", *shown, "median distance/bound", "largest"), tuple(lines))


def errors_table(found: Measured) -> Table:
    """Assumption A.2 and Theorem A.3 on a run."""
    weight, apart, beta = found.ce_weight, found.errors, f"{found.beta:g}"
    rows = {
        "CE head to label": apart.ce,
        f"KD head to teacher, both at {beta}": apart.kd,
        "combination to a single head's optimum": apart.combined,
        "bound of the row above, by image": weight * apart.ce + (1 - weight) * apart.kd,
    }
    lines = [(words, f"{value.mean().item():.3f}", f"{value.max().item():.3f}") for words, value in rows.items()]
    return Table(("l1 distance, of 2", "mean", "largest"), tuple(lines))


def document(found: Measured) -> str:
    """A run's measurements as Markdown."""
    trained = f" This head was trained at eta {found.eta:g}, so that delta is taken there too." * (found.eta != 1)
    assumed = (
        f"Theorem A.3 at alpha = lambda = {found.ce_weight:g} and beta = tau = {found.beta:g}; epsilon of Assumption "
        "A.2 is the larger one of the first two rows' largest distances."
    )
    parts = [f"# {found.title}", LEMMA + trained, markdown(shares_table(found.shares))]
    return "\n\n".join([*parts, assumed, markdown(errors_table(found))]) + "\n"


def numbers(found: Measured) -> dict[str, Any]:
    """A run's measurements as plain values."""
    apart = {name: {"mean": e.mean().item(), "largest": e.max().item()} for name, e in found.errors._asdict().items()}
    return {**found._asdict(), "shares": [one._asdict() for one in found.shares], "errors": apart}
