"""What a run leaves in its output folder, and whether another run may go on from it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from .errors import UsageError
from .host import TRAINER_REGISTRY, cfg_default, load_checkpoint
from .predicting import printable
from .sealed import DamagedCheckpoint, write_whole
from .states import FOLDER as STATE

RECORD = "config.yaml"
_NUMBERED = re.compile(r"model\.pth\.tar-(\d+)")
# Settings that may differ between a run and its continuation.
FREE = (
    "OUTPUT_DIR",
    "RESUME",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "INPUT.BAD_IMAGES",
    "VERBOSE",
    "USE_CUDA",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.SAVE_MINUTES",
    "TRAIN.CONFLICT_FREQ",
    "TRAIN.RESUME_FORCE",
    "TEST.NO_TEST",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "TRAINER.CASPL.BOOSTING",
    "MODEL.TOKEN_MERGING",
    "MODEL.TEXT_CHUNK",
    "MODEL.COMPILE",
    "STORE.DIR",
)


def read_checkpoint(directory: Path, name: str, epoch: int | None) -> dict[str, Any]:
    """The checkpoint of one part of a model.

    Args:
        directory: a run's output folder. name: the part's folder. epoch: None for the best, else for the last.

    Raises:
        UsageError: there is none, and it says what is there; it cannot be read, or only by running what it contains.
    """
    folder = directory / name
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
    if epoch is None and file not in files and "checkpoint" in files:
        file = (folder / "checkpoint").read_text(encoding="utf-8").strip()
    if file not in files:
        raise UsageError(f"no {file} in {folder}: it holds {files or 'nothing'}")
    checkpoint = load_checkpoint(str(folder / file))
    print(printable(f"Loading {folder / file} (epoch {checkpoint['epoch']})"))
    return checkpoint


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as one level of dotted keys with plain values."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def assign(cfg: Any, key: str, value: Any) -> None:
    """Set a dotted key of an unfrozen configuration as it is; yacs would take a folder "2024" for a number."""
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    cfg[name] = tuple(value) if isinstance(cfg[name], tuple) else value


def settings(cfg: Any) -> dict[str, Any]:
    """What a run is known by: its configuration on one level, a list of labelled images by its content."""
    flat = flatten(cfg)
    labels = flat.get("DATASET.LABELS", "")
    if labels and Path(labels).is_file():
        flat["DATASET.LABELS"] = f"{Path(labels).name} sha256:{hashlib.sha256(Path(labels).read_bytes()).hexdigest()}"
    return flat


def write_record(cfg: Any, folder: Path) -> None:
    """Leave the settings in the output folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RECORD, yaml.safe_dump(settings(cfg)))


def resume_folder(cfg: Any) -> Path:
    """Where to go on from: --resume, until a run that came from there has left something in its own folder."""
    own = Path(cfg.OUTPUT_DIR)
    left = any(own.glob(f"{STATE}/step-*.pt")) or any(own.glob("*/checkpoint"))
    if not cfg.RESUME or (left and read_record(own).get("RESUME") == cfg.RESUME):
        return own
    return Path(cfg.RESUME)


def read_record(folder: Path) -> dict[str, Any]:
    """The settings that a run left in its output folder; empty if it left none.

    Raises:
        UsageError: something else stands there.
    """
    path = folder / RECORD
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"{path} is no record of a run ({error})") from error
    if not isinstance(record, dict):
        raise UsageError(f"{path} is no record of a run: expected a setting on each line")
    return record


def prepare_resume(cfg: Any, names: list[str]) -> None:
    """Check that what lies in the folder to go on from is this very run, and settle on one epoch for all its parts.

    Dassl goes on from any checkpoint that it finds in the output folder, whatever made it, and for each part from its
    own. Here it is the last epoch whose checkpoints are whole, and those that are not are named.

    Args:
        cfg: the run's configuration. names: folders of the parts that are trained.

    Raises:
        UsageError: --resume names a folder without checkpoints; the run there had other settings (the keys are named);
            no epoch is whole in all parts.
    """
    folder = resume_folder(cfg)
    parts = [folder / name for name in names]
    if (folder / STATE).is_dir():
        check_record(cfg, folder)
        return
    if not all((part / "checkpoint").is_file() for part in parts):
        if cfg.RESUME:
            raise UsageError(f"nothing to resume in {folder}: expected {[f'{part.name}/checkpoint' for part in parts]}")
        return
    check_record(cfg, folder)
    problems: list[str] = []
    last = [part / (part / "checkpoint").read_text(encoding="utf-8").strip() for part in parts]
    epochs = {_epoch_in(file, problems) for file in last}
    if len(epochs) <= 1 and not problems:
        return
    if not problems:  # killed between two writes
        problems.append(f"the parts in {folder} are of different epochs ({sorted(filter(None, epochs))})")
    for epoch in sorted(set.intersection(*map(_numbered, parts)), reverse=True):
        files = [part / f"model.pth.tar-{epoch}" for part in parts]
        if all([_epoch_in(file, problems) == epoch for file in files]):  # a list: each that is damaged is named
            print(printable(f"{'; '.join(dict.fromkeys(problems))}; going on from epoch {epoch}"))
            for file in files:
                write_whole(file.with_name("checkpoint"), f"{file.name}\n")
            return
    raise UsageError(
        f"{'; '.join(dict.fromkeys(problems))}, and no epoch is whole in all of {names}: delete {folder}, start again"
    )


def _numbered(part: Path) -> set[int]:
    """The epochs of which a part has a checkpoint, whole or not."""
    named = (_NUMBERED.fullmatch(file.name) for file in part.glob("model.pth.tar-*"))
    return {int(name[1]) for name in named if name}


def _epoch_in(file: Path, problems: list[str]) -> int | None:
    """The epoch that a checkpoint is of; None for one that is damaged or missing, which is added to the problems."""
    try:
        return load_checkpoint(str(file))["epoch"]
    except (DamagedCheckpoint, FileNotFoundError) as error:
        problems.append(str(error))
        return None


def check_record(cfg: Any, folder: Path) -> None:
    """Check that what lies in a folder, if anything, is a run of these settings; --resume-force lets any other pass.

    Raises:
        UsageError: it is another; the keys are named.
    """
    try:
        if (folder / RECORD).is_file():
            check_same_settings(read_record(folder), settings(cfg), folder)
    except UsageError as error:
        if not cfg.TRAIN.RESUME_FORCE:
            raise UsageError(f"{error}, or go on in spite of it with --resume-force") from None
        print(printable(f"--resume-force: {error}"))


def check_same_settings(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Compare two runs' settings, apart from what is FREE to differ and from what other trainers are set to.

    Args:
        before: settings of the run in `folder`; a key that they lack, being newer, had its default. now: of this run.

    Raises:
        UsageError: they differ; it names the first keys.
    """
    defaults = flatten(cfg_default)
    sections = {"DHO", "CASPL", "NAME", getattr(_trainer(now["TRAINER.NAME"]), "section", None)}
    differing = []
    for key, value in sorted(now.items()):
        others = key.startswith("TRAINER.") and None not in sections and key.split(".")[1] not in sections
        there = before.get(key, defaults.get(key))
        if not key.startswith(FREE) and not others and there != value:
            differing.append(f"{key}: {there!r} there, {value!r} now")
    if differing:
        raise UsageError(
            f"{folder} holds a run with other settings ({'; '.join(differing[:5])}"
            f"{'; ...' if len(differing) > 5 else ''}). Choose another --output-dir, or delete the folder"
        )


def _trainer(name: str) -> Any:
    return TRAINER_REGISTRY.get(name) if name in TRAINER_REGISTRY.registered_names() else None


def best_so_far(cfg: Any, names: list[str]) -> float | None:
    """Validation result of the best model saved so far, which Dassl forgets when it resumes; None for no whole one."""
    path = resume_folder(cfg) / (names[0] if names else "-") / "model-best.pth.tar"
    try:
        return load_checkpoint(str(path))["val_result"] if path.is_file() else None
    except DamagedCheckpoint as error:
        print(printable(f"{error}; the best model is chosen among the epochs to come"))
        return None


def load_part(path: str, module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a learned part; what else the state holds is left alone.

    Args:
        path: where the state comes from, for messages.

    Raises:
        UsageError: it lacks something, or has it in another shape.
    """
    wanted = module.state_dict()
    missing = sorted(key for key in set(wanted) - set(state) if not key.endswith("_extra_state"))
    if missing:
        raise UsageError(f"{path} holds no {missing[0]!r}: it was saved by another trainer")
    try:
        module.load_state_dict({key: state.get(key, value) for key, value in wanted.items()})
    except RuntimeError as error:
        raise UsageError(
            f"{path} does not fit this model; were the options others when it was trained? {error}"
        ) from error
