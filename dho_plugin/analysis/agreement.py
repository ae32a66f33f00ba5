"""Whether the two heads are right about the same images, and what their combination makes of it (Fig. 15)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..tables.summary import mean_and_deviation
from .answers import Answers
from .over_seeds import Section, Values, details, values_table
from .predictors import CE, KD


class Case(NamedTuple):
    """How many images it has, and on how many of these the combination is right."""

    images: int
    right: int

    @property
    def wrong(self) -> int:
        """On how many the combination is wrong."""
        return self.images - self.right


class Agreement(NamedTuple):
    """Images by which heads are right; shares are of all images, in percent.

    The paper's Figure 15 (ImageNet, 16 shots, text of E.3), in these words: heads that `agree` are both right or both
    wrong, 76.2 %, as 76.2 + 11.5 + 12.4 make all; the CE head is right alone in 11.5 %, the KD head in 12.4 %. "Reduces
    failure rates from 11.5 % to 2.5 % for the KD head" is of all images too: of the 11.5 % that the KD head fails on
    and the CE head does not, the combination fails on 2.5; of the 12.4 % the other way round, on 5.2. For then the
    combination would be right in 60.64 + (12.4 - 5.2) - 2.5 = 65.3 %, where Table 15 has 60.64 for the CE head and
    65.37 for both.

    Attributes:
        both, ce_alone, kd_alone, neither: who is right. same_class: how often both heads predict one class.
    """

    both: Case
    ce_alone: Case
    kd_alone: Case
    neither: Case
    same_class: int

    @property
    def images(self) -> int:
        return sum(case.images for case in self[:4])

    def share(self, images: int) -> float:
        """Of all images, in percent."""
        return 100 * images / self.images

    @property
    def agree(self) -> float:
        """Share of images on which both heads are right or both are wrong."""
        return self.share(self.both.images + self.neither.images)

    @property
    def same_prediction(self) -> float:
        """Share of images on which both heads predict the same class, right or wrong."""
        return self.share(self.same_class)


def agreement(answers: Answers) -> Agreement:
    """Images by which of the heads are right, and what the run's combination says of them.

    Raises:
        UsageError: there is one head.
    """
    logits = answers.logits
    predicted = {"ce": logits.ce.argmax(dim=-1), "kd": logits.kd.argmax(dim=-1)}
    ce, kd = (found.eq(answers.labels) for found in predicted.values())
    combined = answers.probabilities().argmax(dim=-1).eq(answers.labels)

    def case(images: Tensor) -> Case:
        return Case(int(images.sum()), int((images & combined).sum()))

    same = int(predicted["ce"].eq(predicted["kd"]).sum())
    return Agreement(case(ce & kd), case(ce & ~kd), case(kd & ~ce), case(~ce & ~kd), same)


def agreement_section(counts: Sequence[Agreement], column: str) -> Section:
    """Of the runs of one row.

    Args:
        column: the set, with the caveats of its results.
    """
    measured = [_agreement_values(one) for one in counts]
    agree, same = ([getattr(one, name) for one in counts] for name in ("agree", "same_prediction"))
    reduced = [
        f"the {one} fails and the {other} does not on {_shares(counts, case)} % of the images, and there the "
        f"combination still fails on {_shares(counts, case, wrong=True)} % of all images"
        for one, other, case in (("KD head", "CE head", "ce_alone"), ("CE head", "KD head", "kd_alone"))
    ]
    text = (
        f"The heads agree, both right or both wrong, on {mean_and_deviation(agree)} % of the images; they predict the "
        f"same class on {mean_and_deviation(same)} %. Error reduction: {'; '.join(reduced)}.",
    )
    tables = (values_table(f"right on {column}", measured),)
    return Section("agreement", "Agreement and error reduction (Fig. 15)", tables, text, details(measured))


def _agreement_values(counts: Agreement) -> Values:
    rows = {"both heads": counts.both, f"{CE} alone": counts.ce_alone, f"{KD} alone": counts.kd_alone}
    return {
        name: {
            "images, %": counts.share(case.images),
            "combined right, % of these": 100 * case.right / case.images if case.images else math.nan,
            "combined wrong, % of all": counts.share(case.wrong),
        }
        for name, case in {**rows, "neither head": counts.neither}.items()
    }


def _shares(counts: Sequence[Agreement], case: str, *, wrong: bool = False) -> str:
    cases = [(one, getattr(one, case)) for one in counts]
    return mean_and_deviation([one.share(found.wrong if wrong else found.images) for one, found in cases])
