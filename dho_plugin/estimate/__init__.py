"""`python -m dho_plugin estimate`: what a run will cost, before it, without weights, GPU or (if need be) the data.

The trainer is built as for the run, and one of its steps runs on tensors without numbers (weightless.py, counting.py).
Arithmetic is that of matrix products and convolutions, two FLOPs for a multiply-add; the optimiser's update, the host's
work and the start of a run (texts of frozen classifiers) are not in it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .. import cli, precision
from ..backbones import TIMM, find_backbone
from ..errors import UsageError
from ..host import TRAINER_REGISTRY, build_trainer, save_checkpoint, set_random_seed
from ..loaders import ViewSource, cut
from ..prompts import PromptedClassifier
from ..runs import is_run
from ..saved import assign, flatten
from ..text_memory import AUTO, SHARE
from ..vlm import untrained
from .costs import GPU, GPUS, cost_on, flops_of, memory_of, run_of, store_of
from .counting import TEXT, Step, count_step, count_whole_text
from .imagined import can_imagine, imagined, is_there
from .text import report
from .weightless import empty, weightless


def main(argv: Sequence[str] | None = None) -> int:
    """Estimate and print."""
    args = parse(argv)
    found = estimate(configuration(args), args)
    print(report(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of train.py and a few more; mistakes are refused before anything is built."""
    p = cli.parser()
    p.prog, p.description = "python -m dho_plugin estimate", "What a run of train.py would cost."
    own = p.add_argument_group("the estimate's own")
    own.add_argument("--gpu", choices=tuple(GPUS), help="hours and memory on this GPU")
    own.add_argument("--efficiency", type=float, default=0.4, help="share of its dense peak that is reached")
    own.add_argument("--decode-ms", type=float, help="CPU time of an image's views in ms (default 4.4; two sizes 11.8)")
    own.add_argument("--json", default="", metavar="FILE", help="write every number to this file")
    args = p.parse_args(argv)
    if not 0 < args.efficiency <= 1:
        raise UsageError(f"--efficiency {args.efficiency}: expected a share above 0 and at most 1")
    if args.decode_ms is not None and not args.decode_ms > 0:
        raise UsageError(f"--decode-ms {args.decode_ms}: expected milliseconds above 0")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        raise UsageError(f"--json {args.json}: there is no folder {Path(args.json).absolute().parent}")
    if args.eval_only:
        raise UsageError("estimate is of training: leave out --eval-only")
    return args


def configuration(args: argparse.Namespace) -> Any:
    """The run's configuration; without --root that of a dataset that is not there, if its numbers are published."""
    if _root_given(args):
        return cli.build_config(args)
    cfg = cli.build_config(argparse.Namespace(**{**vars(args), "root": "."}))
    if can_imagine(cfg.DATASET.NAME):
        return cfg
    return cli.build_config(args)


def _root_given(args: argparse.Namespace) -> bool:
    return bool(args.root or args.data) or "DATASET.ROOT" in args.opts[::2]


def estimate(cfg: Any, args: argparse.Namespace) -> dict[str, Any]:
    """All numbers of the report, as plain dictionaries and lists."""
    kind = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    there = not can_imagine(cfg.DATASET.NAME) or (_root_given(args) and is_there(cfg))
    if not hasattr(kind, "learned"):
        raise UsageError(f"{cfg.TRAINER.NAME} is none of our trainers: its step cannot be taken apart")
    gpu = GPUS[args.gpu] if args.gpu else None
    with after_stage_one(cfg, args, there=there) as behind, _quietly(), weightless():
        trainer, batch = _built(_without_weights(behind, kind), there)
        _say("counting a step")
        step = _counted(trainer, batch, cfg.MODEL.TEXT_CHUNK, gpu)
        whole = count_whole_text(trainer)
    run = run_of(trainer, step)
    flops = flops_of(trainer, step, whole)
    stored = store_of(cfg, trainer, step, run)
    found: dict[str, Any] = {
        "trainer": cfg.TRAINER.NAME,
        "student": cfg.MODEL.BACKBONE.NAME,
        "teacher": flatten(cfg).get(kind.teacher_key, "") if trainer.taught_by() is not None else "",
        "dataset": cfg.DATASET.NAME,
        "data": "" if not there else cfg.DATASET.ROOT,
        "stage_one": getattr(kind, "stage_one", ""),
        "workers": cfg.DATALOADER.NUM_WORKERS,
        "precision": trainer.precision.name,
        "run": run,
        "flops": flops,
        "memory": memory_of(trainer, batch, step, whole),
        "store": stored,
    }
    if gpu:
        found["gpu"] = {
            "name": args.gpu,
            **cost_on(gpu, found, efficiency=args.efficiency, decode_ms=args.decode_ms),
        }
    return found


def _say(line: str) -> None:
    print(f"{line} ...", file=sys.stderr, flush=True)


# The trainer


@contextmanager
def _quietly() -> Iterator[None]:
    """Half precision is counted here as it is on a GPU, and what building says of this machine is not printed."""
    devices = precision.HALF_DEVICES
    precision.HALF_DEVICES = (*devices, "cpu")
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        precision.HALF_DEVICES = devices


@contextmanager
def after_stage_one(cfg: Any, args: argparse.Namespace, *, there: bool) -> Iterator[Any]:
    """The configuration of a stage two behind zeros of the shapes that its stage one would learn; else cfg itself.

    Args:
        there: whether the dataset's images are.
    """
    stage_one = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "stage_one", "")
    if not stage_one or cfg.TRAINER.CASPL.BOOSTING:
        yield cfg
        return
    with TemporaryDirectory() as folder:
        first = configuration(cli.stage_one_flags(args, stage_one, folder))
        with _quietly(), weightless():
            trainer, _ = _built(_without_weights(first, TRAINER_REGISTRY.get(stage_one)), there)
            parts = {name: part.state_dict() for name, part in trainer.learned().items()}
        with _quietly():
            for name, state in parts.items():
                zeros = {key: torch.zeros(value.shape) for key, value in state.items()}
                save_checkpoint({"state_dict": zeros, "epoch": 1}, str(Path(folder, name)))
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TRAINER.CASPL.BOOSTING = folder
        cfg.freeze()
        yield cfg


def _without_weights(cfg: Any, kind: Any) -> Any:
    """The configuration with models of the same architectures that need no weights, on the CPU, with a live teacher."""
    names = {"MODEL.BACKBONE.NAME": _student(kind, cfg.MODEL.BACKBONE.NAME)}
    key = getattr(kind, "teacher_key", "")
    teacher = flatten(cfg)[key] if key else ""
    if teacher and not is_run(teacher):
        names[key] = untrained(teacher)
    cfg = cfg.clone()
    cfg.defrost()
    fixed = {
        "USE_CUDA": False,
        "VERBOSE": False,
        "STORE.DIR": "",
        "MODEL.COMPILE": "",
        "TRAINER.DHO.TEACHER.OTHER_LABELS": True,
    }
    for name, value in {**names, **fixed}.items():
        assign(cfg, name, value)
    cfg.freeze()
    return cfg


def _student(kind: Any, name: str) -> str:
    try:
        return untrained(name)
    except UsageError:
        if not hasattr(kind, "find_student"):
            raise
        source = find_backbone(name)
        return (TIMM if source.library == "timm" else "") + source.architecture.partition(".")[0]


def _built(cfg: Any, there: bool) -> tuple[Any, dict[str, Any]]:
    """The trainer, its teacher and a batch of its sizes."""
    with ExitStack() as stack:
        if not there:
            cfg = stack.enter_context(imagined(cfg))
        _say(f"building {cfg.TRAINER.NAME}")
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
        batches = trainer.train_loader_x.batches
    batch = _part(batches.labeled, batches.batch_size)
    if batches.unlabeled is not None:
        batch["unlabeled"] = _part(batches.unlabeled, batches.unlabeled_size)
    return trainer, batch


def _part(source: ViewSource, count: int) -> dict[str, Any]:
    sizes = source.sizes._asdict()
    views = {"img": sizes["student"], "img_teacher": sizes["teacher"]}
    zeros = torch.zeros(count, dtype=torch.long)
    images = {key: empty((count, 3, size, size), torch.uint8) for key, size in views.items() if size}
    return {"label": zeros, "index": zeros, "domain": zeros, **images}


def _counted(trainer: Any, batch: dict[str, Any], wanted: int, gpu: GPU | None) -> Step:
    """The step, its text in parts as MODEL.TEXT_CHUNK says, or as a run would choose on an otherwise empty GPU."""
    head = trainer.ce_head
    text = isinstance(head, PromptedClassifier)
    if text and wanted > 0:
        head.chunk = wanted
    parts = trainer.cfg.TRAIN.ACCUMULATE
    batch = cut(batch, parts)[0]
    step = count_step(trainer, batch)
    room = SHARE * gpu.memory * 1e9 if gpu else step.kept[TEXT]
    if text and wanted == AUTO and step.kept[TEXT] > room:
        head.chunk = max(1, int(trainer.num_classes * room / step.kept[TEXT]))
        step = count_step(trainer, batch)
    forward, backward, images = (
        {part: parts * number for part, number in numbers.items()}
        for numbers in (step.forward, step.backward, step.images)
    )
    return step._replace(forward=forward, backward=backward, images=images)
