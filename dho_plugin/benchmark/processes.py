"""`python -m dho_plugin benchmark --parts processes`: the same work by one process and by two.

One thread each, so that one core is compared with two. They take turns, and what they
compute is compared first. Two times are taken: the wall's, which is what one waits, other work on the machine included;
and the processor's, of the busier of the two, which is what one would wait for if nothing else ran and no message took
time. Frozen models are live unless a row says otherwise, the teacher is a small one, learning rates are 0, so that each
repetition is the same step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..contents import Contents
from ..distributed import agreed, main_first, share
from ..precision import Precision
from ..stored_features import Part, StoredFeatures, prepare
from ..tables.summary import Table
from ..text_memory import GIB
from ..vlm import random_vlm
from .input import SIZE, Files
from .row import Row, difference
from .steps import Bench, Scale, gradients
from .team import Team

CPU = torch.device("cpu")
TOLERANCE = 1e-4  # of a loss, an answer, or all gradients together, relative: other partial sums in float32
KINKED = 0.02  # the same where rounding can put an activation on the other side of a ReLU's kink
STATUS = Path("/proc/self/status")  # what Linux says of this process's memory


class Work(NamedTuple):
    """How much.

    Attributes:
        scale: models; classes and batch of CoOpDHO; of `probe` the batch of StudentDHO's resnet18 comes second.
        classes, batch: of the other steps. images: evaluated, and stored. products: of matrices, and their width.
    """

    scale: Scale
    classes: int
    batch: int
    images: int
    products: tuple[int, int]


FULL = Work(Scale("ViT-B/16", "RN50", classes=300, batch=4, probe=(100, 16)), 100, 4, 16, (64, 1024))
QUICK = Work(Scale("ViT-S-32-alt", "ViT-S-16-alt", classes=8, batch=2, probe=(4, 4)), 4, 2, 4, (4, 256))


class Time(NamedTuple):
    """Seconds on the wall, and of the processor."""

    wall: float
    busy: float


class Shared(NamedTuple):
    """A row that was run.

    Attributes:
        name: of it. tolerance, difference: of the results, relative; nan where there are none. one, two: times of one
            process and of the slower of two, by repetition. peaks: bytes resident at most while they worked, of the one
            process and of the larger of the two; None where the system does not tell.
    """

    name: str
    tolerance: float
    difference: float
    one: list[Time]
    two: list[Time]
    peaks: tuple[int, int] | None

    def ratios(self, clock: str) -> list[float]:
        """One process's time over two's, by a field of Time."""
        return [getattr(a, clock) / getattr(b, clock) for a, b in zip(self.one, self.two, strict=True)]


# What a process does

Run = Callable[[], list[Tensor]]


class Worker:
    """One of the processes of a row, and its share of the work.

    Args:
        name: of the row. folder: for images, stores and outputs, of the processes that work together. work: how much.
    """

    def __init__(self, name: str, folder: Path, work: Work) -> None:
        self.folder, self.work = folder, work
        self.bench = Bench(folder / "runs", work.scale, cuda=False)
        torch.manual_seed(0)
        self.run = rows(work)[name](self)
        _forget_peak()

    def result(self) -> list[np.ndarray]:
        """Do the work; what it comes to, the same in all processes."""
        return [tensor.detach().float().numpy() for tensor in self.run()]

    def times(self) -> Time:
        """Do the work; what it took since all processes have begun."""
        agreed(0)
        wall, busy = time.perf_counter(), time.process_time()
        self.run()
        return Time(time.perf_counter() - wall, time.process_time() - busy)

    def peak(self) -> int | None:
        """The most memory that was resident since the row was built, in bytes."""
        try:
            lines = STATUS.read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _forget_peak() -> None:
    try:
        STATUS.with_name("clear_refs").write_text("5")
    except OSError:  # not Linux, where there is no peak at all; or forbidden, and the peak is that of loading too
        return


def rows(work: Work) -> dict[str, Callable[[Worker], Run]]:
    """What each row builds, by its name."""
    few, many, texts = work.classes, work.scale.classes, work.scale.batch
    live, size = f"live, C = {few}, B = {work.batch}", work.scale.probe[1]
    return {
        "matrix products, of which nobody needs the other's": _products,
        f"step of CoOpDHO, live, C = {many}, B = {texts}": _step("CoOpDHO", many, texts),
        f"step of CoOpDHO, all that is frozen stored, C = {many}, B = {texts}": _step(
            "CoOpDHO", many, texts, stored=True
        ),
        f"step of VPTDHO, {live}": _step("VPTDHO", few, work.batch),
        f"step of LinearProbeDHO, {live}": _step("LinearProbeDHO", few, work.batch),
        f"step of StudentDHO, resnet18, live, C = {few}, B = {size}": _step(
            "StudentDHO", few, size, "MODEL.BACKBONE.NAME", "resnet18"
        ),
        f"evaluation of LinearProbeDHO, {work.images} images": _evaluation,
        f"filling STORE.DIR, {work.images} views": _filling,
    }


def _products(worker: Worker) -> Run:
    """What two processes can gain on this machine."""
    number, width = worker.work.products
    left, right, mine = torch.rand(width, width), torch.rand(width, width), share(number, "products")

    def run() -> list[Tensor]:
        for _ in range(mine.start, mine.stop):
            left @ right
        return []

    return run


def _step(name: str, classes: int, batch: int, *options: str, stored: bool = False) -> Callable[[Worker], Run]:
    def build(worker: Worker) -> Run:
        # The text whole in both, however much memory is free.
        given = ("MODEL.TEXT_CHUNK", "0", *options, *(("STORE.DIR", str(worker.folder / "store")) if stored else ()))
        trainer = worker.bench.ready(name, classes=classes, batch=batch, options=given)

        def run() -> list[Tensor]:
            losses = trainer.forward_backward(trainer.train_loader_x.batches[0])
            return [
                *(losses[key] for key in losses if key != "acc"),
                torch.cat([*map(torch.flatten, gradients(trainer))]),
            ]

        return run

    return build


def _evaluation(worker: Worker) -> Run:
    batch = ("DATALOADER.TEST.BATCH_SIZE", "2")
    work = worker.work
    trainer = worker.bench.ready("LinearProbeDHO", classes=max(work.classes, work.images), batch=2, options=batch)
    images = trainer.dm.evaluation_loader(trainer.dm.dataset.train_x[: work.images])
    trainer.set_model_mode("eval")

    @torch.no_grad()
    def run() -> list[Tensor]:
        return [answer for answer, _ in trainer.answers(images, trainer.model_inference)]

    return run


def _filling(worker: Worker) -> Run:
    """Of images of which each of two processes has half, as of a whole data set."""
    number = worker.work.images
    files = Files(worker.folder / "photographs", SIZE, 4 * number)
    with main_first():
        paths = np.array(files.paths)
        kinds = Contents(worker.folder / "contents").of(files.paths)["image"] % 2
    chosen = [str(path) for kind in (0, 1) for path in paths[kinds == kind][: number // 2]]
    vlm, new = random_vlm(worker.work.scale.student), count()

    def run() -> list[Tensor]:
        root, precision = str(worker.folder / f"store{next(new)}"), Precision("fp32", CPU)
        reader = StoredFeatures(root, vlm, interpolation="bicubic", precision=precision, device=CPU)
        prepare([Part(files.source(chosen, None, "pil"), number, [reader])], Contents(root), workers=0)
        return [reader(torch.arange(number))]

    return run


# Measuring


def measured(folder: Path, repeats: int, work: Work, wanted: Callable[[str], bool]) -> Iterator[Shared]:
    """The rows whose name is wanted, one after the other, each in processes of its own; progress goes to stderr.

    Args:
        folder: for what the processes write. repeats: of each pair.
    """
    for number, name in enumerate(filter(wanted, rows(work))):
        print(f"{name} ...", file=sys.stderr, flush=True)
        own = folder / str(number)
        with Team(1, Worker, name, own / "one", work) as one, Team(2, Worker, name, own / "two", work) as two:
            yield measure(name, one, two, repeats)


def measure(name: str, one: Team, two: Team, repeats: int) -> Shared:
    """Compare, then time in turn, the first of a pair alternating."""
    apart = compared(one.call("result")[0], two.call("result"))
    times: dict[Team, list[Time]] = {one: [], two: []}
    for number in range(repeats):
        for team in (one, two) if number % 2 == 0 else (two, one):
            times[team].append(Time(*map(max, zip(*team.call("times"), strict=True))))
    peaks = [max(team.call("peak"), key=lambda peak: peak or 0) for team in (one, two)]
    found = Shared(
        name, tolerance_of(name), apart, times[one], times[two], None if None in peaks else (peaks[0], peaks[1])
    )
    print(f"  {median(found.ratios('wall')):.2f}", file=sys.stderr, flush=True)
    return found


def tolerance_of(name: str) -> float:
    """Of the relative difference of a row's results."""
    return KINKED if "resnet18" in name else TOLERANCE


def compared(alone: Sequence[np.ndarray], together: Sequence[Sequence[np.ndarray]]) -> float:
    """The largest relative difference of any process's results from those of the one; nan where there are none."""
    whole = [torch.from_numpy(part) for part in alone]
    each = [[torch.from_numpy(part) for part in parts] for parts in together]
    same = [Row("", partial(list, whole), partial(list, parts), None) for parts in each]
    return max(map(difference, same)) if whole else nan


def table(found: Sequence[Shared]) -> Table:
    """A line for each row: ratios of time, how far apart the results are, memory."""
    lines = []
    for one in found:
        spreads = [f"{min(r):.2f} - {median(r):.2f} - {max(r):.2f}" for r in map(one.ratios, Time._fields)]
        apart = "-" if isnan(one.difference) else f"{one.difference:.1e}"
        peaks = "-" if one.peaks is None else f"{one.peaks[0] / GIB:.2f}, {one.peaks[1] / GIB:.2f}"
        lines.append((one.name, *spreads, apart, peaks))
    head = ("one process's time over two's", "wall: min - median - max", "processor", "relative difference")
    return Table((*head, "peak GiB of one; of each of two"), tuple(lines))


def as_json(found: Sequence[Shared]) -> list[dict[str, Any]]:
    """Every time that was taken, in seconds."""
    return [
        {**one._asdict(), "one": [*map(Time._asdict, one.one)], "two": [*map(Time._asdict, one.two)]} for one in found
    ]
