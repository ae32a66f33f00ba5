"""The built-in demo world: 8 shapes x 4 textures drawn by signed distance functions at 32 x 32 pixels.

An image is a pure function of (seed, domain, class, index). All randomness comes from a counter-based hash, and pixels
use only correctly rounded arithmetic, so an image depends neither on call order nor batch size nor library versions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..hashing import GOLDEN, mix64, unit_interval

SIZE = 32
SHAPES = ("circle", "oval", "square", "rectangle", "triangle", "star", "cross", "ring")
TEXTURES = ("plain", "striped", "dotted", "checkered")
COLOURS = ("red", "yellow", "green", "teal", "blue", "purple")
STYLES = ("photo", "sketch", "rendition")
CLASS_NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
CLASS_IDS = tuple(f"s{s + 1:06d}{t + 1:02d}" for s in range(len(SHAPES)) for t in range(len(TEXTURES)))

_PALETTE = np.array(
    [
        [0.85, 0.15, 0.15],
        [0.92, 0.80, 0.15],
        [0.20, 0.65, 0.20],
        [0.15, 0.70, 0.70],
        [0.18, 0.30, 0.85],
        [0.60, 0.20, 0.70],
    ],
    dtype=np.float32,
)
_CHUNK = 64
Array = np.ndarray


@dataclass(frozen=True)
class Domain:
    """Nuisance ranges of one image distribution; lengths in half image widths, angles in degrees."""

    id: int
    rotation: float
    shift: float
    scale: tuple[float, float]
    clutter: int
    noise: float
    contrast: float
    styles: tuple[float, float, float] = (1.0, 0.0, 0.0)


_PHOTO = (25.0, 0.20, (0.55, 0.92), 2, 0.05, 0.90)
DOMAINS = {
    "train": Domain(1, *_PHOTO),
    "val": Domain(2, *_PHOTO),
    "test": Domain(3, *_PHOTO),
    "v2": Domain(4, 28.0, 0.21, (0.53, 0.90), 2, 0.055, 0.87),
    "sketch": Domain(5, 35.0, 0.22, (0.50, 0.85), 2, 0.13, 0.85, (0.0, 1.0, 0.0)),
    "adversarial": Domain(6, 45.0, 0.25, (0.44, 0.74), 5, 0.07, 0.70),
    "rendition": Domain(7, 36.0, 0.22, (0.52, 0.88), 2, 0.10, 0.86, (0.0, 0.0, 1.0)),
    "clean": Domain(8, 15.0, 0.15, (0.60, 0.98), 1, 0.045, 0.95, (0.84, 0.08, 0.08)),
    "broad": Domain(9, 30.0, 0.35, (0.48, 1.25), 3, 0.055, 0.85, (0.80, 0.10, 0.10)),
}


class Scenes(NamedTuple):
    """Images uint8 (N, 3, 32, 32); object coverage float32 (N, 32, 32); colour and style numbers int64 (N,)."""

    images: torch.Tensor
    masks: torch.Tensor
    colours: torch.Tensor
    styles: torch.Tensor


def render(domain: str, labels: torch.Tensor, indices: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw image ``indices[i]`` of class ``labels[i]``; both (N,) integers. Returns uint8 (N, 3, 32, 32)."""
    return render_scenes(domain, labels, indices, seed).images


def render_scenes(domain: str, labels: torch.Tensor, indices: torch.Tensor, seed: int) -> Scenes:
    """As :func:`render`, with what the pretraining captions and the mask objective need."""
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}")
    label, index = np.asarray(labels, dtype=np.int64), np.asarray(indices, dtype=np.int64)
    if label.shape != index.shape or label.ndim != 1:
        raise ValueError(f"labels and indices must be equally long vectors, got shapes {label.shape} and {index.shape}")
    if label.size and not 0 <= label.min() <= label.max() < len(CLASS_NAMES):
        raise ValueError(f"labels must lie in 0..{len(CLASS_NAMES) - 1}, got {label.min()}..{label.max()}")
    starts = range(0, max(len(label), 1), _CHUNK)
    parts = [_render_chunk(DOMAINS[domain], label[s : s + _CHUNK], index[s : s + _CHUNK], seed) for s in starts]
    return Scenes(*(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True)))


class _Draws:
    """Uniform numbers of a batch of images from SplitMix64, one independent stream per image."""

    def __init__(self, seed: int, domain: int, label: Array, index: Array) -> None:
        key = np.full(len(label), seed, dtype=np.uint64)
        for part in (np.uint64(domain), label.astype(np.uint64), index.astype(np.uint64)):
            key = mix64(key * GOLDEN + part + np.uint64(1))
        self._key, self._used = key, 0

    def bits(self, n: int) -> Array:
        counter = np.arange(self._used, self._used + n, dtype=np.uint64) + np.uint64(1)
        self._used += n
        return mix64(self._key[:, None] + counter[None, :] * GOLDEN)

    def __call__(self, low: float | Array, high: float | Array, n: int = 1) -> Array:
        return (low + (np.asarray(high) - low) * unit_interval(self.bits(n))).astype(np.float32)

    def bell(self, n: int) -> Array:
        """Roughly normal numbers of unit variance: sums of four bytes."""
        octets = self.bits((n + 1) // 2).view(np.uint8).reshape(len(self._key), -1, 4)[:, :n]
        return (octets.sum(-1, dtype=np.int64).astype(np.float32) - 510.0) / np.float32(147.8)


def _render_chunk(d: Domain, label: Array, index: Array, seed: int) -> tuple[Array, ...]:
    draw = _Draws(seed, d.id, label, index)
    style = (draw(0, 1) > np.cumsum(d.styles[:2], dtype=np.float32)).sum(1)
    colour = np.minimum((draw(0, 1)[:, 0] * len(COLOURS)).astype(np.int64), len(COLOURS) - 1)
    x, y, grid_x, grid_y, scale = _pose(d, draw)
    distance = _by_group(label // len(TEXTURES), _DISTANCES, x / scale, y / scale) * scale
    phase, period = draw(0, 1, 2)[:, :, None, None], draw(0.30, 0.40)[:, :, None]
    pattern = _by_group(label % len(TEXTURES), _PATTERNS, x / period + phase[:, 0], y / period + phase[:, 1])
    mask = np.clip(0.5 - distance * (SIZE / 2), 0, 1)
    image = _photo(d, draw, colour, mask, pattern, grid_x, grid_y)
    ink = np.maximum(np.clip(1.5 - np.abs(distance) * (SIZE / 2), 0, 1), mask * pattern * 0.8)
    image = np.where((style == 1)[:, None, None, None], _sketch(draw, ink), image)
    image = np.where((style == 2)[:, None, None, None], _rendition(draw, image, grid_x, grid_y), image)
    image = image + d.noise * draw.bell(3 * SIZE * SIZE).reshape(-1, 3, SIZE, SIZE)
    pixels = np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    return pixels, mask.astype(np.float32), colour, style


def _pose(d: Domain, draw: _Draws) -> tuple[Array, Array, Array, Array, Array]:
    """Pixel coordinates in the object's frame (turned and shifted, not scaled) and in the image's frame; size."""
    axis = ((np.arange(SIZE, dtype=np.float32) + 0.5) * (2 / SIZE) - 1).astype(np.float32)
    grid_x, grid_y = np.broadcast_to(axis, (SIZE, SIZE))[None], np.broadcast_to(axis[:, None], (SIZE, SIZE))[None]
    angle = np.round(draw(-d.rotation, d.rotation)[:, :, None].astype(np.float64), 2) * (np.pi / 180)
    # Rounded so that a last-digit difference between mathematics libraries cannot reach a pixel.
    cos, sin = (np.round(f(angle), 6).astype(np.float32) for f in (np.cos, np.sin))
    shift, scale = draw(-d.shift, d.shift, 2)[:, :, None, None], draw(*d.scale)[:, :, None]
    x, y = grid_x - shift[:, 0], grid_y - shift[:, 1]
    return cos * x + sin * y, cos * y - sin * x, grid_x, grid_y, scale


def _by_group(group: Array, functions: tuple[Callable[[Array, Array], Array], ...], x: Array, y: Array) -> Array:
    out = np.empty_like(x)
    for g, function in enumerate(functions):
        rows = np.flatnonzero(group == g)
        if len(rows):
            out[rows] = function(x[rows], y[rows])
    return out


def _photo(d: Domain, draw: _Draws, colour: Array, mask: Array, pattern: Array, grid_x: Array, grid_y: Array) -> Array:
    base, tint, slope = draw(0.15, 0.85)[:, :, None, None], draw(-0.15, 0.15, 3), draw(-0.15, 0.15, 2)[:, :, None, None]
    ground = base + tint[:, :, None, None] + (slope[:, :1] * grid_x + slope[:, 1:] * grid_y)
    for _ in range(d.clutter):
        centre, half, paint = draw(-1, 1, 2)[:, :, None, None], draw(0.06, 0.22, 2)[:, :, None, None], draw(0, 1, 3)
        u, v = np.abs(grid_x - centre[:, 0]) / half[:, 0], np.abs(grid_y - centre[:, 1]) / half[:, 1]
        round_ = draw(0, 1)[:, :, None] < 0.5
        reach = np.where(round_, np.sqrt(u * u + v * v), np.maximum(u, v))
        blot = np.clip((1 - reach) * half.mean(1) * (SIZE / 2) + 0.5, 0, 1)[:, None] * 0.8
        ground = ground + blot * (paint[:, :, None, None] - ground)
    first = _PALETTE[colour] + draw(-0.12, 0.12, 3)
    pole = (draw(0, 1) < 0.5).astype(np.float32)
    second = first + 0.75 * (pole - first)
    paint = first[:, :, None, None] + pattern[:, None] * (second - first)[:, :, None, None]
    return ground + np.float32(d.contrast) * mask[:, None] * (paint - ground)


def _sketch(draw: _Draws, ink: Array) -> Array:
    paper, pencil = draw(0.75, 1.0)[:, :, None, None] + draw(-0.06, 0.06, 3)[:, :, None, None], draw(0.05, 0.45)
    return paper + ink[:, None] * (pencil[:, :, None, None] - paper)


def _rendition(draw: _Draws, image: Array, grid_x: Array, grid_y: Array) -> Array:
    """Permuted, half the time inverted and posterised colours under a light diagonal hatch."""
    order = np.argsort(draw(0, 1, 3), axis=1)
    image = np.take_along_axis(image, order[:, :, None, None], axis=1)
    image = np.where(draw(0, 1)[:, :, None, None] < 0.5, 1 - image, image)
    image = np.floor(np.clip(image, 0, 1) * 3.999) / 3
    hatch = _wave((grid_x + grid_y) * 3.0 + draw(0, 1)[:, :, None])
    return image + 0.18 * (hatch[:, None] - 0.5)


def _wave(t: Array) -> Array:
    """Softened square wave of period 1 between 0 and 1."""
    return np.clip((np.abs(t - np.floor(t) - 0.5) - 0.25) * 6 + 0.5, 0, 1)


def _box(x: Array, y: Array, half_x: float, half_y: float) -> Array:
    return np.maximum(np.abs(x) - half_x, np.abs(y) - half_y)


def _oval(x: Array, y: Array) -> Array:
    return (np.sqrt(x * x + (y / 0.46) ** 2) - 1) * 0.6


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x) * 0.8660254 - y * 0.5, y) - 0.52


def _star(x: Array, y: Array) -> Array:
    kx, ky, y = 0.80901699, 0.58778525, -y
    x = np.abs(x)
    for sign in (1.0, -1.0):
        fold = 2 * np.maximum(sign * kx * x - ky * y, 0)
        x, y = x - fold * sign * kx, y + fold * ky
    x, y = np.abs(x), y - 1.08
    edge_x, edge_y = 0.45 * ky, 0.45 * kx - 1
    h = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0, 1.08)
    gap = np.sqrt((x - edge_x * h) ** 2 + (y - edge_y * h) ** 2)
    return gap * np.sign(y * edge_x - x * edge_y)


_DISTANCES: tuple[Callable[[Array, Array], Array], ...] = (
    lambda x, y: np.sqrt(x * x + y * y) - 0.82,
    _oval,
    lambda x, y: _box(x, y, 0.74, 0.74),
    lambda x, y: _box(x, y, 1.0, 0.44),
    _triangle,
    _star,
    lambda x, y: np.minimum(_box(x, y, 1.0, 0.32), _box(x, y, 0.32, 1.0)),
    lambda x, y: np.abs(np.sqrt(x * x + y * y) - 0.68) - 0.23,
)
_PATTERNS: tuple[Callable[[Array, Array], Array], ...] = (
    lambda x, y: np.zeros_like(x),
    lambda x, y: _wave(x),
    lambda x, y: np.clip((0.36 - np.sqrt((x - np.floor(x) - 0.5) ** 2 + (y - np.floor(y) - 0.5) ** 2)) * 5 + 0.5, 0, 1),
    lambda x, y: np.abs(_wave(x * 0.75) - _wave(y * 0.75)),
)
