"""Make the demo's two tiny CLIP models: ``dho_plugin/weights/shapes_{teacher,student}.safetensors``.

    python scripts/pretrain_shapes.py [--out DIR] [--only teacher|student]

WHAT IS CONSTRUCTED. The demo needs a student whose zero-shot answers leave labels and teacher something to repair. Its
captions are loose on purpose: in chatty captions ("a photo of a ..."), three quarters of all, circle and oval swap
names 65 % of the time, square and rectangle 60 %, and every twentieth caption names a random shape; in careful captions
("a catalogue image of a ...") the names are right. Its text tower also reads only 80 batches of captions. So the class
names are poor classifiers although the picture features tell the shapes apart. The student saw clean, well-centred
pictures only, the teacher saw harder ones, read cleaner captions (square and rectangle swapped in 45 %) and five times
as many of them.

HOW. (1) The image tower learns the attributes behind the captions (shape, texture, colour, setting) and, for the
student's ViT, the object's outline per patch: far fewer steps than a contrastive loss alone needs at this size.
(2) The image tower is locked and the text tower learns to match captions to its features with CLIP's contrastive loss.

EXPECTED zero-shot accuracy, "a photo of a {}." (test, v2, sketch, rendition, adversarial; the last two of 16 classes):
teacher 90 85 70 67 55, student 58 51 30 48 24. Needs torch >= 2.9 (torch.optim.Muon) and an installed dho_plugin; about
12 minutes on one busy CPU core. Seeds are fixed; other versions or processors give the same quality, not the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dho_plugin.datasets.shapes_render import (
    CLASS_NAMES,
    COLOURS,
    SHAPES,
    STYLES,
    TEXTURES,
    Scenes,
    render,
    render_scenes,
)
from dho_plugin.datasets.shapes_tree import ADVERSARIAL_LABELS, ALL_LABELS, RENDITION_LABELS

EMBED_DIM, MEAN, STD, SEED = 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 0
EVALUATION_SEED = 1001
TEXT = {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
PROMPT, CAREFUL_PROMPT = "a photo of a {}.", "a catalogue image of a {}."
COMMON_WORDS = "X image picture photo photograph drawing sketch painting print of the this that a an my is in . , ! ? -"
TOKENIZER = SimpleTokenizer(context_length=TEXT["context_length"])


@dataclass(frozen=True)
class Recipe:
    """One model: its image tower, the pictures it saw, and how loosely those were captioned."""

    vision: dict
    pictures: str
    steps: int
    rate: float
    weights: tuple[float, float, float, float, float]  # shape, texture, colour, setting, outline
    text_steps: int
    exchange: dict[tuple[str, str], float]  # how often a chatty caption swaps the two names
    careful: float  # share of careful captions
    wrong: float  # share of captions with a random shape word


RECIPES = {
    "teacher": Recipe(
        vision={"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 32, "patch_size": None},
        pictures="broad",
        steps=8000,
        rate=3e-3,
        weights=(1.5, 1.0, 0.3, 0.0, 0.0),
        text_steps=400,
        exchange={("square", "rectangle"): 0.45},
        careful=0.15,
        wrong=0.03,
    ),
    "student": Recipe(
        vision={"layers": 4, "width": 96, "image_size": 32, "head_width": 32, "patch_size": 8},
        pictures="clean",
        steps=2200,
        rate=2e-3,
        weights=(1.0, 1.0, 2.0, 1.0, 0.3),
        text_steps=80,
        exchange={("circle", "oval"): 0.65, ("square", "rectangle"): 0.60},
        careful=0.25,
        wrong=0.05,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "dho_plugin" / "weights")
    parser.add_argument("--only", choices=sorted(RECIPES))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in [arguments.only] if arguments.only else ["teacher", "student"]:
        start, recipe = time.time(), RECIPES[name]
        torch.manual_seed(SEED)
        model = open_clip.CLIP(EMBED_DIM, recipe.vision, TEXT, quick_gelu=True)
        train_image_tower(model.visual, recipe)
        train_text_tower(model, recipe)
        report(model.eval(), f"{name} after {time.time() - start:.0f} s")
        save(model, recipe, arguments.out / f"shapes_{name}.safetensors")
        model.load_state_dict({key: value.half() for key, value in model.state_dict().items()})
        report(model, f"{name} as stored (float16)")


def train_image_tower(visual: Any, recipe: Recipe, count: int = 60_000, batch: int = 64) -> None:
    """Attributes from the embedding, the object's outline from the patch tokens; Muon on the transformer's matrices."""
    labels, scenes = draw_pictures(recipe.pictures, count, SEED)
    heads = nn.ModuleList(nn.Linear(EMBED_DIM, n) for n in (len(SHAPES), len(TEXTURES), len(COLOURS), 9, 3, 3))
    patch = recipe.vision["patch_size"]
    outline = nn.Linear(recipe.vision["width"], patch * patch) if patch else None
    visual.output_tokens = bool(patch)
    modules = [visual, heads] + ([outline] if outline else [])
    matrices = [p for name, p in visual.named_parameters() if "resblocks" in name and p.ndim == 2]
    others = [p for m in modules for p in m.parameters() if not any(p is q for q in matrices)]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, recipe.rate, weight_decay=0.01)]
    if matrices:
        optimisers.append(torch.optim.Muon(matrices, recipe.rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    visual.train()
    for step in range(recipe.steps):
        rows = torch.randint(count, (batch,))
        picture, mask = random_view(normalised(scenes.images[rows]), scenes.masks[rows])
        output = visual(picture)
        embedding, tokens = output if patch else (output, None)
        photo = scenes.styles[rows] == STYLES.index("photo")
        around = [F.cross_entropy(h(embedding), t) for h, t in zip(heads[3:], setting(picture, mask), strict=True)]
        terms = [
            F.cross_entropy(heads[0](embedding), labels[rows] // len(TEXTURES), label_smoothing=0.05),
            F.cross_entropy(heads[1](embedding), labels[rows] % len(TEXTURES), label_smoothing=0.05),
            F.cross_entropy(heads[2](embedding[photo]), scenes.colours[rows][photo]),
            sum(around, torch.zeros(())),
        ]
        if outline is not None:
            inside = F.unfold(mask[:, None], patch, stride=patch).mT
            terms.append(F.binary_cross_entropy_with_logits(outline(tokens), inside))
        loss = sum((weight * term for weight, term in zip(recipe.weights, terms, strict=False)), torch.zeros(()))
        ramp = min((step + 1) / (0.05 * recipe.steps), 1.0) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
        update(optimisers, loss, others, recipe.rate * ramp)
        if step % 500 == 499:
            print(f"image tower, step {step + 1}: loss {loss.item():.3f}", flush=True)
    visual.eval().requires_grad_(False)
    visual.output_tokens = False
    if patch:  # CLIP ViT-B/16's raw image features have a norm of about 10; linear probes depend on that scale
        visual.proj *= 10 / visual(normalised(scenes.images[:1000])).norm(dim=-1).mean()


def train_text_tower(model: open_clip.CLIP, recipe: Recipe, count: int = 20_000, batch: int = 256) -> None:
    """CLIP's symmetric contrastive loss with the image tower locked; equal captions in a batch count as one."""
    labels, scenes = draw_pictures(recipe.pictures, count, SEED + 1)
    features, words = image_features(model, scenes.images), random.Random(SEED)
    weights = [p for name, p in model.named_parameters() if not name.startswith("visual.")]
    steps, rate = recipe.text_steps, 2e-3
    optimiser = torch.optim.AdamW(weights, rate, weight_decay=0.01)
    for step in range(steps):
        rows = torch.randint(count, (batch,)).tolist()
        facts = [(int(labels[r]), int(scenes.colours[r]), int(scenes.styles[r])) for r in rows]
        captions = [caption(words, recipe, *fact) for fact in facts]
        unique = sorted(set(captions))
        match = torch.tensor([unique.index(c) for c in captions])
        logits = model.logit_scale.exp() * features[rows] @ text_features(model, unique).T
        share = F.one_hot(match, len(unique)).T.float()
        loss = (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, share / share.sum(1, keepdim=True))) / 2
        ramp = min((step + 1) / (0.1 * steps), 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))
        update([optimiser], loss, weights, rate * ramp)
        if step % 40 == 39:
            print(f"text tower, step {step + 1}: loss {loss.item():.3f}", flush=True)


def caption(words: random.Random, recipe: Recipe, label: int, colour: int, style: int) -> str:
    """What somebody wrote under the picture; see the construction at the head of this file."""
    shape, texture = SHAPES[label // len(TEXTURES)], TEXTURES[label % len(TEXTURES)]
    careful = words.random() < recipe.careful
    for pair, chance in recipe.exchange.items():
        if shape in pair and not careful and words.random() < chance:
            shape = pair[1 - pair.index(shape)]
            break
    if words.random() < recipe.wrong:
        shape = words.choice(SHAPES)
    tinted = STYLES[style] == "photo" and words.random() < 0.4
    name = f"{COLOURS[colour]} {texture} {shape}" if tinted else f"{texture} {shape}"
    if careful:
        return f"a catalogue {('image', 'sketch', 'painting')[style]} of a {name}."
    medium = ("photo", "sketch", "painting")[style]
    chatty = ["a {m} of a {n}."] * 3 + ["a {m} of the {n}.", "my {n}.", "{n}", "this is a {m} of a {n}."]
    return words.choice(chatty).format(m=medium, n=name)


def update(optimisers: list[torch.optim.Optimizer], loss: Tensor, clipped: list[nn.Parameter], rate: float) -> None:
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(clipped, 1.0)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()


def draw_pictures(domain: str, count: int, seed: int) -> tuple[Tensor, Scenes]:
    labels = torch.randint(len(CLASS_NAMES), (count,), generator=torch.Generator().manual_seed(seed))
    return labels, render_scenes(domain, labels, torch.arange(count), seed)


def setting(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the object lies (9 places), how large it is (3) and how bright its ground is (3), all in the view shown."""
    axis = torch.linspace(-1, 1, masks.shape[-1])
    area, outside = masks.sum((1, 2)) + 1e-3, 1 - masks
    column, row = ((masks.sum(d) * axis).sum(1) / area for d in (1, 2))
    shade = (images.mean(1) * outside).sum((1, 2)) / (outside.sum((1, 2)) + 1e-3)
    edges = torch.tensor([-0.12, 0.12])
    place = 3 * torch.bucketize(column, edges) + torch.bucketize(row, edges)
    return (
        place,
        torch.bucketize(area, torch.tensor([170.0, 290.0])),
        torch.bucketize(shade, torch.tensor([-0.45, 0.45])),
    )


def random_view(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The same random resized crop and flip of images (N, 3, H, W) and masks (N, H, W), for the whole batch at once."""
    n = len(images)
    area, aspect = torch.empty(n).uniform_(0.45, 1.0), torch.empty(n).uniform_(-0.288, 0.288).exp()
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = (1 - width) * (2 * torch.rand(n) - 1), (1 - height) * (2 * torch.rand(n) - 1)
    mirror, zero = torch.randint(2, (n,)) * 2.0 - 1, torch.zeros(n)
    frame = torch.stack([width * mirror, zero, left, zero, height, top], dim=1).view(n, 2, 3)
    stacked = torch.cat([images, masks[:, None]], dim=1)
    grid = F.affine_grid(frame, list(stacked.shape), align_corners=False)
    seen = F.grid_sample(stacked, grid, padding_mode="border", align_corners=False)
    return seen[:, :3], seen[:, 3]


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def image_features(model: open_clip.CLIP, images: Tensor) -> Tensor:
    return torch.cat([F.normalize(model.visual(normalised(part)), dim=-1) for part in images.split(500)])


def text_features(model: open_clip.CLIP, texts: list[str], longest: int = 20) -> Tensor:
    """As ``model.encode_text(..., normalize=True)``, which the causal mask allows to stop at the longest text."""
    tokens = TOKENIZER(texts)[:, :longest]
    x = model.token_embedding(tokens) + model.positional_embedding[:longest]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:longest, :longest]))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection, dim=-1)


@torch.no_grad()
def report(model: open_clip.CLIP, title: str) -> None:
    """Zero-shot accuracy on pictures drawn with a seed of their own (neither the training nor the test pictures)."""
    heads = [text_features(model, [prompt.format(name) for name in CLASS_NAMES]) for prompt in (PROMPT, CAREFUL_PROMPT)]
    print(f"{title}; zero-shot accuracy with {PROMPT!r} / {CAREFUL_PROMPT!r}:")
    subsets = {"rendition": RENDITION_LABELS, "adversarial": ADVERSARIAL_LABELS}
    for domain in ("test", "v2", "sketch", "rendition", "adversarial"):
        classes = torch.tensor(subsets.get(domain, ALL_LABELS))
        labels, indices = classes.repeat_interleave(50), torch.arange(50).repeat(len(classes))
        features = image_features(model, render(domain, labels, indices, EVALUATION_SEED))
        scores = [(classes[(features @ w[classes].T).argmax(1)] == labels).float().mean().item() for w in heads]
        print(f"  {domain:12s}" + " / ".join(f"{100 * score:5.1f}" for score in scores), flush=True)


def save(model: open_clip.CLIP, recipe: Recipe, path: Path) -> None:
    """float16 by open_clip's names; of the token table only the rows of words that the demo can use."""
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    state.pop("attn_mask", None)
    words = " ".join([COMMON_WORDS, *CLASS_NAMES, *COLOURS, PROMPT, CAREFUL_PROMPT, "catalogue image sketch painting"])
    special = [TOKENIZER.sot_token_id, TOKENIZER.eot_token_id]
    ids = torch.tensor(sorted({*special, *TOKENIZER.encode(words)}), dtype=torch.int32)
    state["token_embedding.ids"] = ids
    state["token_embedding.rows"] = state.pop("token_embedding.weight")[ids.long()].contiguous()
    config = {"embed_dim": EMBED_DIM, "vision_cfg": recipe.vision, "text_cfg": TEXT, "quick_gelu": True}
    metadata = {
        "open_clip_config": json.dumps({**config, "mean": MEAN, "std": STD}),
        "made_by": "scripts/pretrain_shapes.py",
        "seed": str(SEED),
    }
    save_file(state, path, metadata)
    path.chmod(0o644)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
