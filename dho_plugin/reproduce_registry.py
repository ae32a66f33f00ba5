"""Which commands show what each table and figure of the paper shows, at its scale and on the built-in pictures.

A step is a command line: `train.py` or a command of `python -m dho_plugin`, and its words. In it stand {root} for the
folder with the datasets, {output} for that of everything that comes out, {table} for the document, {configs} for the
yaml files and {jobs} for runs at a time; a flag whose value nobody gave is left out. Entries that need the same runs
name the same folders, so that each is trained once.
"""

from __future__ import annotations

from typing import NamedTuple

from .datasets import TEN
from .tables.low_shot_rows import B16, H14, L14

# What hours and the minutes below are of. Other work shared the machine, so that its clock says nothing.
GPU = "rtx4090"
MEASURED = "CPU time over 2 cores of a shared machine, Python 3.11, torch 2.14, no GPU"


class Entry(NamedTuple):
    """A table or a figure of the paper.

    Attributes:
        shows: what it is about. paper, demo: its steps at each scale.
        minutes: at demo scale; 0 where they were not measured. note: what is ours in it.
    """

    shows: str
    paper: tuple[str, ...]
    demo: tuple[str, ...]
    minutes: float = 0.0
    note: str = ""


HERE = "--root {root} --jobs {jobs} --table {table} --output-dir {output}"
FIXED = "TRAINER.DHO.ALPHA 0.4 TRAINER.DHO.BETA 0.5"

# Tables by shots, with the paper's single seed.
ON_IMAGENET = f"students --dataset imagenet --seeds 1 {HERE}/students/imagenet"
RESNET50 = "{output}/students/imagenet_resnet50"
ON_RESNET50 = f"students --dataset imagenet --backbone resnet50:dino --seeds 1 {HERE}/students/imagenet_resnet50"
ON_TEN = f"students --datasets ten --seeds 1 {HERE}/students"
ON_MOBILENET = f"students --datasets ten --backbone mobilenet_v2:imagenet --seeds 1 {HERE}/students_mobilenet"
LOW_SHOT = f"low-shot --dataset imagenet --seeds 1 {HERE}/low_shot"
NONLINEAR = f"ablations --datasets imagenet ten --which nonlinear --shots 1 2 4 8 16 --seeds 1 {HERE}/ablations"
NONLINEAR_16 = f"ablations --dataset imagenet --which nonlinear --shots 16 --seeds 1 {HERE}/ablations/imagenet"
CONFLICT = f"conflict --datasets {' '.join(TEN)} --seeds 1 --shots 16 {HERE}/conflict"

# The same on what needs no download.
DEMO = f"students --dataset shapes --shots 1 16 --seeds 1 2 {HERE}/students"
DEMO_RUNS = f"students --dataset shapes --shots 16 --seeds 1 2 3 --rows CEKD --rows DHO {HERE}/runs"
DEMO_SETS = f"students --datasets shapes digits --shots 1 16 --seeds 1 {HERE}/by_dataset"
DEMO_OTHER = (
    "students --datasets shapes digits --backbone timm/test_efficientnet --shots 1 16 --seeds 1 "
    f"{HERE}/by_dataset_efficientnet"
)
DEMO_LOW_SHOT = f"low-shot --dataset shapes --seeds 1 2 3 {HERE}/low_shot"
DEMO_NONLINEAR = f"ablations --datasets shapes digits --which nonlinear --shots 4 16 --seeds 1 2 {HERE}/ablations"
DEMO_CONFLICT = f"conflict --dataset shapes --shots 1 --teacher shapes-student --seeds 1 2 3 {HERE}/conflict"
DEMO_RUN, DEMO_DIGITS = "{output}/runs/shots16/DHO/seed1", "{output}/digits"


def resnet50(row: str) -> str:
    """The run of a row of Table 1 at 16 shots on DINO's ResNet-50, as that table trains it."""
    trainer, options = ("StudentDHO", f" {FIXED}") if row == "DHO" else (row, "")
    return (
        "train.py --dataset imagenet --root {root} --backbone resnet50:dino --shots 16 "
        f"--trainer {trainer} --teacher RN50 --seed 1 --output-dir {RESNET50}/shots16/{row}/seed1{options}"
    )


def of_ten(dataset: str) -> str:
    """The run of DHO at 16 shots on one of the ten datasets, as Figure 5 trains it."""
    return (
        f"train.py --dataset {dataset} --root {{root}} --shots 16 --trainer StudentDHO --teacher RN50 --seed 1 "
        f"--output-dir {{output}}/students/{dataset}/shots16/DHO/seed1 {FIXED} TRAINER.DHO.CHOOSE val"
    )


def explained(trainer: str, words: str) -> str:
    """What a run would do, in words; its data need not be there."""
    return f"train.py --explain --trainer {trainer} --root . {words}"


def estimated(student: str, teacher: str, words: str) -> str:
    """What a run of a pair on ImageNet would cost."""
    pair = f"--backbone {student} --teacher {teacher} --gpu {GPU}"
    return f"estimate --trainer StudentDHO --dataset imagenet {pair} {words}"


LOW_SHOT_FILE = "--config-file {configs}/trainers/Student/vit_b16_ep32.yaml"
ONE_PER_CENT = f"--dataset imagenet --labels simclr-1 {LOW_SHOT_FILE}"
SETTINGS = (
    explained("StudentDHO", "--dataset imagenet --shots 16"),
    explained("StudentDHO", "--dataset dtd --shots 16 TRAINER.DHO.CHOOSE val"),
    explained("StudentDHO", ONE_PER_CENT),
)
SETTINGS_OF_SHIFTS = (
    explained("StudentDHO", f"{ONE_PER_CENT} TRAINER.DHO.BETA 1.0"),
    *(explained(trainer, "--dataset imagenet --labels simclr-1") for trainer in ("LinearProbeDHO", "VPTDHO")),
    *(explained(trainer, "--dataset imagenet --shots 16") for trainer in ("CoOpDHO", "PromptSRCDHO")),
)
STAGES = tuple(explained(trainer, "--dataset imagenet --shots 16") for trainer in ("CoOpCasPL", "CoOpDHO"))
HEADS = tuple(explained(trainer, "--dataset imagenet --shots 16") for trainer in ("CEKD", "StudentDHO"))
COST_OF_TRAINING = (
    estimated("resnet18", "RN50", "--shots 16"),
    estimated("resnet50:dino", "RN50", "--shots 16"),
    *(estimated(*pair, f"--labels simclr-1 {LOW_SHOT_FILE}") for pair in ((B16, L14), (B16, H14), (L14, H14))),
)
HEAD_COSTS = "costs --students resnet18 resnet50"
ALL_HEAD_COSTS = "costs --students mobilenet_v2 resnet18 resnet50 timm/vit_base_patch16_224 vit_l_16"
MERGING_COSTS = "costs --students ViT-B/16 --tome 8"
SMALL = "--batch 1 8 --repeats 3"

COMPARED = ("CEKDFeature", "CEKD", "DHO")
PAPER_RUNS = tuple(map(resnet50, COMPARED))
PAPER_FOLDERS = " ".join(f"{RESNET50}/shots16/{row}/seed1" for row in COMPARED)
DEMO_FOLDERS = " ".join(f"{{output}}/runs/shots16/{row}/seed1" for row in COMPARED)
DEMO_ALL = " ".join(f"{{output}}/runs/shots16/{row}/seed{seed}" for row in COMPARED for seed in (1, 2, 3))
DEMO_DHO = " ".join(f"{{output}}/runs/shots16/DHO/seed{seed}" for seed in (1, 2, 3))
RESNET50_DHO = f"{RESNET50}/shots16/DHO/seed1"
WEAK = "The stand-in has a teacher that errs systematically, and one label a class, where one head shows the conflict."
OTHER_STUDENT = "The paper does not say which student; ours is DINO's ResNet-50."

HEADS_OF_PAPER = (resnet50("DHO"), f"heads {RESNET50_DHO} --output-dir {{output}}/heads")
HEADS_OF_DEMO = (DEMO_RUNS, f"heads {DEMO_DHO} --output-dir {{output}}/heads")
IMAGES_OF_PAPER = (resnet50("DHO"), f"gallery {RESNET50_DHO} --output-dir {{output}}/gallery/imagenet")
IMAGES_OF_DEMO = (DEMO_RUNS, f"gallery {DEMO_RUN} --output-dir {{output}}/gallery/shapes")
IMAGES_OF_TEN = tuple(
    step
    for name in TEN
    for step in (
        of_ten(name),
        f"gallery {{output}}/students/{name}/shots16/DHO/seed1 --output-dir {{output}}/gallery/{name}",
    )
)
IMAGES_OF_DIGITS = (
    f"train.py --trainer CE --dataset digits_confused --seed 1 --output-dir {DEMO_DIGITS}/teacher",
    f"train.py --trainer StudentDHO --dataset digits --shots 16 --teacher {DEMO_DIGITS}/teacher --seed 1 "
    f"--output-dir {DEMO_DIGITS}/DHO TRAINER.DHO.TEACHER.OTHER_LABELS True",
    f"gallery {DEMO_DIGITS}/DHO --output-dir {{output}}/gallery/digits",
)

ENTRIES = {
    "table1": Entry(
        "ImageNet by shots: rivals, DHO, DHO-F on two students",
        (ON_IMAGENET, ON_RESNET50),
        (DEMO,),
        note="One seed, as the paper.",
    ),
    "table2": Entry("what the second head costs at inference", (HEAD_COSTS,), (f"{HEAD_COSTS} {SMALL}",), minutes=0.2),
    "table3": Entry(
        "linear evaluation of frozen features",
        (*PAPER_RUNS, f"features {PAPER_FOLDERS} --linear --root {{root}} --output-dir {{output}}/features"),
        (DEMO_RUNS, f"features {DEMO_ALL} --linear --output-dir {{output}}/features"),
        note=OTHER_STUDENT,
        minutes=2.2,
    ),
    "table4": Entry("CLIP students from 1 and 10 % of the labels", (LOW_SHOT,), (DEMO_LOW_SHOT,), minutes=1.4),
    "table5": Entry(
        "how the heads of a CLIP student start",
        (f'{LOW_SHOT} --starts --rows "{L14}, 1 %"',),
        (f"ablations --dataset shapes --which start --seeds 1 2 {HERE}/starts",),
    ),
    "table6": Entry("the settings", SETTINGS, SETTINGS, minutes=0.1),
    "table7": Entry("what the second head costs, five students", (ALL_HEAD_COSTS,), (f"{ALL_HEAD_COSTS} {SMALL}",)),
    "table8": Entry("what training costs", COST_OF_TRAINING, COST_OF_TRAINING, minutes=0.5),
    "table9": Entry(
        "merging tokens: accuracy, FLOPs, throughput",
        (f'{LOW_SHOT} --rows "{B16} <- DFN"', MERGING_COSTS),
        (DEMO_LOW_SHOT, f"{MERGING_COSTS} {SMALL}"),
    ),
    "table10": Entry(
        "the datasets",
        ("data doctor --root {root}",),
        tuple(f"estimate --trainer CE --dataset {name} --shots {k}" for name in ("shapes", "digits") for k in (1, 16)),
    ),
    "table11": Entry("the settings for distribution shifts", SETTINGS_OF_SHIFTS, SETTINGS_OF_SHIFTS, minutes=0.1),
    "table12": Entry("the same students under distribution shifts", (LOW_SHOT,), (DEMO_LOW_SHOT,), minutes=1.4),
    "table13": Entry(
        "DHO on adaptation methods, under distribution shifts",
        (f"table13 --dataset imagenet --seeds 1 {HERE}/table13",),
        (f"table13 --dataset shapes --seeds 1 2 3 {HERE}/table13",),
        minutes=4.1,
    ),
    "table14": Entry("non-linear heads by shots", (NONLINEAR,), (DEMO_NONLINEAR,)),
    "table15": Entry("non-linear heads, each by itself", (NONLINEAR_16,), (DEMO_NONLINEAR,)),
    "figure1": Entry("one stage against two", STAGES, STAGES, minutes=0.1),
    "figure2": Entry(
        "DHO against the second best, and against the state of the art",
        (f"students --datasets imagenet ten --shots 16 --seeds 1 {HERE}/students", LOW_SHOT),
        (DEMO_SETS, DEMO_LOW_SHOT),
    ),
    "figure3": Entry("one head against two", HEADS, HEADS, minutes=0.1),
    "figure4": Entry("gradient conflict over training", (CONFLICT,), (DEMO_CONFLICT,), minutes=1, note=WEAK),
    "figure5": Entry("ten datasets by shots, zero-shot teacher", (ON_TEN,), (DEMO_SETS,)),
    "figure6": Entry("ten datasets by shots, few-shot teacher", (ON_TEN,), (DEMO_SETS,)),
    "figure7": Entry(
        "t-SNE of features",
        (
            *PAPER_RUNS[1:],
            f"features {PAPER_FOLDERS.partition(' ')[2]} --tsne --root {{root}} --output-dir {{output}}/tsne",
        ),
        (DEMO_RUNS, f"features {DEMO_FOLDERS} --tsne --output-dir {{output}}/tsne"),
        note=OTHER_STUDENT,
    ),
    "figure8": Entry(
        "each head alone, and both",
        (
            *HEADS_OF_PAPER,
            f"ablations --datasets ten --which heads --shots 16 --seeds 1 {HERE}/ablations",
        ),
        (*HEADS_OF_DEMO, f"ablations --datasets shapes digits --which heads --seeds 1 2 3 {HERE}/ablation_of_heads"),
    ),
    "figure9": Entry("images that one head or both together get right", IMAGES_OF_PAPER, IMAGES_OF_DEMO),
    "figure10": Entry("accuracy over alpha and beta", HEADS_OF_PAPER, HEADS_OF_DEMO),
    "figure11": Entry("ten datasets by shots on MobileNetV2, zero-shot teacher", (ON_MOBILENET,), (DEMO_OTHER,)),
    "figure12": Entry("ten datasets by shots on MobileNetV2, few-shot teacher", (ON_MOBILENET,), (DEMO_OTHER,)),
    "figure13": Entry(
        "spectrum of the heads, conflict at the features", (CONFLICT,), (DEMO_CONFLICT,), minutes=1, note=WEAK
    ),
    "figure14": Entry("non-linear heads on eleven datasets", (NONLINEAR,), (DEMO_NONLINEAR,)),
    "figure15": Entry("confidence, agreement and error reduction", HEADS_OF_PAPER, HEADS_OF_DEMO),
    "figure16": Entry("more images of ImageNet", IMAGES_OF_PAPER, IMAGES_OF_DEMO),
    "figure17": Entry("more images of ImageNet", IMAGES_OF_PAPER, IMAGES_OF_DEMO),
    "figure18": Entry("images of the ten datasets", IMAGES_OF_TEN, IMAGES_OF_DIGITS),
    "figure19": Entry("images of the ten datasets", IMAGES_OF_TEN, IMAGES_OF_DIGITS),
}
