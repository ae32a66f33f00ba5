"""How far apart classes lie in a feature space: t-SNE (Fig. 7), and two measures, so that it is not only looked at.

In a feature space distances are cosine distances, so that the scale of a run's features says nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..tables.summary import Table
from . import drawing
from .drawing import GRID, PALETTE, panels, styled

SEED, PERPLEXITY, NEIGHBOURS = 0, 30.0, 10
WIDE = 3  # panels beside each other
MARKERS = "o^sxD"  # one for all colours of PALETTE, then the next
MISSING = "scikit-learn is not installed, and t-SNE needs it: pip install 'dho_plugin[report]', or here '.[report]'"


class Separation(NamedTuple):
    """Of images with labels, in one space.

    Attributes:
        silhouette: mean over images, in [-1, 1]: how much nearer an image's own class is than the next one.
        neighbours: percent of the images that their NEIGHBOURS nearest others, by majority, put into their class.
    """

    silhouette: float
    neighbours: float


class Plane(NamedTuple):
    """A run's images as t-SNE draws them: places (N, 2), and the measures in the feature space and in the picture."""

    places: Tensor
    features: Separation
    picture: Separation


def check_installed() -> None:
    """Raise UsageError where scikit-learn or matplotlib is missing."""
    _sklearn("manifold")
    drawing.check_installed()


def shown_images(labels: Tensor, *, images: int, classes: int) -> Tensor:
    """Positions of at most `images` images of at most `classes` classes, drawn with SEED, in ascending order.

    Args:
        labels: int64 (N,).

    Raises:
        UsageError: they have one class.
    """
    draw = torch.Generator().manual_seed(SEED)
    present = labels.unique()
    if len(present) < 2:
        raise UsageError(f"these {len(labels)} images have one class: there is nothing to tell apart")
    chosen = present[torch.randperm(len(present), generator=draw)[:classes]]
    candidates = torch.isin(labels, chosen).nonzero()[:, 0]
    return candidates[torch.randperm(len(candidates), generator=draw)[:images]].sort().values


def separation(points: Tensor, labels: Tensor, *, metric: str = "cosine") -> Separation:
    """Both measures of points (N, d) with labels (N,), of two classes or more."""
    x, y = points.numpy(), labels.numpy()
    found = _sklearn("neighbors").NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(x) - 1), metric=metric).fit(x)
    others = torch.from_numpy(found.kneighbors(return_distance=False))  # of each point, itself left out
    votes = F.one_hot(labels[others]).sum(dim=1)
    right = votes.argmax(dim=1).eq(labels).double().mean().item()
    return Separation(float(_sklearn("metrics").silhouette_score(x, y, metric=metric)), 100 * right)


def embed(features: Tensor, labels: Tensor) -> Plane:
    """t-SNE of features (N, d); labels (N,) are for the measures alone."""
    settings = {"perplexity": min(PERPLEXITY, (len(features) - 1) / 3), "metric": "cosine", "init": "pca"}
    places = _sklearn("manifold").TSNE(**settings, random_state=SEED).fit_transform(features.numpy())
    plane = torch.from_numpy(places)
    return Plane(plane, separation(features, labels), separation(plane, labels, metric="euclidean"))


def measures_table(planes: Mapping[str, Plane]) -> Table:
    """Both measures in both spaces, a line a run."""
    header = (
        "run",
        "silhouette, features",
        f"{NEIGHBOURS}-NN, features",
        "silhouette, picture",
        f"{NEIGHBOURS}-NN, picture",
    )
    lines = [
        (name, *(word for one in plane[1:] for word in (f"{one.silhouette:+.3f}", f"{one.neighbours:.1f} %")))
        for name, plane in planes.items()
    ]
    return Table(header, tuple(lines))


def tsne_figure(planes: Mapping[str, Plane], labels: Tensor, names: Sequence[str], title: str) -> Any:
    """Figure 7: a panel a run, the same images in the same colours, its measures in the feature space above it.

    Args:
        planes: by the panel's name. labels: (N,) of the images. names: of the classes. title: says which images.
    """
    kinds = labels.unique().tolist()
    with styled():
        columns = min(WIDE, len(planes))
        figure, axes = panels(-(-len(planes) // columns), columns, width=3.2, height=3.3)
        for axis in axes.flat[len(planes) :]:
            axis.set_visible(False)
        for axis, (name, plane) in zip(axes.flat, planes.items(), strict=False):
            for place, label in enumerate(kinds):
                points, marker = plane.places[labels == label], MARKERS[place // len(PALETTE) % len(MARKERS)]
                colour = PALETTE[place % len(PALETTE)]
                axis.scatter(*points.T.numpy(), s=10, color=colour, marker=marker, linewidths=0.7, label=names[label])
            measured = f"silhouette {plane.features.silhouette:.2f}, {NEIGHBOURS}-NN {plane.features.neighbours:.0f} %"
            axis.set(title=f"{name}\n{measured}", xticks=[], yticks=[])
            axis.spines[:].set(visible=True, color=GRID)
        figure.suptitle(f"t-SNE of {title}", x=0.01, ha="left")
        handles, texts = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower left", ncols=min(5, len(kinds)), handletextpad=0.1)
    return figure


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError:
        raise UsageError(MISSING) from None
