"""The page of attacks on one network, of `launch.attack`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import figures
from ddjax.report import page
from ddjax.report.page import listed, number, percent

HEADING = "Attacks on one network"

# Prefix of the fields to how the distance is called.
_NORMS = {"l0_pixels": "L0, pixels", "l0_values": "L0, values", "l1": "L1", "l2": "L2", "linf": "Linf"}
# Those that attacks are compared in, as sentences call them.
_COMPARED = {"l0_pixels": "L0", "l2": "L2", "linf": "Linf"}
_CASES = ("best", "average", "worst")
_TARGETS = {
    "none": "untargeted",
    "all": "all targets",
    "random": "a random target",
    "next": "the next class",
    "least_likely": "the least likely class",
}
_NUM_EXAMPLES = 10

Record = Mapping[str, Any]


def sections(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `table.csv` and the figures; the arguments and the result are those of `sweep.sections`."""
    page.write_table([page.without_seconds(record) for record in records], workdir / "table.csv")
    written = [page.section("Summary", page.paragraph(conclude(records)))]
    attacks = _of(records, "attack")
    if attacks:
        written.append(page.section("Attacks", f"{page.grid(*_table(attacks))}\n{page.note(_NOTE)}"))
    cases = [record for record in attacks if record.get("best_n")]
    if cases:
        groups = [("", 1), *((f"{case} case", 1 + len(_COMPARED)) for case in _CASES)]
        body = f"{page.grid(*_cases_table(cases), groups)}\n{page.note(_CASES_NOTE)}"
        written.append(page.section("Best, average and worst case", body))
    proofs = _of(records, "certify")
    if proofs:
        drawn = {}
        for record in proofs:
            arrays = page.load_arrays(workdir / "images" / f"certify_{record['norm']}.npz")
            figure = None
            if arrays:
                # At distance zero an image is misclassified as it is, and there is nothing to bracket.
                right = arrays["attacked"] > 0
                figure = figures.brackets(arrays["proved"][right], arrays["attacked"][right], _norm(record))
            drawn[f"certify_{record['norm']}"] = (figure, "")
        body = f"{page.grid(*_proofs_table(proofs))}\n{page.note(_PROOFS_NOTE)}\n"
        body += f"{page.note(_BRACKETS_NOTE)}\n{page.show_figures(drawn, workdir)}"
        written.append(page.section("Certified distances", body))
    if attacks:
        body = f"{page.note(_GALLERY_NOTE)}\n{page.show_figures(_gallery(records, config, workdir), workdir)}"
        written.append(page.section("Examples", body))
    return written


def readme_table(records: Sequence[Record], config: Mapping[str, Any]) -> str:
    """The attacks as a Markdown table: success, and means of the distances."""
    header = ["attack", "targets", "success", "after 8-bit rounding", *(f"mean {_NORMS[norm]}" for norm in _COMPARED)]
    cells = [
        [
            record["attack"],
            _targets(record),
            f"{percent(record['success'])} [{100 * record['success_low']:.1f}, {100 * record['success_high']:.1f}]",
            percent(record["success_8_bits"]),
            *(number(record.get(f"{norm}_mean")) for norm in _COMPARED),
        ]
        for record in _of(records, "attack")
        if record["n"]
    ]
    return page.markdown(header, cells)


_NOTE = (
    "Success: share of the attempts on correctly classified images, with its 95 % Wilson interval; the misclassified "
    "leave the count. After 8-bit rounding: the same with pixels rounded to what an image file holds. Distances: mean, "
    "median and largest over the successes. Steps, gradients and seconds: mean for one attempt. "
    "All columns but the seconds are in table.csv."
)
_CASES_NOTE = (
    "Of each image all other classes were aimed at. Best case: the nearest target that was reached; average: all of "
    "them; worst: the farthest one, a success only where all were reached. Every image counts, also one that is "
    "misclassified without an attack, as in Carlini and Wagner 2017. Distances: means over the case's successes."
)
_PROOFS_NOTE = (
    "Proved: images with a positive distance within which no adversarial example exists; mean and median are over all "
    "images classified correctly, 0 for those without a proof. Attacked: images on which "
    "some attack of this page succeeded, and the mean distance of the nearest success. Violations: images whose "
    "nearest success is nearer than the proof, which must not happen."
)
_BRACKETS_NOTE = (
    "In the figure an image is a line, from the distance within which the proof excludes adversarial examples up to "
    "the nearest one an attack found. Hollow marks stand at the edge for what was not proved or not found."
)
_GALLERY_NOTE = (
    "From the top: clean, adversarial, and their difference, in which gray is no change and each image's largest "
    "change takes the whole scale. Solid green: success. Dashed red, with ✗: failure. Correctly classified images, "
    "chosen by class and not by outcome."
)


def conclude(records: Sequence[Record]) -> str:
    """Says in a paragraph what the numbers say.

    Two rates count as different only if their 95 % intervals do not overlap.

    Args:
      records: the records of `results.jsonl`.

    Returns:
      Plain text.
    """
    attacks = [record for record in _of(records, "attack") if record["n"]]
    said = []
    if not attacks:
        said.append("No attack has been measured on a correctly classified image yet.")
    for targets in dict.fromkeys(record["targets"] for record in attacks):
        said += _say_strongest([record for record in attacks if record["targets"] == targets])
    said += _say_rounding(attacks) + _say_precision(attacks) + _say_failures(attacks)
    for record in _of(records, "certify"):
        said.append(_say_proof(record))
    return " ".join(said)


def _say_strongest(attacks: Sequence[Record]) -> list[str]:
    """The attacks with the same choice of targets, compared."""
    best = max(attacks, key=lambda record: record["success"])
    if not best["successes"]:
        return []
    where = _targets(best).capitalize()
    trials = f"of {best['n']} attempts"
    if len(attacks) == 1:
        reached = [
            f"{number(best[f'{norm}_mean'])} in {name}"
            for norm, name in _COMPARED.items()
            if best.get(f"{norm}_mean") is not None
        ]
        distances = f", at a mean distance of {listed(reached)}" if reached else ""
        return [f"{where}: {best['attack']} succeeds in {percent(best['success'])} {trials}{distances}."]
    first = [record["attack"] for record in attacks if record["success"] == best["success"]]
    verb = "succeeds" if len(first) == 1 else "succeed"
    said = (
        f"{where}: of {len(attacks)} attacks {listed(first)} {verb} most often, in {percent(best['success'])} {trials}"
    )
    rivals = [record for record in attacks if record["success_high"] >= best["success_low"] and record["successes"]]
    if len(rivals) == 1:
        return [f"{said}; the others succeed clearly less often."]
    # Means of attacks that reach different shares of the images are not comparable: an attack that only reaches the
    # easy ones has a small mean.
    nearest = []
    for norm, name in _COMPARED.items():
        known = [record for record in rivals if record.get(f"{norm}_mean") is not None]
        if known:
            least = min(known, key=lambda record: record[f"{norm}_mean"])
            nearest.append(f"{least['attack']} in {name} ({number(least[f'{norm}_mean'])})")
    return [f"{said}. Among the {len(rivals)} that succeed about as often, the nearest on average: {listed(nearest)}."]


def _say_rounding(attacks: Sequence[Record]) -> list[str]:
    lost = [
        f"{record['attack']} from {percent(record['success'])} to {percent(record['success_8_bits'])}"
        for record in attacks
        if record["success_8_bits"] < record["success_low"]
    ]
    if not lost:
        return []
    return [f"Rounded to 8 bits, as a file stores them, the images of some attacks lose their effect: {listed(lost)}."]


def _say_precision(attacks: Sequence[Record]) -> list[str]:
    """What attacks that saw the classifier in a lower precision achieve against it in float32."""
    said = []
    for record in attacks:
        if record.get("forward", "float32") == "float32":
            continue
        believed = f"{record['attack']} believes in {percent(record['claimed'])} of its examples"
        text = f"{believed}; in float32 {percent(record['success'])} hold"
        setting = f"forward={record['forward']}"
        plain = [part for part in record["attack"].partition(":")[2].split(",") if part != setting]
        name = ":".join(filter(None, [record["attack"].partition(":")[0], ",".join(plain)]))
        twins = [other for other in attacks if (other["attack"], other["targets"]) == (name, record["targets"])]
        if twins:
            text += f", against {percent(twins[0]['success'])} when it sees the classifier in float32"
        said.append(f"{text}.")
    return said


def _say_failures(attacks: Sequence[Record]) -> list[str]:
    failed = list(dict.fromkeys(record["attack"] for record in attacks if not record["successes"]))
    if not failed:
        return []
    said = [
        f"{listed(failed)} never {'succeeds' if len(failed) == 1 else 'succeed'}. That alone is no robustness: an "
        "attack also fails for want of a gradient to follow, of steps, or of a wide enough bound, and these records do "
        "not tell which."
    ]
    others = [record for record in attacks if record["successes"]]
    if others:
        best = max(others, key=lambda record: record["success"])
        said.append(f"The same network is fooled by {best['attack']} in {percent(best['success'])} of the attempts.")
    return said


def _say_proof(record: Record) -> str:
    norm, n = _norm(record), record["n"]
    mean = f", a mean of {number(record['mean_proved'])} over all of them" if record["proved"] else ""
    said = f"In {norm}, {record['method']} proves a distance for {record['proved']} of {n} images{mean}; "
    if not record["attacked"]:
        return f"{said}no attack succeeded on any, so nothing bounds the true distance from above."
    said += f"the attacks succeed on {record['attacked']}, at a mean of {number(record['mean_attacked'])}. "
    if record["violations"]:
        return (
            f"{said}On {record['violations']} of the images an attack is nearer than the proof allows: one of the two "
            "is wrong, and these proofs must not be trusted."
        )
    return f"{said}No attack is nearer than a proof."


def _of(records: Sequence[Record], measure: str) -> list[Record]:
    found = [record for record in records if record.get("measure") == measure]
    if measure == "certify":
        # After more attacks a proof is compared again, and the newer record holds.
        return list({record["norm"]: record for record in found}.values())
    return found


def _norm(record: Record) -> str:
    return _NORMS.get(record["norm"], str(record["norm"]))


def _targets(record: Record) -> str:
    return _TARGETS.get(record["targets"], str(record["targets"]))


def _table(attacks: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    norms = dict(_NORMS)
    # Where a pixel is one value, the two counts are the same.
    if all(record.get("l0_values_mean") == record.get("l0_pixels_mean") for record in attacks):
        del norms["l0_values"]
    header = ["attack", "targets", "success", "after 8-bit rounding", *norms.values(), "steps", "gradients", "seconds"]
    cells = []
    for record in attacks:
        distances = [
            f"{number(record[f'{norm}_mean'])}\nmedian {number(record[f'{norm}_median'])}\n"
            f"worst {number(record[f'{norm}_worst'])}"
            if record.get(f"{norm}_mean") is not None
            else ""
            for norm in norms
        ]
        rounded = percent(record["success_8_bits"]) if record["n"] else ""
        costs = [number(record.get(name)) for name in ("mean_steps", "mean_gradients", "seconds_per_example")]
        # The settings in small print, a line each, keep the column narrow.
        name = record["attack"].replace(":", "\n").replace(",", "\n")
        line = [name, _targets(record), page.rate_cell(record, "success"), rounded, *distances, *costs]
        cells.append(line)
    return header, cells


def _cases_table(attacks: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    header = ["attack"]
    for _ in _CASES:
        header += ["success", *(_NORMS[norm] for norm in _COMPARED)]
    cells = []
    for record in attacks:
        line = [record["attack"]]
        for case in _CASES:
            line.append(f"{percent(record[f'{case}_success'])}\nn = {record[f'{case}_n']}")
            line += [number(record.get(f"{case}_{norm}")) for norm in _COMPARED]
        cells.append(line)
    return header, cells


def _proofs_table(proofs: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    header = ["norm", "method", "images", "proved", "mean", "median", "attacked", "mean", "violations", "seconds"]
    return header, [
        [
            _norm(record),
            record["method"],
            *(str(record[name]) for name in ("n", "proved")),
            *(number(record.get(name)) for name in ("mean_proved", "median_proved")),
            str(record["attacked"]),
            number(record.get("mean_attacked")),
            str(record["violations"]),
            number(record.get("seconds_per_example")),
        ]
        for record in proofs
    ]


def _gallery(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> dict[str, tuple[Any, str]]:
    """A strip of examples for each attack whose images are there."""
    folder = workdir / "images"
    clean = page.load_arrays(folder / "clean.npz")
    drawn = {}
    for record in records:
        if record.get("measure") != "attack" or not clean:
            continue
        path = workdir / record["file"]
        arrays = page.load_arrays(path)
        if not arrays:
            continue
        chosen = _choose(arrays["labels"], arrays["rows"], clean["predictions"] == clean["labels"])
        originals = clean["images"][arrays["rows"][chosen]] / 255
        examples = {"clean": originals, "adversarial": arrays["images"][chosen]}
        examples |= {
            name: arrays[name][chosen] for name in ("labels", "predictions", "success", "targets") if name in arrays
        }
        title = f"{record['attack']}, {_targets(record)}"
        figure = figures.strip(examples, page.class_names(config), title)
        drawn[f"gallery_{path.stem}"] = (figure, "")
    return drawn


def _choose(labels: np.ndarray, rows: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Attempts to show: on images of many classes, and on each another of its attempts, so that targets vary."""
    attempts: dict[int, list[int]] = {}
    for attempt in np.flatnonzero(correct[rows]):
        attempts.setdefault(int(rows[attempt]), []).append(int(attempt))
    seen: dict[int, int] = {}
    order = []
    for row, found in attempts.items():
        label = int(labels[found[0]])
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], label, row))
    images = [row for *_, row in sorted(order)[:_NUM_EXAMPLES]]
    # In steps of seven, since in steps of one each image would get the class after its own.
    return np.array([attempts[row][7 * place % len(attempts[row])] for place, row in enumerate(images)], int)
