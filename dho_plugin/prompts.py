"""Learned text prompts (CoOp, arXiv 2109.01134; deep ones as in PromptSRC, arXiv 2307.06948), the classifier whose rows
are their text features, and learned visual prompts (VPT, arXiv 2203.12119)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .classes import ClassList, KnowsClasses
from .errors import UsageError, did_you_mean
from .shared_prefix import keeping
from .towers import VLM, Encoders

POSITIONS = ("end", "middle", "front")


class PromptLearner(KnowsClasses):
    """Context tokens [v]_1 ... [v]_M around the class name, learned as word embeddings.

    The parameter is named `ctx`, as in CoOp's checkpoints: the two load each other's.

    Args:
        vlm: the CLIP model whose text tower reads the prompts.
        classes: class list; names may contain underscores for spaces.
        n_ctx: number of context tokens M; ignored where `ctx_init` is given.
        ctx_init: words to start from, such as "a photo of a"; empty for random vectors (deviation 0.02).
        class_specific: one context for each class (CSC) instead of one for all.
        position: where the class name stands: at the "end", in the "middle" or in "front" of the context.
        learn_first: how many of `ctx_init`'s tokens are learned, the others staying words; None for all.
        depth: layers of the text tower with prompts of their own; 1 for CoOp. Needs a generic context at the "end".
        seed: of the random vectors, which do not depend on what was drawn before.

    Raises:
        UsageError: unknown position; a prompt longer than the text tower reads.
    """

    end: Tensor
    _start: Tensor
    _rest: Tensor
    _layout: Tensor | None

    def __init__(
        self,
        vlm: VLM,
        classes: ClassList,
        *,
        n_ctx: int = 16,
        ctx_init: str = "",
        class_specific: bool = False,
        position: str = "end",
        learn_first: int | None = None,
        depth: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if position not in POSITIONS:
            raise UsageError(
                f"unknown CLASS_TOKEN_POSITION {position!r}: expected one of {POSITIONS}."
                f"{did_you_mean(position, POSITIONS)}"
            )
        if depth > 1 and (class_specific or position != "end"):
            raise UsageError("deep text prompts need a generic context in front of the class name (CSC False, end)")
        self.classes = classes
        ctx_init = ctx_init.replace("_", " ").strip()
        if ctx_init:
            words = vlm.num_tokens(ctx_init)
            n_ctx = words if learn_first is None else min(words, learn_first)
        names = [name.replace("_", " ") for name in classes.names]
        tokens = vlm.tokenize([f"{ctx_init or ' '.join(['X'] * n_ctx)} {name}." for name in names])
        end = tokens.argmax(dim=-1)
        embedded = vlm.embed_tokens(tokens[:, : int(end.max()) + 1])
        if ctx_init:
            context = embedded[0, 1 : 1 + n_ctx].clone()
            context = context.expand(len(names), -1, -1).clone() if class_specific else context
        else:
            shape = (len(names), n_ctx) if class_specific else (n_ctx,)
            context = _small_random(*shape, embedded.shape[-1], seed=seed)
        self.ctx = nn.Parameter(context)
        deep = _small_random(depth - 1, n_ctx, embedded.shape[-1], seed=seed + 1)
        self.deep = nn.Parameter(deep) if depth > 1 else None
        self.n_ctx = n_ctx
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        self.shared = 1 if class_specific else 1 + before
        self.register_buffer("_start", embedded[:, :1], persistent=False)
        self.register_buffer("_rest", embedded[:, 1 + n_ctx :], persistent=False)
        self.register_buffer("end", end, persistent=False)
        lengths = torch.tensor([vlm.num_tokens(name) for name in names])
        layout = None if position == "end" else _layout(lengths, n_ctx, embedded.shape[1], position)
        self.register_buffer("_layout", layout, persistent=False)

    @classmethod
    def deep_from_words(
        cls, vlm: VLM, classes: ClassList, *, n_ctx: int, ctx_init: str, depth: int, seed: int
    ) -> PromptLearner:
        """Deep prompts as MaPLe and PromptSRC start them: from the first `n_ctx` words of `ctx_init`, or, if more than
        four are wanted, from random vectors."""
        words = ctx_init if n_ctx <= 4 else ""
        return cls(vlm, classes, n_ctx=n_ctx, ctx_init=words, learn_first=n_ctx, depth=depth, seed=seed)

    @property
    def class_bound(self) -> bool:
        return self.ctx.dim() == 3

    def forward(self) -> tuple[Tensor, Tensor, tuple[Tensor, ...], int]:
        """What VLM.encode_text_embeddings takes.

        Returns:
            Token embeddings of all prompts (C, L, text width); the positions of their end tokens (C,); the block of
            the deeper layers' prompts (depth - 1, n_ctx, text width), if the context stands in front of the name; and
            the number of leading tokens that are the same in all prompts.
        """
        context = self.ctx if self.class_bound else self.ctx.expand(len(self._start), -1, -1)
        prompts = torch.cat([self._start, context, self._rest], dim=1)
        if self._layout is not None:  # the context is then no block of tokens behind the start token
            prompts = prompts.gather(1, self._layout.unsqueeze(-1).expand_as(prompts))
            return prompts, self.end, (), self.shared
        none = self.ctx.new_empty(0, self.n_ctx, self.ctx.shape[-1])
        return prompts, self.end, (none if self.deep is None else self.deep,), self.shared


def _small_random(*shape: int, seed: int) -> Tensor:
    """Normal values of deviation 0.02 that do not depend on what was drawn before."""
    return torch.empty(*shape).normal_(std=0.02, generator=torch.Generator().manual_seed(seed))


def _layout(name_lengths: Tensor, n_ctx: int, length: int, position: str) -> Tensor:
    """For each class the order in which the tokens of "start context name rest" are to be read: (C, length)."""
    before = n_ctx // 2 if position == "middle" else 0
    rows = []
    for name_length in name_lengths.tolist():
        name = range(1 + n_ctx, 1 + n_ctx + name_length)
        order = [0, *range(1, 1 + before), *name, *range(1 + before, 1 + n_ctx), *range(name.stop, length)]
        rows.append(torch.tensor(order[:length]))
    return torch.stack(rows)


class PromptedClassifier(nn.Module):
    """CLIP's classifier with learned prompts: logits = scale * cos(image feature, text feature of the class's prompt).

    In evaluation mode the text is encoded once; `train()` and `eval()` forget it.

    Args:
        vlm: the frozen CLIP model. prompt_learner: gives the prompts.

    Attributes:
        chunk: classes whose text is encoded at a time, and once more for the gradient; 0 for all at once.
        keeps: whether attention keeps all that its gradient needs; see shared_prefix.keeping.
    """

    def __init__(self, vlm: Encoders, prompt_learner: PromptLearner) -> None:
        super().__init__()
        self.vlm = vlm
        self.prompt_learner = prompt_learner
        self.chunk, self.keeps = 0, False
        self._kept: Tensor | None = None

    def train(self, mode: bool = True) -> PromptedClassifier:
        self._kept = None
        return super().train(mode)

    def text_features(self) -> Tensor:
        """Unit-length text features (C, width), float32."""
        if self._kept is not None and not torch.is_grad_enabled():
            return self._kept
        features = F.normalize(self._encode(*self.prompt_learner()).float(), dim=-1)
        if not self.training and not torch.is_grad_enabled():
            self._kept = features
        return features

    def _encode(self, prompts: Tensor, end: Tensor, deep: tuple[Tensor, ...], shared: int) -> Tensor:
        if not (self.chunk and torch.is_grad_enabled()):
            with keeping(self.keeps):
                return self.vlm.encode_text_embeddings(prompts, end, deep, shared)
        parts = zip(prompts.split(self.chunk), end.split(self.chunk), strict=True)
        encode = self.vlm.encode_text_embeddings
        return torch.cat([checkpoint(encode, *part, deep, shared, use_reentrant=False) for part in parts])

    def logits(self, features: Tensor, texts: Tensor) -> Tensor:
        """Image features (N, width) and unit-length text features (C, width) -> logits (N, C), float32."""
        with torch.autocast(features.device.type, enabled=False):  # half precision would tie the top of 1000 classes
            return self.vlm.logit_scale * F.normalize(features.float(), dim=-1) @ texts.t()

    def forward(self, features: Tensor) -> Tensor:
        """Image features (N, width) -> logits (N, C)."""
        return self.logits(features, self.text_features())


class VisualPrompts(nn.Module):
    """Learned tokens for the first `depth` layers of a ViT: `prompts` (depth, n, image width), deviation 0.02.

    Args:
        vlm: the CLIP model whose image tower reads them. n: tokens a layer. depth: number of layers.
        seed: of the random start.

    Raises:
        UsageError: the image tower is no ViT, or has fewer layers.
    """

    def __init__(self, vlm: VLM, *, n: int, depth: int, seed: int = 0) -> None:
        super().__init__()
        vlm.check_visual_prompts(depth)
        self.prompts = nn.Parameter(_small_random(depth, n, vlm.image_token_width, seed=seed + 2))

    def forward(self) -> Tensor:
        """The prompts (depth, n, image width)."""
        return self.prompts
