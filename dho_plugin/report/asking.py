"""What runs answer: their kept logits, or by asking the models, and what could not be had."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from typing import NamedTuple, TypeVar

from ..analysis.alpha_beta import validation_of
from ..analysis.answers import Answers, answers_of, kept, sets_of
from ..analysis.examined import Examined, examine
from .collect import Problem, Run
from .comparison import Comparison

Found = TypeVar("Found")


class Asking(NamedTuple):
    """How runs are asked.

    Attributes:
        models: let the models look at images where their logits are not kept; else only what is kept is taken.
        root: where the datasets are now, see answers_of. problems: what could not be had, and why; it grows.
    """

    models: bool
    root: str
    problems: list[Problem]

    def sets(self, run: Run) -> list[str]:
        """The sets that a run may be asked about, its test set first; validation only where it is not the test set."""
        protocol = (run.manifest.get("validation") or {}).get("protocol", "none")
        found = self.tried(run, "its sets", lambda: sets_of(run.folder)) or []
        return [split for split in found if split != "val" or protocol not in ("none", "test")]

    def may(self, run: Run, split: str) -> bool:
        """Whether a run can answer: its logits are kept, or its model may look."""
        return self.models or bool(self.tried(run, split, lambda: kept(run.folder, split)))

    def answers(self, run: Run, split: str) -> Answers | None:
        """A run's logits on a set; None where they cannot be had."""
        if not self.may(run, split):
            return None
        return self.tried(run, split, lambda: answers_of(run.folder, split, root=self.root))

    def validation(self, run: Run) -> Answers | None:
        """A run's logits on validation images on which alpha and beta may be searched; None where there are none."""
        if "val" not in self.sets(run) or not self.may(run, "val"):
            return None
        return self.tried(run, "val", lambda: validation_of(run.folder, root=self.root))

    def examined(self, run: Run, control: Run | None) -> Examined | None:
        """What a run's heads come to, beside a control's; None where that cannot be had."""
        sets = self.sets(run)
        both = [run, control] if control is not None else [run]
        needed = [(one, split) for one in both for split in sets if one is run or split != "val"]
        shifts = all(self.may(one, split) for one, split in needed if split not in ("test", "val"))
        if not all(self.may(one, split) for one, split in needed if split in ("test", "val")):
            self.problems.append(Problem(str(run.folder), "has kept no logits: its heads are not looked at"))
            return None
        print(f"{run.row}, {run.labels}, seed {run.seed}: both heads", flush=True)
        other = str(control.folder) if control is not None else ""
        return self.tried(run, "its heads", lambda: examine(run.folder, control=other, root=self.root, ood=shifts))

    def tried(self, run: Run, what: str, ask: Callable[[], Found]) -> Found | None:
        """What a question comes to; None where it fails, for whatever reason, which is named: the page is made."""
        try:
            with redirect_stdout(io.StringIO()):
                return ask()
        except Exception as error:  # a shift that is not on this disk, a damaged checkpoint, and whatever else
            self.problems.append(Problem(str(run.folder), f"{what}: {error}"))
            return None


def two_heads(comparisons: Sequence[Comparison]) -> Iterator[tuple[str, Run]]:
    """The finished runs with two heads, each with a name that tells its row from others."""
    for comparison in comparisons:
        above = f"{comparison.title}: " if len(comparisons) > 1 else ""
        for name, runs in comparison.groups().items():
            yield from ((above + name, run) for run in runs if run.two_heads and run.accuracies)
