"""Reading images of one's own: class folders and unlabelled images, or a table of files; and what is wrong with them.

Class folders stand in train/ (or labeled/), or alone, as torchvision's ImageFolder has them. A class is known by the
name of its folder, or by its label in the table.
"""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import UsageError, check_choice
from ..predicting import printable
from .lists import read_lines
from .own_checks import SPLITS, Entry, check_classes, check_files

TABLE = "labels.csv"
LABELED = ("train", "labeled")  # two names of one folder
FOLDERS = (*LABELED, "unlabeled", "val", "test")
EXPECTED = (
    "expected train/CLASS/*.jpg or labeled/CLASS/*.jpg (beside it unlabeled/, val/CLASS/ and test/CLASS/, if there are "
    f"any), class folders alone (CLASS/*.jpg), or {TABLE} with the columns path,label[,split]"
)
# A folder of such a name beside the right ones would be left out without a word.
MISNAMED = {
    "labelled": "labeled",
    "training": "train",
    "unlabelled": "unlabeled",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}


def read_entries(root: Path, table: str = "", *, skip: bool = False) -> list[Entry]:
    """All images, sorted by path within each set, checked.

    Args:
        root: the folder. table: a CSV file below it; empty for class folders, or labels.csv where there are none.
        skip: let unreadable training images be.

    Raises:
        UsageError: neither layout; an empty set; an image twice or outside a class folder; a file that is no image;
            fewer than two classes; a class that only val or test has; an image in two of the sets.
    """
    if not root.is_dir():
        above = next((parent for parent in root.parents if parent.is_dir()), Path("/"))
        raise UsageError(f"--data: no folder {root}; {above} holds {_shown(above)}; {EXPECTED}")
    folders, file = [name for name in LABELED if (root / name).is_dir()], root / TABLE
    if not table and folders and file.is_file():
        raise UsageError(f"{root} holds {folders[0]}/ and {TABLE}: give --data {file}, or move one of them away")
    entries = read_table(root / (table or TABLE)) if table or file.is_file() else read_folders(root)
    entries.sort(key=lambda entry: (SPLITS.index(entry.split), entry.path))
    check_classes(entries)
    check_files(entries, root, skip=skip)
    return entries


def read_folders(root: Path) -> list[Entry]:
    """The images of train/CLASS, unlabeled, val/CLASS and test/CLASS, the last three optional; or of CLASS alone."""
    labeled = class_root(root)
    entries = _class_folders(labeled, "train")
    if labeled == root:
        return entries
    there = _folders(root)
    if "unlabeled" in there:
        files = images_below(there["unlabeled"])
        if not files:
            raise UsageError(f"{there['unlabeled']} holds no images: add some, or remove it")
        entries += [Entry(file, "", "train") for file in files]
    for split in ("val", "test"):
        if split in there:
            entries += _class_folders(there[split], split)
    return entries


def class_root(root: Path) -> Path:
    """The folder whose folders are the classes: train/ or labeled/, or `root` itself where it holds nothing of ours.

    Raises:
        UsageError: both; neither beside val/, test/ or unlabeled/; a folder that is misnamed, or holds one of ours.
    """
    there = _folders(root)
    for name, folder in there.items():
        meant = MISNAMED.get(name.lower(), name.lower())
        if meant in FOLDERS and meant != name:
            raise UsageError(
                f"{printable(str(folder))} is not read: rename it to {meant} (or, where it is a class, move all class "
                f"folders into train/); {EXPECTED}"
            )
    named = [name for name in LABELED if name in there]
    if len(named) == 2:
        raise UsageError(f"{root} holds train/ and labeled/, two names of one folder: move them together into one")
    if named:
        return there[named[0]]
    nested = [folder / name for folder in there.values() for name in FOLDERS if (folder / name).is_dir()]
    if not there or nested or not there.keys().isdisjoint(FOLDERS):
        inner = nested[0].relative_to(root) if nested else None
        hint = f", and in it {printable(str(inner))}/ (one folder further down?)" if nested else ""
        raise UsageError(f"--data {root} holds {_shown(root)}{hint}; {EXPECTED}")
    return root


def remarks(root: Path, table: str, entries: Sequence[Entry]) -> list[str]:
    """What a run says of images that are not there, or not read; entries: as read_entries returns them."""
    in_table = bool(table) or (root / TABLE).is_file()
    alone = not in_table and class_root(root) == root
    said = []
    passed_by = [] if in_table or alone else sorted(_folders(root).keys() - set(FOLDERS))
    if passed_by:
        said.append(f"not read: {passed_by[:8]}{' and more' if len(passed_by) > 8 else ''}")
    if all(entry.class_id for entry in entries):
        said.append("no unlabelled images (no unlabeled/, no row without a label)")
    if not any(entry.split == "test" for entry in entries):
        how = "move some to test/CLASS/"
        if in_table:
            how = "give some rows the split test"
        elif alone:
            how = "move the class folders into train/ and some of their images into test/CLASS/"
        said.append(f"no test images, so nothing will be evaluated; to hold some out, {how}")
    return [printable(f"{root}: {line}") for line in said]


def _class_folders(folder: Path, split: str) -> list[Entry]:
    entries, loose = [], []
    for entry in _visible(folder):
        if entry.is_dir():
            files = images_below(entry)
            if not files:
                raise UsageError(f"class folder {printable(str(entry))} holds no images: add some, or remove it")
            entries += [Entry(file, _normal(entry.name), split) for file in files]
        elif _is_image(entry.name):
            loose.append(entry.name)
    if loose or not entries:
        what = "has no class folders"
        if loose:
            what = f"holds {len(loose)} images outside class folders, first {printable(loose[0])}"
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
            path = printable(row[header.index("path")])
            raise UsageError(f"{file}, line {number}: {path} stands in line {lines[entry.path]} too")
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
        raise UsageError(f"{where}: no file {printable(path)}")
    return Entry(path, _normal(cells["label"]), split)


def read_names(file: Path, class_ids: Sequence[str]) -> dict[str, str]:
    """Names by class id, from lines "<id> <name>"; a class without a line is named by its id, "_" read as a space.

    Raises:
        UsageError: a line that names no class, or one named before, or gives no name; it gives the line number.
    """
    names = {id_: id_.replace("_", " ") for id_ in class_ids}
    named: dict[str, int] = {}
    for number, line in enumerate(read_lines(file) if file.is_file() else [], start=1):
        text = _normal(line.strip())
        # Ids may have spaces, and one may begin like another: the longest that fits.
        fits = max((id_ for id_ in class_ids if f"{text} ".startswith(f"{id_} ")), key=len, default=None)
        if text and (fits is None or text == fits):
            raise UsageError(
                f"{file}, line {number}: expected '<class folder> <name>', got {line!r}; the class folders are "
                f"{list(class_ids[:8])}{' and more' if len(class_ids) > 8 else ''}"
            )
        if fits is not None:
            if fits in named:
                raise UsageError(f"{file}, line {number}: {fits!r} is named in line {named[fits]} too")
            names[fits], named[fits] = text[len(fits) :].strip(), number
    return names


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMG_EXTENSIONS)


def _folders(root: Path) -> dict[str, Path]:
    return {entry.name: entry for entry in _visible(root) if entry.is_dir()}


def _visible(folder: Path) -> Iterable[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _shown(folder: Path) -> str:
    names = [entry.name for entry in _visible(folder)]
    return f"{names[:10]}{' and more' if len(names) > 10 else ''}" if names else "nothing"


def _normal(name: str) -> str:
    """One spelling of accented letters: macOS writes them in file names as two characters."""
    return unicodedata.normalize("NFC", name)
