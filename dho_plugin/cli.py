"""The command line of train.py: CoOp's flags, and short forms for what is usually wanted."""

from __future__ import annotations

import argparse
import math
import secrets
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from . import trainers  # noqa: F401 - registers trainers, datasets and configuration keys
from .classes import class_list
from .config import CONFIGS, PRESETS, config_file, merge_file, merge_options
from .datasets import SHIFTS, TEN
from .datasets.drawn import demo_root
from .datasets.own_files import TABLE
from .distributed import PeerStopped, agreed, is_main, joined, world_size
from .errors import UsageError, did_you_mean
from .host import (
    DATASET_REGISTRY,
    HOST,
    TRAINER_REGISTRY,
    build_trainer,
    collect_env_info,
    get_cfg_default,
    set_random_seed,
)
from .launch import place
from .locks import held
from .manifest import finish, is_transductive, named
from .predicting import printable
from .protocol import explain
from .run_log import LOG, is_over, open_log
from .saved import assign, check_record, flatten
from .sealed import NO_ROOM
from .shifts import Row, evaluate_shifts, load_shifts
from .stopping import REQUEUE, Stopped, listening, requeue
from .trainers.base import MethodTrainer
from .trainers.section import check_dataset, check_parts
from .vlm import find_vlm


def parser() -> argparse.ArgumentParser:
    """All flags of CoOp's train.py with their meaning there, and our short forms."""
    p = argparse.ArgumentParser(
        description="Train or evaluate a prompt learner, a probe or a student, with or without DHO.",
        epilog="Options at the end are KEY VALUE pairs of the configuration: TRAINER.COOP.N_CTX 4 DATASET.NUM_SHOTS 16",
    )
    short = p.add_argument_group("short forms")
    short.add_argument("--dataset", default="", help="dataset by the name of its file in configs/datasets")
    short.add_argument("--data", default="", help="images of one's own: DIR with train/CLASS or CLASS, or a CSV file")
    short.add_argument("--template", default="", help="prompt with {} for the class name (DATASET.TEMPLATE)")
    short.add_argument("--preset", default="paper", choices=PRESETS, help="the paper's settings or its public scripts'")
    short.add_argument("--explain", action="store_true", help="say what the run would do, and do nothing")
    short.add_argument(
        "--labels",
        default="",
        help="instead of --shots: simclr-1, simclr-10, authors-1, authors-10, a list or another run's split.json",
    )
    short.add_argument("--shots", type=int, help="labelled images a class (DATASET.NUM_SHOTS); -1 for all")
    short.add_argument(
        "--teacher", default="", help="teacher (TRAINER.DHO.TEACHER.NAME) or CasPL's senior, model or file"
    )
    short.add_argument("--labels-only", action="store_true", help="distil on labelled images alone")
    short.add_argument("--tome", type=int, help="tokens that a CLIP ViT merges in each layer at evaluation")
    short.add_argument("--ood", action="store_true", help="evaluate the dataset's distribution shifts afterwards")
    coop = p.add_argument_group("CoOp's flags")
    coop.add_argument("--root", default="", help="folder that holds the datasets")
    coop.add_argument("--output-dir", default="", help="output folder")
    coop.add_argument("--resume", default="", help="output folder of an earlier run to go on from")
    short.add_argument("--resume-force", action="store_true", help="go on in spite of other settings")
    coop.add_argument("--seed", type=int, default=1, help="negative for a random one")
    coop.add_argument("--source-domains", nargs="+", help="source domains for DA/DG")
    coop.add_argument("--target-domains", nargs="+", help="target domains for DA/DG")
    coop.add_argument("--transforms", nargs="+", help="INPUT.TRANSFORMS")
    coop.add_argument("--config-file", default="", help="yaml file of the trainer")
    coop.add_argument("--dataset-config-file", default="", help="yaml file of the dataset")
    coop.add_argument("--trainer", default="", help="name of the trainer")
    coop.add_argument("--backbone", default="", help="student model or file (MODEL.BACKBONE.NAME)")
    coop.add_argument("--head", default="", help="MODEL.HEAD.NAME")
    coop.add_argument("--eval-only", action="store_true", help="evaluate a saved model")
    coop.add_argument("--model-dir", default="", help="output folder of the model to evaluate")
    coop.add_argument("--load-epoch", type=int, help="epoch of the model to evaluate")
    coop.add_argument("--no-train", action="store_true", help="build everything, train nothing")
    coop.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return p


def build_config(args: argparse.Namespace) -> Any:
    """The frozen configuration, see `merged`, once what it names was looked at.

    Raises:
        UsageError: unknown trainer, dataset, file or key.
    """
    cfg = merged(args)
    names = DATASET_REGISTRY.registered_names()
    if cfg.DATASET.NAME not in names:
        raise UsageError(
            f"unknown dataset {cfg.DATASET.NAME!r}: expected one of {names}.{did_you_mean(cfg.DATASET.NAME, names)}"
        )
    check_dataset(cfg)
    if not cfg.DATASET.ROOT:
        if not getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "draws_itself", False):
            raise UsageError(f"no --root: give the folder that holds {cfg.DATASET.NAME}'s own folder")
        cfg.DATASET.ROOT = demo_root()
    content = getattr(DATASET_REGISTRY.get(cfg.DATASET.NAME), "content", None)
    if content:  # of images that may have changed since the last run
        cfg.DATASET.CONTENT = content(cfg)
    if not args.output_dir and "OUTPUT_DIR" not in args.opts[::2]:
        cfg.OUTPUT_DIR = str(default_output(cfg, args))
    cfg.freeze()
    _check_wishes(cfg, args)
    _check_values(cfg)
    return cfg


def merged(args: argparse.Namespace) -> Any:
    """Defaults, preset, dataset file, trainer file, flags and options, each over those before it; quick.

    Raises:
        UsageError: unknown trainer, file or key.
    """
    known = TRAINER_REGISTRY.registered_names()
    if args.trainer not in known:
        raise UsageError(
            f"unknown trainer {args.trainer!r}: expected one of {known}.{did_you_mean(args.trainer, known)}"
        )
    cfg = get_cfg_default()
    _check_data_flags(args)
    if args.preset != PRESETS[0]:  # the first is what the defaults say
        merge_file(cfg, config_file("presets", args.preset))
    merge_file(cfg, args.dataset_config_file or config_file("datasets", dataset_name(args)))
    merge_file(cfg, trainer_file(args))
    _merge_flags(cfg, args)
    merge_options(cfg, args.opts)
    return cfg


def _check_values(cfg: Any) -> None:
    """Refuse a text that would break out of its line in a log, and pass for a result there; and a number that numpy
    takes for no seed."""
    for key, value in flatten(cfg).items():
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str) and printable(word) != word:
                raise UsageError(f"{key} {word!r}: a control character, expected printable text")
            if isinstance(word, int) and abs(word) >= 2**32:
                raise UsageError(f"{key}: a number of {word.bit_length()} bits, expected one of at most 32")


def _check_data_flags(args: argparse.Namespace) -> None:
    others = [flag for flag in ("dataset", "dataset_config_file", "root") if getattr(args, flag)]
    if args.data and others:
        names = ", ".join(f"--{flag.replace('_', '-')}" for flag in others)
        raise UsageError(f"--data says it all: leave out {names}")
    if not (args.data or args.dataset or args.dataset_config_file):
        raise UsageError("no dataset: give --dataset NAME, --data DIR or --dataset-config-file FILE")


def dataset_name(args: argparse.Namespace) -> str:
    """The dataset by the name of its yaml file."""
    return "folder" if args.data else args.dataset or Path(args.dataset_config_file).stem


def own_data(args: argparse.Namespace) -> tuple[Path, str]:
    """What --data names: the folder, absolute, and the table in it if that was given (else an empty string)."""
    path = Path(args.data).expanduser().absolute()
    return (path.parent, path.name) if path.suffix.lower() == ".csv" else (path, "")


def _check_wishes(cfg: Any, args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is read."""
    if world_size() > 1 and not issubclass(TRAINER_REGISTRY.get(args.trainer), MethodTrainer):
        raise UsageError(
            f"{args.trainer} is no trainer of dho_plugin's own, and {world_size()} processes can share the steps of "
            "these alone: start it without torchrun"
        )
    if not args.eval_only:
        check_parts(cfg)
    if args.eval_only and not args.model_dir and args.trainer != "ZeroshotCLIP":
        raise UsageError("--eval-only needs --model-dir, the output folder of a training run")
    if args.ood and cfg.DATASET.NAME not in SHIFTS:
        raise UsageError(f"--ood: {cfg.DATASET.NAME} has no shifted test sets; these have: {list(SHIFTS)}")
    if args.ood and cfg.DATASET.SUBSAMPLE_CLASSES != "all":
        raise UsageError("--ood evaluates all classes: leave DATASET.SUBSAMPLE_CLASSES at all")


def trainer_file(args: argparse.Namespace) -> Path:
    """The trainer's yaml file: the one given, else the one for this dataset, else the default of the base method.

    A method and its DHO trainer share their file, so that they are compared on equal terms; so does its CasPL trainer
    where a dataset has a file of its own.
    """
    kind = TRAINER_REGISTRY.get(args.trainer)
    method = getattr(kind, "family", "") or args.trainer.removesuffix("DHO")
    shared = [method, method.removesuffix("CasPL")] if method != "CasPL" else [method]
    if args.config_file:
        given = Path(args.config_file)
        if given.is_file() or given.parent.name != args.trainer:
            return given
        # CoOp's scripts look in a folder of the trainer's name.
        theirs = [given.parent.with_name(folder) / given.name for folder in shared]
        return next((path for path in theirs if path.is_file()), given)
    dataset = dataset_name(args)
    own = [CONFIGS / "trainers" / folder / f"{dataset.partition('_')[0]}.yaml" for folder in shared]
    default = getattr(kind, "config", "default")
    if dataset in ("folder", *TEN):
        default = getattr(kind, "few_images_config", "") or default
    return next((path for path in own if path.is_file()), None) or config_file("trainers", f"{method}/{default}")


def _merge_flags(cfg: Any, args: argparse.Namespace) -> None:
    cfg.TRAINER.NAME = args.trainer
    cfg.SEED = args.seed
    folder, table = own_data(args) if args.data else (args.root, "")
    for key, value in {
        "DATASET.ROOT": str(folder),
        "DATASET.CSV": table,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
        "DATASET.NUM_SHOTS": args.shots,
        "DATASET.LABELS": args.labels,
        "DATASET.TEMPLATE": args.template,
        "MODEL.TOKEN_MERGING": args.tome,
        "TRAINER.DHO.TEACHER.NAME": args.teacher,
        "TRAINER.CASPL.SENIOR": args.teacher,
        "TRAINER.DHO.UNLABELED": False if args.labels_only else None,
        "TRAIN.RESUME_FORCE": args.resume_force or None,
    }.items():
        if value not in (None, ""):
            assign(cfg, key, value)
    if args.labels and args.shots is None:
        cfg.DATASET.NUM_SHOTS = -1  # whatever the dataset's file says


def default_output(cfg: Any, args: argparse.Namespace) -> Path:
    """CoOp's layout: output/DATASET/TRAINER/CFG_Kshots/nctx.../seedS; "evaluation" comes first for --eval-only.

    DATASET is the name of one's own folder, followed by that of the table where that is not labels.csv.
    """
    dataset = dataset_name(args)
    if args.data:
        where, table = own_data(args)
        dataset = where.resolve().name + (f"_{Path(table).stem}" if table not in ("", TABLE) else "")
    folder = Path("output", "evaluation") if args.eval_only else Path("output")
    shots = f"{cfg.DATASET.NUM_SHOTS}shots" if cfg.DATASET.NUM_SHOTS > 0 else Path(cfg.DATASET.LABELS).stem or "all"
    folder = folder / dataset / cfg.TRAINER.NAME / f"{trainer_file(args).stem}_{shots}"
    folder = folder.with_name(
        folder.name + "_labels" * args.labels_only + (f"_{args.preset}" if args.preset != PRESETS[0] else "")
    )
    if cfg.TRAINER.NAME.startswith("CoOp"):
        coop = cfg.TRAINER.COOP
        folder = folder / f"nctx{coop.N_CTX}_csc{coop.CSC}_ctp{coop.CLASS_TOKEN_POSITION}"
    return folder / f"seed{cfg.SEED}"


def run(cfg: Any, args: argparse.Namespace) -> Row:
    """Build the trainer, train or load it, evaluate it; return its accuracies."""
    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    getattr(kind, "find_student", find_vlm)(cfg.MODEL.BACKBONE.NAME)
    if getattr(kind, "teacher_key", "") and not args.eval_only:
        getattr(kind, "find_teacher", find_vlm)(flatten(cfg)[kind.teacher_key])
    if getattr(kind, "stage_one", "") and not (args.eval_only or args.no_train or cfg.TRAINER.CASPL.BOOSTING):
        # Built over any boosting prompts: what stage two cannot do is said before stage one learns.
        build_trainer(cfg)
        load_shifts(cfg, SHIFTS.get(cfg.DATASET.NAME, {}) if args.ood else {})
        cfg = after_stage_one(cfg, args, kind.stage_one)
    set_random_seed(cfg.SEED if cfg.SEED >= 0 else agreed(secrets.randbelow(2**31)))
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
    trainer = build_trainer(cfg)
    shifts = load_shifts(cfg, SHIFTS.get(cfg.DATASET.NAME, {})) if args.ood else {}
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
    for dataset in shifts.values():
        trainer.classes.rows(class_list(dataset))  # a class that cannot be mapped is said now, not after training
    if args.eval_only:
        accuracy = trainer.test()
    elif args.no_train:
        return {}
    else:
        trainer.train()
        accuracy = trainer.last_accuracy
    tested = {} if math.isnan(accuracy) else {"test": accuracy}  # nothing under TEST.NO_TEST
    row = {**tested, **evaluate_shifts(trainer, shifts, Path(cfg.OUTPUT_DIR))}
    trained = trainer.transductive is not None
    if args.eval_only:
        trainer.transductive = is_transductive(args.model_dir)
    row = named(row, trainer.caveats())
    if trainer.transductive:
        print(f"TRANSDUCTIVE: the model has learned from test images without their labels: {row}")
    if trained:
        finish(Path(cfg.OUTPUT_DIR), results=row)
        trainer.over()
    return row


# Options that a command gives to stage two and not to the stage one that it runs before.
STAGE_TWO_ALONE = (
    "OPTIM.",
    "TRAIN.COUNT_ITER",
    "TEST.FINAL_MODEL",
    "TRAINER.DHO.STEPS_PER_EPOCH",
    "DATALOADER.TRAIN_X.",
    "OUTPUT_DIR",
    "RESUME",
)


def stage_one_flags(args: argparse.Namespace, trainer: str, folder: str) -> argparse.Namespace:
    """The command line of the stage one that a command runs before its own.

    Args:
        args: the command's own. trainer: of stage one. folder: its output folder.
    """
    options = [
        word
        for pair in zip(args.opts[::2], args.opts[1::2], strict=True)
        if not pair[0].startswith(STAGE_TWO_ALONE)
        for word in pair
    ]
    changes = {"trainer": trainer, "config_file": "", "output_dir": folder, "resume": "", "ood": False}
    return argparse.Namespace(**{**vars(args), **changes, "opts": options})


def after_stage_one(cfg: Any, args: argparse.Namespace, trainer: str) -> Any:
    """Run stage one in <output>/stage_one, with a log of its own, and return the configuration that starts from it.

    It takes its settings from its own file, and the flags and options of the command line except those that say how
    stage two learns. Run again, it goes on from where it was, and one that is over is left alone.
    """
    folder = Path(cfg.RESUME or cfg.OUTPUT_DIR, "stage_one")
    first = stage_one_flags(args, trainer, str(folder))
    settings = build_config(first)
    print(f"Stage one, {trainer}: boosting prompts in {folder}")
    if agreed(is_main() and (folder / LOG).is_file() and is_over(folder)):
        check_record(settings, folder)
    else:
        with logged(folder):
            run(settings, first)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER.CASPL.BOOSTING = str(folder)
    cfg.freeze()
    return cfg


@contextmanager
def logged(folder: Path, *, fresh: bool = False) -> Iterator[None]:
    """Within this context the first process's standard output goes to the log of a run too; see run_log.open_log.

    It holds the folder for all of them, unless the log is a fresh one.

    Raises:
        UsageError: another run holds it.
    """
    if not is_main():
        yield
        return
    lock = nullcontext() if fresh else held(folder / LOG)
    with lock, open_log(folder, fresh=fresh) as log, redirect_stdout(log):
        yield


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of train.py; returns the exit status, 2 for a mistake that the user can mend, and see Stopped."""
    args = parser().parse_args(argv)
    try:
        # Joining may wait for ever for processes that never come, where nothing asks for a flag.
        with joined(cuda=merged(args).USE_CUDA), listening():
            return _main(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PeerStopped as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error}; what was saved stays. Make room, and the same command goes on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped at once; the same command goes on from what was last saved", file=sys.stderr)
        return 128 + signal.SIGINT
    except Stopped as stop:
        here = place()  # the processes have parted, and each takes itself for the only one
        if here is None or here.rank == 0:
            queued = requeue() if stop.number == REQUEUE else ""
            print(*filter(None, (stop, queued)), sep="\n", file=sys.stderr)
        return stop.status


def _main(args: argparse.Namespace) -> int:
    cfg = build_config(args)
    if args.explain:
        other = next(preset for preset in PRESETS if preset != args.preset)
        vs = build_config(argparse.Namespace(**{**vars(args), "preset": other}))
        print(explain(cfg, vs, (args.preset, other)))
        return 0
    with logged(Path(cfg.OUTPUT_DIR), fresh=args.eval_only or args.no_train):
        print(f"** Configuration ** (host: {HOST})\n{cfg}\n** System **\n{collect_env_info()}")
        row = run(cfg, args)
        if len(row) > 1:
            print("  ".join(f"{column:>6}" for column in row))
            print("  ".join(f"{accuracy:6.1f}" for accuracy in row.values()))
        print(f"Results are in {cfg.OUTPUT_DIR}")
    return 0
