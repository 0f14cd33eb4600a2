"""The records of a benchmark: which of them belong together, their names, and which sides did the same work."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ._page import Record, number

# Sides that are other libraries: the part of their name before a comma, to the name in tables.
LIBRARIES = {
    "torch": "PyTorch", "batched_torch": "batched PyTorch", "foolbox": "foolbox", "torchattacks": "torchattacks",
    "adv_lib": "adv-lib", "art": "ART",
}  # fmt: skip
WORKS = {
    "fgsm": "FGSM", "pgd": "PGD", "ddn": "DDN", "deepfool": "DeepFool", "jsma": "JSMA", "carlini_wagner_l2": "C&W L2",
    "carlini_wagner_l2_compacted": "C&W L2, early stop", "carlini_wagner_linf": "C&W Linf",
    "train_step": "training step", "train_epoch": "training epoch", "jacobian": "Jacobian",
    "stack": "stack of networks", "sweep": "sweep, nine temperatures",
}  # fmt: skip
# Comparisons of ddjax with itself.
INSIDE = {
    "layers_training": "lowerings, training", "layers_gradient": "lowerings, input gradient",
    "compaction": "shrinking batches", "precision": "precision", "jsma_step": "JSMA, a step",
    "purify": "purification by PixelDefend", "reconstruct": "reconstruction by Defense-GAN",
}  # fmt: skip
AXES = {f"growth_{axis}": axis for axis in ("examples", "steps", "features", "classes", "temperatures")}
# In the order of the tables.
_NAMES = WORKS | INSIDE | {work: f"growth, {axis}" for work, axis in AXES.items()}
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
        parts = [_NAMES.get(self.work, str(self.work).replace("_", " "))]
        parts += [_NAMES.get(value, value) for value in (self.attack, self.space) if value]
        return ", ".join([*parts, *([f"{self.networks} networks"] if self.networks else [])])

    @property
    def title_and_batch(self) -> str:
        """Its name in tables with the batch, without the network."""
        return self.title + ("" if self.batch is None else f", batch {self.batch}")


Compared = Mapping[Comparison, Mapping[str, Record]]


def comparisons(records: Sequence[Record]) -> dict[Comparison, dict[str, Record]]:
    """The sides of each comparison, by name, the base first; works in the order of the tables."""
    found: dict[Comparison, dict[str, Record]] = {}
    # Sorting keeps the order of equals.
    for record in sorted(records, key=lambda record: record.get("side") != record.get("base")):
        if record.get("measure") == "benchmark":
            found.setdefault(Comparison.of(record), {})[record["side"]] = record
    places = {work: place for place, work in enumerate(_NAMES)}

    def rank(key: Comparison) -> tuple[str, int, str, float]:
        return str(key.network or ""), places.get(key.work, len(places)), str(key.work), float(key.batch or 0)

    return {key: found[key] for key in sorted(found, key=rank)}


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
    return f"{LIBRARIES.get(head, head)}{comma}{rest}"


def is_correct(record: Record, ours: Record) -> bool:
    """Whether a side did the same work as ddjax; a value that it does not report counts as equal."""

    def both(name: str) -> tuple[float | None, float | None]:
        same = record.get(f"{name}_same")
        return record.get(name), ours.get(name) if same is None else same

    (success, our_success), (distance, our_distance) = both("success"), both("mean_distance")
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
    units = {1.0: "s", 1e-3: "ms", 1e-6: "µs", 1e-9: "ns"}
    size = next((size for size in units if seconds >= size), 1e-9)
    return f"{number(seconds / size)} {units[size]}"
