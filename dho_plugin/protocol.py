"""What a run will do, in words; what another preset would change; where the paper and its scripts disagree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .host import TRAINER_REGISTRY
from .runs import is_run
from .saved import flatten
from .trainers.section import single_prompt, views_of_an_image


class Choice(NamedTuple):
    """A point where the paper and its public scripts disagree. key: the setting that decides it, if one does."""

    what: str
    paper: str
    scripts: str
    key: str = ""
    ours: str = ""


CHOICES = (
    Choice("eta^2 in L_KD", "not printed", "yes", "TRAINER.DHO.KD_T2"),
    Choice("unlabelled pool", "union (Algorithm 1)", "complement", "TRAINER.DHO.UNLABELED_POOL"),
    Choice("KD head", "cosine with normalised rows (Eq. 10)", "rows as they are, with bias", "TRAINER.DHO.HEAD.KD"),
    Choice("start of the KD head", "teacher's texts", "student's texts, mean not normalised", "TRAINER.DHO.HEAD.INIT"),
    Choice("beta, 1 % and OOD", "0.5 and 1.0 (Tables 6, 11)", "0.5", "TRAINER.DHO.BETA"),
    Choice("loss, 1 %", "0.5 L_CE + 0.5 L_KD", "L_CE + L_KD", "TRAINER.DHO.LAMBDA"),
    Choice("direction of KL", "teacher first (Eq. 7), reversed in Algorithm 1", "teacher first", ours="teacher first"),
    Choice("alpha and beta, few-shot", "fixed", "searched on the test images every epoch", ours="fixed"),
    Choice("test view", "centre crop", "random crop and flip (a slip)", ours="centre crop"),
    Choice("warm-up and cosine", "one after the other", "both at once", ours="one after the other"),
    Choice("1 % of ImageNet", "not said", "13 a class, drawn by seed 13 (authors-1)", "DATASET.LABELS"),
    Choice("CasPL's text prompts", "boosting, then adapting", "adapting, then boosting", "TRAINER.CASPL.TEXT_ORDER"),
)


def explain(cfg: Any, other: Any, presets: tuple[str, str]) -> str:
    """Describe a resolved configuration.

    Args:
        cfg: the run's configuration. other: the same command line under the other preset.
        presets: name of the run's preset, and of the other.
    """
    lines = [f"Protocol of {cfg.TRAINER.NAME} on {cfg.DATASET.NAME}, preset {presets[0]}", *_columns(_protocol(cfg))]
    flat, flat_other = flatten(cfg), flatten(other)
    changed = [key for key in flat if _matters(key, cfg) and flat[key] != flat_other[key]]
    lines += ["", f"Preset {presets[1]} would change" if changed else f"Preset {presets[1]} would change nothing"]
    lines += _columns((key, f"{flat[key]} -> {flat_other[key]}") for key in changed)
    lines += ["", "Where the paper and the public scripts disagree (* decided by a setting)"]
    rows = [("", "paper", "scripts", "here")]
    for choice in CHOICES:
        if _matters(choice.key, cfg):
            here = str(flat[choice.key] or "shots") if choice.key else choice.ours
            rows.append((choice.what + "*" * bool(choice.key), choice.paper, choice.scripts, here))
    return "\n".join([*lines, *_columns(rows)])


def _matters(key: str, cfg: Any) -> bool:
    """Whether a setting says anything about this trainer."""
    if key.startswith("TRAINER.CASPL."):
        return "CasPL" in cfg.TRAINER.NAME
    return key != "OUTPUT_DIR" and (_distils(cfg) or not key.startswith("TRAINER.DHO."))


def _distils(cfg: Any) -> bool:
    """Whether the trainer learns from a teacher by TRAINER.DHO; those that `attach` makes are known by their name."""
    key = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "teacher_key", "")
    return key == "TRAINER.DHO.TEACHER.NAME" or cfg.TRAINER.NAME.endswith("DHO")


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _protocol(cfg: Any) -> Iterator[tuple[str, str]]:
    dho, trainer, optim = cfg.TRAINER.DHO, cfg.TRAINER.NAME, cfg.OPTIM
    distils, two_heads, batch = _distils(cfg), trainer.endswith("DHO"), cfg.DATALOADER.TRAIN_X.BATCH_SIZE
    yield "student", cfg.MODEL.BACKBONE.NAME
    yield "prompt", single_prompt(cfg)
    most = "at most " if cfg.DATASET.FEW == "clip" else ""
    shots = f"{most}{cfg.DATASET.NUM_SHOTS} images a class" if cfg.DATASET.NUM_SHOTS > 0 else "every training image"
    kind = TRAINER_REGISTRY.get(trainer)
    blind = hasattr(kind, "pool")  # sees no label at all
    yield "labels", "none" if blind else (cfg.DATASET.LABELS or shots)
    unlabeled = batch if cfg.DATALOADER.TRAIN_U.SAME_AS_X else cfg.DATALOADER.TRAIN_U.BATCH_SIZE
    if distils:
        templates = list(dho.TEACHER.TEMPLATES) or "the prompt above"
        how = "a finished run" if is_run(dho.TEACHER.NAME) else f"zero-shot, {templates}, temperature zeta {dho.ZETA}"
        yield "teacher", f"{dho.TEACHER.NAME}, {how}"
        pool = {"complement": "the training images without a label", "union": "all training images"}
        yield "unlabelled", pool[dho.UNLABELED_POOL] if dho.UNLABELED else "none"
    if "CasPL" in trainer:
        yield "senior", f"{cfg.TRAINER.CASPL.SENIOR}, on all training images without labels"
        if trainer != "CasPL":
            yield "boosting prompts", cfg.TRAINER.CASPL.BOOSTING or "stage one runs first"
    yield "batch", f"{batch} + {unlabeled}" if distils and dho.UNLABELED and not blind else str(batch)
    counted = {"train_x": "labelled", "train_u": "unlabelled", "smaller_one": "fewer"}[cfg.TRAIN.COUNT_ITER]
    counted = {"union": "training", "complement": "unlabelled"}[kind.pool] if blind else counted
    yield (
        "steps",
        f"{optim.MAX_EPOCH} epochs of "
        + (f"{dho.STEPS_PER_EPOCH}" if dho.STEPS_PER_EPOCH else f"one pass over the {counted} images"),
    )
    warmup = f"{optim.WARMUP_EPOCH} warm-up epoch(s), then " if optim.WARMUP_EPOCH > 0 else ""
    yield "optimiser", f"{optim.NAME}, rate {optim.LR}, decay {optim.WEIGHT_DECAY}; {warmup}{optim.LR_SCHEDULER}"
    kinds = zip(("labelled", "unlabelled"), views_of_an_image(cfg), strict=True)
    again = "".join(f", {k} of each {kind} image and then these again (a deviation)" for kind, k in kinds if k)
    cut = f"{', '.join(cfg.INPUT.TRANSFORMS)} (scale {tuple(cfg.INPUT.RRCROP_SCALE)})"
    yield "views", f"{cut}{again}; test: centre crop"
    if distils and not two_heads:
        yield "loss", (kind.__doc__ or "").strip().partition("\n")[0]
    if two_heads:
        squared = f", times {dho.ETA}^2" if dho.KD_T2 else ""
        yield "loss", f"{dho.LAMBDA} L_CE + {1 - dho.LAMBDA:g} L_KD; KL(teacher || student) at eta {dho.ETA}{squared}"
        yield "KD head", f"{dho.HEAD.KD}, started from {dho.HEAD.INIT}; rate {dho.HEAD.LR or optim.LR}"
        fixed = f"{dho.ALPHA} softmax(CE) + {1 - dho.ALPHA:g} softmax(KD / {dho.BETA}), fixed"
        searched = {"val": "validation images", "oracle": "the TEST images, an oracle"}
        yield "inference", fixed if dho.CHOOSE == "fixed" else f"alpha and beta searched on {searched[dho.CHOOSE]}"
