"""The page of Carlini and Wagner's comparison of attacks, of `launch.carlini`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ddjax import figures, metrics, published
from ddjax.published import Cases
from ddjax.report import page
from ddjax.report.page import Row, listed, number, percent

HEADING = "Attacks with and without distillation"

# The attacks in the order of the paper's table, and how they are called.
_ATTACKS = {
    "carlini_wagner_l0": "C&W L0",
    "jsma_z": "JSMA-Z",
    "jsma_f": "JSMA-F",
    "carlini_wagner_l2": "C&W L2",
    "deepfool": "DeepFool",
    "carlini_wagner_linf": "C&W Linf",
    "fgsm": "FGSM",
    "bim": "iterative FGSM",
}
_STRONG = ("carlini_wagner_l0", "carlini_wagner_l2", "carlini_wagner_linf")
_NORMS = {"l0_pixels": "L0, pixels", "l2": "L2", "linf": "Linf"}
_NETWORKS = {"baseline": "undistilled", "student": "distilled"}
_CASES = ("best", "average", "worst")
# The temperature of the published distilled networks.
_PUBLISHED_TEMPERATURE = 100
# From this share of successes on an attack counts as one that works.
_WORKS = 0.95
_MAX_CLASSES = 10

Record = Mapping[str, Any]
_Measured = dict[str, dict[str, Record]]


def sections(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `table.csv` and the figures; the arguments and the result are those of `sweep.sections`."""
    dataset = page.dataset(config)
    page.write_table([_flat(record, dataset) for record in records], workdir / "table.csv")
    measured = _measured(records)
    written = [page.section("Summary", page.paragraph(conclude(records, dataset)))]
    if measured:
        groups = [("", 2), *((f"{case} case", 2) for case in _CASES), ("", 1)]
        body = f"{page.grid(*_table(measured, dataset), groups)}\n{page.note(_note(dataset))}"
        written.append(page.section("Distances", body))
        caption = _COMPARISON_CAPTION + (_PUBLISHED_CAPTION if dataset in published.DISTANCES else "")
        drawn = {"comparison": (figures.comparison(_points(measured, dataset)), caption)}
        written.append(page.section("Figures", page.show_figures(drawn, workdir)))
        written.append(page.section("Costs", f"{page.grid(*_costs(measured))}\n{page.note(_COSTS_NOTE)}"))
        body = f"{page.note(_GRID_NOTE)}\n{page.show_figures(_grids(measured, config, workdir), workdir)}"
        written.append(page.section("Examples", body))
    return written


def readme_table(records: Sequence[Record], config: Mapping[str, Any]) -> str:
    """The distances as a Markdown table, published values below ours."""
    header, cells = _table(_measured(records), page.dataset(config))
    names = [f"{case}, {network}" for case in _CASES for network in _NETWORKS.values()]
    return page.markdown([*header[:2], *names, header[-1]], cells)


_COMPARISON_CAPTION = (
    "Mean distance of each attack's successes, from best to worst case; the mark is the average case, or the only "
    "one. Farther right is harder to attack, but only where the attack succeeds, for which see the table."
)
_PUBLISHED_CAPTION = " Thin with a hollow mark: published by Carlini and Wagner 2017, Tables IV and VI."
_COSTS_NOTE = (
    "After 8-bit rounding: success with pixels rounded to what an image file holds. Steps, gradients and seconds: mean "
    "for one attempt."
)
_GRID_NOTE = (
    "The first image of each source class (row), turned into each target class (column). Solid green: target reached. "
    "Dashed red: not reached. Thin gray: the clean image."
)


def _note(dataset: str | None) -> str:
    said = (
        "Mean distance over the successes, and how many succeeded where that is not all. Best case: the nearest target "
        "of an image; average: all its targets; worst: the farthest, a success only where all were reached. DeepFool "
        "is not targeted and has the best case only. Last column: average case, distilled over undistilled."
    )
    if dataset in published.DISTANCES:
        said += " Published: Tables IV and VI of Carlini and Wagner 2017 (arXiv 1608.04644), in the same units."
    return said


def _measured(records: Sequence[Record]) -> _Measured:
    """Attack to network to record, in the order of the paper's table."""
    found: _Measured = {}
    for record in records:
        if record.get("measure") == "carlini":
            found.setdefault(record["attack"], {})[record["network"]] = record
    return {name: found[name] for name in sorted(found, key=lambda name: [*_ATTACKS, *found].index(name))}


def _published(record: Record, dataset: str | None) -> Cases:
    """The published cases that a record can be compared with."""
    if record["network"] == "student" and record["temperature"] != _PUBLISHED_TEMPERATURE:
        return {}
    return published.DISTANCES.get(dataset or "", {}).get(record["network"], {}).get(record["attack"], {})


def _flat(record: Record, dataset: str | None) -> Row:
    """A line of `table.csv`."""
    row = page.without_seconds(record)
    if record.get("measure") == "carlini":
        for case, (distance, share) in _published(record, dataset).items():
            row |= {f"{case}_published_distance": distance, f"{case}_published_success": share / 100}
    return row


def _name(attack: str) -> str:
    return _ATTACKS.get(attack, attack)


def _tried(record: Record, case: str) -> bool:
    return bool(record.get(f"{case}_n"))


def _cell(record: Record | None, case: str, dataset: str | None) -> str:
    if record is None or not _tried(record, case):
        return ""
    cell = number(record[f"{case}_distance"]) or "none"
    if record[f"{case}_successes"] < record[f"{case}_n"]:
        cell += f" ({percent(record[f'{case}_success'])})"
    known = _published(record, dataset).get(case)
    if known is not None:
        share = f" ({known.percent:g} %)" if known.percent < 100 else ""
        cell += f"\npublished {number(known.distance) or 'none'}{share}"
    return cell


def _table(measured: _Measured, dataset: str | None) -> tuple[list[str], list[list[str]]]:
    header = ["attack", "distance", *(list(_NETWORKS.values()) * len(_CASES)), "ratio"]
    cells = []
    for attack, found in measured.items():
        norm = next(iter(found.values()))["norm"]
        line = [_name(attack), _NORMS.get(norm, norm)]
        line += [_cell(found.get(network), case, dataset) for case in _CASES for network in _NETWORKS]
        ratio, known = _ratios(found, dataset)
        line.append(f"{ratio:.2f}" + ("" if known is None else f"\npublished {known:.2f}") if ratio else "")
        cells.append(line)
    return header, cells


def _ratios(found: Mapping[str, Record], dataset: str | None) -> tuple[float | None, float | None]:
    """Average case, distilled over undistilled: ours and published; only for the attacks that are to succeed."""
    pair = [found.get(network) for network in _NETWORKS]
    if any(record is None or record["attack"] not in _STRONG for record in pair):
        return None, None
    base, student = (record for record in pair if record is not None)
    known = [_published(record, dataset).get("average") for record in (base, student)]
    distances = [case.distance if case else None for case in known]
    return (
        _quotient(student["average_distance"], base["average_distance"]),
        _quotient(distances[1], distances[0]),
    )


def _quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _costs(measured: _Measured) -> tuple[list[str], list[list[str]]]:
    header = [
        "attack",
        "network",
        "targeted",
        "images",
        "attempts",
        "after 8-bit rounding",
        "steps",
        "gradients",
        "seconds",
    ]
    cells = []
    for attack, found in measured.items():
        for network in (name for name in _NETWORKS if name in found):
            record = found[network]
            rounded = record.get("success_8_bits")
            line = [_name(attack), _NETWORKS[network], "yes" if record["targeted"] else "no"]
            line += [str(record["images"]), str(record["n"]), "" if rounded is None else percent(rounded)]
            line += [number(record.get(name)) for name in ("mean_steps", "mean_gradients", "seconds_per_example")]
            cells.append(line)
    return header, cells


def conclude(records: Sequence[Record], dataset: str | None) -> str:
    """Says in a paragraph what the numbers say: whether distillation stops the strong attacks, and what it costs them.

    Two rates count as different only if their 95 % intervals do not overlap.

    Args:
      records: the records of `results.jsonl`.
      dataset: the name of the data set, for the published values.

    Returns:
      Plain text.
    """
    measured = _measured(records)
    said = _say_accuracy(records)
    for network, name in _NETWORKS.items():
        lacking = [_name(attack) for attack, found in measured.items() if network not in found]
        if lacking:
            said.append(f"Not measured on the {name} network: {listed(lacking)}.")
    both = {attack: found for attack, found in measured.items() if all(network in found for network in _NETWORKS)}
    strong = {attack: found for attack, found in both.items() if attack in _STRONG}
    strong = {attack: found for attack, found in strong.items() if all(_tried(r, "average") for r in found.values())}
    if not strong:
        said.append("None of Carlini and Wagner's attacks has been measured on both networks: no conclusion.")
        return " ".join(said)
    lower = [attack for attack, found in strong.items() if _is_lower(found, "average")]
    works = all(found["student"]["average_success"] >= _WORKS for found in strong.values())
    said += _say_strong(strong, lower, works, dataset)
    weaker = []
    for attack, found in both.items():
        case = "average" if found["student"]["targeted"] else "best"
        if attack not in _STRONG and all(_tried(r, case) for r in found.values()) and _is_lower(found, case):
            rates = [percent(found[network][f"{case}_success"]) for network in _NETWORKS]
            weaker.append(f"{_name(attack)} from {rates[0]} to {rates[1]}")
    if weaker:
        said.append(f"Other attacks succeed less often on the distilled network: {listed(weaker)}.")
        if works and not lower:
            said.append("Since the strong attacks still succeed there, those failures are the attacks' own.")
    return " ".join(said)


def _say_accuracy(records: Sequence[Record]) -> list[str]:
    known = {r["network"]: r for r in records if r.get("measure") == "accuracy" and r["network"] in _NETWORKS}
    words = []
    for network, name in _NETWORKS.items():
        if network in known:
            temperature = known[network].get("temperature")
            where = "" if temperature is None else f" at T = {temperature:g}"
            words.append(f"{percent(known[network]['accuracy'])} {name}{where}")
    return [f"Test accuracy: {listed(words)}."] if words else []


def _say_strong(
    strong: Mapping[str, Mapping[str, Record]], lower: Sequence[str], works: bool, dataset: str | None
) -> list[str]:
    """Success and cost of Carlini and Wagner's attacks, in the average case."""
    rates, costs, ratios = [], [], []
    for attack, found in strong.items():
        shares = [percent(found[network]["average_success"]) for network in _NETWORKS]
        rates.append(f"{_name(attack)} {shares[1]} ({shares[0]} without distillation)")
        ratio, known = _ratios(found, dataset)
        if ratio is not None:
            ratios.append(ratio)
            costs.append(f"{ratio:.2f} ({_name(attack)}{'' if known is None else f', published {known:.2f}'})")
    said = [f"Success over all attempts on the distilled network: {listed(rates)}."]
    if costs:
        said.append(f"The successes are on average {listed(costs)} times as far away as without distillation.")
    if lower:
        names = listed([_name(attack) for attack in lower])
        said.append(f"Conclusion: distillation makes {names} succeed clearly less often, at these settings.")
    elif works:
        cost = ""
        if ratios and max(ratios) <= 1:
            cost = ", nor do they have to go farther"
        elif ratios:
            cost = f"; they go at most {max(ratios):.2f} times as far"
        said.append(f"Conclusion: distillation does not stop these attacks{cost}.")
    else:
        said.append(
            "Conclusion: distillation makes no clear difference to how often these attacks succeed, but not all of "
            f"them succeed in {100 * _WORKS:.0f} % of their attempts on the distilled network."
        )
    return said


def _is_lower(found: Mapping[str, Record], case: str) -> bool:
    """Whether an attack succeeds clearly less often on the distilled network."""
    base, student = (
        metrics.wilson_interval(found[network][f"{case}_successes"], found[network][f"{case}_n"])
        for network in _NETWORKS
    )
    return student[1] < base[0]


def _points(measured: _Measured, dataset: str | None) -> list[Row]:
    """What `figures.comparison` draws."""
    points = []
    for attack, found in measured.items():
        for network in (name for name in _NETWORKS if name in found):
            record = found[network]
            row = {"norm": _NORMS.get(record["norm"], record["norm"]), "attack": _name(attack)}
            row["network"] = _NETWORKS[network]
            points.append(row | {"published": False} | {case: record.get(f"{case}_distance") for case in _CASES})
            known = _published(record, dataset)
            if known:
                distances = {case: known[case].distance if case in known else None for case in _CASES}
                points.append(row | {"published": True} | distances)
    return points


def _grids(measured: _Measured, config: Mapping[str, Any], workdir: Path) -> dict[str, tuple[Figure | None, str]]:
    """Grids of source and target classes for the strong attacks on both networks."""
    clean = page.load_arrays(workdir / "images" / "clean.npz")
    drawn = {}
    for attack in _STRONG:
        for network, name in _NETWORKS.items():
            arrays = page.load_arrays(workdir / "images" / f"{network}_{attack}.npz")
            figure = None
            if clean and "targets" in arrays and network in measured.get(attack, {}):
                figure = _grid(clean, arrays, page.class_names(config), f"{_name(attack)}, {name} network")
            drawn[f"grid_{network}_{attack}"] = (figure, "")
    return drawn


def _grid(
    clean: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], class_names: Sequence[str], title: str
) -> Figure | None:
    rows, targets = arrays["rows"], arrays["targets"]
    classes = min(max(int(clean["labels"].max()), int(targets.max(initial=0))) + 1, _MAX_CLASSES)
    images = np.zeros((classes, classes, *clean["images"].shape[1:]), np.float32)
    reached, shown = np.zeros((2, classes, classes), bool)
    for source in range(classes):
        attacked = rows[clean["labels"][rows] == source]
        if not len(attacked):
            continue
        row = attacked.min()
        images[source, source], shown[source, source] = clean["images"][row] / 255, True
        for attempt in np.flatnonzero(rows == row):
            target = int(targets[attempt])
            if target < classes:
                images[source, target], shown[source, target] = arrays["images"][attempt], True
                reached[source, target] = arrays["success"][attempt]
    return figures.class_grid(images, reached, shown, class_names, title)
