"""What a finished run says of each image of a set, computed once and kept in `<run>/answers/`.

Everything that can be asked of two heads without training again, alpha-beta maps, ablations, calibration, agreement,
starts from these logits.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import trainers  # noqa: F401 - registers trainers, datasets and configuration keys
from ..classes import class_list
from ..datasets import SHIFTS
from ..errors import UsageError, did_you_mean
from ..heads import DualHeadLogits
from ..interpolation import interpolate
from ..loaders import TestImages
from ..manifest import file_digest
from ..runs import load_run, run_config
from ..saved import FREE, read_record
from ..sealed import sealed
from ..shifts import load_shifts

FOLDER = "answers"
_TEACHER = "teacher"


class NoTeacher(UsageError):
    """A run that learned from no teacher was asked for what its teacher says."""


class Answers(NamedTuple):
    """Logits of a model for N images of a set, over the C classes that the set asks about.

    Attributes:
        ce: (N, C) float64, of the CE head, or of the one head that there is.
        kd: (N, C) float64, of the KD head; None for a single head.
        labels: int64 (N,). paths: of the images. classes: C names.
        alpha, beta: as the run interpolates; alpha is 1 where the CE head alone answers. chosen: who chose them (see
            interpolation.SOURCES), empty for a single head.
        split: "test", "val" or the name of a shift.
    """

    ce: Tensor
    kd: Tensor | None
    labels: Tensor
    paths: tuple[str, ...]
    classes: tuple[str, ...]
    alpha: float
    beta: float
    chosen: str
    split: str

    @property
    def logits(self) -> DualHeadLogits:
        """Both heads'.

        Raises:
            UsageError: there is one head.
        """
        if self.kd is None:
            raise UsageError("this run has one head; its KD head was asked for: choose a run of a ...DHO trainer")
        return DualHeadLogits(self.ce, self.kd)

    def probabilities(self, alpha: float | None = None, beta: float | None = None) -> Tensor:
        """(N, C) float64: Eq. 11 at the alpha and beta of the run, or at others; of one head, its softmax."""
        if self.kd is None:
            return torch.softmax(self.ce, dim=-1)
        at = (self.alpha if alpha is None else alpha, self.beta if beta is None else beta)
        return interpolate(self.logits, alpha=at[0], beta=at[1])


def sets_of(run: str | Path) -> list[str]:
    """The sets that a run can be asked about: "test", "val" and the shifts of its dataset, be they there or not."""
    return ["test", "val", *SHIFTS.get(run_config(run).DATASET.NAME, {})]


def answers_of(run: str | Path, split: str = "test", *, root: str = "", zero_shot: bool = False) -> Answers:
    """The logits of a run on one of its sets; the model looks at the images where they are not kept yet.

    Args:
        run: output folder of a finished training run. split: one of sets_of. root: where the datasets are now, the
            run's own folder by default. zero_shot: ask the run's student as it was, untrained, by the class names.

    Raises:
        UsageError: no run, or no such set; zero_shot, and the student is no CLIP model.
    """
    folder = Path(run).expanduser()
    stored = Stored(folder, split, "zero_shot" if zero_shot else "")
    if not stored.fresh():
        trainer = load(folder, root, **({"TRAINER.NAME": "ZeroshotCLIP"} if zero_shot else {}))
        ce, kd, items, classes = ask(trainer, split)
        alone = {"alpha": 1.0, "beta": 1.0, "chosen": ""}  # Tip-Adapter's own are of other things
        at = (kd is not None and trainer.interpolated()) or alone
        logits = {"ce": ce} if kd is None else {"ce": ce, "kd": kd}
        stored.write(
            {**logits, "labels": torch.tensor([item.label for item in items])},
            {"paths": [item.impath for item in items], "classes": classes, **at},
        )
    tensors, said = stored.read()
    return Answers(
        tensors["ce"].double(),
        tensors["kd"].double() if "kd" in tensors else None,
        tensors["labels"],
        tuple(said["paths"]),
        tuple(said["classes"]),
        said["alpha"],
        said["beta"],
        said["chosen"],
        split,
    )


def kept(run: str | Path, split: str = "test") -> bool:
    """Whether answers_of has the logits without the model: those of the very weights that the run has now."""
    return Stored(Path(run).expanduser(), split).fresh()


def teacher_of(run: str | Path, split: str = "test", *, root: str = "") -> Tensor:
    """The logits of a run's teacher on one of its sets, float64 (N, C) in the order and classes of answers_of.

    Raises:
        UsageError: as answers_of.
        NoTeacher: the run has none.
    """
    folder = Path(run).expanduser()
    stored = Stored(folder, split, _TEACHER)
    if not stored.fresh():
        trainer = load(folder, root)
        if not trainer.teacher_key or getattr(trainer, "teacher", None) is None:
            raise NoTeacher(f"{folder}: {type(trainer).__name__} has no teacher")
        items, rows, _ = images_of(trainer, split)
        teacher = trainer.teacher.eval()
        views = TestImages(items, size=teacher.size, interpolation=trainer.dm.interpolation)
        logits = torch.cat(passes(trainer, views, teacher))
        stored.write({_TEACHER: logits if rows is None else logits[:, rows]}, {})
    return stored.read()[0][_TEACHER].double()


def ask(trainer: Any, split: str) -> tuple[Tensor, Tensor | None, Sequence[Any], tuple[str, ...]]:
    """Both heads' logits (N, C) on the CPU, float32, the second None for one head; the images, and the classes' names.

    Args:
        trainer: see runs.load_run.
    """
    items, rows, classes = images_of(trainer, split)
    views = TestImages(items, size=trainer.student.image.size, interpolation=trainer.dm.interpolation)
    kept, trainer.test_rows = trainer.test_rows, rows
    try:
        if hasattr(trainer, "kd_head"):
            found = passes(trainer, views, lambda images: torch.stack(trainer.heads(trainer.student.normalize(images))))
            ce, kd = torch.cat(found, dim=1)
            return ce, kd, items, classes
        model = partial(_single_head, trainer)
        return torch.cat(passes(trainer, views, model)), None, items, classes
    finally:
        trainer.test_rows = kept


def images_of(trainer: Any, split: str) -> tuple[Sequence[Any], Tensor | None, tuple[str, ...]]:
    """The images of a set (Dassl items), which of the model's classes it asks about (None for all), and their names.

    Raises:
        UsageError: no such set, or no images in it.
    """
    dataset, shifts = trainer.dm.dataset, SHIFTS.get(trainer.cfg.DATASET.NAME, {})
    if split in shifts:
        other = load_shifts(trainer.cfg, {split: shifts[split]})[split]
        classes = class_list(other)
        return other.test, trainer.classes.rows(classes), classes.names
    if split not in ("test", "val"):
        known = ["test", "val", *shifts]
        raise UsageError(f"no set {split!r}: expected one of {known}.{did_you_mean(split, known)}")
    items = getattr(dataset, split)
    if not items:
        raise UsageError(f"{trainer.cfg.DATASET.NAME} has no {split} images here")
    return items, trainer.test_rows, trainer.test_classes.names


@torch.no_grad()
def passes(trainer: Any, images: TestImages, model: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What a model says of images, batch by batch, float32 on the CPU.

    Args:
        trainer: whose loader's settings, device and precision serve. model: uint8 images on the device -> a tensor.
    """
    loader = trainer.cfg.DATALOADER
    batches = DataLoader(images, batch_size=loader.TEST.BATCH_SIZE, num_workers=loader.NUM_WORKERS)
    trainer.set_model_mode("eval")
    found = []
    for batch in tqdm(batches, disable=None):
        with trainer.precision.autocast():
            found.append(model(batch["img"].to(trainer.device)).float().cpu())
    return found


def _single_head(trainer: Any, images: Tensor) -> Tensor:
    return trainer.model_inference(trainer.student.normalize(images))


def load(folder: Path, root: str, **more: Any) -> Any:
    """The trainer of a run (see runs.load_run), its datasets below `root` where one is given.

    Args:
        more: changes to the run's configuration.
    """
    changes: dict[str, Any] = {"VERBOSE": False, "STORE.DIR": "", **more}
    with redirect_stdout(sys.stderr):  # a command's own output is its document
        return load_run(folder, {**changes, "DATASET.ROOT": root} if root else changes)


class Stored:
    """A file of tensors beside a run, which belongs to the very weights that the run has.

    Args:
        folder: the run's. split: see Answers. kind: what else than a student's answers it holds.
    """

    def __init__(self, folder: Path, split: str, kind: str = "") -> None:
        name = f"{split}.{kind}.safetensors" if kind else f"{split}.safetensors"
        self.file, self._run = folder / FOLDER / name, folder

    def fresh(self) -> bool:
        """Whether it is there, whole, and of these weights and settings."""
        try:
            with safe_open(str(self.file), "pt") as file:
                return file.metadata().get("model") == model_digest(self._run)
        except (FileNotFoundError, SafetensorError):
            return False

    def write(self, tensors: dict[str, Tensor], said: dict[str, Any]) -> None:
        """Write it as a whole or not at all."""
        self.file.parent.mkdir(exist_ok=True)
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        metadata = {"model": model_digest(self._run), "said": json.dumps(said)}
        with sealed(self.file, needed) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(temporary), metadata)

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors by name, and what was said of them."""
        with safe_open(str(self.file), "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["said"])  # noqa: SIM118


def model_digest(run: Path) -> str:
    """SHA-256 of what decides a run's answers: its settings and the checkpoints that an evaluation loads."""
    record = {key: value for key, value in read_record(run).items() if not key.startswith(FREE)}
    content = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for part in sorted(path for path in run.iterdir() if (path / "checkpoint").is_file()):
        best = part / "model-best.pth.tar"
        last = part / (part / "checkpoint").read_text(encoding="utf-8").strip()
        content.update(f"{part.name} {file_digest(str(best if best.is_file() else last))}".encode())
    return content.hexdigest()
