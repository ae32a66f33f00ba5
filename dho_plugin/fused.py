"""A trained model as one module, from uint8 images to probabilities: without a text tower and without a trainer."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from .backbones import TIMM, Backbone, load_backbone
from .cascade import BoostedVLM
from .classes import ClassHead
from .errors import UsageError
from .heads import CosineHead, DualHeadLogits, NonLinearHead, OfficialHead, build_head
from .interpolation import Interpolation
from .prompts import PromptedClassifier, VisualPrompts
from .student import DualHeadStudent
from .tome import TokenMergingVLM
from .towers import VLM, ImageEncoder, ImageSpec
from .vlm import build_vision, vision_config

WEIGHTS = "model.safetensors"
SCHEMA = 1  # of the description in the weights' metadata
_HEADS = {nn.Linear: "linear", CosineHead: "cosine", OfficialHead: "official", NonLinearHead: "nonlinear"}


class FusedStudent(nn.Module):
    """Normalisation, backbone, head(s) and softmax in one module.

    Args:
        backbone: normalised images (N, 3, size, size) -> features (N, d). ce_head: features -> logits (N, C).
        kd_head: the second head, None for a model with one. interpolation: of the two; None for a model with one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        ce_head: nn.Module,
        kd_head: nn.Module | None = None,
        interpolation: Interpolation | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.ce_head, self.kd_head = backbone, ce_head, kd_head
        self.interpolation = interpolation
        self.eval().requires_grad_(False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `forward` returns, in its order."""
        return ("probabilities",) if self.kd_head is None else ("probabilities", "ce", "kd")

    @property
    def image(self) -> ImageSpec:
        """What the model wants to see."""
        return _eye(self.backbone).image

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """uint8 (N, 3, size, size) -> "probabilities" (N, C), and with two heads "ce" and "kd", each head's own.

        The first are those of Eq. 11; with one head they are its softmax.
        """
        features = self.backbone(_eye(self.backbone).normalize(images))
        ce = self.ce_head(features.float())
        if self.kd_head is None or self.interpolation is None:
            return {"probabilities": torch.softmax(ce, dim=-1)}
        kd = self.kd_head(features.float())
        both = self.interpolation(DualHeadLogits(ce, kd))
        beta = self.interpolation.beta
        return {"probabilities": both, "ce": torch.softmax(ce, dim=-1), "kd": torch.softmax(kd / beta, dim=-1)}


class ImageOnly(VLM):
    """The image tower of a CLIP model in the place of the model: whatever asks for text fails.

    Args:
        visual: the tower. width: of its features.
    """

    def __init__(self, visual: nn.Module, *, name: str, image: ImageSpec, width: int) -> None:
        nn.Module.__init__(self)
        self.model = _Tower(visual)
        self.name, self.image, self.width, self.logit_scale = name, image, width, 1.0
        self.register_buffer("_mean", torch.tensor(image.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(image.std).view(1, 3, 1, 1), persistent=False)


class _Tower(nn.Module):
    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def encode_image(self, images: Tensor) -> Tensor:
        return self.visual(images)


def _eye(backbone: nn.Module) -> Any:
    """The part of a backbone that knows what images it wants."""
    return next(part for part in backbone.modules() if isinstance(part, Backbone | VLM))


# From a trainer


@torch.no_grad()
def fuse(trainer: Any) -> FusedStudent:
    """The trained model of a trainer (in evaluation mode, float32), sharing its weights.

    Text is encoded here, once: a classifier whose rows are text features becomes a cosine head with these rows, and
    prompts that are computed become constants.

    Raises:
        UsageError: not one of our trainers, or one that was built for other classes than it was trained on.
    """
    model = getattr(trainer, "model", None)
    if not all(hasattr(trainer, part) for part in ("backbone", "ce_head", "classes", "test_rows")):
        raise UsageError(f"{type(trainer).__name__} is none of our trainers: only their models can be exported")
    if trainer.test_rows is not None:
        raise UsageError("the dataset has other classes than the model was trained on: give --root of the run's own")
    two = isinstance(model, DualHeadStudent) and not trainer.ce_only
    second = (folded_head(trainer.kd_head), trainer.interpolation) if two else ()
    return FusedStudent(_without_text(trainer.backbone), folded_head(trainer.ce_head), *second)


def _without_text(backbone: nn.Module) -> nn.Module:
    """A copy of a backbone around the same image tower, whatever is wrapped around it; its prompts as constants."""
    replaced: dict[int, nn.Module] = {}
    for part in backbone.modules():
        if isinstance(part, VLM):
            replaced[id(part)] = ImageOnly(part.model.visual, name=part.name, image=part.image, width=part.width)
        elif isinstance(part, ImageEncoder) and part.visual is not None:
            replaced[id(part.visual)] = _constant(part.visual())
        elif isinstance(part, BoostedVLM):
            replaced[id(part.boosting)] = _boosting(_constant(part.boosting.visual()))
    return copy.deepcopy(backbone, replaced)


def _constant(prompts: Tensor) -> VisualPrompts:
    fixed = VisualPrompts.__new__(VisualPrompts)
    nn.Module.__init__(fixed)
    fixed.prompts = nn.Parameter(prompts.detach().float().clone(), requires_grad=False)
    return fixed


def _boosting(visual: VisualPrompts) -> nn.Module:
    """What is left of boosting prompts without their text."""
    part = nn.Module()
    part.visual = visual
    return part


def folded_head(head: nn.Module) -> nn.Module:
    """A head whose logits are a function of features and constants alone."""
    if isinstance(head, ClassHead):
        return head.head
    if isinstance(head, PromptedClassifier):
        texts = head.text_features()
        return build_head("cosine", texts.shape[1], len(texts), class_embeddings=texts, scale=head.vlm.logit_scale)
    if type(head) is nn.Sequential:
        return nn.Sequential(*(folded_head(part) for part in head))
    return head


# To a file and back


def describe(fused: FusedStudent) -> dict[str, Any] | None:
    """All that is needed to build the module again, up to its weights; None where that cannot be said."""
    heads = [_describe_head(head) for head in (fused.ce_head, fused.kd_head) if head is not None]
    backbone = _describe_backbone(fused.backbone)
    if backbone is None or None in heads:
        return None
    at = fused.interpolation
    chosen = None if at is None else {"alpha": at.alpha, "beta": at.beta, "source": at.source}
    return {"schema": SCHEMA, "backbone": backbone, "heads": heads, "interpolation": chosen}


def _describe_head(head: nn.Module) -> list[dict[str, Any]] | None:
    layers = list(head) if type(head) is nn.Sequential else [head]
    if any(type(layer) not in _HEADS for layer in layers):
        return None
    found = []
    for layer in layers:
        last: Any = layer[-1] if isinstance(layer, NonLinearHead) else layer
        classes, features = last.weight.shape
        scale = getattr(layer, "scale", 1.0)
        found.append({"kind": _HEADS[type(layer)], "features": features, "classes": classes, "scale": scale})
    return found


def _describe_backbone(backbone: nn.Module) -> dict[str, Any] | None:
    eye = _eye(backbone)
    shared = {"name": eye.name, "image": eye.image._asdict(), "width": eye.width}
    if isinstance(backbone, Backbone):
        return {"kind": "classifier", "network": _network(backbone.name), **shared}
    vision = vision_config(eye.model.visual)
    if vision is None or not isinstance(backbone, ImageEncoder):
        return None
    vlm, merging = backbone.vlm, backbone.at_test
    boosting = vlm.boosting.visual if isinstance(vlm, BoostedVLM) else None
    parts = {
        "prompts": _shape(backbone.visual),
        "boosting": _shape(boosting),
        "token_merging": merging.r if isinstance(merging, TokenMergingVLM) else 0,
    }
    return {"kind": "clip", "vision": vision, **parts, **shared}


def _shape(prompts: Any) -> list[int] | None:
    return None if prompts is None else list(prompts.prompts.shape)


def _network(name: str) -> str:
    """A backbone's name without the weights that it was started from."""
    architecture = name.removeprefix(TIMM).partition(":")[0].partition(".")[0]
    return TIMM + architecture if name.startswith(TIMM) else architecture


def _build_backbone(spec: Mapping[str, Any]) -> nn.Module:
    image = ImageSpec(spec["image"]["size"], tuple(spec["image"]["mean"]), tuple(spec["image"]["std"]))
    named = {"name": spec["name"], "image": image, "width": spec["width"]}
    if spec["kind"] == "classifier":
        return Backbone(load_backbone(spec["network"], image.size).network, **named)
    vlm: Any = ImageOnly(build_vision(spec["vision"]), **named)
    if spec["boosting"]:
        vlm = BoostedVLM(vlm, _boosting(_constant(torch.zeros(spec["boosting"]))))  # type: ignore[arg-type]
    encoder = ImageEncoder(vlm, _constant(torch.zeros(spec["prompts"])) if spec["prompts"] else None)
    if spec["token_merging"]:
        encoder.at_test = TokenMergingVLM(vlm, spec["token_merging"])
    return encoder


def _build_head(layers: list[Mapping[str, Any]]) -> nn.Module:
    built = [build_head(s["kind"], s["features"], s["classes"], scale=s["scale"]) for s in layers]
    return built[0] if len(built) == 1 else nn.Sequential(*built)


def save_fused(fused: FusedStudent, path: Path) -> None:
    """Write the weights, with what `describe` says in the file's metadata.

    Raises:
        UsageError: a model that cannot be described.
    """
    description = describe(fused)
    if description is None:
        raise UsageError("this model cannot be built again from a description: leave out --formats safetensors")
    save_model(fused, str(path), metadata={"fused_student": json.dumps(description)})


def load_bundle(path: str | Path) -> FusedStudent:
    """The exported model of a bundle as a torch module, on the CPU in float32; nothing is fetched.

    Args:
        path: the bundle's folder, or its model.safetensors.

    Raises:
        UsageError: no such file, or one that was written by something else or by a later version.
    """
    file = Path(path).expanduser()
    file = file / WEIGHTS if file.is_dir() else file
    if not file.is_file():
        raise UsageError(f"no {WEIGHTS} at {path}: expected a bundle that was exported with the format safetensors")
    with safe_open(str(file), framework="pt") as opened:
        spec = json.loads((opened.metadata() or {}).get("fused_student", "{}"))
    if spec.get("schema") != SCHEMA:
        raise UsageError(
            f"{file}: schema {spec.get('schema')!r}, known here: {SCHEMA}. Was it exported by a later version?"
        )
    heads = [_build_head(layers) for layers in spec["heads"]]
    second = (heads[1], Interpolation(**spec["interpolation"])) if len(heads) > 1 else ()
    fused = FusedStudent(_build_backbone(spec["backbone"]), heads[0], *second)
    load_model(fused, str(file))
    return fused
