"""split.json beside a run's manifest: which images were labelled and which validated it, and reading them back.

{"labeled": [[path below the datasets' root, label, class name], ...], "validation": the same, "sha256": by set}. Rows
are sorted by path, and the digests are the manifest's, so that the same split is the same file on every machine. A set
of more than MAX_ROWS images, or validation images that are the test set, is null: its digest alone is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import UsageError
from .predicting import printable
from .sealed import write_whole

SPLIT = "split.json"
MAX_ROWS = 200_000


class Row(NamedTuple):
    """An image with its label. path: below the datasets' root, or whole where it lies elsewhere."""

    path: str
    label: int
    name: str


def below(path: str, base: Path) -> str:
    """A path below a folder, "/" between its parts; the whole path where it lies elsewhere."""
    prefix = f"{base}{os.sep}"
    if path.startswith(prefix) and os.path.normpath(path) == path:  # the usual case, a million times
        return path[len(prefix) :].replace(os.sep, "/")
    whole = Path(path).absolute()
    return (whole.relative_to(base) if whole.is_relative_to(base) else whole).as_posix()


def digest(images: Iterable[tuple[str, int]]) -> str:
    """SHA-256 of (path, label) pairs, in any order."""
    content = "\n".join(sorted(f"{path} {label}" for path, label in images))
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def write_split(folder: Path, dataset: Any, root: str) -> None:
    """Leave the labelled and the validation images of a run in its output folder.

    Args:
        dataset: the run's Dassl dataset. root: the datasets' root.
    """
    val, test = dataset.val or [], dataset.test or []
    sets = {"labeled": _rows(dataset.train_x, root), "validation": _rows(val, root)}
    shown: dict[str, Any] = {name: rows if len(rows) <= MAX_ROWS else None for name, rows in sets.items()}
    if val and {item.impath for item in val} == {item.impath for item in test}:
        shown["validation"] = None
    shown["sha256"] = {name: digest((row.path, row.label) for row in rows) for name, rows in sets.items()}
    write_whole(folder / SPLIT, _text(shown))


def _rows(items: Sequence[Any], root: str) -> list[Row]:
    base = Path(root).expanduser().absolute()
    return sorted(Row(below(item.impath, base), int(item.label), item.classname) for item in items)


def _text(shown: dict[str, Any]) -> str:
    """JSON with one image a line, which a person can compare."""
    parts = []
    for key, value in shown.items():
        lines = ",\n".join(json.dumps(row) for row in value) if isinstance(value, list) else ""
        parts.append(f"{json.dumps(key)}: " + (f"[\n{lines}\n]" if lines else json.dumps(value)))
    return "{" + ",\n".join(parts) + "}\n"


def read_labeled(file: Path) -> tuple[list[Row], str]:
    """The labelled images of a run's split.json, and their digest as it stands there.

    Raises:
        UsageError: no JSON, or JSON of another form; the images themselves were too many to be kept.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows, sha256 = content["labeled"], content["sha256"]["labeled"]
        found = [Row(*row) for row in rows or []]
        if not all((type(path), type(label), type(name)) == (str, int, str) for path, label, name in found):
            raise TypeError("a row is not [path, label, class name]")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{printable(str(file))} is no split of a run ({type(error).__name__}: {printable(str(error))}): expected "
            '{"labeled": [[path, label, class name], ...], "sha256": {"labeled": ...}}'
        ) from error
    if rows is None:
        raise UsageError(f"{printable(str(file))} keeps no paths: there were more than {MAX_ROWS:,} labelled images")
    return found, sha256


def recorded(items: Sequence[Any], file: Path, root: str) -> list[Any]:
    """The items that were labelled in the run that wrote `file`, in the items' order.

    Which images they are is that run's; the order of its batches was that of its own draw.

    Args:
        items: all training images that have labels. root: the datasets' root.

    Raises:
        UsageError: a row whose path, label or class name is not the dataset's (the first is named); rows that were
            changed since, by the digest; a class without a row; as read_labeled.
    """
    rows, sha256 = read_labeled(file)
    base, shown = Path(root).expanduser().absolute(), printable(str(file))
    known = {below(item.impath, base): item for item in items}
    for number, row in enumerate(rows, start=1):
        item = known.get(row.path)
        if item is not None and (item.label, item.classname) == (row.label, row.name):
            continue
        here = f"the dataset has {[item.label, item.classname]}" if item else f"no such image is labelled in {root}"
        raise UsageError(printable(f"{file}, labelled image {number}: {list(row)}; {here}"))
    if digest((row.path, row.label) for row in rows) != sha256:
        raise UsageError(f"{shown}: its labelled images are not those of its sha256: it was changed, copy it anew")
    chosen = {known[row.path].impath for row in rows}
    kept = [item for item in items if item.impath in chosen]
    names = {item.label: item.classname for item in items}
    without = names.keys() - {item.label for item in kept}
    if without:
        raise UsageError(f"{shown} has no image of {len(without)} classes, first {names[min(without)]!r}")
    return kept
