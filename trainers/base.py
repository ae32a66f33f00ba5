"""What all trainers share: a base method is a backbone and a CE head, trained on labels.

A method's file supplies `build_backbone`, `build_ce_head` and `learned`; from it two trainers are registered, the
method itself (the control) and, with `DHO` of dho.py mixed in, the method with a KD head and a teacher.
"""

from __future__ import annotations

import math
import random
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..averaging import WeightedAverage
from ..batch_norm import synchronised
from ..classes import ClassHead, class_list
from ..distributed import gathered, is_main, main_first, world_size
from ..errors import UsageError, check_choice
from ..heads import build_head
from ..host import build_lr_scheduler, build_optimizer
from ..labels import build_labeled_dataset
from ..loaders import BAD_IMAGES, EpochLoader
from ..losses import supervised_loss
from ..manifest import begin, caveats, finish, named
from ..pool import check_shots, check_trainable, copy_policy
from ..precision import CHOICES as PRECISIONS
from ..precision import Precision
from ..predicting import printable
from ..prompts import PromptedClassifier
from ..saved import flatten, prepare_resume, resume_folder, write_record
from ..stored_features import StoredFeatures
from ..text_memory import plan
from ..tome import TokenMergingVLM
from ..towers import VLM, ImageEncoder
from ..views import INTERPOLATIONS
from ..vlm import load_vlm
from .data import COUNTS, DataManager
from .section import check_dataset, check_parts, joined, single_prompt
from .stepping import Stepping
from .storing import own_features, store_views

ALL_GPUS = "torchrun --nproc_per_node GPUS train.py ..."


class MethodTrainer(Stepping):
    """Trains a base method by cross-entropy on labelled images.

    Attributes:
        student: the model that the images go through, a frozen CLIP unless a method says otherwise.
        classes: what the model tells apart. test_rows: which of them the test set at hand asks about, None for all.
        precision: see Precision.
    """

    section = ""  # the method's section of cfg.TRAINER
    defaults: ClassVar[dict[str, Any]] = {"PREC": "fp16"}  # the keys of that section and their defaults
    family = ""  # the folder of configs/trainers that it shares with others; empty for the method's own
    config = "default"  # the yaml file of configs/trainers/<method> that --trainer alone chooses
    few_images_config = ""  # the same for CoOp's ten datasets and for one's own images, where it is another
    teacher_key = ""  # the configuration key that names the model it learns from, if it learns from one
    trains_student = False  # whether the student's own weights are trained, which half precision must leave alone
    transductive: bool | None = None  # whether it learns from test images without their labels; None until it learns
    regularized = False  # whether its losses ask for frozen_features
    stage_one = ""  # the trainer whose output folder it starts from, if it starts from one

    # What a method supplies

    def load_student(self) -> Any:
        """Return the student's model, with `name`, `image`, `width` and `normalize` as VLM has them."""
        return load_vlm(self.cfg.MODEL.BACKBONE.NAME)

    @property
    def vlm(self) -> VLM:
        """The student, where it is a CLIP model."""
        return self.student

    def build_backbone(self) -> nn.Module:
        """Return g: normalised images (N, 3, H, W) -> features (N, d)."""
        return ImageEncoder(self.vlm)

    def build_ce_head(self) -> nn.Module:
        """Return h_CE: features (N, d) -> the method's own class logits (N, C)."""
        raise NotImplementedError

    def build_average(self) -> WeightedAverage | None:
        """Return the average over epochs that is deployed after the last one; None for the last weights themselves."""
        return None

    def ce_logits(self, features: Tensor) -> Tensor:
        """The method's own class logits while it trains."""
        return self.ce_head(features)

    def regularizers(self, batch: dict[str, Any], features: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Return the method's own further losses on the N labelled images, by name; they join its cross-entropy.

        Args:
            batch: as the loader gives it. features: (N, d). logits: (N, C) of the CE pathway.
        """
        return {}

    def text_initialised_linear(self) -> nn.Module:
        """A linear head on image features, started from the text features of the classes."""
        texts = self.vlm.class_embeddings(self.classes.names, self.templates())
        return ClassHead(
            build_head("linear", self.vlm.width, len(self.classes.names), class_embeddings=texts), self.classes
        )

    # Data

    def check_cfg(self, cfg: Any) -> None:
        """Refuse a misspelt choice before anything is read."""
        check_dataset(cfg)
        check_choice("INPUT.INTERPOLATION", cfg.INPUT.INTERPOLATION, INTERPOLATIONS)
        check_choice("INPUT.BAD_IMAGES", cfg.INPUT.BAD_IMAGES, BAD_IMAGES)
        if cfg.MODEL.COMPILE:
            check_choice("MODEL.COMPILE", cfg.MODEL.COMPILE, torch.compiler.list_backends(exclude_tags=()))
        check_choice("TRAIN.COUNT_ITER", cfg.TRAIN.COUNT_ITER, COUNTS)
        check_choice(f"TRAINER.{self.section}.PREC", cfg.TRAINER[self.section].PREC, PRECISIONS)

    def build_data_loader(self) -> None:
        cfg = self.cfg
        self.view_seed = cfg.SEED if cfg.SEED >= 0 else self.random_seed()
        if cfg.SEED < 0:  # every process of the run, now and when it goes on, draws the same shots
            random.seed(self.view_seed)
        with main_first():
            dataset = build_labeled_dataset(cfg)
        self.classes = self.test_classes = class_list(dataset)
        self.test_rows: Tensor | None = None
        self.student = self.load_student()
        self.dm = DataManager(cfg, dataset, size=self.student.image.size)
        self.train_loader_u = None
        self.val_loader, self.test_loader = self.dm.val_loader, self.dm.test_loader
        self.num_classes, self.num_source_domains = self.dm.num_classes, self.dm.num_source_domains
        self.lab2cname = {label: printable(name) for label, name in self.dm.lab2cname.items()}  # for the log

    @cached_property
    def train_loader_x(self) -> EpochLoader:
        """Made when training starts: an evaluation needs neither teacher nor unlabelled images."""
        return self.dm.training_loader(
            *self.training_images(), self.unlabeled_paths(), teacher_size=self.teacher_size(), seed=self.view_seed
        )

    def training_images(self) -> tuple[list[str], list[int]]:
        """Files and labels of the images whose batches make the steps; label -1 where none is shown."""
        items = self.dm.dataset.train_x
        return [item.impath for item in items], [item.label for item in items]

    def unlabeled_paths(self) -> list[str]:
        """Images used without labels; a control has none."""
        return []

    def teacher_size(self) -> int | None:
        """Resolution of the teacher's view; None where no teacher looks."""
        return None

    def before_train(self) -> None:
        """Say what is wrong with data or output folder before anything else happens."""
        cfg, dataset, names = self.cfg, self.dm.dataset, self.get_model_names()
        self.last_accuracy = math.nan
        check_parts(cfg)
        check_trainable(dataset, final_model=cfg.TEST.FINAL_MODEL, copies=copy_policy(cfg))
        check_shots(dataset.train_x, cfg.DATASET.NUM_SHOTS, dataset.lab2cname, few=cfg.DATASET.FEW)
        with main_first():  # which may write there
            prepare_resume(cfg, names)
        len(self.train_loader_x)
        if isinstance(self.ce_head, PromptedClassifier):
            with self.precision.autocast():
                print(plan(self.ce_head, cfg.MODEL.TEXT_CHUNK, self.device))
        before = resume_folder(cfg)
        super().before_train()
        if is_main():
            write_record(cfg, Path(cfg.OUTPUT_DIR))
        self.transductive = begin(
            cfg,
            dataset,
            self.train_loader_x.batches,
            teacher=self.taught_by(),
            teacher_name=flatten(cfg).get(self.teacher_key, ""),
            seed=self.view_seed,
            before=before if self.resumed else None,
            over=self.start_epoch >= self.max_epoch and before == Path(cfg.OUTPUT_DIR),
        )
        if cfg.STORE.DIR:
            store_views(self)
        if cfg.MODEL.COMPILE:
            self.compile_towers(cfg.MODEL.COMPILE)
        if any(isinstance(module, nn.DataParallel) for module in (self.model, *self._models.values())):
            raise UsageError(f"{type(self).__name__} in a DataParallel: leave it out, and start {ALL_GPUS}")
        if self.device.type == "cuda" and torch.cuda.device_count() > world_size() == 1:
            print(f"{torch.cuda.device_count()} GPUs are visible, and this process uses one; for all: {ALL_GPUS}")

    def compile_towers(self, backend: str) -> None:
        """Have torch.compile make the image tower's step, at the first one."""
        self.backbone.compile(backend=backend)

    def labeled_positions(self) -> int:
        """How many images of the labelled order the run asks for."""
        return len(self.train_loader_x) * self.max_epoch * self.train_loader_x.batches.batch_size

    def taught_by(self) -> Any:
        """The teacher that it learns from (teachers.Teacher), None for none."""
        return None

    def interpolated(self) -> dict[str, Any] | None:
        """Alpha, beta and who chose them ("fixed", "val", "oracle"), where answers are interpolated."""
        return None

    # Model

    def templates(self) -> tuple[str, ...]:
        """The prompts that class embeddings are from: a single one."""
        return (single_prompt(self.cfg),)

    def assemble(self) -> nn.Module:
        """Join backbone and CE head to the model that is trained."""
        return nn.Sequential(self.backbone, self.ce_head)

    def build_model(self) -> None:
        cfg = self.cfg
        self.precision = Precision(cfg.TRAINER[self.section].PREC, self.device)
        if self.trains_student:
            self.student = synchronised(self.student)
        self.student.to(self.device)
        self.backbone = self.build_backbone()
        self.merge_tokens(cfg.MODEL.TOKEN_MERGING)
        self.ce_head = self.build_ce_head()
        self.model = self.assemble().to(self.device)
        if self.trains_student:
            self.precision.lay_out(self.student)
        else:
            self.precision.store(self.student)
        self._models.clear()
        self._optims.clear()
        self._scheds.clear()
        for name, module in self.learned().items():
            optimizer = build_optimizer(module, self.optimizer_config(name))
            self.register_model(name, module, optimizer, build_lr_scheduler(optimizer, self.optimizer_config(name)))
        self.average = self.build_average()
        if self.average is not None:
            self.register_model("average", self.average.to(self.device))
        for name, module in self.frozen_parts().items():
            self.register_model(name, module)
        trained = sum(p.numel() for module in self.learned().values() for p in module.parameters())
        print(
            f"{type(self).__name__} on {self.student.name}, {self.precision.name}: {trained:,} parameters are trained"
        )

    def merge_tokens(self, r: int) -> None:
        """Let the image tower merge r tokens a layer whenever it evaluates (ToMe)."""
        if not r:
            return
        if getattr(self.backbone, "vlm", None) is not self.student or not isinstance(self.student, VLM):
            raise UsageError(f"MODEL.TOKEN_MERGING: {type(self).__name__} on {self.student.name} has no plain CLIP ViT")
        self.backbone.at_test = TokenMergingVLM(self.vlm, r)

    def optimizer_config(self, name: str) -> Any:
        """The OPTIM section for one learned part; linear heads may have a learning rate of their own."""
        rate = self.cfg.TRAINER.DHO.HEAD.LR
        if name not in ("ce_head", "kd_head") or not rate:
            return self.cfg.OPTIM
        optim = self.cfg.OPTIM.clone()
        optim.defrost()
        optim.LR = rate
        return optim

    def set_model_mode(self, mode: str = "train", names: str | list[str] | None = None) -> None:
        super().set_model_mode(mode, names)
        self.model.train(mode == "train")

    # Steps

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), self.labels(batch)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.parse_batch_train(batch)

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """Of the labelled images of a batch (N,)."""
        return batch["label"].to(self.device, non_blocking=True)

    def images(self, batch: dict[str, Any]) -> Tensor:
        """Normalised images (N + M, 3, H, W): the labelled and then the unlabelled ones of a batch."""
        return self.student.normalize(joined(batch, "img", self.device))

    @property
    def frozen_backbone(self) -> bool:
        """Whether an image's feature stays as it is, whatever is learned."""
        backbone = self.backbone
        plain = isinstance(backbone, ImageEncoder) and backbone.vlm is self.student and backbone.visual is None
        return plain and not self.trains_student

    @cached_property
    def stored(self) -> StoredFeatures | None:
        """The frozen student's image features, where STORE.DIR is to keep them and the method wants them."""
        if not self.cfg.STORE.DIR or not (self.frozen_backbone or self.regularized):
            return None
        return own_features(self)

    def features(self, batch: dict[str, Any]) -> Tensor:
        """Image features (N + M, d) of a training batch, its labelled and then its unlabelled images."""
        if self.stored is not None and self.frozen_backbone:
            return self.monitor.features(self.stored(joined(batch, "view")))
        return self.monitor.features(self.backbone(self.images(batch)))

    def frozen_features(self, batch: dict[str, Any]) -> Tensor:
        """What the student as it was loaded says of the labelled images: (N, d), float32, without a graph."""
        if self.stored is not None:
            return self.stored(batch["view"])
        return self.vlm.features(batch["img"].to(self.device, non_blocking=True))

    def losses(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Losses by name ("loss" is minimised), class logits of the labelled images, and their labels."""
        features, labels = self.features(batch), self.labels(batch)
        logits = self.ce_logits(features).float()
        own = self.regularizers(batch, features, logits)
        ce = supervised_loss(logits, labels)
        return {"loss": ce + sum(own.values()), **own}, logits, labels

    def answers_by_image(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What a step computes of each image of a batch, (n, ...) by what it is called in an error."""
        features = self.features(batch)
        return {"the student's features": features, "the CE head's logits": self.ce_logits(features)}

    def class_logits(self, images: Tensor) -> Tensor:
        """The model as a teacher: normalised images -> logits (N, K) of the dataset's classes, float32."""
        return self.model_inference(images)

    def class_directions(self) -> Tensor:
        """Unit-length rows of the CE head for the classes of the dataset at hand (K, d), float32.

        Raises:
            UsageError: the CE head has no rows.
        """
        weight = getattr(getattr(self.ce_head, "head", None), "weight", None)
        if weight is None:
            raise UsageError(
                f"{type(self).__name__} as a teacher has no class directions for a student's features: choose another "
                "teacher, or a trainer that learns from logits"
            )
        rows = weight.detach() if self.test_rows is None else weight.detach()[self.test_rows]
        return nn.functional.normalize(rows.float(), dim=-1)

    def after_train(self) -> None:
        # Dassl was renamed from "Finished" to "Finish training"; result parsers of either age must find their line.
        print(*filter(None, (self.monitor.cost(), "Finished training")), sep="\n")
        super().after_train()
        skipped = sorted({path for paths in gathered(self.train_loader_x.batches.unreadable()) for path in paths})
        if skipped:
            print(f"{len(skipped)} images could not be read and were passed over (INPUT.BAD_IMAGES skip)")
        row = {} if math.isnan(self.last_accuracy) else {"test": self.last_accuracy}  # nothing under TEST.NO_TEST
        results = named(row, self.caveats())
        finish(Path(self.cfg.OUTPUT_DIR), interpolation=self.interpolated(), skipped=skipped, results=results)

    def caveats(self) -> list[str]:
        """What every result has to say of itself."""
        return caveats(
            oracle=(self.interpolated() or {}).get("chosen") == "oracle",
            transductive=bool(self.transductive),
            images=(item.impath for item in self.dm.dataset.test or []),
        )
