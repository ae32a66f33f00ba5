"""Which classes a model knows, which a test set asks about, and the map between them.

Names cannot serve as identity: ImageNet has two cranes and two maillots. A class is therefore known by its WordNet id
(the folder of its images) wherever there is one.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import UsageError

WNID = re.compile(r"n\d{8}")

# CoOp's single prompts, by registered dataset name; any other dataset takes DEFAULT_TEMPLATE.
DEFAULT_TEMPLATE = "a photo of a {}."
TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}


class ClassList(NamedTuple):
    """The classes in label order: their ids (WordNet folders where known, else their names) and their names."""

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def rows(self, wanted: ClassList) -> Tensor | None:
        """Indices into this list of the wanted classes, in their order: int64 (K,); None if the lists are the same.

        Raises:
            UsageError: a wanted class that is not in this list; no class is ever guessed or dropped.
        """
        if wanted.ids == self.ids:
            return None
        if wanted.names == self.names and not set(wanted.ids) <= set(self.ids):
            return None  # ImageNet-V2's folders are label numbers: same list, other spelling of the ids
        position = {id_: row for row, id_ in enumerate(self.ids)}
        missing = [f"{id_} ({name})" for id_, name in zip(wanted.ids, wanted.names, strict=True) if id_ not in position]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(wanted.ids)} classes of the test set are not among the {len(self.ids)} "
                f"classes the model was trained on, first {missing[0]}. Evaluate on a set of the same classes, "
                "with image folders named by WordNet id"
            )
        return torch.tensor([position[id_] for id_ in wanted.ids])

    def encode(self) -> Tensor:
        """As a uint8 tensor, the form in which a checkpoint carries it."""
        return torch.frombuffer(bytearray(json.dumps([self.ids, self.names]).encode()), dtype=torch.uint8).clone()

    @staticmethod
    def decode(state: Tensor) -> ClassList:
        """The reverse of encode."""
        ids, names = json.loads(bytes(state.cpu().tolist()).decode())
        return ClassList(tuple(ids), tuple(names))


def class_list(dataset: Any) -> ClassList:
    """The classes of any Dassl dataset, in label order.

    Ids come from the dataset's own `class_ids` if it has them, else from the image folders where each class has one
    that is named by a WordNet id, else they are the names.

    Args:
        dataset: a Dassl DatasetBase; its training images are looked at.

    Raises:
        UsageError: a class that no labelled image has, so that the names and logits behind it would be another's.
    """
    names = tuple(dataset.lab2cname[label] for label in sorted(dataset.lab2cname))
    if hasattr(dataset, "class_ids"):
        without = [id_ for label, id_ in enumerate(dataset.class_ids) if label not in dataset.lab2cname]
        if without:  # names are known of labelled images alone, and the classes behind would take each other's
            raise UsageError(
                f"{len(without)} of {len(dataset.class_ids)} classes have no labelled image, first {without[0]!r}: add "
                "some, or remove the class from all sets"
            )
        return ClassList(tuple(dataset.class_ids), names)
    _check_labels(dataset)
    folders: dict[int, set[str]] = {}
    for item in dataset.train_x:
        folders.setdefault(item.label, set()).add(os.path.basename(os.path.dirname(item.impath)))
    ids = [folder for _, of_label in sorted(folders.items()) for folder in of_label]
    if len(ids) == len(set(ids)) == len(names) and all(WNID.fullmatch(id_) for id_ in ids):
        return ClassList(tuple(ids), names)
    return ClassList(names, names)


def _check_labels(dataset: Any) -> None:
    known = dataset.lab2cname.keys()
    wanted = {item.label for items in (dataset.val, dataset.test) for item in items or []}
    missing = sorted({*range(max(known)), *wanted} - known)
    if missing:
        raise UsageError(f"{len(missing)} classes have no labelled image, first label {missing[0]}: add some")


class KnowsClasses(nn.Module):
    """Mixed into a module whose parameters belong to classes: the class list travels in its state dict.

    It is stored as a tensor, so that the checkpoint loads with weights_only.
    """

    classes: ClassList

    @property
    def class_bound(self) -> bool:
        """Whether the parameters belong to these very classes; a generic context serves any."""
        return True

    def get_extra_state(self) -> Tensor:
        return self.classes.encode()

    def set_extra_state(self, state: Tensor) -> None:
        if self.class_bound and ClassList.decode(state) != self.classes:
            raise UsageError("the checkpoint was trained on other classes than the model was built for")


class ClassHead(KnowsClasses):
    """A head together with the classes that its rows stand for, which its checkpoint carries."""

    def __init__(self, head: nn.Module, classes: ClassList) -> None:
        super().__init__()
        self.head = head
        self.classes = classes

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, d) -> logits (N, C), float32."""
        with torch.autocast(features.device.type, enabled=False):  # half precision would tie the top of 1000 classes
            return self.head(features.float())


def class_bound_states(module: nn.Module, state: dict[str, Tensor]) -> list[ClassList]:
    """The class lists that a checkpoint of `module` carries for those of its parts that are bound to classes."""
    keys = [
        f"{name}._extra_state".lstrip(".")
        for name, part in module.named_modules()
        if isinstance(part, KnowsClasses) and part.class_bound
    ]
    return [ClassList.decode(state[key]) for key in keys if key in state]
