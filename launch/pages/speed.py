"""The records of a benchmark: which of them belong together, their names, and which sides did the same work."""

from collections.abc import Sequence

from ._page import Record, number

# Sides that are other libraries: the part of their name before a comma, to the name of the library.
LIBRARIES = {
    "torch": "PyTorch", "batched_torch": "PyTorch", "foolbox": "foolbox", "torchattacks": "torchattacks",
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
    "imported_pgd": "imported network, PGD", "imported_jsma": "imported network, JSMA",
}  # fmt: skip
# Comparisons of sizes.
GROWTH = {f"growth_{axis}": axis for axis in ("examples", "steps", "features", "classes", "temperatures")}
_TITLES = WORKS | INSIDE | {work: f"growth, {axis}" for work, axis in GROWTH.items()}
# The fields that identify a comparison, where a work has them.
KEY = ("network", "work", "attack", "space", "networks", "batch")
# A peer did the same work if it succeeds about as often, at about the same distance, with the same values.
_SUCCESS_SLACK, _DISTANCE_SLACK, _DIFFERENCE_SLACK = 0.02, 1.05, 1e-2

# The records of a comparison, the base first, with what `comparisons` adds.
Sides = Sequence[Record]


def key(record: Record) -> tuple[object, ...]:
    """What the records of a comparison have in common."""
    return tuple(record.get(name) for name in KEY)


def title(record: Record) -> str:
    """The name of a comparison in tables, without network and batch."""
    names = [str(record[name]) for name in ("work", "attack", "space") if record.get(name)]
    names = [_TITLES.get(name) or name.replace("_", " ") for name in names]
    return ", ".join([*names, *([f"{record['networks']} networks"] if record.get("networks") else [])])


def comparisons(records: Sequence[Record]) -> list[Sides]:
    """The sides of each comparison, a repeated one once; works stand in the order of their titles above.

    Each record gets a `title`, the `library` that its side is, if any, and whether it is `correct`.
    """

    def rank(record: Record) -> tuple[object, ...]:
        place = [*_TITLES, record["work"]].index(record["work"])
        where = str(record.get("network") or ""), place, str(record["work"]), float(record.get("batch") or 0)
        return *where, record["side"] != record.get("base")

    found: dict[object, dict[str, Record]] = {}
    for record in sorted((record for record in records if record.get("measure") == "benchmark"), key=rank):
        library = LIBRARIES.get(record["side"].partition(",")[0])
        found.setdefault(key(record), {})[record["side"]] = {**record, "title": title(record), "library": library}
    return [
        [{**record, "correct": is_correct(record, sides.get("ddjax", {}))} for record in sides.values()]
        for sides in found.values()
    ]


def side_name(side: str) -> str:
    """The name of a side in tables; what follows a comma is how a library was used."""
    head, comma, rest = side.partition(",")
    return "batched PyTorch" if head == "batched_torch" else f"{LIBRARIES.get(head, head)}{comma}{rest}"


def is_correct(record: Record, ours: Record) -> bool:
    """Whether a side did the same work as ddjax; a value that it does not report counts as equal."""

    def both(name: str) -> tuple[float | None, float | None]:
        same = record.get(f"{name}_same")
        return record.get(name), ours.get(name) if same is None else same

    success, our_success = both("success")
    distance, our_distance = both("mean_distance")
    if success is not None and our_success is not None and success < our_success - _SUCCESS_SLACK:
        return False
    if distance is not None and our_distance and distance > _DISTANCE_SLACK * our_distance:
        return False
    return (record.get("max_difference") or 0.0) <= _DIFFERENCE_SLACK


def peers(sides: Sides) -> list[Record]:
    """The sides that are other libraries: first those that did the same work, each group by time."""
    found = [record for record in sides if record["library"]]
    return sorted(found, key=lambda record: (not record["correct"], record["speedup"]))


def duration(seconds: float) -> str:
    """A time with a suitable unit."""
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-9)} ns"
