"""DHO around a host's trainer that knows nothing of it: what dho_plugin.attach mixes in.

The host's trainer keeps its model, losses, step, dataset and evaluation. Around them come batches of labelled and
unlabelled views, a KD head on the features of its image encoder, L_KD's gradients in each step, Eq. 11 at test time.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..classes import class_bound_states, class_list
from ..errors import UsageError, check_choice
from ..heads import DualHeadLogits
from ..hooks import FeatureTap, GradientJoin, Reading
from ..host import TrainerX, build_lr_scheduler, build_optimizer
from ..launch import place
from ..loaders import BAD_IMAGES, EpochLoader
from ..manifest import begin, finish, named
from ..nonfinite import NonFiniteLoss, culprits, message
from ..pool import check_trainable, copy_policy
from ..precision import Precision
from ..predicting import printable
from ..saved import best_so_far, prepare_resume, read_checkpoint, resume_folder, write_record
from ..stopping import check
from ..teachers import Teacher
from ..views import INTERPOLATIONS
from ..vlm import load_vlm
from .data import COUNTS, DataManager
from .section import (
    CE_ALONE,
    answer,
    build_kd_head,
    build_teacher,
    check_dataset,
    check_section,
    distilled_paths,
    given,
    single_prompt,
    step_loss,
    teacher_views,
)

KD_HEAD = "kd_head"


class AttachedDHO(TrainerX):
    """Mixed in before a host's trainer. Whatever it adds to the instance is named kd_something."""

    batch_idx: int
    kd_encoder = "image_encoder"
    kd_ce_only = False  # set where a test set has classes that the KD head never saw
    kd_result: Any = None  # what the host's last test() returned
    kd_rows: Tensor | None = None  # the KD head's rows of the dataset at hand, None for all

    # Data

    def check_cfg(self, cfg: Any) -> None:
        if place() is not None:
            raise UsageError(
                f"{type(self).__name__} under torchrun: several processes can share the steps of dho_plugin's own "
                "trainers alone, since an attached one takes its host's; start it without"
            )
        super().check_cfg(cfg)
        check_dataset(cfg)
        check_section(cfg)
        if cfg.TRAIN.ACCUMULATE != 1:
            raise UsageError("TRAIN.ACCUMULATE: an attached trainer's step is its host's, leave it at 1")
        if cfg.TRAIN.CONFLICT_FREQ:
            raise UsageError("TRAIN.CONFLICT_FREQ: an attached trainer's L_CE is its host's alone, leave it at 0")
        if cfg.STORE.DIR:
            raise UsageError("STORE.DIR: an attached trainer shows its teacher every view, leave it empty")
        if cfg.TRAINER.DHO.CHOOSE != "fixed":
            raise UsageError(f"TRAINER.DHO.CHOOSE {cfg.TRAINER.DHO.CHOOSE}: an attached trainer takes fixed values")
        check_choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, INTERPOLATIONS)
        check_choice("INPUT.BAD_IMAGES", cfg.INPUT.BAD_IMAGES, BAD_IMAGES)
        check_choice("TRAIN.COUNT_ITER", cfg.TRAIN.COUNT_ITER, COUNTS)
        if len(set(cfg.INPUT.SIZE)) > 1 or cfg.DATALOADER.K_TRANSFORMS > 1:
            raise UsageError(
                f"INPUT.SIZE {cfg.INPUT.SIZE} and DATALOADER.K_TRANSFORMS {cfg.DATALOADER.K_TRANSFORMS}: teacher and "
                "student share one square view of an image, so give a square size and one view"
            )

        if cfg.DATASET.LABELS:
            raise UsageError("DATASET.LABELS: the host builds its dataset without it; give DATASET.NUM_SHOTS")

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if not hasattr(getattr(self, "dm", None), "dataset"):
            raise UsageError(f"{type(self).__name__} has no `self.dm.dataset`: keep the dataset there")
        self.kd_classes = class_list(self.dm.dataset)
        self.lab2cname = {label: printable(name) for label, name in self.dm.dataset.lab2cname.items()}  # for the log
        self.kd_template = single_prompt(self.cfg)
        self.kd_seed = self.cfg.SEED if self.cfg.SEED >= 0 else secrets.randbelow(2**31)
        vars(self).pop("train_loader_x", None)  # the host's own loader, which would hide the one below

    @cached_property
    def train_loader_x(self) -> EpochLoader:
        """Views of labelled and unlabelled images; made when training starts, since an evaluation needs no teacher."""
        items = self.dm.dataset.train_x
        paths, labels = [item.impath for item in items], [item.label for item in items]
        size = self.kd_teacher.size
        loaders = DataManager(self.cfg, self.dm.dataset, size=self.cfg.INPUT.SIZE[0])
        extra = distilled_paths(self.cfg, self.dm.dataset)
        return loaders.training_loader(paths, labels, extra, teacher_size=size, seed=self.kd_seed)

    def kd_normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, 3, s, s) -> float on the device, as the host's own transforms leave images."""
        images = images.to(self.device, non_blocking=True).float() / 255
        if "normalize" not in self.cfg.INPUT.TRANSFORMS:
            return images
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.cfg.INPUT.PIXEL_MEAN, self.cfg.INPUT.PIXEL_STD))
        return (images - mean) / std

    # Model

    def build_model(self) -> None:
        super().build_model()
        self._kd_check_model()
        self.kd_tap = FeatureTap(self.model, self.kd_encoder)
        self.set_model_mode("eval")
        with torch.no_grad():  # two blank images: what cannot work is said now, before a teacher is loaded
            blank = torch.zeros(2, 3, *self.cfg.INPUT.SIZE, device=self.device)
            features, _ = self._kd_host_answer(blank)
        self.kd_width = features.shape[-1]
        half = features.is_cuda and features.dtype == torch.float16
        self.kd_precision = Precision("fp16" if half else "fp32", self.device)
        self.kd_head = build_kd_head(self.cfg, self.kd_width, self.kd_classes).to(self.device)
        settings = self.cfg.OPTIM.clone()
        settings.defrost()
        settings.LR = self.cfg.TRAINER.DHO.HEAD.LR or settings.LR
        own = build_optimizer(self.kd_head, settings)
        theirs = [o for o in [*self._optims.values(), *vars(self).values()] if isinstance(o, Optimizer)]
        self.kd_join = GradientJoin(list(dict.fromkeys(theirs)), own, weight=self.cfg.TRAINER.DHO.LAMBDA)
        self.register_model(KD_HEAD, self.kd_head, own, build_lr_scheduler(own, settings))

    def _kd_check_model(self) -> None:
        name, model = type(self).__name__, getattr(self, "model", None)
        if not isinstance(model, nn.Module):
            raise UsageError(f"{name} has no `self.model` to read image features from: keep the model there")
        if isinstance(model, nn.DataParallel):
            raise UsageError(f"{name}.model is a DataParallel of several devices: show it one (CUDA_VISIBLE_DEVICES=0)")
        if any(isinstance(value, torch.amp.GradScaler) for value in vars(self).values()):
            raise UsageError(
                f"{name} scales its loss (PREC amp), which L_KD's gradients would have to be as well: use fp32 or fp16"
            )

    @cached_property
    def kd_teacher(self) -> Teacher:
        """Loaded when training starts."""
        items = self.dm.dataset.train_x
        return build_teacher(self.cfg, self.kd_classes, (self.kd_template,), items, self.kd_precision, self.device)

    def before_train(self) -> None:
        check_trainable(self.dm.dataset, final_model=self.cfg.TEST.FINAL_MODEL, copies=copy_policy(self.cfg))
        prepare_resume(self.cfg, self.get_model_names())
        before = resume_folder(self.cfg)
        len(self.train_loader_x)  # a missing teacher or image is said before anything else happens
        super().before_train()
        best = best_so_far(self.cfg, self.get_model_names()) if self.start_epoch else None
        self.best_result = self.best_result if best is None else best
        if self.start_epoch == 0 and self.cfg.TRAINER.DHO.HEAD.INIT != "kaiming":
            self._kd_start_from_texts()
        write_record(self.cfg, Path(self.cfg.OUTPUT_DIR))
        self.kd_transductive = begin(
            self.cfg,
            self.dm.dataset,
            self.train_loader_x.batches,
            teacher=self.kd_teacher,
            teacher_name=self.cfg.TRAINER.DHO.TEACHER.NAME,
            seed=self.kd_seed,
            before=before if self.start_epoch else None,
            over=self.start_epoch >= self.max_epoch and before == Path(self.cfg.OUTPUT_DIR),
        )

    def resume_model_if_exist(self, directory: str) -> int:
        return super().resume_model_if_exist(str(resume_folder(self.cfg)))

    def after_train(self) -> None:
        super().after_train()
        skipped = self.train_loader_x.batches.unreadable()
        if skipped:
            print(f"{len(skipped)} images could not be read and were passed over (INPUT.BAD_IMAGES skip)")
        known = isinstance(self.kd_result, float) and not self.cfg.TEST.NO_TEST
        row = {"test": float(self.kd_result)} if known else {}
        results = named(row, ["transductive"] * self.kd_transductive)
        if self.kd_transductive:
            print(f"TRANSDUCTIVE: {results}")
        chosen = {"alpha": given(self.cfg).alpha, "beta": given(self.cfg).beta, "chosen": "fixed"}
        finish(Path(self.cfg.OUTPUT_DIR), interpolation=chosen, skipped=skipped, results=results)

    def test(self, *args: Any, **keywords: Any) -> Any:
        """As the host does; its last result goes into the manifest."""
        self.kd_result = super().test(*args, **keywords)
        return self.kd_result

    def _kd_start_from_texts(self) -> None:
        """Language-aware initialisation; "text" from MODEL.BACKBONE.NAME where that is a CLIP model of this width."""
        if self.cfg.TRAINER.DHO.HEAD.INIT == "teacher":
            texts = self.kd_teacher.directions()
        else:
            try:
                vlm = load_vlm(self.cfg.MODEL.BACKBONE.NAME).to(self.device)
                if vlm.width != self.kd_width:
                    raise UsageError(f"{vlm.name}'s are {vlm.width} wide and its image features {self.kd_width}")
            except UsageError as reason:
                why = printable(str(reason))
                print(f"KD head: Kaiming initialisation, since the student's text features are not at hand: {why}")
                return
            texts = vlm.class_embeddings(self.kd_classes.names, (self.kd_template,))
        self.kd_head.load_state_dict(build_kd_head(self.cfg, self.kd_width, self.kd_classes, texts).state_dict())

    # Steps

    def run_epoch(self) -> None:
        self.train_loader_x.set_epoch(self.epoch)
        super().run_epoch()
        self._scheds[KD_HEAD].step()

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The host's step, in which L_KD joins. "loss" stays what the host calls so; "loss_kd" is L_KD."""
        theirs = {**batch, "img": self.kd_normalize(batch["img"])}
        with self.kd_join.step(), self._kd_host_alone(), self.kd_tap.reading(partial(self._kd_distil, batch)):
            summary = super().forward_backward(theirs)
        # What else a host's trainer keeps from step to step is not known here.
        check("after a step, and an attached trainer's last checkpoint is where it goes on from")
        return {**summary, "loss_kd": self.kd_loss}

    def _kd_distil(self, batch: dict[str, Any], labeled: Reading) -> None:
        """L_KD on the features the host has just computed of the labelled images, and on those of unlabelled ones."""
        labels = batch["label"].to(self.device)
        if len(labeled.features) != len(labels):
            raise UsageError(
                f"the encoder {self.kd_encoder!r} saw {len(labeled.features)} images in a step of {len(labels)}: a "
                "trainer that adds images of its own cannot be attached"
            )
        features = [labeled.features]
        if "unlabeled" in batch:
            features.append(labeled.again(self.kd_normalize(batch["unlabeled"]["img"])))
        with self.kd_precision.autocast():
            teacher = self.kd_teacher(teacher_views(batch, self.device))
        with torch.enable_grad():  # a host may run its frozen encoder without
            kd = self.kd_head(torch.cat(features))
            loss = step_loss(self.cfg, DualHeadLogits(kd, kd), labels, teacher).kd  # the CE part is the host's own
        if not torch.isfinite(loss):
            looked = {"the encoder's features": torch.cat(features), "the KD head's logits": kd}
            self._kd_explain(batch, loss, {**looked, "the teacher's logits": teacher})
        self.kd_join.add(loss)
        self.kd_loss = loss.item()

    def _kd_explain(self, batch: dict[str, Any], loss: Tensor, looked: dict[str, Tensor]) -> None:
        """Raise NonFiniteLoss for L_KD, before the host's own step."""
        where = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}/{self.num_batches}"
        found = culprits(looked, self.train_loader_x.batches.paths(batch))
        raise NonFiniteLoss(message({"loss_kd": loss.detach()}, where, found))

    @contextmanager
    def _kd_host_alone(self) -> Iterator[None]:
        """Within this context the host updates and loads its own parts only; the KD head's turn is ours."""
        head = self._models.pop(KD_HEAD)
        try:
            yield
        finally:
            self._models[KD_HEAD] = head

    # Test

    def _kd_host_answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Reading] = []
        with self.kd_tap.reading(seen.append):
            logits = super().model_inference(images)
        wanted = (len(images), self.num_classes)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(
                f"{type(self).__name__}.model_inference must return class logits {wanted} = (images, classes of the "
                f"dataset) at test time, got {got}: override it, in a subclass that you attach, to return these alone"
            )
        return seen[0].features, logits

    def model_inference(self, images: Tensor) -> Tensor:
        """Images -> class probabilities (N, C), Eq. 11 on the host's logits and the KD head's."""
        features, logits = self._kd_host_answer(images)
        kd = self.kd_head(features)
        kd = kd if self.kd_rows is None else kd[:, self.kd_rows]
        return answer(DualHeadLogits(logits.float(), kd), given(self.cfg), ce_only=self.kd_ce_only)

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """As the host does; the KD head over the classes it was trained on, of which the dataset's are then picked."""
        with self._kd_host_alone():
            super().load_model(directory, epoch)
        if not directory:
            return
        state = read_checkpoint(Path(directory), KD_HEAD, epoch)["state_dict"]
        trained_on = class_bound_states(self.kd_head, state)[0]
        if trained_on != self.kd_classes:
            self._models[KD_HEAD] = self.kd_head = build_kd_head(self.cfg, self.kd_width, trained_on).to(self.device)
        try:
            self.kd_head.load_state_dict(state)
        except RuntimeError as error:
            raise UsageError(f"{directory}/{KD_HEAD} is the KD head of another model or HEAD.KD: {error}") from error
        try:
            self.kd_rows, self.kd_ce_only = trained_on.rows(self.kd_classes), False
        except UsageError as reason:
            self.kd_ce_only = True
            print(CE_ALONE.format(printable(str(reason))))
