"""python -m dho_plugin COMMAND"""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from .errors import UsageError, did_you_mean
from .launch import check_alone


class Command(NamedTuple):
    """The module whose main(argv) it is, and what it is for."""

    module: str
    purpose: str


COMMANDS = {
    "reproduce": Command(
        "reproduce", "run what a table or figure of the paper stands on, at its scale or as a stand-in of minutes"
    ),
    "demo": Command("tables.demo", "run the whole comparison on the built-in pictures and print its table"),
    "table13": Command(
        "tables.table13", "train every row of the paper's Table 13 and print it beside the paper's numbers"
    ),
    "students": Command(
        "tables.students", "train DHO and its rivals on a compact student by shots (Table 1, Figure 5)"
    ),
    "low-shot": Command("tables.low_shot", "train CLIP students as a whole from few labels (Tables 4, 5, 9 and 12)"),
    "ablations": Command(
        "tables.ablations",
        "vary how DHO's heads start, are built and are interpolated (Table 5, Figure 8, Tables 14 and 15)",
    ),
    "conflict": Command(
        "tables.conflict", "compare the gradients of both losses in training, one head against two (Figures 4 and 13)"
    ),
    "grid": Command(
        "tables.grid", "train trainers on datasets by shots and seeds: many runs at once, here or under Slurm"
    ),
    "report": Command("report", "make one HTML page of a run, a grid or a table, with a live alpha-beta map"),
    "heads": Command(
        "analysis.heads",
        "ask a run's two heads, without training: alpha-beta map, ablation, agreement, calibration, shifts",
    ),
    "features": Command(
        "analysis.features", "compare finished runs by their features: linear evaluation and t-SNE (Table 3, Figure 7)"
    ),
    "gallery": Command(
        "analysis.gallery", "show test images by which head is right, with what teacher, heads and combination say"
    ),
    "theory": Command(
        "analysis.theory", "measure Appendix A's lemma on temperatures: where it fails, and on which images it holds"
    ),
    "teacher-check": Command(
        "teacher_check", "look at a teacher on the labelled images: its errors, its confidence, and what to set"
    ),
    "export": Command(
        "export", "write a finished run as one model: ONNX, torch.export, safetensors, each checked against the run"
    ),
    "predict": Command("predict", "classify images with an exported model"),
    "data": Command("data", "look at the data sets below a folder (doctor), or download them (fetch)"),
    "pack": Command("pack", "write shrunk copies of the images of a dataset, for runs that decoding limits"),
    "estimate": Command(
        "estimate", "say what a run would cost before it: FLOPs, memory, bytes stored, hours on a named GPU"
    ),
    "benchmark": Command("benchmark", "time what is computed once here against the peers' way, results compared first"),
    "costs": Command("costs", "measure what the second head costs at inference, and what merging tokens saves"),
}


def main(argv: list[str]) -> int:
    """Hand over to a command; 2 for a mistake that the user can mend."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m dho_plugin COMMAND [options]\n")
        for name, command in COMMANDS.items():
            print(f"  {name:13} {command.purpose}")
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            raise UsageError(
                f"unknown command {argv[0]!r}: expected one of {list(COMMANDS)}.{did_you_mean(argv[0], COMMANDS)}"
            )
        module = COMMANDS[argv[0]].module
        if module.startswith("tables."):
            check_alone(argv[0])
        return importlib.import_module(f".{module}", __package__).main(argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
