"""Reading images of one's own: class folders and unlabelled images, or a table of files; and what is wrong with them.

A class is known by the name of its folder, or by its label in the table.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import UsageError, check_choice
from .own_checks import SPLITS, Entry, check_classes, check_files

TABLE = "labels.csv"
EXPECTED = (
    f"expected labeled/CLASS/*.jpg (beside it unlabeled/, val/CLASS/ and test/CLASS/, if there are any), or {TABLE} "
    "with the columns path,label[,split]"
)
# A folder of such a name beside the right ones would be left out without a word.
MISNAMED = {
    "labelled": "labeled",
    "train": "labeled",
    "unlabelled": "unlabeled",
    "valid": "val",
    "validation": "val",
}


def read_entries(root: Path, table: str = "") -> list[Entry]:
    """All images, sorted by path within each set, checked.

    Args:
        root: the folder. table: a CSV file below it; empty for class folders, or labels.csv where there are none.

    Raises:
        UsageError: neither layout; an empty set; an image twice or outside a class folder; a file that is no image;
            fewer than two classes; a class that only val or test has; an image in two of the sets.
    """
    if not root.is_dir():
        above = next((parent for parent in root.parents if parent.is_dir()), Path("/"))
        raise UsageError(f"--data: no folder {root}; {above} holds {_shown(above)}; {EXPECTED}")
    folders, file = (root / "labeled").is_dir(), root / TABLE
    if not table and folders and file.is_file():
        raise UsageError(f"{root} holds labeled/ and {TABLE}: give --data {file}, or move one of them away")
    entries = read_table(root / (table or TABLE)) if table or file.is_file() else read_folders(root)
    entries.sort(key=lambda entry: (SPLITS.index(entry.split), entry.path))
    check_classes(entries)
    check_files(entries, root)
    return entries


def read_folders(root: Path) -> list[Entry]:
    """The images of labeled/CLASS, unlabeled, val/CLASS and test/CLASS; the last three are optional."""
    there = {entry.name: entry for entry in _visible(root) if entry.is_dir()}
    for name in there:
        if name.lower() in MISNAMED:
            raise UsageError(f"{there[name]} is not read: rename it to {MISNAMED[name.lower()]}; {EXPECTED}")
    if "labeled" not in there:
        raise UsageError(f"--data {root} holds {_shown(root)}; {EXPECTED}")
    entries = _class_folders(there["labeled"], "train")
    if "unlabeled" in there:
        files = images_below(there["unlabeled"])
        if not files:
            raise UsageError(f"{there['unlabeled']} holds no images: add some, or remove it")
        entries += [Entry(file, "", "train") for file in files]
    for split in ("val", "test"):
        if split in there:
            entries += _class_folders(there[split], split)
    return entries


def _class_folders(folder: Path, split: str) -> list[Entry]:
    entries, loose = [], []
    for entry in _visible(folder):
        if entry.is_dir():
            files = images_below(entry)
            if not files:
                raise UsageError(f"class folder {entry} holds no images: add some, or remove it")
            entries += [Entry(file, _normal(entry.name), split) for file in files]
        elif entry.suffix.lower() in IMG_EXTENSIONS:
            loose.append(entry.name)
    if loose or not entries:
        what = f"holds {len(loose)} images outside class folders, first {loose[0]}" if loose else "has no class folders"
        raise UsageError(f"{folder} {what}: expected {folder.name}/CLASS/*.jpg")
    return entries


def images_below(folder: Path) -> list[str]:
    """Image files at any depth, by suffix; hidden files and folders are left out, links are followed once."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            found += [os.path.join(parent, name) for name in sorted(files) if _is_image(name)]
        seen.add(real)
    return found


def read_table(file: Path) -> list[Entry]:
    """The images of a CSV file with the header path,label[,split]; paths are relative to its folder."""
    if not file.is_file():
        raise UsageError(f"no table {file}; {EXPECTED}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if {"path", "label"} - set(header) or set(header) - {"path", "label", "split"} or len(header) > 3:
                raise UsageError(f"{file}: the first line is {header}, expected path,label or path,label,split")
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if "".join(row).strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} is not CSV in UTF-8 ({error}): save it anew as such") from error
    lines: dict[str, int] = {}
    entries = []
    for number, row in rows:
        entry = _row(file, number, header, row)
        if entry.path in lines:
            raise UsageError(
                f"{file}, line {number}: {row[header.index('path')]} stands in line {lines[entry.path]} too"
            )
        lines[entry.path] = number
        entries.append(entry)
    return entries


def _row(file: Path, number: int, header: Sequence[str], row: Sequence[str]) -> Entry:
    where = f"{file}, line {number}"
    if len(row) != len(header):
        raise UsageError(f"{where}: {len(row)} cells, expected {len(header)} (quote a cell that has a comma)")
    cells = dict(zip(header, row, strict=True))
    split = cells.get("split") or "train"
    check_choice(f"{where}: split", split, SPLITS)
    if split != "train" and not cells["label"]:
        raise UsageError(f"{where}: an image for {split} needs a label")
    path = os.path.normpath(file.absolute().parent / cells["path"])
    if not os.path.isfile(path):
        raise UsageError(f"{where}: no file {path}")
    return Entry(path, _normal(cells["label"]), split)


def read_names(file: Path, class_ids: Sequence[str]) -> dict[str, str]:
    """Names by class id, from lines "<id> <name>"; a class without a line is named by its id, "_" read as a space.

    Raises:
        UsageError: a line that names no class, or gives no name.
    """
    names = {id_: id_.replace("_", " ") for id_ in class_ids}
    lines = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        text = _normal(line.strip())
        # Ids may have spaces, and one may begin like another: the longest that fits.
        fits = max((id_ for id_ in class_ids if f"{text} ".startswith(f"{id_} ")), key=len, default=None)
        if text and (fits is None or text == fits):
            raise UsageError(
                f"{file}, line {number}: expected '<class folder> <name>', got {line!r}; {list(class_ids)}"
            )
        if fits is not None:
            names[fits] = text[len(fits) :].strip()
    return names


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMG_EXTENSIONS


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _shown(folder: Path) -> str:
    names = [entry.name for entry in _visible(folder)]
    return f"{names[:10]}{' and more' if len(names) > 10 else ''}" if names else "nothing"


def _normal(name: str) -> str:
    """One spelling of accented letters: macOS writes them in file names as two characters."""
    return unicodedata.normalize("NFC", name)
