"""The records of a benchmark: which of them belong together, their names, and which sides did the same work."""

from collections.abc import Mapping, Sequence
from typing import Any

from ._page import Record, number

# The fields that identify a comparison.
WHERE = ("work", "network", "attack", "space", "networks", "batch")
Comparison = tuple[Any, ...]
# Sides that are other libraries: the part of their name before a comma, to the name of the library.
LIBRARIES = {
    "torch": "PyTorch",
    "batched_torch": "PyTorch",
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "adv_lib": "adv-lib",
    "art": "ART",
}
WORKS = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "ddn": "DDN",
    "deepfool": "DeepFool",
    "jsma": "JSMA",
    "carlini_wagner_l2": "C&W L2",
    "carlini_wagner_l2_compacted": "C&W L2, early stop",
    "carlini_wagner_linf": "C&W Linf",
    "train_step": "training step",
    "train_epoch": "training epoch",
    "jacobian": "Jacobian",
    "stack": "stack of networks",
    "sweep": "sweep, nine temperatures",
}
# Comparisons of ddjax with itself.
INSIDE = {
    "layers_training": "lowerings, training",
    "layers_gradient": "lowerings, input gradient",
    "compaction": "shrinking batches",
    "precision": "precision",
    "jsma_step": "JSMA, a step",
    "purify": "purification by PixelDefend",
    "reconstruct": "reconstruction by Defense-GAN",
}
AXES = {
    "growth_examples": "examples",
    "growth_steps": "steps",
    "growth_features": "features",
    "growth_classes": "classes",
    "growth_temperatures": "temperatures",
}
# A peer did the same work if it succeeds about as often, at about the same distance, with the same values.
_SUCCESS_SLACK, _DISTANCE_SLACK, _DIFFERENCE_SLACK = 0.02, 1.05, 1e-2


def field(key: Comparison, name: str) -> Any:
    """One of the fields `WHERE` of a comparison."""
    return key[WHERE.index(name)]


def comparisons(records: Sequence[Record]) -> dict[Comparison, dict[str, Record]]:
    """The sides of each comparison, by name, the base first; works in the order of the tables."""
    found: dict[Comparison, dict[str, Record]] = {}
    for record in records:
        if record.get("measure") == "benchmark":
            found.setdefault(tuple(record.get(name) for name in WHERE), {})[record["side"]] = record
    works = [*WORKS, *INSIDE, *AXES]

    def rank(key: Comparison) -> tuple[str, int, str, float]:
        work, batch = field(key, "work"), field(key, "batch")
        place = works.index(work) if work in works else len(works)
        return str(field(key, "network") or ""), place, str(work), float(batch or 0)

    ordered = {key: found[key] for key in sorted(found, key=rank)}
    return {
        key: dict(sorted(sides.items(), key=lambda item: item[0] != item[1].get("base")))
        for key, sides in ordered.items()
    }


def is_beside(key: Comparison, sides: Mapping[str, Record]) -> bool:
    """Whether other libraries can take part in a comparison."""
    work = field(key, "work")
    return "ddjax" in sides and work not in INSIDE and work not in AXES


def is_library(side: str) -> bool:
    """Whether a side is another library; what follows a comma in its name is how it was used."""
    return side.partition(",")[0] in LIBRARIES


def side_name(side: str) -> str:
    """The name of a side in tables."""
    head, comma, rest = side.partition(",")
    return "batched PyTorch" if head == "batched_torch" else f"{LIBRARIES.get(head, head)}{comma}{rest}"


def is_correct(record: Record, ours: Record) -> bool:
    """Whether a side did the same work as ddjax; a value that it does not report counts as equal."""
    by_us = {
        name: record[f"{name}_same"] if record.get(f"{name}_same") is not None else ours.get(name)
        for name in ("success", "mean_distance")
    }
    success, distance = record.get("success"), record.get("mean_distance")
    if success is not None and by_us["success"] is not None and success < by_us["success"] - _SUCCESS_SLACK:
        return False
    if distance is not None and by_us["mean_distance"] and distance > _DISTANCE_SLACK * by_us["mean_distance"]:
        return False
    return (record.get("max_difference") or 0.0) <= _DIFFERENCE_SLACK


def peers(sides: Mapping[str, Record]) -> list[Record]:
    """The sides that are other libraries: first those that did the same work, each group by time."""
    ours = sides.get("ddjax", {})
    found = [record for side, record in sides.items() if is_library(side)]
    return sorted(found, key=lambda record: (not is_correct(record, ours), record["speedup"]))


def title(key: Comparison) -> str:
    """The name of a comparison in tables, without network and batch."""
    work = field(key, "work")
    names = WORKS | INSIDE | {growth: f"growth, {axis}" for growth, axis in AXES.items()}
    name: str = names.get(work) or str(work).replace("_", " ")
    rest = [str(WORKS.get(value, value)) for value in (field(key, "attack"), field(key, "space")) if value]
    if field(key, "networks"):
        rest.append(f"{field(key, 'networks')} networks")
    return ", ".join([name, *rest])


def title_and_batch(key: Comparison) -> str:
    """The name of a comparison with its batch, without the network."""
    batch = field(key, "batch")
    return title(key) + ("" if batch is None else f", batch {batch}")


def duration(seconds: float | None) -> str:
    """A time with a suitable unit; empty for None."""
    if seconds is None:
        return ""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-9)} ns"


def broken(records: Sequence[Record]) -> dict[Comparison, dict[str, str]]:
    """The errors of sides that broke, by comparison."""
    found: dict[Comparison, dict[str, str]] = {}
    for record in records:
        if record.get("measure") == "peer_broken":
            found.setdefault(tuple(record.get(name) for name in WHERE), {})[record["side"]] = str(record.get("error"))
    return found
