"""python -m dho_plugin COMMAND"""

from __future__ import annotations

import importlib
import sys

from .errors import UsageError, did_you_mean

COMMANDS = {
    "demo": "run the whole comparison on the built-in pictures and print its table",
    "table13": "train every row of the paper's Table 13 and print it beside the paper's numbers",
    "students": "train DHO and its rivals on a compact student by shots, the paper's Table 1",
    "low-shot": "train CLIP students as a whole from few labels: the paper's Tables 4, 5, 9 and 12",
    "grid": "train trainers on datasets by shots and seeds: many runs at once, here or under Slurm, each of them once",
    "ablations": "vary how DHO's heads start, are built and are interpolated (Table 5, Figure 8, Tables 14 and 15)",
    "features": "compare finished runs by their features: linear evaluation and t-SNE (Table 3, Figure 7)",
    "teacher-check": "look at a teacher on the labelled images: its errors, its confidence, and what to set",
    "export": "write a finished run as one model: ONNX, torch.export, safetensors, each checked against the run",
    "predict": "classify images with an exported model",
    "data": "look at the data sets below a folder (doctor), or download them (fetch)",
    "pack": "write shrunk copies of the images of a dataset, for runs that decoding limits",
    "benchmark": "time what is computed once here against the peers' way, results compared first",
    "estimate": "say what a run would cost before it: FLOPs, memory, bytes stored, hours on a named GPU",
    "costs": "measure what the second head costs at inference, and what merging tokens saves",
}

# The package that a command's module is in, where it is not this one.
PLACES = {
    **dict.fromkeys(("demo", "table13", "students", "low_shot", "grid", "ablations"), ".tables"),
    **dict.fromkeys(("features",), ".analysis"),
}


def main(argv: list[str]) -> int:
    """Hand over to a command; 2 for a mistake that the user can mend."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m dho_plugin COMMAND [options]\n")
        for name, purpose in COMMANDS.items():
            print(f"  {name:13} {purpose}")
        return 0 if argv else 2
    try:
        if argv[0] not in COMMANDS:
            raise UsageError(
                f"unknown command {argv[0]!r}: expected one of {list(COMMANDS)}.{did_you_mean(argv[0], COMMANDS)}"
            )
        name = argv[0].replace("-", "_")
        return importlib.import_module(f"{PLACES.get(name, '')}.{name}", __package__).main(argv[1:])
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
