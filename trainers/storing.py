"""Under STORE.DIR: which of a trainer's models look at which views once, before it trains."""

from __future__ import annotations

from typing import Any

from ..contents import Contents
from ..loaders import Sizes
from ..stored_features import Part, StoredFeatures, prepare
from ..stored_teacher import StoredTeacher
from .section import stored_features


def own_features(trainer: Any) -> StoredFeatures:
    """The frozen student's image features; the teacher's where that is the same model."""
    own = stored_features(trainer.cfg, trainer.vlm, trainer.precision, trainer.device)
    teacher = trainer.taught_by()
    same = isinstance(teacher, StoredTeacher) and teacher.stored.store.folder == own.store.folder
    return teacher.stored if same else own


def store_views(trainer: Any) -> None:
    """Have all that frozen models say of the run's views computed, and no pixels made that nobody looks at."""
    batches, teacher = trainer.train_loader_x.batches, trainer.taught_by()
    taught = [teacher.stored] if isinstance(teacher, StoredTeacher) else []
    own = [trainer.stored] if trainer.stored is not None else []
    if not taught and not own:
        print("STORE.DIR: no model that sees the training images stays as it is here, so nothing is stored")
        return
    parts = [Part(batches.labeled, trainer.labeled_positions(), list(dict.fromkeys([*taught, *own])))]
    if batches.unlabeled is not None:
        positions = len(trainer.train_loader_x) * trainer.max_epoch * batches.unlabeled_size
        readers = dict.fromkeys([*taught, *(own if trainer.frozen_backbone else [])])
        parts.append(Part(batches.unlabeled, positions, list(readers)))
    prepare(parts, Contents(trainer.cfg.STORE.DIR), trainer.cfg.DATALOADER.NUM_WORKERS)
    for part in parts:
        student, size = part.source.sizes
        part.source.sizes = Sizes(None if trainer.frozen_backbone else student, None if taught else size)
