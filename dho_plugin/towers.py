"""A frozen CLIP model as the rest of the code sees it, and the places where learned prompts enter its towers.

Prompt learning never edits or copies a model: token embeddings, visual prompts and the prompts of deeper layers are
arguments of `VLM.encode_text_embeddings` and `VLM.encode_image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .errors import UsageError
from .layers import run_blocks
from .shared_prefix import can_share, run_shared


class ImageSpec(NamedTuple):
    """What a model wants to see: a square of `size` pixels, RGB in [0, 1] minus `mean` over `std`."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Encoders(Protocol):
    """What a classifier asks of a CLIP model: VLM, or one with boosting prompts (cascade.py)."""

    logit_scale: float

    def encode_image(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor: ...

    def encode_text_embeddings(
        self, embeddings: Tensor, end: Tensor, deep: Sequence[Tensor] = (), shared: int = 1
    ) -> Tensor: ...


class VLM(nn.Module):
    """A frozen CLIP model: always in eval mode, no parameter takes a gradient.

    Attributes:
        name: what the user asked for. image: ImageSpec of the image tower. width: width d of the shared embedding.
        context_length: longest prompt in tokens, start and end token included.
        logit_scale: exp of CLIP's learned scale, 1/zeta.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, model: Any, *, name: str, tokenizer: Any, image: ImageSpec) -> None:
        super().__init__()
        self.model: Any = model.float().requires_grad_(False).eval()
        self.name = name
        self.image = image
        self._tokenizer = tokenizer
        self._text = getattr(model, "text", model)
        self.context_length = int(getattr(self._text, "context_length", 77))
        self.logit_scale = float(torch.as_tensor(model.logit_scale).detach().exp())
        self.register_buffer("_mean", torch.tensor(image.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(image.std).view(1, 3, 1, 1), persistent=False)
        self.width = int(self.encode_text(self.tokenize(["a"])).shape[-1])

    def train(self, mode: bool = True) -> VLM:
        """Stay in eval mode whatever the trainer sets."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights are stored in."""
        return next(self.model.parameters()).dtype

    def normalize(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 -> float, scaled to [0, 1] and normalised with the model's mean and deviation."""
        return (images.float() / 255 - self._mean) / self._std

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """uint8 images (N, 3, size, size) -> projected image features (N, width), float32, not of unit length."""
        return self.encode_image(self.normalize(images)).float()

    def encode_image(self, images: Tensor, prompts: Sequence[Tensor] = ()) -> Tensor:
        """Normalised images (N, 3, size, size) -> projected image features (N, width), not of unit length.

        Args:
            images: normalised images.
            prompts: blocks of learned visual prompts (depth, n, image width) of a ViT, each with its own depth and n.
                A block's first row of n tokens is appended to the sequence before the first layer, and each of the
                next depth - 1 layers replaces them by its own (deep visual prompt tuning, arXiv 2203.12119; as MaPLe
                and PromptSRC place them). Several blocks stand one after the other. Gradients flow to them.

        Raises:
            UsageError: prompts for an image tower that is no plain CLIP ViT, or deeper than it.
        """
        if not prompts:
            return self.model.encode_image(images.to(self.dtype))
        self.check_visual_prompts(max(len(block) for block in prompts))
        vit, x = self.model.visual, self.patch_tokens(images)
        length = x.shape[1]
        first = [block[0].to(x.dtype).expand(x.shape[0], -1, -1) for block in prompts]
        x = vit.ln_pre(torch.cat([x, *first], dim=1))
        x = run_blocks(vit.transformer, x, [block[1:] for block in prompts], at=length)
        return vit.ln_post(x[:, 0]) @ vit.proj

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Normalised images -> (N, 1 + patches, image width): class token and patches of a ViT, before its layers."""
        vit = self.model.visual
        patches = vit.conv1(images.to(self.dtype)).flatten(2).transpose(1, 2)
        start = vit.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        return torch.cat([start, patches], dim=1) + vit.positional_embedding.to(patches.dtype)

    @property
    def image_token_width(self) -> int:
        """Width of the image tower's tokens, in which visual prompts live."""
        self.check_visual_prompts(1)
        return int(self.model.visual.class_embedding.shape[-1])

    def check_visual_prompts(self, depth: int) -> None:
        """Raise UsageError unless the image tower is a plain CLIP ViT of at least `depth` layers."""
        vit = self.model.visual
        plain = all(hasattr(vit, part) for part in ("conv1", "class_embedding", "ln_pre", "transformer", "proj"))
        if not plain or getattr(vit, "attn_pool", None) is not None or getattr(vit, "pool_type", "tok") != "tok":
            raise UsageError(
                f"visual prompts need a CLIP with a plain ViT, and {self.name} has a {type(vit).__name__}: "
                "choose for example 'ViT-B/16', or a method without visual prompts (CoOpDHO, LinearProbeDHO)"
            )
        layers = len(vit.transformer.resblocks)
        if not 1 <= depth <= layers:
            raise UsageError(f"prompt depth {depth}: {self.name}'s image tower has {layers} layers, so 1 to {layers}")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, context_length) token ids.

        Raises:
            UsageError: a text that does not fit; it is never cut, since that could cut the class name away.
        """
        for text in texts:
            if hasattr(self._tokenizer, "encoder") and len(self._tokenizer.encode(text)) + 2 > self.context_length:
                raise UsageError(
                    f"prompt of {len(self._tokenizer.encode(text)) + 2} tokens, {self.name} reads at most "
                    f"{self.context_length}: {text!r}. Use a shorter class name or fewer context tokens (N_CTX)"
                )
        if not hasattr(self._tokenizer, "encoder"):
            self._refuse_cut(texts)
        return self._tokenizer(list(texts), context_length=self.context_length).to(self._mean.device)

    def _refuse_cut(self, texts: Sequence[str]) -> None:
        """The same for a tokenizer of another library, which cuts without a word: with room for one token more a text
        that fits ends in padding, as a short one does."""
        short, *rows = self._tokenizer(["a", *texts], context_length=self.context_length + 1)
        for text, row in zip(texts, rows, strict=True):
            if row[-1] != short[-1]:
                raise UsageError(
                    f"{self.name} reads at most {self.context_length} tokens, and this prompt has more: {text!r}. Use "
                    "a shorter class name"
                )

    def num_tokens(self, text: str) -> int:
        """Number of tokens of a text without start and end token."""
        return len(self._tokenizer.encode(text))

    @torch.no_grad()
    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids (N, context_length) -> projected text features (N, width), not of unit length."""
        if getattr(self.model, "text_pool_type", "") != "argmax":  # not CLIP's own text tower
            return self.model.encode_text(tokens)
        end = tokens.argmax(dim=-1)
        alike = (tokens == tokens[0]).all(dim=0).cumprod(dim=0).sum()
        length = int(end.max()) + 1
        return self.encode_text_embeddings(
            self.embed_tokens(tokens[:, :length]), end, shared=int(alike.clamp(max=end.min()))
        )

    @torch.no_grad()
    def class_embeddings(self, names: Sequence[str], templates: Sequence[str], chunk: int = 256) -> Tensor:
        """Unit-length text features of the classes (C, width), float32.

        With several templates: encode each, normalise each, average, normalise again (CLIP's ensemble).

        Args:
            names: C class names. templates: prompts with one "{}" for the name. chunk: prompts encoded at a time.
        """
        total: Tensor | float = 0.0
        for template in templates:
            tokens = self.tokenize([template.format(name.replace("_", " ")) for name in names])
            features = torch.cat([self.encode_text(part) for part in tokens.split(chunk)]).float()
            total = total + nn.functional.normalize(features, dim=-1)
        return nn.functional.normalize(torch.as_tensor(total), dim=-1)

    @torch.no_grad()
    def mean_class_embeddings(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """PromptSRC's ensemble (C, width): average the raw features of the templates, then normalise once."""
        total = [
            self.encode_text(self.tokenize([t.format(n.replace("_", " ")) for n in names])).float() for t in templates
        ]
        return nn.functional.normalize(torch.stack(total).mean(dim=0), dim=-1)

    @torch.no_grad()
    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids (N, L) -> token embeddings (N, L, text width), float32."""
        return self._causal_text().token_embedding(tokens).float()

    def encode_text_embeddings(
        self, embeddings: Tensor, end: Tensor, deep: Sequence[Tensor] = (), shared: int = 1
    ) -> Tensor:
        """Token embeddings -> projected text features; gradients flow to the embeddings and to the deep prompts.

        Under CLIP's causal mask nothing after the end token reaches it, and tokens that start all prompts alike have
        the same states in all of them: only what is left is computed (shared_prefix.py).

        Args:
            embeddings: (N, L, text width), L at most context_length. end: (N,) positions of the end tokens.
            deep: blocks (depth - 1, n, text width), each with its own depth and n: the blocks' tokens stand one after
                the other behind the start token, and in the second to the depth-th layer a block's n tokens are
                replaced by its own (MaPLe, PromptSRC).
            shared: how many leading tokens are the same in all prompts, the start token at least; of these the first
                prompt's are read, and take the gradient.

        Returns:
            (N, width) text features, not of unit length.
        """
        text = self._causal_text()
        depth, layers = 1 + max((len(block) for block in deep), default=0), len(text.transformer.resblocks)
        if depth > layers:
            raise UsageError(f"prompt depth {depth}: {self.name}'s text tower has {layers} layers")
        length = embeddings.shape[1]
        x = embeddings.to(self.dtype) + text.positional_embedding[:length]
        if can_share(text.transformer, shared, deep):
            x = run_shared(text.transformer, x, end, shared, deep)
        else:
            x = run_blocks(text.transformer, x, deep, at=1, mask=text.attn_mask[:length, :length])
            x = x[torch.arange(len(x), device=x.device), end]
        x = text.ln_final(x)
        projection = text.text_projection
        return projection(x) if isinstance(projection, nn.Module) else x @ projection

    def _causal_text(self) -> Any:
        text = self._text
        if not all(hasattr(text, part) for part in ("token_embedding", "attn_mask", "ln_final")) or (
            text.attn_mask is None
        ):
            raise UsageError(
                f"{self.name} has no causal CLIP text tower, so no prompt can be learned in it; "
                "it can serve as a teacher. Choose a CLIP such as 'ViT-B/16' as the student"
            )
        return text


class ImageEncoder(nn.Module):
    """The image tower of a CLIP model, with learned visual prompts or without.

    Args:
        vlm: the CLIP model; no graph is kept where nothing in it is learned.
        visual: a module whose call gives the prompts (depth, n, image width); None for none.

    Attributes:
        at_test: stands in for `vlm` in evaluation mode, where it is not None.
    """

    def __init__(self, vlm: Encoders, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.vlm = vlm
        self.visual = visual
        self.at_test: Encoders | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> features (N, width), float32."""
        vlm = self.vlm if self.training or self.at_test is None else self.at_test
        return vlm.encode_image(images, [] if self.visual is None else [self.visual()]).float()
