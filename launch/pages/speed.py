"""The records of a benchmark: which of them belong together, their names, and which sides did the same work."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ._page import Record, number

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


class Comparison(NamedTuple):
    """The fields that identify a comparison; None where a work has no such field."""

    work: str
    network: str | None
    attack: str | None
    space: str | None
    networks: int | None
    batch: int | None

    @classmethod
    def of(cls, record: Record) -> "Comparison":
        """The comparison that a record belongs to."""
        return cls(*(record.get(name) for name in cls._fields))  # pyright: ignore[reportArgumentType]

    @property
    def title(self) -> str:
        """Its name in tables, without network and batch."""
        names = WORKS | INSIDE | {growth: f"growth, {axis}" for growth, axis in AXES.items()}
        parts = [names.get(self.work) or str(self.work).replace("_", " ")]
        parts += [str(WORKS.get(value, value)) for value in (self.attack, self.space) if value]
        return ", ".join([*parts, *([f"{self.networks} networks"] if self.networks else [])])

    @property
    def title_and_batch(self) -> str:
        """Its name in tables with the batch, without the network."""
        return self.title + ("" if self.batch is None else f", batch {self.batch}")


Compared = Mapping[Comparison, Mapping[str, Record]]


def comparisons(records: Sequence[Record]) -> dict[Comparison, dict[str, Record]]:
    """The sides of each comparison, by name, the base first; works in the order of the tables."""
    found: dict[Comparison, dict[str, Record]] = {}
    for record in records:
        if record.get("measure") == "benchmark":
            found.setdefault(Comparison.of(record), {})[record["side"]] = record
    works = [*WORKS, *INSIDE, *AXES]

    def rank(key: Comparison) -> tuple[str, int, str, float]:
        place = works.index(key.work) if key.work in works else len(works)
        return str(key.network or ""), place, str(key.work), float(key.batch or 0)

    def base_first(sides: dict[str, Record]) -> dict[str, Record]:
        return dict(sorted(sides.items(), key=lambda item: item[0] != item[1].get("base")))

    return {key: base_first(found[key]) for key in sorted(found, key=rank)}


def broken(records: Sequence[Record]) -> dict[Comparison, dict[str, str]]:
    """The errors of sides that broke, by comparison."""
    found: dict[Comparison, dict[str, str]] = {}
    for record in records:
        if record.get("measure") == "peer_broken":
            found.setdefault(Comparison.of(record), {})[record["side"]] = str(record.get("error"))
    return found


def side_name(side: str) -> str:
    """The name of a side in tables; what follows a comma is how a library was used."""
    head, comma, rest = side.partition(",")
    return "batched PyTorch" if head == "batched_torch" else f"{LIBRARIES.get(head, head)}{comma}{rest}"


def is_correct(record: Record, ours: Record) -> bool:
    """Whether a side did the same work as ddjax; a value that it does not report counts as equal."""

    def by_us(name: str) -> float | None:
        same = record.get(f"{name}_same")
        return ours.get(name) if same is None else same

    success, distance = record.get("success"), record.get("mean_distance")
    our_success, our_distance = by_us("success"), by_us("mean_distance")
    if success is not None and our_success is not None and success < our_success - _SUCCESS_SLACK:
        return False
    if distance is not None and our_distance and distance > _DISTANCE_SLACK * our_distance:
        return False
    return (record.get("max_difference") or 0.0) <= _DIFFERENCE_SLACK


def peers(sides: Mapping[str, Record]) -> list[Record]:
    """The sides that are other libraries: first those that did the same work, each group by time."""
    ours = sides.get("ddjax", {})
    found = [record for side, record in sides.items() if side.partition(",")[0] in LIBRARIES]
    return sorted(found, key=lambda record: (not is_correct(record, ours), record["speedup"]))


def duration(seconds: float | None) -> str:
    """A time with a suitable unit; empty for None."""
    if seconds is None:
        return ""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-9)} ns"
