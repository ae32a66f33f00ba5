"""conflict.csv of a run: a line for each step whose gradients were compared, none of them twice (see monitor.py)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..sealed import write_whole

FILE = "conflict.csv"  # in the run's output folder


class Observation(NamedTuple):
    """A line of conflict.csv; the measures are those of conflict.py, nan where one is not defined.

    Attributes:
        epoch, step: counted from 1; steps go on through the epochs.
        cosine, inner_product: with respect to the parameters of the image encoder that both losses reach.
        feature_cosine, feature_inner_product: with respect to the feature of a labelled image, mean over these images;
            that of the cosine is over those of which neither gradient is zero.
        discrepancy: see prediction_discrepancy, mean over labelled images.
        ce_eigenvalue, kd_eigenvalue, singular_value, eigenvalue: see Spectrum.
    """

    epoch: int
    step: int
    cosine: float
    inner_product: float
    feature_cosine: float
    feature_inner_product: float
    discrepancy: float
    ce_eigenvalue: float
    kd_eigenvalue: float
    singular_value: float
    eigenvalue: float


MEASURES = Observation._fields[2:]


def read(folder: Path) -> list[Observation]:
    """The lines of a run, in the order of its steps; none where it was not looked at.

    A line that a kill has cut short is left out, and so are all of a file that has other columns.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    header, *lines = [line.split(",") for line in whole] or [[]]
    if tuple(header) != Observation._fields:
        return []
    return [Observation(int(line[0]), int(line[1]), *map(float, line[2:])) for line in lines]


def append(folder: Path, line: Observation) -> None:
    """Add a line to a run's file, which is made at the first."""
    path = folder / FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(_words(Observation._fields), encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(line))


def cut(folder: Path, steps: int) -> None:
    """Take out what lies beyond that many steps, for a run that goes on from there; a file without lines is removed."""
    path = folder / FILE
    if not path.exists():
        return
    kept = [line for line in read(folder) if line.step <= steps]
    if kept:
        write_whole(path, _words(Observation._fields) + "".join(map(_line, kept)))
    else:
        path.unlink()


def _line(line: Observation) -> str:
    return _words([str(value) if isinstance(value, int) else f"{value:.6g}" for value in line])


def _words(words: list[str] | tuple[str, ...]) -> str:
    return ",".join(words) + "\n"
