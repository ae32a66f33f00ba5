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
import torch
from dho_plugin.trainers import evaluated, resumable, tip_adapter

from dho_plugin import cli, stopping, stored_features

PHASES = ("step", "save", "in an evaluation", "while STORE.DIR was filled")
TIMES = re.compile(r" (time|data) \S+ \(\S+\)| eta \S+|Elapsed: .*")
SECONDS = 100


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


def differences(one: Path, other: Path) -> list[str]:
    """What two runs left that is not the same: names of files, weights bit by bit, the lines of log.txt, results."""
    found = []
    files = [{str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} for folder in (one, other)]
    found += [f"left in one alone: {name}" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        if "pth.tar" in name:
            weights = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
            found += [f"{name}: {key}" for key in unequal(*weights)]
    logs = [steps_and_results(folder / "log.txt") for folder in (one, other)]
    if logs[0] != logs[1]:
        pairs = [pair for pair in zip(*logs, strict=False) if pair[0] != pair[1]]
        found.append(f"log.txt: {len(logs[0])} and {len(logs[1])} lines, first {pairs[:1]}")
    results = [json.loads((folder / "manifest.json").read_text())["results"] for folder in (one, other)]
    return found + ([f"results {results}"] if results[0] != results[1] or not results[0] else [])


def unequal(one: object, other: object, name: str = "") -> list[str]:
    """Entries of nested states that are not equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [line for key in one for line in unequal(one[key], other[key], f"{name}/{key}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [name]
    return [] if one == other else [name]


def steps_and_results(log: Path) -> list[str]:
    """The lines of a log from the first step on, without times and without what each start says."""
    kept, lines = [], log.read_text().splitlines()
    for line in lines:
        if line.startswith(("epoch [", "Evaluate on", "=> result", "* ", "Finish", "Deploy", "alpha ")):
            kept.append(TIMES.sub("", line))
    return kept


def campaign(words: Sequence[str], kills: Sequence[Kill], folder: Path) -> tuple[list[str], list[str]]:
    """Run once in peace and once with kills; differences, and what became of each kill.

    Args:
        words: the command line without its output folder. kills: one after the other, each in a new process.
    """
    whole, broken = folder / "whole", folder / "broken"
    assert run([*words, "OUTPUT_DIR", str(whole), "STORE.DIR", str(folder / "one")], None) == 0
    line = [*words, "OUTPUT_DIR", str(broken), "STORE.DIR", str(folder / "two")]
    told = []
    for kill in kills:
        status = run(line, kill)
        expected = -signal.SIGKILL if kill.number == signal.SIGKILL else 128 + kill.number
        name = signal.Signals(kill.number).name
        if status == 0:
            told.append(f"{name} at {kill.phase} {kill.count}: the run was over before")
            break
        told.append(f"{name} at {kill.phase} {kill.count}: status {status}")
        assert status == expected, told[-1]
    while status:
        status = run(line, None)
    return differences(whole, broken), told


def drawn(number: int, seed: int, most: int = 8) -> list[Kill]:
    """Kills of all phases and both signals, at random counts."""
    draw = random.Random(seed)
    phases = ["while STORE.DIR was filled"] * (number // 5) + ["step", "save"] * (number // 3)
    phases += ["in an evaluation"] * (number - len(phases))
    signals = [signal.SIGKILL, signal.SIGTERM]
    return [Kill(phase, draw.randint(1, most), signals[index % 2]) for index, phase in enumerate(phases)]


def main(number: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        words = "--trainer CoOpDHO --dataset shapes TRAIN.SAVE_MINUTES 0 DATALOADER.NUM_WORKERS 2".split()  # noqa: SIM905
        found, told = campaign(words, drawn(number, seed=1), Path(folder))
    print(*told, sep="\n")
    print(f"{len(told)} kills; " + ("what is left equals the unbroken run's" if not found else "; ".join(found)))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
