"""Hooks into somebody else's model and training step: features are read from it, and a second loss joins its gradients.

Nothing of theirs is replaced: both classes use torch's own hooks, on the instances at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import UsageError


class Reading(NamedTuple):
    """One call of an image encoder.

    Attributes:
        features: (N, d), in the encoder's dtype and with its graph.
        again: encodes other images (M, 3, H, W), to (M, d), with the further arguments of this call (prompts, say).
    """

    features: Tensor
    again: Callable[[Tensor], Tensor]


class FeatureTap:
    """Reads the features that an image encoder gives out while other code runs it.

    Args:
        model: the model that holds the encoder. name: the encoder's name in it, with dots for parts of parts.

    Raises:
        UsageError: there is no module of that name; the message lists those there are.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        modules = dict(model.named_modules())
        if name not in modules:
            candidates = [known for known in modules if known and known.count(".") < 2]
            raise UsageError(
                f"{type(model).__name__} has no module {name!r} to read image features from: give the one whose output "
                f"enters the classifier, attach(..., encoder=NAME), with NAME one of {candidates[:20]}"
            )
        self.name = name
        self._reader: Callable[[Reading], None] | None = None
        self._calls = 0
        modules[name].register_forward_hook(self._hook, with_kwargs=True)

    @contextmanager
    def reading(self, reader: Callable[[Reading], None]) -> Iterator[None]:
        """Within this context the encoder's one call is given to `reader`, as soon as it has been made.

        Raises:
            UsageError: the encoder was not called, called twice, given no images first, or gave no (N, d) features.
        """
        self._reader, self._calls = reader, 0
        try:
            yield
        finally:
            self._reader = None
        if not self._calls:
            raise UsageError(
                f"the encoder {self.name!r} was never called in a pass of the model, so that there are no features to "
                "read: are they cached, or is another module the encoder in use? Name that one, attach(..., encoder=)"
            )

    def _hook(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self._reader is None:
            return
        self._calls += 1
        if self._calls > 1:
            raise UsageError(
                f"the encoder {self.name!r} is called more than once in a pass of the model (for several views?), and "
                "it is not known which features enter the classifier: name a module that is called once, "
                "attach(..., encoder=)"
            )
        first = "" if args else next(iter(kwargs), "")
        images = args[0] if args else kwargs.get(first)
        self._check(images, output)

        def again(others: Tensor) -> Tensor:
            others = others.to(images)
            return encoder(others, *args[1:], **kwargs) if args else encoder(**{**kwargs, first: others})

        reader, self._reader = self._reader, None  # what the reader itself has encoded is no call of theirs
        # A copy, since their next line may normalise the features in place.
        reader(Reading(output.clone(), again))
        self._reader = reader

    def _check(self, images: Any, features: Any) -> None:
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise UsageError(
                f"the encoder {self.name!r} must take images (N, 3, H, W) first: name a module that does, "
                "attach(..., encoder=)"
            )
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UsageError(
                f"the encoder {self.name!r} must return features (N, d), one row for each of {len(images)} images, got "
                f"{shape}: name a module that does, attach(..., encoder=)"
            )


class GradientJoin:
    """Joins a second loss L' to training steps that other code takes, whatever form its own loss L has there.

    When one of their optimisers is about to step, the gradients in place become those of
    weight * L + (1 - weight) * L'. Their loss is never touched, and may have terms inside and outside the model.

    Args:
        theirs: the optimisers of the other code. own: that of parameters which L' alone trains.
        weight: of L, in [0, 1].
    """

    def __init__(self, theirs: Sequence[Optimizer], own: Optimizer, *, weight: float) -> None:
        self._optimizers, self._own, self._weight = [*theirs, own], own, weight
        self._gradients: dict[Tensor, Tensor] | None = None
        self._stepped: list[Optimizer] = []
        for optimizer in theirs:
            optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: self._join(optimizer))

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within this context the other code takes one step and `add` is called; at its end `own` steps.

        Raises:
            UsageError: none of their optimisers stepped, or one did twice.
        """
        self._gradients = None
        self._stepped.clear()
        yield
        if not self._stepped:
            raise UsageError(
                "the trainer's forward_backward stepped none of the optimisers that it registered, so that L_KD cannot "
                "join: give the optimiser to register_model(name, model, optim, sched), and step it once for each batch"
            )
        self._join(self._own)
        self._own.step()
        self._own.zero_grad()
        self._gradients = None

    def add(self, loss: Tensor) -> None:
        """Take the gradients of L', a scalar; to be called before their backward pass frees what the two share.

        Raises:
            UsageError: gradient checkpointing makes it impossible.
        """
        parameters = [p for o in self._optimizers for g in o.param_groups for p in g["params"] if p.requires_grad]
        try:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
            raise UsageError(
                "L_KD's gradients need the encoder's graph, and gradient checkpointing stands around it or is of the "
                "reentrant kind: checkpoint layers within the encoder, with use_reentrant=False"
            ) from error
        self._gradients = {p: g for p, g in zip(parameters, gradients, strict=True) if g is not None}

    @torch.no_grad()
    def _join(self, optimizer: Optimizer) -> None:
        if self._gradients is None:  # a step that is none of ours
            return
        if optimizer in self._stepped:
            raise UsageError(
                f"the trainer's forward_backward stepped its {type(optimizer).__name__} twice for one batch, and it is "
                "not known which of the two steps L_KD belongs to: this trainer cannot be attached"
            )
        self._stepped.append(optimizer)
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            if parameter.grad is not None:
                parameter.grad.mul_(self._weight)
            if parameter in self._gradients:
                added = self._gradients[parameter].mul(1 - self._weight)
                parameter.grad = added if parameter.grad is None else parameter.grad.add_(added)
