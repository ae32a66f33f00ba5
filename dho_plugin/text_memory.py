"""What the text tower keeps for the gradient, and in how many parts it runs where that is too much."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .errors import UsageError
from .prompts import PromptedClassifier
from .shared_prefix import keeping

AUTO, WHOLE = -1, 0  # MODEL.TEXT_CHUNK beside a number of classes
SAMPLE = 8  # classes that are encoded to learn what a token keeps
LITTLE = 2**30  # bytes up to which attention keeps what it could compute again
SHARE = 0.5  # of the free memory that the text may take; images, teacher and optimiser need the rest
GIB = 2**30


def kept_bytes(run: Callable[[], object], frozen: Iterable[Tensor] = ()) -> int:
    """Bytes that a call keeps for its backward pass: of each storage once, those of `frozen` tensors left out."""
    known = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []  # a freed storage's address could come again
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        alive.append(run())
    return sum(kept.values())


def plan(classifier: PromptedClassifier, wanted: int, device: torch.device) -> str:
    """Set `classifier.keeps` and `classifier.chunk`, and say what a step's text keeps in memory and why it is cut.

    Args:
        wanted: MODEL.TEXT_CHUNK: classes encoded at a time and once more for the gradient, 0 for all at once, -1 for as
            few parts as fit in half of the free memory.

    Raises:
        UsageError: `wanted` is below -1.
    """
    if wanted < AUTO:
        raise UsageError(f"MODEL.TEXT_CHUNK {wanted}: expected a number of classes, 0 for all at once, -1 to choose")
    prompts, end, deep, shared = classifier.prompt_learner()
    few, classes = min(SAMPLE, len(end)), len(end)
    own = int((end - shared + 1).sum())
    frozen = [*classifier.parameters(), *classifier.buffers()]
    free = free_bytes(device)
    sampled = shared + int((end[:few] - shared + 1).sum())
    for classifier.keeps in (True, False):
        with keeping(classifier.keeps):
            sample = kept_bytes(
                lambda: classifier.vlm.encode_text_embeddings(prompts[:few], end[:few], deep, shared), frozen
            )
        a_token = sample / sampled
        total = a_token * (shared + own)
        if total <= min(LITTLE, SHARE * free):
            break
    chunk = classes if wanted == WHOLE else wanted
    if wanted == AUTO:
        room = SHARE * free / a_token - shared
        chunk = classes if room >= own else max(1, int(classes * room / own))
    classifier.chunk = chunk if chunk < classes else WHOLE
    said = (
        f"Text: {shared} shared and {own:,} own tokens of {classes:,} prompts, {total / GIB:.2f} GiB kept for the "
        f"gradient of {free / GIB:.1f} free"
    )
    if not classifier.chunk:
        return said
    return f"{said}: {classifier.chunk:,} classes at a time, each encoded once more for the gradient"


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device; of the machine for the CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on every system
        return 8 * GIB
