"""What a pack of shrunk images says of itself (pack.json), so that a run on one is known as such."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import UsageError
from .predicting import printable

RECORD = "pack.json"


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record in a folder, None for none.

    Raises:
        UsageError: a file of that name is there and is no record.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "shorter": int(found["shorter"]), "complete": bool(found["complete"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{printable(str(path))} is no record of a pack ({type(error).__name__}: {error})") from error


def pack_of(paths: Iterable[str]) -> dict[str, Any] | None:
    """The record of the pack that images lie in, with its "folder"; None where they are no pack's.

    Raises:
        UsageError: the pack is not finished, so that images are missing.
    """
    folders: set[Path] = set()
    for name in {os.path.dirname(os.path.abspath(path)) for path in paths}:
        for spelling in (Path(name), Path(os.path.realpath(name))):  # either may lead through a pack
            folders.update((spelling, *spelling.parents))
    found = [(folder, record) for folder in sorted(folders) if (record := read_record(folder)) is not None]
    for folder, record in found:
        if not record["complete"]:
            raise UsageError(
                f"the pack in {printable(str(folder))} is not finished: run its `pack` command again, which goes on"
            )
    return {"folder": str(found[0][0]), **found[0][1]} if found else None


def packed_line(record: dict[str, Any]) -> str:
    """What a run on a pack has to say."""
    return printable(
        f"PACKED: the images are {record['folder']}'s, shrunk to a shorter side of {record['shorter']} pixels; their "
        "views are near the originals', not the same"
    )
