"""The runs below some folders: what each has left, and which have left too little."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import manifest
from ..errors import UsageError
from ..run_log import LOG
from ..saved import RECORD, read_record
from ..shifts import Row
from ..tables.by_shots import column
from ..tables.cells import RESULT, read_result

LEFT = (RESULT, RECORD, manifest.MANIFEST, LOG)
ZERO_SHOT = "ZeroshotCLIP"  # has neither seed nor labels


class Run(NamedTuple):
    """A run by what it left in its folder.

    Attributes:
        row: its label in the table that it was run for, or its trainer. settings: by dotted key.
        manifest: empty for what trains nothing. accuracies: by column, in percent; empty for a run that is not over.
        made_by: versions and device, where a table's command ran it.
    """

    folder: Path
    row: str
    settings: dict[str, Any]
    manifest: dict[str, Any]
    accuracies: Row
    made_by: str = ""

    @property
    def seed(self) -> int:
        """Of order and views."""
        return self.settings["SEED"]

    @property
    def trainer(self) -> str:
        """Its registered name."""
        return self.settings["TRAINER.NAME"]

    @property
    def dataset(self) -> str:
        """Its registered name; a folder of one's own by the folder's."""
        name = self.settings["DATASET.NAME"]
        return name if name != "Folder" else Path(self.settings["DATASET.ROOT"]).name

    @property
    def labels(self) -> str:
        """How many labelled images a class, or the list that names them."""
        shots, listed = self.settings["DATASET.NUM_SHOTS"], self.settings["DATASET.LABELS"]
        return column(shots) if shots > 0 or not listed else Path(listed.partition(" sha256:")[0]).stem

    @property
    def two_heads(self) -> bool:
        """Whether it answers with a CE and a KD head; the alpha and beta of an adapter are of other things."""
        return bool(self.manifest.get("interpolation")) and not self.trainer.startswith("TipAdapter")

    @property
    def caveats(self) -> tuple[str, ...]:
        """What must not be overlooked about its numbers."""
        interpolation = self.manifest.get("interpolation") or {}
        said = {
            "oracle": interpolation.get("chosen") == "oracle",
            "transductive": self.manifest.get("transductive"),
            "packed": self.manifest.get("packed"),
        }
        return tuple(word for word, holds in said.items() if holds)


class Problem(NamedTuple):
    """Something that a page leaves out, such as a folder with less than a finished run, and why."""

    name: str
    what: str


class Source(NamedTuple):
    """What was asked for: a run, or a folder of them; or runs given one by one, which then have no folder."""

    folder: Path | None
    runs: list[Run]
    problems: list[Problem]


def collect(given: Sequence[str]) -> list[Source]:
    """What lies in the folders, each run once, in the order in which they are given.

    Raises:
        UsageError: a folder that is not there, or no run in any of them.
    """
    sources, single, seen = [], Source(None, [], []), set[Path]()
    for name in given:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise UsageError(f"{name}: expected the output folder of a run, or a folder that holds such folders")
        found = [left for left in left_below(folder) if left.resolve() not in seen]
        seen |= {left.resolve() for left in found}
        source = single if found == [folder] else Source(folder, [], [])
        for left in found:
            try:
                run, wrong = read(left)
            except Exception as error:  # whatever it was, it is named, and the page is made
                run, wrong = None, f"cannot be read: {error}"
            source.runs.extend([run] if run else [])
            source.problems.extend([Problem(str(left), wrong)] if wrong else [])
        sources += [source] if source is not single else []
    sources = [source for source in [*sources, single] if source.runs or source.problems]
    if not any(source.runs for source in sources):
        raise UsageError(
            f"no run in {', '.join(given)}: a run leaves {RECORD} and {manifest.MANIFEST}, a cell of a table {RESULT}"
        )
    return sources


def left_below(folder: Path) -> Iterator[Path]:
    """Folders in which something has run, in order; what stands below one of them belongs to it.

    A folder of many runs may hold a log of its own all the same.
    """
    _, folders, files = next(os.walk(folder), (folder, [], []))
    own = [name for name in LEFT if name in files]
    if own:
        yield folder
    if not own or own == [LOG]:
        for name in sorted(folders):
            if not (own and name == "shifts"):
                yield from left_below(folder / name)


def read(folder: Path) -> tuple[Run | None, str]:
    """The run in a folder, None for too little of one; and what is wrong, empty for nothing.

    Raises:
        UsageError: a record or manifest that is none. Exception: one that lacks what every run has.
    """
    result, record, protocol = read_result(folder), read_record(folder), manifest.read(folder)
    settings = result.get("settings") or record
    if not settings:
        return None, "only a log: it has not begun to train, or was an evaluation"
    accuracies = result.get("accuracies") or protocol.get("results") or {}
    run = Run(folder, result.get("row") or label(settings), settings, protocol, accuracies, result.get("made_by", ""))
    _ = run.seed, run.trainer, run.dataset, run.labels  # a KeyError now and not in the middle of a page
    if record and not protocol:
        return run, "has not begun to train: it left no manifest"
    if not accuracies and protocol.get("finished") is None:
        return run, "is not over"
    return run, "" if accuracies else "has no results: it was trained without a test set"


def label(settings: dict[str, Any]) -> str:
    """What a run is called that no table has named: its trainer, and whether it had the unlabelled images."""
    trainer = settings["TRAINER.NAME"]
    alone = trainer.endswith("DHO") and settings.get("TRAINER.DHO.UNLABELED") is False
    return f"{trainer} (labels)" if alone else trainer
