"""`python -m dho_plugin data doctor`: what is there of each data set, what is missing, whether a run would start."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from ..datasets import CLASSES, SHIFTS, TEN
from ..datasets.own_files import read_entries
from ..errors import UsageError, check_choice
from ..predicting import printable
from .examine import Found, Wishes, examine, examine_own

# By the names of their files in configs/datasets.
NAMES = ("imagenet", *TEN, "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")
assert len(NAMES) == len(CLASSES) + len(SHIFTS["ImageNet"]) + 1

STATUS = (
    "Exit status: 0 if a run would start on every set asked for and no image looked at is unreadable; 1 if not, where "
    "of `all` a set of which nothing is there counts only if nothing is there of any; 2 for a wrong command."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m dho_plugin data doctor", description=__doc__, epilog=STATUS)
    p.add_argument("--dataset", default="all", metavar="D[,D...]", help=f"all (the default), or of: {', '.join(NAMES)}")
    p.add_argument("--root", default="", help="folder that holds the data sets")
    p.add_argument("--data", default="", help="images of one's own instead: DIR or FILE.csv as train.py takes them")
    p.add_argument("--decode", action="store_true", help="decode every image instead of opening it, and list the bad")
    p.add_argument("--content", action="store_true", help="compare train, val and test byte by byte however large")
    return p


def main(argv: list[str]) -> int:
    """Print a block for each set and a summary; see STATUS for what is returned.

    Raises:
        UsageError: an unknown data set; no such folder.
    """
    args = parser().parse_args(argv)
    wishes = Wishes(decode=args.decode, content=args.content)
    if args.data:
        return _own(args, wishes)
    asked = args.dataset.split(",")
    for name in asked:
        check_choice("--dataset", name, ("all", *NAMES))
    root = _root(args.root)
    names = NAMES if "all" in asked else tuple(dict.fromkeys(asked))
    found = {}
    for name in names:
        found[name] = examine(name, root, wishes)
        _show(name, found[name])
    print(_summary(list(found.values())))
    states = Counter(one.state for one in found.values())
    excused = "all" in asked and states["missing"] < len(found)
    return int(any(one.obstacle for one in found.values() if not (excused and one.state == "missing")))


def _own(args: argparse.Namespace, wishes: Wishes) -> int:
    if args.root or args.dataset != "all":
        raise UsageError("--data says it all: leave out --dataset and --root")
    path = Path(args.data).expanduser().absolute()
    if not path.exists():
        read_entries(path)  # says what is there
    found = examine_own(args.data, wishes)
    _show(str(path), found)
    return int(bool(found.obstacle))


def _root(given: str) -> Path:
    if not given:
        raise UsageError("no --root: give the folder that holds the data sets, or --data for images of your own")
    root = Path(given).expanduser().absolute()
    if not root.is_dir():
        above = next(parent for parent in root.parents if parent.is_dir())
        there = sorted(entry.name for entry in above.iterdir())
        raise UsageError(printable(f"--root: no folder {root}; {above} holds {there[:10] or 'nothing'}"))
    return root


def _show(name: str, found: Found) -> None:
    says = found.state
    if found.state == "found":
        says += f", but a run would stop: {found.obstacle}" if found.obstacle else ", a run would start"
    print(printable(f"{name}: {says}"))
    if found.state == "partly found":
        print(printable(f"    a run would not start: {found.obstacle}"))
    for line in found.lines:
        print(printable(f"    {line}"), flush=True)
    print()


def _summary(found: list[Found]) -> str:
    ready = sum(not one.obstacle for one in found)
    states = Counter(one.state for one in found)
    return (
        f"{len(found)} data set{'s' if len(found) > 1 else ''}: {ready} ready, {states['found'] - ready} found but not "
        f"ready, {states['partly found']} partly found, {states['missing']} missing"
    )
