"""A run that is killed again and again, and the same run left alone: both must leave the same.

    python tests/kills.py [KILLS]

kills a run on the built-in pictures (20 times by default, by SIGKILL and SIGTERM in turn: between steps, while a state
is saved, while features are stored, while it is evaluated), starts it again each time, and compares what it leaves in
the end with what an unbroken run leaves. tests/test_kills.py does the same in small.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import children
import runs
import torch
from dho_plugin.trainers import evaluated, resumable, tip_adapter

from dho_plugin import cli, stopping, stored_features

PHASES = ("step", "save", "in an evaluation", "while STORE.DIR was filled")
TIMES = re.compile(r" (time|data) \S+ \(\S+\)| eta \S+|Elapsed: .*")
SECONDS = 300
# The files of a run, those of its stage one and of its shifted test sets.
DOCUMENTED = re.compile(
    r"(stage_one/)?((log\.txt|config\.yaml|manifest\.json|split\.json|conflict\.csv)|shifts/\w+/log\.txt"
    r"|\w+/(checkpoint|model-best\.pth\.tar|model\.pth\.tar-\d+|model-(\d+|best)\.safetensors))"
)
# What two manifests agree on.
SAME = ("labeled", "unlabeled", "validation", "test", "interpolation", "view_seed", "skipped", "results")


class Kill(NamedTuple):
    """phase, count: killed at the count-th moment of a phase in a process. number: the signal."""

    phase: str
    count: int
    number: int


def train(words: Sequence[str], moments: Connection | None) -> None:
    """train.py in a process of its own, which tells its moments and waits a while at each for what may come."""
    if moments is not None:
        tell(moments)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        status = cli.main(list(words))
    sys.exit(status)


def tell(moments: Connection) -> None:
    """Have a process tell where it is, and go on when it is told to."""

    def at(phase: str) -> None:
        moments.send(phase)
        moments.recv()

    fsync, replace, check, after = os.fsync, os.replace, stopping.check, resumable.Resumable.after_step

    def checked(where: str, **options: bool) -> None:
        at(where)
        check(where, **options)

    def stepped(trainer) -> None:
        at("step")
        after(trainer)

    def synced(file: int) -> None:
        at("save")
        fsync(file)

    def replaced(source: str, target: str) -> None:
        at("save")
        replace(source, target)

    os.fsync, os.replace = synced, replaced
    resumable.Resumable.after_step = stepped
    for module in (evaluated, tip_adapter, stored_features):
        module.check = checked


def run(words: Sequence[str], kill: Kill | None) -> int:
    """Start the run and kill it; its exit status, negative for a signal that ended it."""
    ours, theirs = multiprocessing.Pipe()
    process = children.child(train, words, theirs if kill else None)
    process.start()
    seen: Counter[str] = Counter()
    until = time.monotonic() + SECONDS
    try:
        while process.is_alive():
            assert time.monotonic() < until, f"{kill}: still running, seen {seen}"
            if not ours.poll(0.02):
                continue
            phase = ours.recv()
            seen[phase] += 1
            if kill is not None and phase == kill.phase and seen[phase] == kill.count:
                os.kill(process.pid, kill.number)
            ours.send(None)
        return process.exitcode
    finally:
        process.kill()
        process.join()


def differences(one: Path, other: Path, *, logs: bool = True) -> list[str]:
    """What two runs left that is not the same: names of files, weights bit by bit, what they learned from, results.

    Args:
        logs: compare log.txt, too, and its results with those of the manifest.
    """
    found = []
    files = [{str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} for folder in (one, other)]
    files = [{name for name in names if "events.out.tfevents" not in name} for names in files]
    found += [f"left in one alone: {name}" for name in sorted(files[0] ^ files[1])]
    found += [f"not documented: {name}" for name in sorted(files[0] | files[1]) if not DOCUMENTED.fullmatch(name)]
    for name in sorted(files[0] & files[1]):
        pair = (one / name, other / name)
        if "pth.tar" in name:
            found += [f"{name}: {key}" for key in unequal(*(torch.load(file, weights_only=True) for file in pair))]
        elif name.endswith("manifest.json"):
            parts = [json.loads(file.read_text()) for file in pair]
            found += [f"{name}: {key}" for key in SAME if parts[0][key] != parts[1][key]]
            found += [f"{name}: no results"] * (not parts[0]["results"] or not parts[0]["finished"])
        elif logs and name.endswith("log.txt"):
            found += unlike(*pair)
        elif not name.endswith((".safetensors", "log.txt")) and said(pair[0], one) != said(pair[1], other):
            found.append(name)
    return found


def said(file: Path, folder: Path) -> str:
    """What a file says, wherever the folder of its run lies."""
    return file.read_text().replace(str(folder), "OUTPUT").replace(str(folder.parent), "PARENT")


def unlike(one: Path, other: Path) -> list[str]:
    """What two logs say that is not the same, and what the result parsers do not read once."""
    logs = [steps_and_results(log.read_text()) for log in (one, other)]
    found = []
    if logs[0] != logs[1]:
        pairs = [pair for pair in zip(*logs, strict=False) if pair[0] != pair[1]]
        found.append(f"{one.name}: {len(logs[0])} and {len(logs[1])} lines, first {pairs[:1]}")
    for log in (one, other):
        if log.parent.parent.name == "shifts":
            continue
        for end in ("Finish training", "Finished training"):
            read = runs.read_results(log, end)
            if log.read_text().splitlines().count(end) != 1 or len(read) != 1:
                found.append(f"{log}: after {end!r}: {read}")
    return found


def unequal(one: object, other: object, name: str = "") -> list[str]:
    """Entries of nested states that are not equal to the bit."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for key in one for line in unequal(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [name]


def steps_and_results(log: str) -> list[str]:
    """The lines of a log from the first step on, without times and without what each start says."""
    kept = ("epoch [", "Evaluate on", "=> result", "* ", "Finish", "Deploy", "alpha ")
    return [TIMES.sub("", line) for line in log.splitlines() if line.startswith(kept)]


def campaign(words: Sequence[str], kills: Sequence[Kill], folder: Path) -> tuple[list[str], list[str]]:
    """Run once in peace and once with kills; differences, and what became of each kill.

    Args:
        words: the command line without its output folder. kills: one after the other, each in a new process.
    """
    places = [folder / name / "out" for name in ("whole", "broken")]
    whole, broken = ([*words, "OUTPUT_DIR", str(place), "STORE.DIR", str(place.parent / "store")] for place in places)
    assert run(whole, None) == 0
    told = []
    for kill in kills:
        status = run(broken, kill)
        expected = -signal.SIGKILL if kill.number == signal.SIGKILL else 128 + kill.number
        name = signal.Signals(kill.number).name
        if status == 0:
            told.append(f"{name} at {kill.phase} {kill.count}: the run was over before")
            break
        told.append(f"{name} at {kill.phase} {kill.count}: status {status}")
        assert status == expected, told[-1]
    while status:
        status = run(broken, None)
    return differences(*places), told


def drawn(number: int, seed: int) -> list[Kill]:
    """Kills of all phases and both signals, at random counts."""
    draw = random.Random(seed)
    phases = ["while STORE.DIR was filled"] * (number // 5) + ["step"] * (number // 3) + ["save"] * (number // 3)
    phases += ["in an evaluation"] * (number - len(phases))
    signals = [signal.SIGKILL, signal.SIGTERM]
    most = {"in an evaluation": 6}  # which has seven batches
    counts = [draw.randint(1, most.get(phase, 12)) for phase in phases]
    return [Kill(phase, count, signals[i % 2]) for i, (phase, count) in enumerate(zip(phases, counts, strict=True))]


def main(number: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        words = "--trainer CoOpDHO --dataset shapes TRAIN.SAVE_MINUTES 0 DATALOADER.NUM_WORKERS 2".split()  # noqa: SIM905
        found, told = campaign(words, drawn(number, seed=1), Path(folder))
    print(*told, sep="\n")
    print(f"{len(told)} kills; " + ("what is left equals the unbroken run's" if not found else "; ".join(found)))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
