"""The tables of `python -m dho_plugin costs`: sizes, the second head's share, merged tokens; beside the paper's."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from .measuring import Ratio, Size, Timing, ratio
from .tables.summary import Table

SHARE = 0.0025  # of the backbone's time, for the second head; Table 7: at most 0.24 %
SAVING, SPEEDUP = 0.25, 1.25  # FLOPs saved by merging, and times as many images a second; Table 9: 25.4 %, 1.33


class Published(NamedTuple):
    """Millions of parameters and thousand millions of multiply-adds, with one head and with two; throughput lost."""

    one_head: tuple[float, float]
    two_heads: tuple[float, float]
    lost: float


# Tables 2 and 7, on an RTX 4090.
PAPER = {
    "resnet18": Published((11.69, 1.83), (12.20, 1.83), 0.0020),
    "mobilenet_v2": Published((3.50, 0.33), (4.79, 0.34), 0.0024),
    "resnet50": Published((25.56, 4.14), (27.61, 4.15), 0.0020),
    "ViT-B/16": Published((86.57, 16.87), (87.34, 16.87), 0.0002),
}

FOOT = """\
A multiply-add (MAC) is two FLOPs; what the paper prints as FLOPs are MACs. The ViT-B/16 of its Table 7 is no CLIP's
(768 features, attention not counted); that of its Table 9 is, with 87.22 M parameters and 17.58 G MACs. Shares and
factors are the median of paired ratios over the repetitions [quartiles], of runs that took turns; images/s are medians.
"Second head" is the KD head and the interpolation by themselves, given features and CE logits; "two heads - one head"
is the difference of whole models, which drowns in noise where the former is small."""


class Report(NamedTuple):
    """Everything that was measured. merged: by student, the multiply-adds with r tokens merged in each layer, by r."""

    sizes: dict[str, tuple[Size, Size]]
    heads: list[Timing]
    merged: dict[str, dict[int, int]]
    merging: list[Timing]


def size_table(report: Report) -> Table:
    """Tables 2 and 7: parameters, multiply-adds and images a second, with one head and with two."""
    batches = sorted({timing.batch for timing in report.heads})
    peaks = any(timing.peak for timing in report.heads)
    lines = []
    for name, (one, two) in report.sizes.items():
        paper = PAPER.get(name)
        rows = (
            (name, one, "one head", paper and paper.one_head),
            ("+ DHO", two, "two heads", paper and paper.two_heads),
        )
        timings = {timing.batch: timing for timing in report.heads if timing.student == name}
        for row, size, heads, printed in rows:
            numbers = (size.parameters / 1e6, size.macs / 1e9, 2 * size.macs / 1e9)
            speeds = [f"{batch / median(timings[batch].seconds[heads]):.1f}" for batch in batches]
            peak = [f"{(timings[batch].peak or 0) / 2**20:.0f}" if row != name else "" for batch in batches]
            published = [f"{value:.2f}" for value in printed] if printed else ["-", "-"]
            lines.append((row, *map(_hundredths, numbers), *speeds, *(peak if peaks else ()), *published))
    header = ["inference", "params, M", "MACs, G", "FLOPs, G", *(f"images/s, batch {batch}" for batch in batches)]
    header += [f"peak MiB, batch {batch}" for batch in batches] if peaks else []
    return Table((*header, "paper: params, M", "paper: MACs, G"), tuple(lines))


def head_table(report: Report) -> Table:
    """The second head's time as a share of the backbone's: by itself, and as the difference of two models."""
    lines = []
    for timing in report.heads:
        direct = second_head(timing)
        paper = _percent(PAPER[timing.student].lost) if timing.student in PAPER else "-"
        shares = (_spread(direct, _percent), _reached(direct.median <= SHARE), _spread(difference(timing), _percent))
        lines.append((f"{timing.student}, batch {timing.batch}", *shares, paper))
    header = ("share of the backbone's time", "second head", f"at most {_percent(SHARE)}", "two heads - one head")
    return Table((*header, "paper: images/s lost"), tuple(lines))


def second_head(timing: Timing) -> Ratio:
    """Second head's time over the backbone's."""
    return ratio(timing.seconds["second head"], timing.seconds["backbone"])


def difference(timing: Timing) -> Ratio:
    """Time of the model with two heads minus that with one, over the backbone's."""
    two, one = timing.seconds["two heads"], timing.seconds["one head"]
    return ratio([a - b for a, b in zip(two, one, strict=True)], timing.seconds["backbone"])


def speedup(timing: Timing, r: int) -> Ratio:
    """Images a second with r tokens merged in each layer, over those of the untouched model."""
    return ratio(timing.seconds["0"], timing.seconds[str(r)])


def merging_table(report: Report) -> Table:
    """Table 9: FLOPs and images a second of a ViT with two heads that merges r tokens in each layer."""
    lines = []
    for timing in report.merging:
        macs = report.merged[timing.student]
        for r, count in macs.items():
            speed = timing.batch / median(timing.seconds[str(r)])
            words = (_hundredths(2 * count / 1e9), _change(count, macs[0]), _hundredths(speed))
            row = f"{timing.student}, batch {timing.batch}, r = {r}"
            lines.append((row, *words, _spread(speedup(timing, r), _hundredths)))
    return Table(("+ DHO + ToMe", "FLOPs, G", "change", "images/s", "over r = 0"), tuple(lines))


def merging_verdicts(report: Report) -> list[str]:
    """Whether the smallest r that saves SAVING of the FLOPs also gives SPEEDUP times as many images a second."""
    lines = []
    for timing in report.merging:
        macs = report.merged[timing.student]
        r = min(r for r, count in macs.items() if count <= (1 - SAVING) * macs[0])
        found = speedup(timing, r)
        lines.append(
            f"{timing.student}, batch {timing.batch}: r = {r} is the smallest that saves {100 * SAVING:.0f} % of FLOPs "
            f"({_change(macs[r], macs[0])}); at least {SPEEDUP} times as many images a second: "
            f"{_reached(found.median >= SPEEDUP)} ({_spread(found, _hundredths)}; paper: -25.4 %, 1.33)"
        )
    return lines


def _spread(value: Ratio, show: Callable[[float], str]) -> str:
    return f"{show(value.median)} [{show(value.low)}, {show(value.high)}]"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"


def _change(after: float, before: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %"


def _reached(yes: bool) -> str:
    return "yes" if yes else "NO"
