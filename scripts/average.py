"""python scripts/average.py FOLDER [NEW]: mean and deviation over the seed folders of one or two experiments.

One folder: accuracy on the test set and on every shift below <seed>/shifts. Two: base and new classes, and their
harmonic mean H of every seed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from statistics import harmonic_mean, mean, stdev


def last_accuracy(log: Path) -> float:
    """The last accuracy that a log states, as CoOp's own parser takes it."""
    log = max(log.parent.glob("log.txt*"))  # a run that went on has log.txt-DATE beside log.txt
    found = re.findall(r"\* accuracy: ([\d.]+)%", log.read_text(encoding="utf-8"))
    if not found:
        sys.exit(f"error: {log} states no accuracy; was the run interrupted? Delete {log.parent} and run it again")
    return float(found[-1])


def seeds(folder: Path) -> list[Path]:
    """The seed folders of an experiment."""
    found = sorted(path for path in folder.glob("seed*") if (path / "log.txt").is_file())
    if not found:
        sys.exit(f"error: no seed*/log.txt in {folder}")
    return found


def line(name: str, values: list[float]) -> str:
    """One line of the summary."""
    spread = f" ±{stdev(values):.1f}" if len(values) > 1 else ""
    return f"{name:8} {mean(values):.1f}{spread}  ({', '.join(f'{value:.1f}' for value in values)})"


def main(folders: list[str]) -> None:
    if len(folders) not in (1, 2):
        sys.exit(__doc__)
    runs = seeds(Path(folders[0]))
    if len(folders) == 2:
        if [run.name for run in runs] != [run.name for run in seeds(Path(folders[1]))]:
            sys.exit(f"error: {folders[0]} and {folders[1]} have different seeds")
        halves = [[last_accuracy(run / "log.txt") for run in seeds(Path(folder))] for folder in folders]
        rows = {"base": halves[0], "new": halves[1], "H": [harmonic_mean(pair) for pair in zip(*halves, strict=True)]}
    else:
        rows = {"test": [last_accuracy(run / "log.txt") for run in runs]}
        for shift in sorted(path.name for path in (runs[0] / "shifts").glob("*")):
            rows[shift] = [last_accuracy(run / "shifts" / shift / "log.txt") for run in runs]
    print("\n".join(line(name, values) for name, values in rows.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
