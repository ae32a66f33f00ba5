"""`python -m dho_plugin heads`: what can be asked of two heads without training again, as tables and figures."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UsageError, check_choice
from ..manifest import called
from ..runs import run_config
from ..saved import flatten
from ..tables.command import write
from ..tables.summary import comma_separated, markdown
from ..trainers.student import is_clip
from .ablation import ablation_section
from .agreement import agreement_section
from .alpha_beta import map_section
from .answers import sets_of
from .by_class import by_class_section
from .calibration_figures import confidence_figure, reliability_figure
from .drawing import save, styled
from .examined import ZERO_SHOT, Examined, examine
from .head_figures import ablation_figure, agreement_figure, map_figure, per_class_figure, retention_figure
from .over_seeds import Section
from .predictors import calibration_section
from .retention import retention_section

SAME = (
    *("TRAINER.NAME", "TRAINER.DHO.CHOOSE", "TRAINER.DHO.TRANSDUCTIVE"),
    *("DATASET.NAME", "DATASET.NUM_SHOTS", "MODEL.BACKBONE.NAME"),
)
BELOW = {"calibration": ("confidence", "reliability")}  # figures below a section that has not just one of its name


def column_of(found: Sequence[Examined]) -> str:
    """The set, with the caveats of any run's results."""
    return called(found[0].split, caveats_of(found))


def caveats_of(found: Sequence[Examined]) -> list[str]:
    """Of any run."""
    return list(dict.fromkeys(word for one in found for word in one.caveats))


def sections(found: Sequence[Examined]) -> list[Section]:
    """The tables of the runs of one row."""
    column, parts = column_of(found), []
    heads = [one.heads for one in found if one.heads]
    if heads:
        parts.append(map_section([one.accuracy for one in heads], [one.points for one in heads], column))
        parts.append(ablation_section([one.ablation for one in heads], [one.seed for one in found], column))
        parts.append(agreement_section([one.agreement for one in heads], column))
    parts.append(calibration_section([one.calibration for one in found], column))
    parts.append(by_class_section([one.by_class for one in found], column))
    if any(found[0].accuracy.values()):  # images of one's own may lack a test set
        parts.append(retention_section([one.accuracy for one in found], caveats_of(found)))
    return parts


def figures(found: Sequence[Examined]) -> dict[str, Any]:
    """Figures of matplotlib by the name of the section that they belong to, or of their own; within styled()."""
    column, drawn = column_of(found), {}
    heads = [one.heads for one in found if one.heads]
    if heads:
        drawn["map"] = map_figure([one.accuracy for one in heads], [one.points for one in heads], column)
        drawn["ablation"] = ablation_figure([one.ablation for one in heads], column)
        drawn["agreement"] = agreement_figure([one.agreement for one in heads], column)
    bins = [{name: of.bins for name, of in one.calibration.items()} for one in found]
    drawn["confidence"] = confidence_figure(bins, column)
    drawn["reliability"] = reliability_figure(bins, column)
    if found[0].by_class.differences():
        drawn["per_class"] = per_class_figure([one.by_class for one in found], column)
    if any(len(sets) > 1 for sets in found[0].accuracy.values()):
        drawn["retention"] = retention_figure([one.accuracy for one in found], caveats_of(found))
    return drawn


def document(found: Sequence[Examined], parts: Sequence[Section], drawn: Mapping[str, Any], command: str) -> str:
    """All of it in Markdown."""
    notes = dict.fromkeys(note for one in found for note in one.notes)
    paragraphs = ["# Heads", f"    {command}", *(one.said for one in found), *notes]
    for part in parts:
        shown = [name for name in BELOW.get(part.name, (part.name,)) if name in drawn]
        paragraphs += [f"## {part.heading}", *map(markdown, part.tables), *part.text]
        paragraphs += [f"![{name.replace('_', ' ')}]({name}.svg)" for name in shown]
    return "\n\n".join(paragraphs)


def plain(value: Any) -> Any:
    """As JSON has it: tensors as lists, named tuples as objects, numbers that are none as null."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return str(value) if isinstance(value, Path) else value


# The command


def parser() -> argparse.ArgumentParser:
    """The flags."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin heads", description=__doc__)
    p.add_argument("runs", nargs="+", metavar="RUN", help="a finished run; several: the seeds of one row")
    control = f"one run to compare with, or one for each RUN; or {ZERO_SHOT}: the run's own CLIP student, untrained"
    p.add_argument("--control", nargs="+", default=[], metavar="RUN", help=control)
    p.add_argument("--split", default="test", help="test, val or a shift of the dataset")
    p.add_argument("--no-ood", action="store_true", help="leave the shifts of the dataset out")
    p.add_argument("--root", default="", help="folder that holds the datasets, if not where the run had them")
    p.add_argument("--bins", type=int, default=15, help="of confidence (default 15)")
    p.add_argument("--output-dir", default="", help="default RUN/heads, of several runs heads/ where they all lie")
    return p


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for what cannot be meant, before a model is loaded."""
    if args.bins < 1:
        raise UsageError(f"--bins {args.bins}: expected 1 or more")
    if len(args.control) not in (0, 1, len(args.runs)):
        raise UsageError(f"--control: {len(args.control)} for {len(args.runs)} runs; expected one, or one for each")
    check_choice("--split", args.split, sets_of(args.runs[0]))
    configurations = [run_config(run) for run in args.runs]
    for control in args.control:
        student = configurations[0].MODEL.BACKBONE.NAME
        if control != ZERO_SHOT:
            run_config(control)
        elif not is_clip(student):
            raise UsageError(f"--control {ZERO_SHOT}: {student} is no CLIP model, which class names are enough for")
    check_row(args.runs, configurations)


def check_row(runs: Sequence[str], configurations: Sequence[Any]) -> None:
    """Raise UsageError for runs that differ in more than their seeds, or have the same."""
    first, *others = map(flatten, configurations)
    for name, other in zip(runs[1:], others, strict=True):
        for key in SAME:
            if first[key] != other[key]:
                differ = f"{key} is {other[key]!r}, and {first[key]!r} in {runs[0]}"
                raise UsageError(f"{name}: {differ}: give the seeds of one row")
    seeds = [cfg.SEED for cfg in configurations]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"the runs have the seeds {seeds}: expected different ones")


def output_folder(args: argparse.Namespace) -> Path:
    """Where the files go."""
    if args.output_dir:
        return Path(args.output_dir).expanduser()
    return Path(os.path.commonpath([Path(run).expanduser().absolute() for run in args.runs])) / "heads"


def main(argv: Sequence[str] | None = None) -> int:
    """Examine the runs, print the document, and leave it with its tables and figures."""
    args = parser().parse_args(argv)
    command = shlex.join(["python", "-m", "dho_plugin", "heads", *(argv or [])])
    check(args)
    controls = args.control * (len(args.runs) if len(args.control) == 1 else 1) or [""] * len(args.runs)
    folder = output_folder(args)
    with styled():  # which says that matplotlib is missing before anything slow starts
        found = [
            examine(run, args.split, control=control, root=args.root, bins=args.bins, ood=not args.no_ood)
            for run, control in zip(args.runs, controls, strict=True)
        ]
        parts, drawn = sections(found), figures(found)
        for name, figure in drawn.items():
            save(figure, folder / name)
    text = document(found, parts, drawn, command)
    print(f"\n{text}\n\nWritten to {folder}")
    write(folder, "heads", {"md": f"{text}\n", "json": json.dumps(plain({"command": command, "runs": found})) + "\n"})
    for part in parts:
        write(folder, part.name, {"csv": comma_separated(part.details)})
    return 0
