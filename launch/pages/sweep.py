"""The page of `launch.sweep`: attacks against distillation temperature."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ddjax import metrics

from ..recipes import published
from . import _figures, _page
from ._figures import GRAY, LOOKS, PUBLISHED, Look, Series
from ._page import Record, Row, field, percent, points, rate, temperature_name

HEADING = "Defensive distillation under attack"

# Column to (kind of record, field with the hits): hits / n, pooled over seeds, with an interval.
_RATES = {
    "accuracy": ("accuracy", "correct"),
    "jsma_success": ("jsma/probs", "successes"),
    "jsma_tempered_success": ("jsma/tempered", "successes"),
    "fgsm_success": ("fgsm", "successes"),
    "zero_gradient_share": ("gradients", "zero"),
    "fgsm_transfer_success": ("fgsm_transfer", "successes"),
}
# Column to (kind of record, field), averaged over seeds.
_MEANS = {
    "robustness": ("jsma/probs", "robustness"),
    "robustness_tempered": ("jsma/tempered", "robustness"),
    "mean_abs_logit": ("logits", "mean_abs_logit"),
    "log10_adversarial_gradient": ("gradients", "log10_adversarial_gradient"),
    "jsma_mean_features": ("jsma/probs", "mean_features"),
}
# The order of the columns of table.csv.
_COLUMNS = (
    "temperature", "accuracy", "accuracy_variation", "jsma_success", "jsma_tempered_success", "fgsm_success",
    "robustness", "mean_abs_logit", "zero_gradient_share", "log10_adversarial_gradient", "teacher_accuracy",
    "fgsm_transfer_success", "robustness_capped_share", "jsma_mean_features", "num_seeds", "robustness_tempered",
    *(f"{column}_{part}" for column in _RATES for part in ("n", "low", "high")),
)  # fmt: skip
# Ends (log10) of the ranges of gradient amplitude, as in the paper's Fig. 9; the first and the last range are open.
_RANGES = (-np.inf, -30, -25, -20, -15, -10, -8, -6, -4, -2, np.inf)

_TABLE = {
    "T": lambda row: temperature_name(row["temperature"]),
    "test accuracy": rate("accuracy"),
    "change": field("accuracy_variation", points),
    "JSMA, T=1 probabilities": rate("jsma_success"),
    "JSMA, tempered": rate("jsma_tempered_success"),
    "FGSM": rate("fgsm_success"),
    "FGSM, transferred": rate("fgsm_transfer_success"),
    "robustness": field("robustness", percent),
    "at the cap": field("robustness_capped_share", percent),
    "mean abs. logit": field("mean_abs_logit", "{:z.1f}".format),
    "zero gradients": rate("zero_gradient_share"),
    "log10 gradient": field("log10_adversarial_gradient", "{:z.1f}".format),
    "JSMA, published": field("published_jsma_success", percent),
}
_NOTE = (
    "Below a rate stand its 95 % Wilson interval and the number of trials, pooled over seeds. JSMA counts pairs of an "
    "image and a target class; untargeted FGSM counts correctly classified test images. Change: in percentage points. "
    "Robustness: mean share of features that JSMA on the T=1 probabilities has to change, where a failure counts as "
    "the largest share allowed. At the cap: share of images on which JSMA reached no target. Zero gradients: share of "
    "images whose whole Jacobian of the T=1 probabilities is exactly zero in float32. log10 gradient: mean over images "
    "of the log10 of the Jacobian's mean absolute entry. Published: JSMA success of "
    f"{published.JSMA_SOURCE}. All columns are in table.csv."
)
_CAPTIONS = {
    "success": "Attack success, after Fig. 7 of Papernot et al. Tempered JSMA is JSMA on softmax(Z/T) of the same "
    "networks. Where it succeeds and JSMA on the T=1 probabilities, the paper's attack, does not, the gradients at T=1 "
    "are masked. Bars and gray band: 95 % Wilson intervals.",
    "accuracy": "Test accuracy with its 95 % Wilson intervals, after Fig. 8 of Papernot et al.",
    "gradients": "Share of the test images, in percent, by the mean absolute entry of the Jacobian of the T=1 "
    "probabilities, after Fig. 9 of Papernot et al. It is computed in log space, so that it does not underflow. Last "
    "row: share of the images whose whole Jacobian is exactly zero in float32.",
    "robustness": "Share of the features that an attack has to change, after Fig. 10 of Papernot et al. An image on "
    "which every attempt failed counts with the largest share allowed, so masked gradients raise this number, too.",
    "jsma_grid": "JSMA on the T=1 probabilities of the undistilled network, with one test image for each source class. "
    "Solid green: target reached. Dashed red: not reached.",
    "jsma_grid_distilled": "The same attack on the network that was distilled at the highest temperature.",
}

# Temperature to the arrays of a network's examples.
Examples = Mapping[float | None, Mapping[str, np.ndarray]]


def sections(run: _page.Run) -> list[_page.Section]:
    """Rates by temperature, figures and examples."""
    rows, examples = summarize(run), _examples(run)
    highest = max((t or 0.0 for t in examples), default=0.0)
    drawn = {
        "success": success_figure(rows),
        "accuracy": accuracy_figure(rows),
        "gradients": gradients_figure(run),
        "robustness": robustness_figure(rows),
        "jsma_grid": jsma_figure(examples, None, run.setting("class_names")),
        "jsma_grid_distilled": jsma_figure(examples, highest, run.setting("class_names")),
    }
    return [
        _page.Section("Results", table(run), _NOTE),
        _page.Section("Figures", figures={name: (figure, _CAPTIONS[name]) for name, figure in drawn.items()}),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """A row for each temperature."""
    return _page.table_of(summarize(run), _TABLE)


def files(run: _page.Run) -> dict[str, list[Row]]:
    """The rows of `summarize`."""
    return {"table.csv": summarize(run)}


def summarize(run: _page.Run) -> list[Row]:
    """Pools the seeds of a sweep into a row for each temperature.

    Counts are summed over seeds before a rate is taken; other values are averaged with equal weight.

    Returns:
      The rows: the undistilled network (temperature None), then by ascending temperature. What has not been measured
      is None. Rates come with `_n`, `_low` and `_high`, their 95 % Wilson interval.
    """
    known = published.jsma(run.setting("recipe"), run.setting("dataset"))
    rows = [_summary(temperature, kinds) for temperature, kinds in _measured(run).items()]
    for row in rows:
        if row["accuracy"] is not None and rows[0]["accuracy"] is not None:
            row["accuracy_variation"] = row["accuracy"] - rows[0]["accuracy"]
        if known:
            row["published_jsma_success"] = known.get(temperature_name(row["temperature"]))
    return rows


def _measured(run: _page.Run) -> dict[float | None, dict[str, dict[int, Record]]]:
    """Temperature to kind to the record of each seed; a repeated measurement replaces the earlier one.

    The temperatures are None and, ascending, all that were asked for or measured.
    """
    found: dict[float | None, dict[str, dict[int, Record]]] = {None: {}}
    found |= {float(t): {} for t in run.setting("temperatures") or [] if isinstance(t, int | float)}
    for record in run.of("accuracy", "logits", "gradients", "jsma", "fgsm", "fgsm_transfer"):
        kind = record["measure"] + (f"/{record['space']}" if record["measure"] == "jsma" else "")
        kind = f"teacher/{kind}" if record["network"] == "teacher" else kind
        temperature = None if record["temperature"] is None else float(record["temperature"])
        found.setdefault(temperature, {}).setdefault(kind, {})[record["seed"]] = record
    return dict(sorted(found.items(), key=lambda item: item[0] or 0.0))


def _summary(temperature: float | None, kinds: Mapping[str, Mapping[int, Record]]) -> Row:
    """The row of one temperature, from the records of each kind by seed."""

    def pool(column: str, kind: str, hits: str, total: str = "n") -> Row:
        records = kinds.get(kind, {}).values()
        counted = (sum(record[name] for record in records) for name in (hits, total))
        return metrics.rate_fields(column, *counted) if records else {}

    row: Row = dict.fromkeys(_COLUMNS)
    row["temperature"] = temperature
    row["num_seeds"] = len({seed for kind, seeds in kinds.items() if kind != "teacher/accuracy" for seed in seeds})
    row["teacher_accuracy"] = pool("share", "teacher/accuracy", "correct").get("share")
    row["robustness_capped_share"] = pool("share", "jsma/probs", "capped_images", "images").get("share")
    for column, (kind, hits) in _RATES.items():
        row |= pool(column, kind, hits)
    for column, (kind, name) in _MEANS.items():
        values = [record[name] for record in kinds.get(kind, {}).values() if record.get(name) is not None]
        row[column] = sum(values) / len(values) if values else None
    return row


def success_figure(rows: Sequence[Row]) -> Figure | None:
    """Success against temperature, a panel for JSMA and one for FGSM."""
    published_look = {"color": "black", "marker": "D", **PUBLISHED}
    jsma = [
        *_series(rows, "jsma_success", "on T=1 probabilities", LOOKS[0]),
        *_series(rows, "jsma_tempered_success", "tempered: on softmax(Z/T)", LOOKS[1])[1:],
        *_series(rows, "published_jsma_success", "published, T=1 probabilities", published_look)[1:],
    ]
    fgsm = [
        *_series(rows, "fgsm_success", "on the network itself", LOOKS[2]),
        *_series(rows, "fgsm_transfer_success", "transferred from the undistilled network", LOOKS[3])[1:],
    ]
    panels = {"JSMA": jsma, "FGSM": fgsm}
    return _figures.lines(panels, "distillation temperature", "success (%)", xscale="log", ylim=(-3, 103))


def accuracy_figure(rows: Sequence[Row]) -> Figure | None:
    """Test accuracy against temperature."""
    panels = {"Test accuracy": _series(rows, "accuracy", "distilled network", LOOKS[0])}
    return _figures.lines(panels, "distillation temperature", "accuracy (%)", xscale="log")


def robustness_figure(rows: Sequence[Row]) -> Figure | None:
    """Share of the features that JSMA changes against temperature."""
    probabilities = _series(rows, "robustness", "JSMA on T=1 probabilities", LOOKS[0])
    tempered = _series(rows, "robustness_tempered", "tempered JSMA", LOOKS[1])
    panels = {"Robustness as each attack measures it": [*probabilities, tempered[1]]}
    return _figures.lines(panels, "distillation temperature", "features to change (%)", xscale="log")


def _series(rows: Sequence[Row], column: str, label: str, look: Look) -> list[Series]:
    """A column in percent: the undistilled network as a level, and the distilled ones."""
    ends = ("", "_low", "_high") if f"{column}_low" in _COLUMNS else ("",)
    values = 100 * np.array([[row.get(f"{column}{end}") for row in rows] for end in ends], float)
    temperatures = [row["temperature"] for row in rows[1:]]
    width = [0.85 * min(temperatures), 1.18 * max(temperatures)] if temperatures else []
    level: Look = {"color": GRAY, "linestyle": "--", "linewidth": 1.2}
    return [
        Series("undistilled network", width, values[:, [0] * len(width)], level),
        Series(label, temperatures, values[:, 1:], look),
    ]


def gradients_figure(run: _page.Run) -> Figure | None:
    """Share of the images in each range of gradient amplitude, by temperature; None without a measured gradient."""
    columns = {}
    for temperature, kinds in _measured(run).items():
        records = kinds.get("gradients", {}).values()
        if records:
            counts = np.sum(
                [np.histogram(r["decades"], _RANGES, weights=r["decade_counts"])[0] for r in records], axis=0
            )
            zero = sum(r["zero"] for r in records) / sum(r["n"] for r in records)
            columns[f"T = {temperature_name(temperature)}"] = [*(counts / counts.sum())[::-1], zero]
    ends = ["0", *(f"1e{end}" for end in _RANGES[1:-1]), "1"]
    names = [f"{low} to {high}" for low, high in itertools.pairwise(ends)][::-1]
    shares = np.array([*columns.values()]).reshape(len(columns), len(_RANGES)).T
    return _figures.heat_map(shares, [*names, "exactly 0 in float32"], [*columns], "images (%)")


def _examples(run: _page.Run) -> Examples:
    """The saved examples of the lowest seed, by temperature, the undistilled network first."""
    found: dict[int, dict[float | None, str]] = {}
    for path in (run.workdir / "examples").glob("seed*_*.npz"):
        seed, _, tag = path.stem.removeprefix("seed").partition("_")
        temperature = None if tag == "none" else float(tag.removeprefix("T"))
        found.setdefault(int(seed), {})[temperature] = f"examples/{path.name}"
    lowest = found[min(found)] if found else {}
    return {t: run.arrays(lowest[t]) for t in sorted(lowest, key=lambda temperature: temperature or 0.0)}


def jsma_figure(examples: Examples, temperature: float | None, class_names: Sequence[str] | None) -> Figure | None:
    """The grid of JSMA's examples from each source class to each target class; None without examples."""
    if temperature not in examples:
        return None
    images, success, present = (examples[temperature][f"jsma_{name}"] for name in ("images", "success", "present"))
    places = list(itertools.product(np.flatnonzero(present).tolist(), range(len(images))))
    won = {(source, target): bool(success[source, target]) for source, target in places if source != target}
    title = f"T = {temperature_name(temperature)}"
    return _figures.class_grid({place: images[place] for place in places}, won, class_names, title)
