"""What one training step of a trainer costs, by part: FLOPs, memory kept for the backward pass, most memory at once.

The trainer's own `losses` runs; nothing is known here of any method. A part is what a step calls: the teacher, the
image tower with what is learned in it, the text tower, and the frozen image tower beside it (PromptSRC's reference).
Each part's result is cut from the graph, so that its backward pass is counted apart. Works on real tensors and Shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..measuring import counted_flops
from ..prompts import PromptedClassifier
from ..teachers import ZeroShotTeacher
from ..vlm import open_clips_activation
from .weightless import MEMORY, storage_of

TEACHER, IMAGE, REFERENCE, TEXT, REST = "teacher", "image", "reference", "text", "rest"
PARTS = (TEACHER, IMAGE, REFERENCE, TEXT, REST)


class Step(NamedTuple):
    """One step. All by part, in PARTS' names.

    Attributes:
        forward, backward: FLOPs; what is computed once more for the gradient belongs to the backward pass.
        kept: bytes kept for the backward pass, weights left out. images: how many the part sees; 0 for none.
        peak: bytes at the worst moment beside weights and images, gradients among them; 0 for a step of real numbers.
    """

    forward: dict[str, int]
    backward: dict[str, int]
    kept: dict[str, int]
    images: dict[str, int]
    peak: int


class Text(NamedTuple):
    """The text's share of a step: FLOPs forward and backward, bytes kept."""

    forward: int
    backward: int
    kept: int


class _Watch:
    """Notes which part is running, and cuts its result from the graph."""

    def __init__(self) -> None:
        self.part = REST
        self.reading: Callable[[], int] = lambda: 0
        self.forward, self.images = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
        self.cuts: list[tuple[str, Tensor, Tensor]] = []

    @contextmanager
    def on(self, owner: Any, method: str, part: str) -> Iterator[None]:
        """Within this context a call of an object's method is that part, unless it is within another part."""
        original = getattr(owner, method)

        def watched(*args: Any, **keywords: Any) -> Any:
            if self.part != REST:
                return original(*args, **keywords)
            self.part, before = part, self.reading()
            try:
                found = original(*args, **keywords)
            finally:
                self.part = REST
            self.forward[part] += self.reading() - before
            self.images[part] += len(args[0]) if args else 0
            return self.cut(part, found)

        setattr(owner, method, watched)
        try:
            yield
        finally:
            delattr(owner, method)

    def cut(self, part: str, found: Tensor) -> Tensor:
        if not found.requires_grad:
            return found
        leaf = found.detach().requires_grad_()
        self.cuts.append((part, found, leaf))
        return leaf


@contextmanager
def _watching(trainer: Any) -> Iterator[_Watch]:
    watch, teacher = _Watch(), trainer.taught_by()
    with ExitStack() as stack:
        if teacher is not None:
            encoder = "features" if isinstance(teacher, ZeroShotTeacher) else "forward"
            stack.enter_context(watch.on(teacher, encoder, TEACHER))
        stack.enter_context(watch.on(trainer.backbone, "forward", IMAGE))
        if isinstance(trainer.ce_head, PromptedClassifier):
            stack.enter_context(watch.on(trainer.ce_head, "text_features", TEXT))
        if hasattr(trainer.student, "encode_image"):
            stack.enter_context(watch.on(trainer.student, "encode_image", REFERENCE))
        yield watch


def count_step(trainer: Any, batch: dict[str, Any]) -> Step:
    """Run one step's losses and their backward pass, twice: for the FLOPs, and for the memory.

    Args:
        trainer: one of ours, built. batch: as its training loader gives them.
    """
    with counted_flops() as counter:
        forward, backward, images = by_part(trainer, batch, counter.get_total_flops)
    kept, peak = _memory(trainer, batch)
    return Step(forward, backward, kept, images, peak)


def by_part(
    trainer: Any, batch: dict[str, Any], reading: Callable[[], int]
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """Run one step's losses and their backward pass, and read a meter between its parts: FLOPs, or a clock.

    Returns:
        by how much the meter rose in the forward and in the backward pass, and images seen, each by part.
    """
    trainer.set_model_mode("train")
    backward, start = dict.fromkeys(PARTS, 0), reading()
    with _watching(trainer) as watch:
        watch.reading = reading
        loss = _loss(trainer, batch)
        watch.forward[REST] = reading() - start - sum(watch.forward.values())
        for part, run in _backwards(loss, watch):
            before = reading()
            run()
            backward[part] += reading() - before
    del loss
    _forget(trainer)
    return watch.forward, backward, watch.images


def _loss(trainer: Any, batch: dict[str, Any]) -> Tensor:
    with trainer.precision.autocast():
        return trainer.losses(batch)[0]["loss"]


def _backwards(loss: Tensor, watch: _Watch) -> Iterator[tuple[str, Callable[[], None]]]:
    """The backward pass in parts, the last of the forward pass first."""
    if loss.requires_grad:
        yield REST, loss.backward
    for part, found, leaf in reversed(watch.cuts):
        if leaf.grad is not None:
            yield part, lambda found=found, leaf=leaf: found.backward(leaf.grad)  # type: ignore[misc]
    watch.cuts.clear()


def _memory(trainer: Any, batch: dict[str, Any]) -> tuple[dict[str, int], int]:
    known = {storage_of(tensor)[0] for tensor in weights(trainer)}
    kept = dict.fromkeys(PARTS, 0)
    with _watching(trainer) as watch:

        def note(tensor: Tensor) -> Tensor:
            key, size = storage_of(tensor)
            if key not in known:
                known.add(key)
                kept[watch.part] += size
            return tensor

        before = MEMORY.peak = MEMORY.live
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = _loss(trainer, batch)
        for _, run in _backwards(loss, watch):
            run()
    peak = MEMORY.peak - before
    _forget(trainer)
    return kept, peak


def weights(trainer: Any) -> Iterator[Tensor]:
    """All parameters and buffers that a step has in memory, some of them several times."""
    own = [*trainer.learned().values(), trainer.average]
    for module in (trainer.model, trainer.student, trainer.taught_by(), *own):
        if module is not None:
            yield from module.parameters()
            yield from module.buffers()


def _forget(trainer: Any) -> None:
    for tensor in weights(trainer):
        tensor.grad = None


def count_whole_text(trainer: Any) -> Text | None:
    """The text as the peers encode it, every prompt at the tower's full length and nothing shared; None for no text."""
    head = trainer.ce_head
    if not isinstance(head, PromptedClassifier):
        return None
    prompts, end, deep, _ = head.prompt_learner()
    beside = getattr(head.vlm, "boosting", None)
    length = trainer.vlm.context_length - (len(beside.ctx) if beside is not None else 0)
    prompts = F.pad(prompts, (0, 0, 0, length - prompts.shape[1]))
    known, kept = {storage_of(tensor)[0] for tensor in weights(trainer)}, dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        key, size = storage_of(tensor)
        kept.update({} if key in known else {key: size})
        return tensor

    def encode() -> Tensor:
        with trainer.precision.autocast(), open_clips_activation():
            return head.vlm.encode_text_embeddings(prompts, end, deep, shared=0)

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        encode()
    with counted_flops() as counter:
        features = encode()
        forward = counter.get_total_flops()
        features.sum().backward()
    _forget(trainer)
    return Text(forward, counter.get_total_flops() - forward, sum(kept.values()))
