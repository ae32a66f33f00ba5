"""What the TRAINER.DHO section of a configuration means, for the trainers here and for those that `attach` makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..classes import DEFAULT_TEMPLATE, TEMPLATES, ClassHead, ClassList
from ..distributed import share
from ..errors import UsageError, check_choice
from ..heads import HEAD_KINDS, DualHeadLogits, build_head
from ..interpolation import SOURCES, Interpolation
from ..losses import DualHeadLoss, dual_head_loss
from ..pool import FEW, POOLS, TEST_COPIES, unlabeled_paths
from ..precision import Precision
from ..readers import READERS, recipe
from ..runs import is_run
from ..stored_features import StoredFeatures
from ..stored_teacher import StoredTeacher
from ..teachers import Teacher, ZeroShotTeacher, load_run_teacher
from ..templates import check_template, named_templates
from ..towers import VLM
from ..vlm import load_vlm

# Language-aware initialisation takes the student's own text features: those of another model, even of equal width, lie
# in another space. The paper's wording, the teacher's text encoder, is "teacher".
INITS = ("auto", "text", "teacher", "kaiming")
CE_ALONE = "The KD head cannot answer here ({}). The CE pathway alone answers"


def single_prompt(cfg: Any) -> str:
    """The prompt of student and zero-shot teacher: DATASET.TEMPLATE, else the dataset's own, as CoOp words it."""
    return cfg.DATASET.TEMPLATE or TEMPLATES.get(cfg.DATASET.NAME, DEFAULT_TEMPLATE)


def views_of_an_image(cfg: Any) -> tuple[int, int]:
    """After how many views a labelled and an unlabelled image shows them again; 0 for never."""
    labeled, all_ = cfg.STORE.LABELED_VIEWS, cfg.STORE.VIEWS
    return all_ if labeled < 0 else labeled, all_


def check_dataset(cfg: Any) -> None:
    """Raise UsageError for a value of DATASET or STORE that cannot be meant."""
    check_choice("DATASET.FEW", cfg.DATASET.FEW, FEW)
    check_choice("DATASET.TEST_COPIES", cfg.DATASET.TEST_COPIES, TEST_COPIES)
    check_choice("INPUT.READER", cfg.INPUT.READER, READERS)
    check_template("DATASET.TEMPLATE (--template)", single_prompt(cfg))
    for key, least, or_ in (("VIEWS", 0, ""), ("LABELED_VIEWS", -1, ", -1 for as many as STORE.VIEWS")):
        if cfg.STORE[key] < least:
            raise UsageError(
                f"STORE.{key} {cfg.STORE[key]}: expected a number of views, or 0 for a fresh one in each pass{or_}"
            )
    if cfg.STORE.DIR and cfg.INPUT.BAD_IMAGES != "stop":
        raise UsageError("STORE.DIR reads every image before training: leave INPUT.BAD_IMAGES at stop")


def check_parts(cfg: Any) -> None:
    """Raise UsageError for batches that do not come out even over processes and parts, or times that are none."""
    train, loaders = cfg.TRAIN, cfg.DATALOADER
    if train.SAVE_MINUTES < 0 or train.ACCUMULATE < 1:
        raise UsageError(
            f"TRAIN.SAVE_MINUTES {train.SAVE_MINUTES}, TRAIN.ACCUMULATE {train.ACCUMULATE}: expected minutes from 0 on "
            "and at least one part"
        )
    if train.CONFLICT_FREQ < 0:
        raise UsageError(f"TRAIN.CONFLICT_FREQ {train.CONFLICT_FREQ}: expected a number of steps, or 0 for none")
    for key, size in (("TRAIN_X", loaders.TRAIN_X.BATCH_SIZE), ("TRAIN_U", loaders.TRAIN_U.BATCH_SIZE)):
        if key == "TRAIN_U" and loaders.TRAIN_U.SAME_AS_X:
            continue
        own = share(size, f"DATALOADER.{key}.BATCH_SIZE")
        if (own.stop - own.start) % train.ACCUMULATE:
            raise UsageError(
                f"TRAIN.ACCUMULATE {train.ACCUMULATE}: {own.stop - own.start} images of DATALOADER.{key}.BATCH_SIZE "
                "in a process cannot be cut into so many equal parts: take a divisor"
            )


def check_section(cfg: Any) -> None:
    """Raise UsageError for a value of TRAINER.DHO that cannot be meant."""
    dho = cfg.TRAINER.DHO
    named_templates(dho.TEACHER.TEMPLATES, cfg.DATASET.NAME)
    check_choice("TRAINER.DHO.CHOOSE", dho.CHOOSE, SOURCES)
    check_choice("TRAINER.DHO.UNLABELED_POOL", dho.UNLABELED_POOL, POOLS)
    check_choice("TRAINER.DHO.HEAD.KD", dho.HEAD.KD, ("auto", *HEAD_KINDS))
    check_choice("TRAINER.DHO.HEAD.INIT", dho.HEAD.INIT, INITS)
    for key, fits, wanted in (
        ("LAMBDA", 0 <= dho.LAMBDA <= 1, "in [0, 1]"),
        ("ALPHA", 0 <= dho.ALPHA <= 1, "in [0, 1]"),
        ("BETA", dho.BETA > 0, "positive"),
        ("ZETA", dho.ZETA > 0, "positive"),
        ("ETA", dho.ETA > 0, "positive"),
    ):
        if not fits:
            raise UsageError(f"TRAINER.DHO.{key} must be {wanted}, got {dho[key]}")


def check_unlabeled(trainer: Any, cfg: Any) -> None:
    """Raise UsageError where a trainer that cannot do without unlabelled images is to do without."""
    if not cfg.TRAINER.DHO.UNLABELED:
        raise UsageError(f"{type(trainer).__name__} needs unlabelled images: leave out --labels-only (DHO.UNLABELED)")


def distilled_paths(cfg: Any, dataset: Any) -> list[str]:
    """The images that are distilled on without labels, none under UNLABELED False; `dataset` is the run's own."""
    dho = cfg.TRAINER.DHO
    return unlabeled_paths(cfg, dataset.train_x, dataset.test, pool=dho.UNLABELED_POOL) if dho.UNLABELED else []


def build_teacher(
    cfg: Any,
    classes: ClassList,
    templates: Sequence[str],
    labeled: Sequence[Any],
    precision: Precision,
    device: torch.device,
) -> Teacher:
    """The frozen teacher on the device.

    Args:
        templates: serve a CLIP model where TEACHER.TEMPLATES names none.
        labeled: the student's labelled images, from which a run of ours as teacher must have learned too.
    """
    dho = cfg.TRAINER.DHO
    if is_run(dho.TEACHER.NAME):
        return load_run_teacher(cfg, labeled)
    named = named_templates(dho.TEACHER.TEMPLATES, cfg.DATASET.NAME)
    vlm = load_vlm(dho.TEACHER.NAME).to(device)
    teacher = ZeroShotTeacher(vlm, classes.names, named or templates, zeta=dho.ZETA)
    precision.store(teacher.vlm)
    return teacher.to(device)


def stored_features(cfg: Any, vlm: VLM, precision: Precision, device: torch.device) -> StoredFeatures:
    """The image features of a frozen model in STORE.DIR."""
    pixels = recipe(cfg.INPUT.INTERPOLATION, cfg.INPUT.READER, device)
    return StoredFeatures(cfg.STORE.DIR, vlm, interpolation=pixels, precision=precision, device=device)


def kept_on_disk(cfg: Any, teacher: Teacher, precision: Precision, device: torch.device) -> Teacher:
    """The teacher, which under STORE.DIR looks at each view once.

    Raises:
        UsageError: STORE.DIR for a teacher that is no zero-shot CLIP.
    """
    if not cfg.STORE.DIR:
        return teacher
    if not isinstance(teacher, ZeroShotTeacher):
        raise UsageError("STORE.DIR keeps what a zero-shot CLIP says; this teacher is a finished run: leave it empty")
    return StoredTeacher(teacher, stored_features(cfg, teacher.vlm, precision, device))


def build_kd_head(
    cfg: Any, width: int, classes: ClassList, embeddings: Tensor | None = None, *, clip: bool = True
) -> ClassHead:
    """The KD head on features of a width.

    Args:
        embeddings: (C, width) to start from, None for Kaiming initialisation.
        clip: whether the features are CLIP's; HEAD.KD auto is then the cosine head of Eq. 10, else the linear one.
    """
    dho = cfg.TRAINER.DHO
    kind = dho.HEAD.KD if dho.HEAD.KD != "auto" else ("cosine" if clip else "linear")
    head = build_head(kind, width, len(classes.names), class_embeddings=embeddings, scale=1 / dho.ZETA)
    return ClassHead(head, classes)


def teacher_views(batch: dict[str, Any], device: torch.device) -> Tensor:
    """The teacher's views of a batch, uint8 (N + M, 3, size, size): of the labelled, then of the unlabelled images.

    Where the teacher is stored no such view is made, and their numbers (N + M,) stand for them.
    """
    if "img_teacher" not in batch:
        return joined(batch, "view")
    return joined(batch, "img_teacher", device)


def joined(batch: dict[str, Any], key: str, device: torch.device | None = None) -> Tensor:
    """What a batch has of its labelled and then of its unlabelled images, on the device if one is given."""
    parts = [batch[key], *([batch["unlabeled"][key]] if "unlabeled" in batch else [])]
    return torch.cat([part if device is None else part.to(device, non_blocking=True) for part in parts])


def step_loss(cfg: Any, logits: DualHeadLogits, labels: Tensor, teacher: Tensor) -> DualHeadLoss:
    """The loss of a step whose first N rows are the labelled images.

    Args:
        logits: both heads', each (N + M, C). labels: (N,). teacher: its logits (N + M, C). M may be 0.
    """
    n, dho = len(labels), cfg.TRAINER.DHO
    labeled, unlabeled = (DualHeadLogits(logits.ce[part], logits.kd[part]) for part in (slice(n), slice(n, None)))
    return dual_head_loss(
        labeled,
        labels,
        teacher[:n],
        unlabeled if len(teacher) > n else None,
        teacher[n:] if len(teacher) > n else None,
        ce_weight=dho.LAMBDA,
        temperature=dho.ETA,
        scale_by_t2=dho.KD_T2,
    )


def given(cfg: Any) -> Interpolation:
    """Alpha and beta as the configuration has them."""
    return Interpolation(cfg.TRAINER.DHO.ALPHA, cfg.TRAINER.DHO.BETA)


def answer(logits: DualHeadLogits, at: Interpolation, *, ce_only: bool) -> Tensor:
    """Class probabilities (N, C): interpolated (Eq. 11), or the CE pathway's for classes the KD head never saw."""
    if ce_only:
        return torch.softmax(logits.ce, dim=-1)
    return at(logits)
