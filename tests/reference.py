"""The paper's formulas, slow and obvious: loops over images and classes, no code shared with the package."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(row: Tensor) -> list[Tensor]:
    largest = max(value.item() for value in row)
    exponentials = [torch.exp(value - largest) for value in row]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def teacher_probabilities(image: Tensor, texts: Tensor, zeta: float, eta: float) -> list[Tensor]:
    """Eq. 1 for one image feature (d,) and C text features (C, d)."""
    scores = []
    for text in texts:
        cosine = sum(a * b for a, b in zip(image, text, strict=True)) / (image.pow(2).sum() * text.pow(2).sum()).sqrt()
        scores.append(cosine / (zeta * eta))
    return softmax(torch.stack(scores))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 6 without its weight."""
    terms = [-torch.log(softmax(row)[int(label)]) for row, label in zip(logits, labels, strict=True)]
    return sum(terms) / len(terms)


def distillation(kd_logits: Tensor, teacher_logits: Tensor, eta: float, t2: bool) -> Tensor:
    """One term of Eq. 7: the teacher's distribution stands first in the divergence."""
    terms = []
    for student_row, teacher_row in zip(kd_logits, teacher_logits, strict=True):
        p, q = softmax(teacher_row / eta), softmax(student_row / eta)
        terms.append(sum(a * (torch.log(a) - torch.log(b)) for a, b in zip(p, q, strict=True)))
    return sum(terms) / len(terms) * (eta * eta if t2 else 1.0)


def dual_head(ce_l, kd_l, labels, teacher_l, kd_u, teacher_u, ce_weight: float, eta: float, t2: bool) -> Tensor:
    """lambda L_CE + (1 - lambda) L_KD with two separately averaged distillation terms."""
    kd = distillation(kd_l, teacher_l, eta, t2)
    if kd_u is not None:
        kd = kd + distillation(kd_u, teacher_u, eta, t2)
    return ce_weight * cross_entropy(ce_l, labels) + (1 - ce_weight) * kd


def cosine_head(features: Tensor, rows: Tensor, zeta: float) -> Tensor:
    """Eq. 10."""
    out = []
    for z in features:
        out.append(torch.stack([(z @ w) / (z.norm() * w.norm()) / zeta for w in rows]))
    return torch.stack(out)


def interpolation(ce: Tensor, kd: Tensor, alpha: float, beta: float, classes: list[int] | None = None) -> Tensor:
    """Eq. 11; a subset of the classes is chosen before the softmax."""
    out = []
    for ce_row, kd_row in zip(ce, kd, strict=True):
        if classes is not None:
            ce_row = torch.stack([ce_row[c] for c in classes])
            kd_row = torch.stack([kd_row[c] for c in classes])
        p, q = softmax(ce_row), softmax(kd_row / beta)
        out.append(torch.stack([alpha * a + (1 - alpha) * b for a, b in zip(p, q, strict=True)]))
    return torch.stack(out)


# A CLIP tower, layer by layer, on one sequence (L, width); `state` holds its weights by open_clip's names.


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]
        + state[f"{name}.bias"]
    )


def block(x: Tensor, state: dict[str, Tensor], name: str, heads: int, *, causal: bool) -> Tensor:
    """One pre-norm residual attention block with QuickGELU."""
    h = layer_norm(x, state, f"{name}.ln_1")
    q, k, v = (h @ state[f"{name}.attn.in_proj_weight"].T + state[f"{name}.attn.in_proj_bias"]).chunk(3, dim=-1)
    size = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / size**0.5
        if causal:
            for i in range(len(x)):
                scores[i, i + 1 :] = -torch.inf
        outputs.append(torch.stack([torch.stack(softmax(row)) for row in scores]) @ v[:, part])
    x = x + torch.cat(outputs, dim=-1) @ state[f"{name}.attn.out_proj.weight"].T + state[f"{name}.attn.out_proj.bias"]
    h = layer_norm(x, state, f"{name}.ln_2")
    h = h @ state[f"{name}.mlp.c_fc.weight"].T + state[f"{name}.mlp.c_fc.bias"]
    h = h / (1 + torch.exp(-1.702 * h))
    return x + h @ state[f"{name}.mlp.c_proj.weight"].T + state[f"{name}.mlp.c_proj.bias"]


def prompted_image(image: Tensor, prompts: list[Tensor], state: dict[str, Tensor], layers: int, heads: int) -> Tensor:
    """Deep visual prompts on one normalised image (3, H, W): blocks (depth, n, width) at the end."""
    kernel = state["visual.conv1.weight"]
    patch = kernel.shape[-1]
    tokens = [state["visual.class_embedding"]]
    for top in range(0, image.shape[1], patch):
        for left in range(0, image.shape[2], patch):
            square = image[:, top : top + patch, left : left + patch]
            tokens.append(torch.stack([(square * k).sum() for k in kernel]))
    x = [token + position for token, position in zip(tokens, state["visual.positional_embedding"], strict=True)]
    x += [token for block in prompts for token in block[0]]
    x = list(layer_norm(torch.stack(x), state, "visual.ln_pre"))
    for layer in range(layers):
        x = replaced(x, [block[1:] for block in prompts], len(tokens), layer)
        x = list(block(torch.stack(x), state, f"visual.transformer.resblocks.{layer}", heads, causal=False))
    return layer_norm(x[0][None], state, "visual.ln_post")[0] @ state["visual.proj"]


def prompted_text(
    embeddings: Tensor, end: int, deep: list[Tensor], state: dict[str, Tensor], layers: int, heads: int
) -> Tensor:
    """Deep text prompts on one prompt (L, width): the blocks after the start token are replaced in deeper layers."""
    x = list(embeddings + state["positional_embedding"][: len(embeddings)])
    for layer in range(layers):
        x = replaced(x, deep, 1, layer)
        x = list(block(torch.stack(x), state, f"transformer.resblocks.{layer}", heads, causal=True))
    return layer_norm(x[end][None], state, "ln_final")[0] @ state["text_projection"]


def replaced(x: list[Tensor], deep: list[Tensor], at: int, layer: int) -> list[Tensor]:
    """The input of a layer: token for token, a block that has a row for this layer takes its places."""
    x = list(x)
    for rows in deep:
        for i in range(rows.shape[1]):
            if 1 <= layer <= len(rows):
                x[at + i] = rows[layer - 1][i]
        at += rows.shape[1]
    return x


# Token merging (ToMe), token for token. A token is [vector, size, whether it may merge].


def merged_image(
    image: Tensor, prompts: list[Tensor], state: dict[str, Tensor], layers: int, heads: int, r: int
) -> tuple[Tensor, list[list]]:
    """The feature of one normalised image (3, H, W) and the tokens after the last layer, class token first."""
    kernel, positions = state["visual.conv1.weight"], state["visual.positional_embedding"]
    patch = kernel.shape[-1]
    patches = []
    for top in range(0, image.shape[1], patch):
        for left in range(0, image.shape[2], patch):
            square = image[:, top : top + patch, left : left + patch]
            patches.append(torch.stack([(square * k).sum() for k in kernel]) + positions[1 + len(patches)])
    own = [token for block in prompts for token in block[0]]
    start = [state["visual.class_embedding"] + positions[0], *own]
    vectors = [layer_norm(x[None], state, "visual.ln_pre")[0] for x in start + patches]
    tokens = [[x, 1, i >= len(start)] for i, x in enumerate(vectors)]
    for layer in range(layers):
        vectors = replaced([x for x, _, _ in tokens], [block[1:] for block in prompts], 1, layer)
        tokens = [[x, size, free] for x, (_, size, free) in zip(vectors, tokens, strict=True)]
        tokens = merging_block(tokens, state, f"visual.transformer.resblocks.{layer}", heads, r)
    return layer_norm(tokens[0][0][None], state, "visual.ln_post")[0] @ state["visual.proj"], tokens


def merging_block(tokens: list[list], state: dict[str, Tensor], name: str, heads: int, r: int) -> list[list]:
    """Attention in which a token of size s counts s times; merging; MLP."""
    weight, bias = state[f"{name}.attn.in_proj_weight"], state[f"{name}.attn.in_proj_bias"]
    qkv = [weight @ layer_norm(x[None], state, f"{name}.ln_1")[0] + bias for x, _, _ in tokens]
    width = len(tokens[0][0])
    d = width // heads
    for i, token in enumerate(tokens):
        outputs = []
        for head in range(heads):
            query = qkv[i][head * d : (head + 1) * d]
            numerator, denominator = torch.zeros_like(query), 0.0
            for other, (_, size, _) in zip(qkv, tokens, strict=True):
                key = other[width + head * d : width + (head + 1) * d]
                value = other[2 * width + head * d : 2 * width + (head + 1) * d]
                times = size * torch.exp(query @ key / d**0.5)
                numerator, denominator = numerator + times * value, denominator + times
            outputs.append(numerator / denominator)
        out = state[f"{name}.attn.out_proj.weight"] @ torch.cat(outputs) + state[f"{name}.attn.out_proj.bias"]
        tokens[i] = [token[0] + out, token[1], token[2]]
    keys = [sum(row[width + head * d : width + (head + 1) * d] for head in range(heads)) / heads for row in qkv]
    tokens = merge_tokens(tokens, keys, r)
    for token in tokens:
        h = layer_norm(token[0][None], state, f"{name}.ln_2")[0]
        h = state[f"{name}.mlp.c_fc.weight"] @ h + state[f"{name}.mlp.c_fc.bias"]
        h = h / (1 + torch.exp(-1.702 * h))
        token[0] = token[0] + state[f"{name}.mlp.c_proj.weight"] @ h + state[f"{name}.mlp.c_proj.bias"]
    return tokens


def merge_tokens(tokens: list[list], keys: list[Tensor], r: int) -> list[list]:
    """Bipartite soft matching: every second free token looks for its most similar one among the others."""
    free = [i for i, token in enumerate(tokens) if token[2]]
    set_b, set_a = free[0::2], free[1::2]
    edges = []
    for a in set_a:
        cosines = [(keys[a] @ keys[b] / (keys[a].norm() * keys[b].norm())).item() for b in set_b]
        edges.append((max(cosines), a, set_b[cosines.index(max(cosines))]))
    groups = {b: [b] for b in set_b}
    gone = set()
    for _, a, b in sorted(edges, reverse=True)[:r]:
        groups[b].append(a)
        gone.add(a)
    merged = []
    for b in set_b:
        size = sum(tokens[i][1] for i in groups[b])
        merged.append([sum(tokens[i][1] * tokens[i][0] for i in groups[b]) / size, size, True])
    fixed = [token for token in tokens if not token[2]]
    return [*fixed, *(tokens[a] for a in set_a if a not in gone), *merged]


def feature_gradients(w_ce, w_kd, p_ce, y: int, p_kd, p) -> tuple[list[Tensor], list[Tensor]]:
    """Eq. 8 for one labelled image: W_CE^T (p_CE - y) and W_KD^T (p_KD - p), entry by entry; Eq. 4 for equal heads."""
    ce_error = [value - int(c == y) for c, value in enumerate(p_ce)]
    kd_error = [q - t for q, t in zip(p_kd, p, strict=True)]
    width = w_ce.shape[1]
    ce = [sum(w_ce[c, i] * ce_error[c] for c in range(len(ce_error))) for i in range(width)]
    kd = [sum(w_kd[c, i] * kd_error[c] for c in range(len(kd_error))) for i in range(width)]
    return ce, kd


def feature_cosine(w_ce, w_kd, p_ce, y: int, p_kd, p) -> Tensor:
    """Eq. 9 as it is printed, and Eq. 5 for equal heads: the numerator through W_CE W_KD^T."""
    ce_error = torch.stack([value - int(c == y) for c, value in enumerate(p_ce)])
    kd_error = torch.stack([q - t for q, t in zip(p_kd, p, strict=True)])
    numerator = ce_error @ (w_ce @ w_kd.T) @ kd_error
    ce, kd = feature_gradients(w_ce, w_kd, p_ce, y, p_kd, p)
    return numerator / (sum(v * v for v in ce).sqrt() * sum(v * v for v in kd).sqrt())


def discrepancy(p_ce, y: int, p_kd, p) -> Tensor:
    """(p_CE - y)^T (p_KD - p) of one image."""
    return sum((a - int(c == y)) * (b - t) for c, (a, b, t) in enumerate(zip(p_ce, p_kd, p, strict=True)))
