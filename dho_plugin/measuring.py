"""Measuring what a student costs at inference: parameters, multiply-adds, and times side by side.

Times that are compared are measured in turn (A B A B ...) in one process, and a ratio is the median of the ratios of
neighbouring runs: what slows the machine down slows both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import quantiles
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .backbones import load_backbone
from .errors import UsageError
from .heads import DualHeadLogits, build_head
from .interpolation import interpolate
from .precision import Precision
from .student import DualHeadStudent
from .tome import TokenMergingVLM
from .towers import VLM, ImageEncoder
from .vlm import architectures, random_vlm

WARM_UP, CALLS_ON_GPU = 2, 10


class Student(NamedTuple):
    """A dual-head student with random weights. size: of its images in pixels. vlm: where its backbone is a CLIP."""

    name: str
    model: DualHeadStudent
    tower: nn.Module
    size: int
    vlm: VLM | None

    def images(self, batch: int) -> Tensor:
        """Random images (batch, 3, size, size) where the model is."""
        return torch.randn(batch, 3, self.size, self.size, device=next(self.tower.parameters()).device)


class Ratio(NamedTuple):
    """Median and quartiles of a ratio of two times over the repetitions."""

    median: float
    low: float
    high: float


class Size(NamedTuple):
    """Parameters of a model, and its multiply-adds for one image; a multiply-add is two FLOPs."""

    parameters: int
    macs: int


class Timing(NamedTuple):
    """Seconds a call by what was called, each in the order of the repetitions; peak: bytes on the GPU, of two heads."""

    student: str
    batch: int
    seconds: dict[str, list[float]]
    peak: int | None = None


def build_student(name: str, classes: int, *, kd_head: str = "") -> Student:
    """A student by CoOp's or open_clip's name of a CLIP, or torchvision's or timm's of a classifier (backbones.py).

    Args:
        kd_head: see build_head; "" for the paper's choice, aligned (Eq. 10) for a CLIP, linear for the others.

    Raises:
        UsageError: unknown name.
    """
    vlm = random_vlm(name) if name in architectures() else None
    found = vlm or load_backbone(name)
    backbone = ImageEncoder(vlm) if vlm else found
    heads = (build_head(kind, found.width, classes) for kind in ("linear", kd_head or ("cosine" if vlm else "linear")))
    model = DualHeadStudent(backbone, *heads).eval().requires_grad_(False)
    return Student(name, model, vlm.model.visual if vlm else found, found.image.size, vlm)


def count_parameters(*modules: nn.Module) -> int:
    """Number of parameters of all modules together."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@torch.no_grad()
def count_macs(function: Callable[[], object]) -> int:
    """Multiply-adds of a call: of its convolutions, linear layers and matrix products, as torch counts them."""
    with counted_flops() as counter:
        function()
    return counter.get_total_flops() // 2


@contextmanager
def counted_flops() -> Iterator[FlopCounterMode]:
    """Count the FLOPs of what runs in this context, two for a multiply-add."""
    # torch's counter knows neither the fused attention that nn.MultiheadAttention takes at inference nor, before 2.5,
    # the one that a CPU takes: count in the plain form, which has the same products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def sizes(student: Student) -> tuple[Size, Size]:
    """Of the student with one head (CE) and with two."""
    model, image = student.model, student.images(1)
    one = count_macs(lambda: model.ce_head(model.backbone(image)))
    parameters = count_parameters(student.tower, model.ce_head)
    both = parameters + count_parameters(model.kd_head)
    return Size(parameters, one), Size(both, count_macs(lambda: model(image)))


def timed(
    function: Callable[[], object],
    device: torch.device,
    calls: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds a call, of several in a row: a GPU is given its work ahead, as when images are classified in a loop."""
    _wait_for(device)
    start = clock()
    for _ in range(calls):
        function()
    _wait_for(device)
    return (clock() - start) / calls


def side_by_side(
    functions: Mapping[str, Callable[[], object]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a call of each function, measured in turn: A B C, A B C, ...; the first two rounds are not kept."""
    calls = CALLS_ON_GPU if device.type == "cuda" else 1
    rounds = [[timed(call, device, calls) for call in functions.values()] for _ in range(WARM_UP + repeats)]
    return {name: list(column) for name, column in zip(functions, zip(*rounds[WARM_UP:], strict=True), strict=True)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Ratio:
    """Median and quartiles of the ratios of values that were measured one after the other."""
    ratios = [one / other for one, other in zip(numerators, denominators, strict=True)]
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return Ratio(middle, low, high)


@torch.inference_mode()
def measure_heads(student: Student, batch: int, *, repeats: int, precision: Precision) -> Timing:
    """Time the backbone, one head on it, both heads and their interpolation on it, and what the second adds by itself.

    The last, "second head", is the KD head and the interpolation on features and CE logits that are there. It is run
    in turn with the backbone, so that its weights are as far from the processor as they will be in use.
    """
    model, images = student.model, student.images(batch)
    with precision.autocast():
        features = model.backbone(images)
        ce = model.ce_head(features)
        calls: dict[str, Callable[[], object]] = {
            "backbone": lambda: model.backbone(images),
            "second head": lambda: _combine(DualHeadLogits(ce, model.kd_head(features))),
            "one head": lambda: model.ce_head(model.backbone(images)),
            "two heads": lambda: _combine(model(images)),
        }
        seconds = side_by_side(calls, repeats=repeats, device=images.device)
        return Timing(student.name, batch, seconds, _peak(calls["two heads"], images.device))


@torch.inference_mode()
def measure_merging(student: Student, rs: Sequence[int], batch: int, *, repeats: int, precision: Precision) -> Timing:
    """Time the student with both heads on the untouched ViT ("0") and with r tokens merged in each layer (str(r))."""
    images = student.images(batch)
    merging = {str(r): merged(student, r) for r in (0, *rs)}
    calls = {name: (lambda model=model: _combine(model(images))) for name, model in merging.items()}
    with precision.autocast():
        return Timing(student.name, batch, side_by_side(calls, repeats=repeats, device=images.device))


def merged(student: Student, r: int) -> DualHeadStudent:
    """The same student, its ViT merging r tokens in each layer."""
    if student.vlm is None:
        raise UsageError(f"only the ViT of a CLIP merges tokens, and {student.name} is none")
    encoder = ImageEncoder(TokenMergingVLM(student.vlm, r))
    return DualHeadStudent(encoder, student.model.ce_head, student.model.kd_head)


def macs_of_merging(student: Student, r: int) -> int:
    """Multiply-adds of the student with both heads for one image, with r tokens merged in each layer."""
    model, image = merged(student, r), student.images(1)
    return count_macs(lambda: model(image))


def smallest_r(student: Student, saving: float) -> int:
    """The smallest r that saves this share of the multiply-adds.

    Raises:
        UsageError: no r does.
    """
    whole, previous, r = macs_of_merging(student, 0), -1, 0
    while True:
        macs = macs_of_merging(student, r)
        if macs <= (1 - saving) * whole:
            return r
        if macs == previous:
            raise UsageError(f"{student.name} has too few tokens to save {100 * saving:.0f} % by merging some")
        previous, r = macs, r + 1


def _combine(logits: DualHeadLogits) -> Tensor:
    return interpolate(logits, alpha=0.5, beta=1.0)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(function: Callable[[], object], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device)
