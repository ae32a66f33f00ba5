"""The report of `python -m dho_plugin estimate` in words and tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..predicting import printable
from ..tables.summary import Table, markdown
from ..text_memory import GIB
from .counting import IMAGE, PARTS, REFERENCE, REST, TEACHER, TEXT

MIB = 2**20
NAMES = {
    TEACHER: "teacher",
    IMAGE: "student's image tower",
    REFERENCE: "frozen image tower beside it",
    TEXT: "text tower",
    REST: "heads and the rest",
}
WAYS = {"peers": "peers' way", "live": "here", "stored": "frozen parts stored"}


def report(found: dict[str, Any]) -> str:
    """Everything that `estimate` found, for people."""
    parts = [list(_run(found)), [markdown(_flops(found))], list(_memory(found)), list(_store(found))]
    if "gpu" in found:
        parts.append(list(_gpu(found)))
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _run(found: dict[str, Any]) -> Iterator[str]:
    run = found["run"]
    names = f"{found['trainer']} on {found['student']}" + (f", taught by {found['teacher']}" * bool(found["teacher"]))
    yield printable(f"{names}, {found['precision']}")
    yield printable(
        f"{found['dataset']}: {run['classes']:,} classes, {run['labeled']:,} labelled and {run['unlabeled']:,} "
        "unlabelled images, "
        + (f"found in {found['data']}" if found["data"] else "by published numbers: they are not here")
    )
    if not found["data"] and found["dataset"] != "ImageNet":
        yield "ImageNet's class names stand for its own, which come with the images"
    beside = f" + {run['unlabeled_batch']} unlabelled" if run["unlabeled_batch"] else ""
    if run["steps"]:
        yield (
            f"{run['steps_per_epoch']:,} steps an epoch of {run['batch']}{beside} images, {run['epochs']} epochs: "
            f"{run['steps']:,} steps"
        )
    else:
        yield "It learns nothing by gradients: the numbers are of one forward pass"
    if run["text_chunk"]:
        yield f"The text runs in parts of {run['text_chunk']:,} classes, each encoded once more for the gradient"
    if found["stage_one"]:
        yield f"This is stage two alone; for stage one: estimate --trainer {found['stage_one']}"


def _flops(found: dict[str, Any]) -> Table:
    flops = found["flops"]
    totals = {way: sum(of.values()) for way, of in flops.items()}
    unit, scale = ("TFLOP", 1e12) if totals["peers"] >= 1e11 else ("GFLOP", 1e9)
    lines = []
    for part in PARTS:
        for direction in ("forward", "backward"):
            key = f"{part} {direction}"
            if any(flops[way][key] for way in WAYS):
                lines.append((f"{NAMES[part]}, {direction}", *(_digits(flops[way][key] / scale) for way in WAYS)))
    lines.append(("a step", *(_digits(totals[way] / scale) for way in WAYS)))
    lines.append(("peers' over it", *(_digits(totals["peers"] / max(1, totals[way])) for way in WAYS)))
    return Table((f"{unit} a step", *WAYS.values()), tuple(lines))


def _memory(found: dict[str, Any]) -> Iterator[str]:
    memory = found["memory"]
    trained = memory["gradients"] + memory["optimizer"]
    yield (
        f"Memory: weights {amount(memory['weights'])}; {memory['learned']:,} learned parameters, their gradients and "
        f"optimiser state {amount(trained)}"
    )
    kept = [
        f"{NAMES[part]} {amount(memory[f'kept {part}'])}"
        + (f" (peers {amount(memory['kept text, peers'])})" if part == TEXT else "")
        for part in PARTS
        if memory[f"kept {part}"]
    ]
    if kept:
        yield f"Kept for the gradient: {', '.join(kept)}"
    fits = ""
    if "gpu" in found:
        room = found["gpu"]["memory"]
        fits = f", of {room // 10**9} GB" + (": DOES NOT FIT" if memory["peak"] > room else "")
    yield f"At most at once about {amount(memory['peak'])}{fits}, without what CUDA takes for itself"


def _store(found: dict[str, Any]) -> Iterator[str]:
    store = found["store"]
    ways = {fresh: [row for row in store["kept"] if row["fresh"] == fresh] for fresh in (True, False)}
    again = [row["views"] for row in ways[True]] != [row["views"] for row in ways[False]]
    for fresh, name in ((True, "a fresh view in each pass"), (False, "by STORE.VIEWS and LABELED_VIEWS")):
        for row in ways[fresh] if fresh or again else ():
            of = "the teacher" if row["of"] == TEACHER else "the frozen student"
            yield f"Stored, {name}: {row['views']:,} of {of}, {amount(row['bytes'])}, {_work(row['flops'])} to fill"
    if store["free"] is not None:
        wanted = sum(row["bytes"] for row in ways[False])
        short = ": TOO LITTLE" if wanted > store["free"] else ""
        yield printable(f"STORE.DIR {store['folder']}: {amount(store['free'])} free{short}")


def _gpu(found: dict[str, Any]) -> Iterator[str]:
    gpu, run = found["gpu"], found["run"]
    hours, stored = gpu["hours"], found["store"]["kept"]
    if not run["steps"]:
        return

    def taken(way: str) -> str:
        return f"{_time(hours[way])} ({_digits(hours[way] * 3.6e6 / run['steps'])} ms a step)"

    yield f"Arithmetic alone, {gpu['name']}, {gpu['peak_tflops']:g} TFLOP/s at {100 * gpu['efficiency']:g} %:"
    yield f"  peers' way {taken('peers')}, here {taken('live')}"
    if stored:
        yield f"  stored {taken('stored')}, after {_time(hours['filling'])} of filling once"
    ways = {"live": "here", "stored": "stored"} if stored else {"live": "here"}
    for way, name in ways.items():
        loader = gpu["loader"][way]
        if not loader["images_per_second"]:
            yield f"Input, {name}: no image is decoded"
            continue
        slow = loader["hours"] > hours[way]
        limit = f": the loader is the limit, {_time(loader['hours'])}" if slow else ""
        workers, decode = max(1, found["workers"]), loader["decode_ms"]
        yield (
            f"Input, {name}: {loader['images_per_second']:,.0f} images a second are wanted, "
            f"{1000 * workers / decode:,.0f} come of {workers} workers at {decode:g} ms{limit}"
        )


def amount(size: float) -> str:
    """Bytes for people."""
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / MIB:,.2f} MiB"


def _work(flops: float) -> str:
    return f"{flops / 1e15:,.3g} PFLOP" if flops < 1e18 else f"{flops / 1e18:,.3g} EFLOP"


def _digits(value: float) -> str:
    if not value:
        return "-"
    return (
        f"{value:,.0f}"
        if value >= 1000
        else f"{value:,.1f}"
        if value >= 100
        else f"{value:.2f}"
        if value >= 1
        else f"{value:.2g}"
    )


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.2g} s"
