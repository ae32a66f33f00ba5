"""The files of a data set: images that cannot be read, and splits that CoOp has cached."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..datasets.split_cache import read_cache
from ..errors import UsageError
from ..predicting import progress
from ..views import fault

SAMPLE = 20_000  # files of a set that are opened; of a larger one, as many at equal distances
SHOWN = 3


def unreadable(files: Sequence[str], *, decode: bool) -> tuple[int, list[str]]:
    """The number of files that are no images, and lines on them; by their first bytes, or by decoding them whole."""
    if not files:
        return 0, []
    few = decode or len(files) <= SAMPLE
    chosen = files if few else [files[i * len(files) // SAMPLE] for i in range(SAMPLE)]
    records = ({"path": path, "fault": fault(path, decode=decode)} for path in chosen)
    bad = [record for record in progress(records, len(chosen)) if record["fault"]]
    looked = f"{len(chosen):,} files" if few else f"{len(chosen):,} of {len(files):,} files, evenly spaced"
    how = "decoded" if decode else "opened, not decoded: --decode does that"
    lines = [f"unreadable images: {format(len(bad), ',') if bad else 'none'} ({looked}; {how})"]
    shown = bad if decode else bad[:SHOWN]
    return len(bad), [*lines, *(f"    {record['path']}: {record['fault']}" for record in shown)]


def caches(folder: Path) -> list[str]:
    """CoOp's cached splits, which a run of their K and seed reads."""
    files = [*sorted(folder.glob("split_fewshot/*.pkl")), *sorted(folder.glob("preprocessed.pkl"))]
    bad = []
    for file in files:
        try:
            read_cache(file)
        except UsageError as error:
            bad.append(f"CoOp's cache: {error}")
    good = f"CoOp's caches: {len(files) - len(bad)} that can be read safely, in {folder}"
    return [*([good] if len(files) > len(bad) else []), *bad]
