"""Compact students by name: torchvision's and timm's classifiers without their last layer, random or pretrained."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torchvision
from torch import Tensor, nn

from .errors import UsageError, did_you_mean
from .towers import ImageSpec

IMAGENET = ImageSpec(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TIMM = "timm/"
# DINO's ResNet-50 (arXiv 2104.14294) has torchvision's layers and keys, without the classifier.
DINO = "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth"


class Source(NamedTuple):
    """What a name means. weights: "" for random ones, "imagenet", "dino", a timm tag, or a file."""

    architecture: str
    weights: str
    library: str


class Backbone(nn.Module):
    """A network from images to features.

    Attributes:
        name: what the user asked for. image: what it wants to see. width: of the features, d.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, network: nn.Module, *, name: str, image: ImageSpec, width: int) -> None:
        super().__init__()
        self.network = network
        self.name, self.image, self.width = name, image, width
        self.register_buffer("_mean", torch.tensor(image.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(image.std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> float, scaled to [0, 1] and normalised with the weights' mean and deviation."""
        return (images.float() / 255 - self._mean) / self._std

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> features (N, width)."""
        return self.network(images)


def find_backbone(name: str) -> Source:
    """Find out what a name means without building anything.

    Args:
        name: one of
            torchvision's names ("resnet18", "mobilenet_v2"): random weights;
            "NAME:imagenet": torchvision's default ImageNet weights; "resnet50:dino": DINO's;
            timm's with the prefix "timm/" ("timm/resnet18": random weights; "timm/resnet18.a1_in1k": those of the tag);
            either with ":FILE": a local state dict of that network, with or without its classifier.

    Raises:
        UsageError: unknown name, unknown weights, no such file.
    """
    architecture, _, weights = name.removeprefix(TIMM).partition(":")
    library = "timm" if name.startswith(TIMM) else "torchvision"
    known = timm.list_models(pretrained=False) if library == "timm" else torchvision.models.list_models()
    plain, _, tag = architecture.partition(".")
    if (plain if library == "timm" else architecture) not in known:
        elsewhere = library == "torchvision" and timm.is_model(plain)
        hint = f" Did you mean {TIMM + name!r}?" if elsewhere else did_you_mean(plain, known)
        raise UsageError(f"unknown backbone {name!r}: {library} has no classifier {architecture!r}.{hint}")
    if tag and architecture not in timm.list_pretrained(f"{plain}.*"):
        raise UsageError(
            f"unknown weights {name!r}: timm has {timm.list_pretrained(f'{plain}.*') or 'none of this network'}"
        )
    named = {"imagenet", "dino"} if (library, architecture) == ("torchvision", "resnet50") else {"imagenet"}
    if weights and not Path(weights).expanduser().is_file() and (library == "timm" or weights not in named):
        raise UsageError(f"unknown weights {weights!r} for {architecture}: expected a file or one of {sorted(named)}")
    return Source(architecture, weights or tag, library)


def load_backbone(name: str, size: int = 0) -> Backbone:
    """Build a backbone on the CPU, in float32.

    Args:
        name: see find_backbone. size: resolution in pixels; 0 for that of the weights, 224 for torchvision's.

    Raises:
        UsageError: as find_backbone; weights that cannot be fetched or do not fit; a network that does not end in a
            linear classifier, or takes no images of this size.
    """
    source = find_backbone(name)
    network, image = _timm(source) if source.library == "timm" else _torchvision(source)
    image = image._replace(size=size or image.size)
    if Path(source.weights).expanduser().is_file():
        _load_file(network, Path(source.weights).expanduser())
    network.eval()
    try:
        with torch.no_grad():
            features = network(torch.zeros(2, 3, image.size, image.size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"{name} takes no images of {image.size} pixels (INPUT.SIZE): {error}") from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        raise UsageError(f"{name} gives no feature vectors (N, d) without its classifier: choose another")
    return Backbone(network, name=name, image=image, width=features.shape[1])


def _timm(source: Source) -> tuple[nn.Module, ImageSpec]:
    pretrained = "." in source.architecture
    network = _fetch(source, lambda: timm.create_model(source.architecture, pretrained=pretrained, num_classes=0))
    data = timm.data.resolve_model_data_config(network)
    return network, ImageSpec(data["input_size"][-1], tuple(data["mean"]), tuple(data["std"]))


def _torchvision(source: Source) -> tuple[nn.Module, ImageSpec]:
    pretrained = "DEFAULT" if source.weights == "imagenet" else None
    network = _fetch(source, lambda: torchvision.models.get_model(source.architecture, weights=pretrained))
    last = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not last:
        raise UsageError(f"{source.architecture} does not end in a linear classifier: choose another")
    parent, _, name = last[-1].rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    if source.weights == "dino":
        state = _fetch(source, lambda: torch.hub.load_state_dict_from_url(DINO, map_location="cpu", weights_only=True))
        _fit(network, state, DINO)
    return network, IMAGENET


def _fetch(source: Source, build: Any) -> Any:
    """Build what may have to be downloaded; a lost connection is the user's business, not a traceback."""
    try:
        return build()
    except OSError as error:  # urllib's and huggingface_hub's errors among them
        raise UsageError(
            f"cannot fetch the weights of {source.architecture} ({error}): give a file, NAME:FILE"
        ) from error


def _load_file(network: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UsageError(
            f"{path} is not a checkpoint of plain tensors ({type(error).__name__}). If you trust it, load it once with "
            "torch.load(..., weights_only=False) and save its state_dict"
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state)
    _fit(network, state, str(path))


def _fit(network: nn.Module, state: dict[str, Tensor], where: str) -> None:
    state = {key.removeprefix("module."): value for key, value in state.items()}
    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise UsageError(f"{where} lacks {len(missing)} of {len(wanted)} entries of this network, first {missing[0]!r}")
    try:
        network.load_state_dict({key: state[key] for key in wanted})
    except RuntimeError as error:
        raise UsageError(f"{where} does not fit this network: {error}") from error
