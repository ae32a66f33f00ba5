"""How runs came to their numbers, from their manifests: what is the same for all of them, and in what rows differ."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..manifest import validation_line
from .collect import Run
from .comparison import Comparison

Facts = dict[str, str]
SHORT = 10  # letters of a hash
CAVEATS = {
    "oracle": "alpha and beta were searched on the test images",
    "transductive": "the model has learned from test images without their labels",
    "packed": "the images are shrunk copies",
}


KEY = (  # what a reader has to know; the rest is there to be unfolded
    *("student", "teacher", "labels", "labelled images", "unlabelled images", "validation", "test images"),
    *("images in two sets", "alpha and beta", "caveats"),
)


class Protocol(NamedTuple):
    """Facts by name. shared: the same in all runs, or in all of each seed. by_row: the others, of each row."""

    shared: Facts
    by_row: dict[str, Facts]


def protocol(comparison: Comparison) -> Protocol:
    """What is equal for all runs that have a manifest, said once, and what is not, for each row."""
    by_run = {run.folder: (run, facts(run)) for run in comparison.runs if run.manifest}
    names = list(dict.fromkeys(name for _, of_run in by_run.values() for name in of_run))
    shared: Facts = {}
    for name in names:
        by_seed: dict[int, set[str]] = {}
        for run, of_run in by_run.values():
            by_seed.setdefault(run.seed, set()).add(of_run.get(name, "-"))
        if all(len(values) == 1 for values in by_seed.values()):
            shared[name] = _by_seed({seed: next(iter(values)) for seed, values in sorted(by_seed.items())})
    differing = [name for name in names if name not in shared]
    by_row = {}
    for row, runs in comparison.rows.items():
        own = [by_run[run.folder][1] for run in runs if run.folder in by_run]
        by_row[row] = {name: _over_runs([of_run.get(name, "-") for of_run in own]) for name in differing if own}
    return Protocol(shared, by_row)


def _by_seed(values: Mapping[int, str]) -> str:
    different = set(values.values())
    return different.pop() if len(different) == 1 else "; ".join(f"seed {s}: {value}" for s, value in values.items())


def _over_runs(values: Sequence[str]) -> str:
    different = list(dict.fromkeys(values))
    return "; ".join(different) if len(different) <= 3 else f"{len(different)} different ones"


def facts(run: Run) -> Facts:
    """What a run's manifest and settings say, in words."""
    said, settings = run.manifest, run.settings
    validation, taught = said.get("validation") or {}, said.get("teacher") or {}
    parts = {"labelled": "labeled", "unlabelled": "unlabeled", "test": "test"}
    found = {
        "trainer": run.trainer,
        "labels": run.labels,
        **{f"{name} images": number_of(said.get(part)) for name, part in parts.items()},
        "validation": validation_line(validation).removeprefix("Validation: ") if validation else "-",
        "images in two sets": in_two_sets(said.get("in_two_sets") or {}),
        "student": model(said.get("student") or {}),
        "teacher": teacher(said.get("teacher")),
        "alpha and beta": interpolation(said["interpolation"]) if run.two_heads else "one head",
        "caveats": ", ".join(run.caveats) or "none",
        **{f"{name} images, hash": short((said.get(part) or {}).get("sha256")) for name, part in parts.items()},
        "validation images, hash": short(validation.get("sha256")),
        "prompts of the teacher, hash": short(taught.get("prompts_sha256")),
        "views seed": str(said.get("view_seed", "-")),
        "epochs": str(settings.get("OPTIM.MAX_EPOCH", "-")),
        "optimiser": f"{settings.get('OPTIM.NAME')}, rate {settings.get('OPTIM.LR')}",
        "labelled images a batch": str(settings.get("DATALOADER.TRAIN_X.BATCH_SIZE", "-")),
        "host": said.get("host", "-"),
        "versions": ", ".join(f"{name} {version}" for name, version in (said.get("versions") or {}).items() if version),
        "made by": run.made_by or "-",
        "command": command((said.get("started") or {}).get("command")),
        "times stopped and gone on": str(len(said.get("resumed") or [])),
    }
    return {name: value for name, value in found.items() if value not in ("", "-")}


def number_of(part: Mapping[str, Any] | None) -> str:
    """How many images."""
    return f"{part['images']:,}" if part else "-"


def short(digest: str | None) -> str:
    """The start of a hash."""
    return digest[:SHORT] if digest else "-"


def in_two_sets(shared: Mapping[str, int]) -> str:
    """Which images stand in two of a run's sets."""
    return "; ".join(f"{number:,} in {pair}" for pair, number in shared.items() if number) or "none"


def model(part: Mapping[str, Any]) -> str:
    """A model's name, with the start of its file's hash where it is a file."""
    digest = part.get("weights_sha256")
    return f"{part.get('name', '-')}{f' ({short(digest)})' if digest else ''}"


def teacher(part: Mapping[str, Any] | None) -> str:
    """A teacher: a model, or a run by what it has learned from; none for none."""
    if not part:
        return "none"
    if "run" in part:
        learned = part.get("labeled") or {}
        return f"the run {part['run']}, of {number_of(learned)} labelled images ({short(learned.get('sha256'))})"
    return model(part)


def interpolation(part: Mapping[str, Any]) -> str:
    """Alpha and beta of two heads, and who chose them."""
    by = {"fixed": "fixed", "val": "searched on validation images", "oracle": "ORACLE, searched on the test images"}
    return f"{part['alpha']:g} and {part['beta']:g}, {by[part['chosen']]}"


def command(words: Sequence[str] | None) -> str:
    """A command line as one would type it."""
    if not words:
        return "-"
    program = "python -m dho_plugin" if words[0].endswith("__main__.py") else f"python {Path(words[0]).name}"
    return f"{program} {shlex.join(words[1:])}"


def caveats(runs: Sequence[Run]) -> list[str]:
    """Those of any of the runs."""
    return [word for word in CAVEATS if any(word in run.caveats for run in runs)]
