"""The arithmetic of `python -m dho_plugin estimate`: from a counted step to a run's FLOPs, memory, bytes and hours."""

from __future__ import annotations

import inspect
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..loaders import ViewSource
from ..store import bytes_of_view
from ..teachers import ZeroShotTeacher
from .counting import IMAGE, PARTS, REFERENCE, TEACHER, TEXT, Step, Text, weights
from .weightless import storage_of

DECODE_MS, DECODE_TWO_MS = 4.4, 11.8  # CPU time of a student's view, and of views of two sizes; one core, indicative
HOUR = 3600


class GPU(NamedTuple):
    """Dense peaks of its data sheet in TFLOP/s, without sparsity and TF32. memory: in GB."""

    half: float
    single: float
    memory: int


GPUS = {
    "h200": GPU(989, 67, 141),
    "h100": GPU(989, 67, 80),
    "a100-80": GPU(312, 19.5, 80),
    "a100-40": GPU(312, 19.5, 40),
    "rtx4090": GPU(165, 82.6, 24),
    "v100": GPU(125, 15.7, 16),
    "t4": GPU(65, 8.1, 16),
}


def run_of(trainer: Any, step: Step) -> dict[str, Any]:
    loader = trainer.train_loader_x
    batches = loader.batches
    epochs = trainer.max_epoch if any(step.backward.values()) else 0
    hidden = int((batches.labels < 0).sum())
    unlabeled = len(batches.unlabeled.paths) if batches.unlabeled is not None else 0
    return {
        "classes": trainer.num_classes,
        "labeled": len(batches.labels) - hidden,
        "unlabeled": unlabeled + hidden,
        "batch": batches.batch_size,
        "unlabeled_batch": batches.unlabeled_size if batches.unlabeled is not None else 0,
        "steps_per_epoch": len(loader),
        "epochs": epochs,
        "steps": len(loader) * epochs,
        "sizes": list(batches.labeled.sizes),
        "text_chunk": getattr(trainer.ce_head, "chunk", 0),
    }


def flops_of(trainer: Any, step: Step, whole: Text | None) -> dict[str, dict[str, int]]:
    """FLOPs of a step by part, "<part> forward" and "<part> backward", in each of three ways."""
    live = {f"{part} forward": step.forward[part] for part in PARTS}
    live |= {f"{part} backward": step.backward[part] for part in PARTS}
    peers = dict(live)
    if whole is not None:
        peers |= {f"{TEXT} forward": whole.forward, f"{TEXT} backward": whole.backward}
    teacher = isinstance(trainer.taught_by(), ZeroShotTeacher)
    gone = {TEACHER: teacher, IMAGE: trainer.frozen_backbone, REFERENCE: trainer.regularized}
    stored = live | {f"{part} forward": 0 for part, kept in gone.items() if kept}
    return {"peers": peers, "live": live, "stored": stored}


def memory_of(trainer: Any, batch: dict[str, Any], step: Step, whole: Text | None) -> dict[str, int]:
    """Bytes; peak: the most at once, without what CUDA itself and gaps between tensors take."""
    kept = dict(storage_of(tensor) for tensor in weights(trainer))
    images = [part[key] for part in (batch, batch.get("unlabeled", {})) for key in part if key.startswith("img")]
    learned = {id(p): p for part in trainer.learned().values() for p in part.parameters() if p.requires_grad}
    state = sum(_state_bytes(optimizer) for optimizer in trainer._optims.values() if optimizer is not None)
    all_weights = sum(kept.values())
    return {
        "weights": all_weights,
        "learned": sum(p.numel() for p in learned.values()),
        "gradients": sum(p.numel() * p.element_size() for p in learned.values()),
        "optimizer": state,
        **{f"kept {part}": step.kept[part] for part in PARTS},
        "kept text, peers": whole.kept if whole else 0,
        "peak": all_weights + state + sum(storage_of(image)[1] for image in images) + step.peak,
    }


def _state_bytes(optimizer: Any) -> int:
    """Bytes of an optimiser's state once it has made a step: found from one of its kind with one parameter."""
    probe = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    taken = inspect.signature(type(optimizer).__init__).parameters
    of_its_kind = type(optimizer)([probe], **{k: v for k, v in optimizer.defaults.items() if k in taken})
    probe.grad = torch.tensor([1.0, 1.0])
    of_its_kind.step()
    copies = sum(torch.is_tensor(v) and v.numel() == probe.numel() for v in of_its_kind.state[probe].values())
    learned = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    return copies * sum(p.numel() * p.element_size() for p in learned)


def views_needed(source: ViewSource, positions: int, views: int) -> int:
    """How many different views the first `positions` of a source's order ask for, if none comes out the same by chance.

    Args:
        views: of an image, after which they come again; 0 for one in each pass.
    """
    different = math.inf if source.policy.crop else 2 if source.policy.flip else 1
    return int(min(positions, min(views or math.inf, different) * len(source.paths)))


def store_of(cfg: Any, trainer: Any, step: Step, run: dict[str, Any]) -> dict[str, Any]:
    """What STORE.DIR would keep with a fresh view in each pass and as configured, and what computing it takes."""
    batches = trainer.train_loader_x.batches
    labeled = [(batches.labeled, run["steps"] * run["batch"])]
    both = [*labeled, (batches.unlabeled, run["steps"] * run["unlabeled_batch"])][: 1 + bool(run["unlabeled_batch"])]
    parts = []
    if isinstance(trainer.taught_by(), ZeroShotTeacher):
        parts.append((TEACHER, both, trainer.taught_by().width))
    if trainer.frozen_backbone:
        parts.append((IMAGE, both, trainer.student.width))
    elif trainer.regularized:
        parts.append((REFERENCE, labeled, trainer.student.width))
    found = []
    for fresh in (True, False):
        for part, sources, width in parts:
            stored = sum(views_needed(source, shown, 0 if fresh else source.views) for source, shown in sources)
            work = stored * (step.forward[part] // step.images[part])
            size = stored * bytes_of_view(width, trainer.precision.name)
            found.append({"of": part, "fresh": fresh, "views": stored, "bytes": size, "flops": work})
    free = None
    if cfg.STORE.DIR:
        folder = Path(cfg.STORE.DIR).expanduser().absolute()
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
    return {"folder": cfg.STORE.DIR, "free": free, "kept": found}


def cost_on(gpu: GPU, found: dict[str, Any], *, efficiency: float, decode_ms: float | None) -> dict[str, Any]:
    """Hours of arithmetic, and what the loader must give for it.

    Args:
        found: what `estimate` has found so far. efficiency: share of the peak that is reached.
        decode_ms: CPU time of an image's views on one core; None for DECODE_MS and, for two sizes, DECODE_TWO_MS.
    """
    run, flops = found["run"], found["flops"]
    peak = gpu.single if found["precision"] == "fp32" else gpu.half
    rate = peak * 1e12 * efficiency
    filling = sum(row["flops"] for row in found["store"]["kept"] if not row["fresh"])
    seconds = {way: run["steps"] * sum(of.values()) / rate for way, of in flops.items()}
    two = None not in run["sizes"] and len(set(run["sizes"])) > 1
    images = run["steps"] * (run["batch"] + run["unlabeled_batch"])
    read = {"live": images, "stored": images if flops["stored"][f"{IMAGE} forward"] else 0}
    decode = {"live": decode_ms or (DECODE_TWO_MS if two else DECODE_MS), "stored": decode_ms or DECODE_MS}
    loader = {
        way: {
            "decode_ms": decode[way],
            "images_per_second": read[way] / seconds[way] if seconds[way] else 0.0,
            "hours": read[way] * decode[way] / 1000 / max(1, found["workers"]) / HOUR,
        }
        for way in read
    }
    hours = {way: time / HOUR for way, time in seconds.items()} | {"filling": filling / rate / HOUR}
    return {
        "peak_tflops": peak,
        "efficiency": efficiency,
        "memory": gpu.memory * 10**9,
        "hours": hours,
        "loader": loader,
    }
