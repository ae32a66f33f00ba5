"""The seam to open_clip, the one file that imports it: which name or file becomes which model."""

from __future__ import annotations

import json
import os
import socket
import urllib.parse
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from safetensors import safe_open
from torch import Tensor

from .errors import UsageError, did_you_mean
from .layers import lighter_quick_gelu
from .towers import VLM, ImageSpec

WEIGHTS = Path(__file__).parent / "weights"
BUNDLED = {path.stem.replace("_", "-"): path for path in sorted(WEIGHTS.glob("*.safetensors"))}

# CoOp's backbone names are OpenAI's; their weights were trained with QuickGELU, which the plain open_clip
# architecture names do not have (ViT-B/16 on ImageNet: 64.4 % with the wrong activation, 68.3 % with the right one).
OPENAI_NAMES = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
RANDOM = "random"  # as a tag: the architecture at its true size with random weights, to measure what it costs
_OPENAI_MARKS = ("input_resolution", "context_length", "vocab_size")


class Source(NamedTuple):
    """Where a model comes from: a file, or open_clip's download of `tag`; see find_vlm."""

    path: Path | None
    architecture: str | None = None
    tag: str = ""
    preprocess: dict[str, Any] | None = None


def load_vlm(name: str) -> VLM:
    """Load a CLIP model onto the CPU in float32.

    Args:
        name: one of
            a bundled demo model ("shapes-student", "shapes-teacher");
            CoOp's names ("RN50", "ViT-B/16", "ViT-L/14@336px": OpenAI's weights);
            open_clip's "ARCHITECTURE:TAG" ("ViT-H-14-378-quickgelu:dfn5b");
            a local file that says what it is: OpenAI's TorchScript archive, a state dict with OpenAI's three
            marks (input_resolution, context_length, vocab_size), a safetensors file with an `open_clip_config`;
            "ARCHITECTURE:FILE" for any other local checkpoint, where ARCHITECTURE is CoOp's or open_clip's name;
            "ARCHITECTURE:random" to measure what a model costs: always the same random weights, which know nothing.

    Raises:
        UsageError: as find_vlm; and a file that does not hold such a model.
    """
    source = find_vlm(name)
    if source.path is not None:
        return _from_file(source.path, name=name, architecture=source.architecture, preprocess=source.preprocess)
    if source.tag == RANDOM:
        print(f"{name}: random weights, which know nothing; times and memory are those of the real model")
        return random_vlm(name.removesuffix(f":{RANDOM}"), name=name)
    model = open_clip.create_model(source.architecture, pretrained=source.tag)
    return _wrap(model, name=name, architecture=source.architecture)


def find_vlm(name: str) -> Source:
    """Find out what a name means without loading anything, so that a mistake is said before anything slow starts.

    Raises:
        UsageError: unknown name, unknown tag, wrong activation for the weights, file not found, no network.
    """
    path = BUNDLED.get(name, Path(name).expanduser())
    if path.is_file():
        return Source(path)
    architecture, _, rest = name.partition(":")
    if not rest:
        if architecture in OPENAI_NAMES:
            return _pretrained(OPENAI_NAMES[architecture], "openai", name=name)
        _refuse(name)
    if rest == RANDOM:
        _check_self_contained(architecture)
        return Source(None, architecture, RANDOM)
    architecture = OPENAI_NAMES.get(architecture, architecture)
    if architecture not in open_clip.list_models():
        _refuse(name)
    path = Path(rest).expanduser()
    if path.is_file():
        return Source(path, architecture)
    return _pretrained(architecture, rest, name=name)


def _refuse(name: str) -> None:
    models = open_clip.list_models()
    if name in models:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise UsageError(f"{name!r} names an architecture without weights: write '{name}:TAG' with TAG one of {tags}")
    if "/" in name.partition(":")[2] or name.endswith((".pt", ".pth", ".bin", ".safetensors")):
        raise UsageError(f"no model file at {name!r} (looked in {Path(name).expanduser().absolute().parent})")
    known = [*OPENAI_NAMES, *BUNDLED, *models]
    raise UsageError(
        f"unknown model {name!r}: expected a file, one of {[*OPENAI_NAMES, *BUNDLED]}, or open_clip's "
        f"'ARCHITECTURE:TAG'.{did_you_mean(name.partition(':')[0], known)}"
    )


def _pretrained(architecture: str, tag: str, *, name: str) -> Source:
    """Weights by open_clip's name and tag: from OpenAI's own cache, the hub's cache, or the network."""
    _check_tag(architecture, tag)
    weights = open_clip.pretrained.get_pretrained_cfg(architecture, tag)
    _check_activation(architecture, tag, bool(weights.get("quick_gelu", False)))
    file = Path(urllib.parse.urlparse(weights.get("url", "")).path).name
    in_clip_cache = Path("~/.cache/clip").expanduser() / (file or "-")
    if in_clip_cache.is_file():
        return Source(in_clip_cache, architecture, tag, weights)
    hub = weights.get("hf_hub", "").rstrip("/")
    cached = _in_hub_cache(hub)
    if cached is None and not _online():
        where = f"{weights['url']} to {in_clip_cache}" if file else f"https://huggingface.co/{hub} to a local file"
        raise UsageError(
            f"the weights of {name!r} are not on this machine and there is no network. On a machine that has one "
            f"download {where}, or give a local file as '{architecture}:FILE'"
        )
    return Source(cached, architecture, tag, weights)


def _check_tag(architecture: str, tag: str) -> None:
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise UsageError(
            f"{architecture} has no weights {tag!r} and there is no such file: expected one of {tags} or a path."
            f"{did_you_mean(tag, tags)}"
        )


def _check_activation(architecture: str, tag: str, weights_quick_gelu: bool) -> None:
    has_quick_gelu = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if has_quick_gelu == weights_quick_gelu:
        return
    stem = architecture.removesuffix("-quickgelu")
    right = f"{stem}-quickgelu" if weights_quick_gelu else stem
    raise UsageError(
        f"{architecture!r} computes {'QuickGELU' if has_quick_gelu else 'GELU'}, but the weights {tag!r} were trained "
        f"with {'QuickGELU' if weights_quick_gelu else 'GELU'}, which costs points silently. Use '{right}:{tag}'"
    )


def _online() -> bool:
    """Whether names resolve: the hub client would otherwise retry for most of a minute before it says no."""
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "HF_ENDPOINT", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo("huggingface.co", 443)
    except OSError:
        return False
    return True


def _in_hub_cache(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    owner, _, rest = repository.partition("/")
    model, _, named = rest.partition("/")
    usual = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
    for file in (named,) if named else usual:
        found = try_to_load_from_cache(f"{owner}/{model}", file) if model else None
        if isinstance(found, str):
            return Path(found)
    return None


def _from_file(path: Path, *, name: str, architecture: str | None, preprocess: dict[str, Any] | None = None) -> VLM:
    if path.suffix == ".safetensors":
        with safe_open(str(path), framework="pt") as file:
            config = json.loads((file.metadata() or {}).get("open_clip_config", "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    else:
        config, state = None, _read_torch_file(path)
    if config is not None:
        return _from_config(config, state, name=name)
    if all(mark in state for mark in _OPENAI_MARKS):
        model = open_clip.model.build_model_from_openai_state_dict(state)
        if architecture is not None:
            _check_architecture(model, architecture, path)
        return _wrap(model, name=name, architecture=None)
    if architecture is None:
        raise UsageError(
            f"{path} holds weights but does not say of which model or activation: "
            f"write 'ARCHITECTURE:{path}', for example 'ViT-B/16:{path}'"
        )
    model = open_clip.create_model(architecture, load_weights=False)
    try:
        model.load_state_dict({key: value for key, value in state.items() if key not in _OPENAI_MARKS})
    except RuntimeError as error:
        raise UsageError(f"{path} does not fit {architecture}: {error}") from error
    return _wrap(model, name=name, architecture=architecture, preprocess=preprocess or _usual_preprocess(architecture))


def _check_architecture(model: Any, architecture: str, path: Path) -> None:
    config = open_clip.get_model_config(architecture)
    size = model.visual.image_size
    named = config["embed_dim"], config["vision_cfg"]["image_size"]
    found = model.text_projection.shape[1], size[0] if isinstance(size, Sequence) else size
    if named != found:
        raise UsageError(
            f"{path} is no {architecture}: its embedding has width {found[0]} and it sees {found[1]} pixels, "
            f"{architecture} has {named[0]} and {named[1]}. Give the file without an architecture, it says what it is"
        )


def _usual_preprocess(architecture: str) -> dict[str, Any]:
    """Mean and deviation that open_clip's weights of an architecture share; printed where they do not agree."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = [open_clip.pretrained.get_pretrained_cfg(architecture, tag) for tag in tags]
    pairs = {(tuple(weights["mean"]), tuple(weights["std"])) for weights in known}
    if len(pairs) == 1:
        mean, std = pairs.pop()
        return {"mean": mean, "std": std}
    print(f"{architecture}: images are normalised with OpenAI's mean and deviation")
    return {}


def _read_torch_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive or of a checkpoint; a checkpoint is read without running its pickle."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.endswith("constants.pkl") for entry in archive.namelist()):
                return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(
            f"{path} is not a checkpoint of plain tensors ({type(error).__name__}). If you trust it, load it once with "
            "torch.load(..., weights_only=False) and save its state_dict as safetensors"
        ) from error
    state = state.get("state_dict", state)
    return {key.removeprefix("module."): value for key, value in state.items()}


def _from_config(config: dict[str, Any], state: dict[str, Tensor], *, name: str) -> VLM:
    """A self-describing file. Its token embedding may hold only the rows that its vocabulary uses."""
    model = open_clip.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=config["vision_cfg"],
        text_cfg=config["text_cfg"],
        quick_gelu=config.get("quick_gelu", False),
    )
    if "token_embedding.ids" in state:
        table = torch.zeros_like(model.token_embedding.weight)
        table[state.pop("token_embedding.ids").long()] = state.pop("token_embedding.rows").float()
        state["token_embedding.weight"] = table
    model.load_state_dict(state)
    size = config["vision_cfg"]["image_size"]
    image = ImageSpec(size, tuple(config["mean"]), tuple(config["std"]))
    tokenizer = open_clip.SimpleTokenizer(context_length=config["text_cfg"]["context_length"])
    return VLM(lighten(model), name=name, tokenizer=tokenizer, image=image)


def _wrap(model: Any, *, name: str, architecture: str | None, preprocess: dict[str, Any] | None = None) -> VLM:
    preprocess = preprocess or getattr(model.visual, "preprocess_cfg", None) or {}
    size = model.visual.image_size
    image = ImageSpec(
        size=int(size[0] if isinstance(size, Sequence) else size),
        mean=tuple(preprocess.get("mean", open_clip.OPENAI_DATASET_MEAN)),
        std=tuple(preprocess.get("std", open_clip.OPENAI_DATASET_STD)),
    )
    if architecture is None:
        tokenizer = open_clip.SimpleTokenizer(context_length=model.context_length)
    else:
        tokenizer = open_clip.get_tokenizer(architecture)
    return VLM(lighten(model), name=name, tokenizer=tokenizer, image=image)


class QuickGELU(open_clip.transformer.QuickGELU):
    """open_clip's activation, with less to do and to keep for the gradient."""

    lighter = True

    def forward(self, x: Tensor) -> Tensor:
        """As its parent, to the bit; the gradient up to rounding."""
        if self.lighter and torch.is_grad_enabled() and x.requires_grad:
            return lighter_quick_gelu(x)
        return super().forward(x)


@contextmanager
def open_clips_activation() -> Iterator[None]:
    """Within this context models compute as open_clip wrote them, for comparison."""
    QuickGELU.lighter = False
    try:
        yield
    finally:
        QuickGELU.lighter = True


def lighten(model: Any) -> Any:
    """Put our QuickGELU in the place of open_clip's."""
    for part in model.modules():
        if type(part) is open_clip.transformer.QuickGELU:
            part.__class__ = QuickGELU
    return model


def architectures() -> tuple[str, ...]:
    """The names that random_vlm takes: CoOp's, and those that open_clip builds of its own parts alone."""
    return (*OPENAI_NAMES, *(name for name in open_clip.list_models() if _self_contained(name)))


def feature_width(architecture: str) -> int:
    """Width of the features of one of `architectures`."""
    return int(open_clip.get_model_config(OPENAI_NAMES.get(architecture, architecture))["embed_dim"])


def random_vlm(architecture: str, *, name: str = "") -> VLM:
    """A CLIP model of an architecture's true size with random weights, always the same; nothing is fetched.

    Args:
        architecture: see architectures. name: of the VLM, the architecture's if left out.

    Raises:
        UsageError: an unknown architecture, or one with a tower or tokenizer of another library.
    """
    _check_self_contained(architecture)
    config = open_clip.get_model_config(OPENAI_NAMES.get(architecture, architecture))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**config)
    return _wrap(model, name=name or architecture, architecture=None)


def untrained(name: str) -> str:
    """The name of a model of the same architecture that needs no weights, to measure what a run costs.

    A local file's name, and one of an architecture that random_vlm cannot build, stay as they are.

    Raises:
        UsageError: an unknown model or tag.
    """
    architecture, _, tag = name.partition(":")
    plain = OPENAI_NAMES.get(architecture, architecture)
    if BUNDLED.get(name, Path(name).expanduser()).is_file() or (tag and Path(tag).expanduser().is_file()):
        return name
    if plain not in open_clip.list_models() or not (tag or plain != architecture):
        _refuse(name)
    if tag not in ("", RANDOM):
        _check_tag(plain, tag)
    return f"{architecture}:{RANDOM}" if _self_contained(plain) else name


def _check_self_contained(architecture: str) -> None:
    if architecture not in architectures():
        raise UsageError(
            f"no architecture {architecture!r} that can be built without a download: expected one of "
            f"{[*OPENAI_NAMES]} or open_clip's.{did_you_mean(architecture, architectures())}"
        )


def _self_contained(architecture: str) -> bool:
    config = open_clip.get_model_config(architecture)
    foreign = any(key.startswith(("timm", "hf")) for key in (*config["vision_cfg"], *config["text_cfg"]))
    return set(config) <= {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"} and not foreign


def vision_config(visual: Any) -> dict[str, Any] | None:
    """What build_vision needs to build an image tower of the same shape; None for other towers than CLIP's own two."""
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        block, width = visual.transformer.resblocks[0], visual.conv1.out_channels
        if not isinstance(block, open_clip.transformer.ResidualAttentionBlock):
            return None
        vision = {
            "layers": len(visual.transformer.resblocks),
            "width": width,
            "head_width": width // block.attn.num_heads,
            "mlp_ratio": block.mlp.c_fc.out_features / width,
            "patch_size": visual.patch_size[0],
            "image_size": visual.image_size[0],
        }
        quick_gelu = isinstance(block.mlp.gelu, open_clip.transformer.QuickGELU)
    elif isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        width, stages = visual.conv3.out_channels, (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        vision = {
            "layers": [len(stage) for stage in stages],
            "width": width,
            "head_width": width * 32 // visual.attnpool.num_heads,
            "image_size": visual.image_size,
        }
        quick_gelu = False
    else:
        return None
    config = {"embed_dim": visual.output_dim, "vision_cfg": vision, "quick_gelu": quick_gelu}
    with torch.device("meta"):
        again = build_vision(config)
    return config if _make(again) == _make(visual) else None


def _make(visual: Any) -> tuple[Any, ...]:
    """Layers, shapes and switches of an image tower; a layer norm for half precision is the same in single."""
    shapes = {key: value.shape for key, value in visual.state_dict().items()}
    switches = {key: value for key, value in vars(visual).items() if isinstance(value, str | bool | int | tuple)}
    switches.pop("training", None)
    return str(visual).replace("LayerNormFp32", "LayerNorm"), shapes, switches


def build_vision(config: dict[str, Any]) -> Any:
    """An image tower with random weights from what vision_config says."""
    text = {"context_length": 1, "vocab_size": 1, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CLIP(text_cfg=text, **config).visual


def imagenet_templates() -> tuple[str, ...]:
    """CLIP's 80 prompt templates for ImageNet, with "{}" for the class name (from open_clip's metadata)."""
    return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)


def imagenet_classnames() -> tuple[str, ...]:
    """OpenAI's names of ImageNet's 1000 classes in label order (from open_clip's metadata)."""
    return tuple(open_clip.IMAGENET_CLASSNAMES)
