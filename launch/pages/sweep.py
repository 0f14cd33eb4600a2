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
# Figure to title to columns.
_PANELS = {
    "success": {
        "Success of JSMA": ("jsma_success", "jsma_tempered_success", "published_jsma_success"),
        "Success of FGSM": ("fgsm_success", "fgsm_transfer_success"),
    },
    "accuracy": {"Test accuracy": ("accuracy",)},
    "robustness": {"Features to change": ("robustness", "robustness_tempered")},
}
# Columns of these figures to their names and looks.
_NAMES: dict[str, tuple[str, Look]] = {
    "jsma_success": ("on T=1 probabilities", LOOKS[0]),
    "jsma_tempered_success": ("tempered: on softmax(Z/T)", LOOKS[1]),
    "published_jsma_success": ("published, T=1 probabilities", {"color": "black", "marker": "D", **PUBLISHED}),
    "fgsm_success": ("on the network itself", LOOKS[2]),
    "fgsm_transfer_success": ("transferred from the undistilled network", LOOKS[3]),
    "accuracy": ("distilled network", LOOKS[0]),
    "robustness": ("JSMA on T=1 probabilities", LOOKS[0]),
    "robustness_tempered": ("tempered JSMA", LOOKS[1]),
}
_GRID_CAPTION = (
    "JSMA on the T=1 probabilities, from each source class (row) to each target class (column), with one test image "
    "for each source class. Solid green: target reached. Dashed red: not reached."
)
_CAPTIONS = {
    "success": "Attack success, after Fig. 7 of Papernot et al. Tempered JSMA is JSMA on softmax(Z/T) of the same "
    "networks. Where it succeeds and JSMA on the T=1 probabilities, the paper's attack, does not, the gradients at T=1 "
    "are masked. Bars and gray band: 95 % Wilson intervals.",
    "accuracy": "Test accuracy with its 95 % Wilson intervals, after Fig. 8 of Papernot et al.",
    "robustness": "Share of the features that an attack has to change, after Fig. 10 of Papernot et al. An image on "
    "which every attempt failed counts with the largest share allowed, so masked gradients raise this number, too.",
    "gradients": "Share of the test images by the mean absolute entry of the Jacobian of the T=1 probabilities, after "
    "Fig. 9 of Papernot et al. It is computed in log space, so that it does not underflow. Last row: share of the "
    "images whose whole Jacobian is exactly zero in float32.",
    "jsma_features": "How often JSMA changed each feature, in percent of its successes; of many features, those that "
    "it changed most often. A network that it never succeeds on is missing.",
    "jsma_grid": _GRID_CAPTION,
    "jsma_grid_distilled": _GRID_CAPTION,
}


def sections(run: _page.Run) -> list[_page.Section]:
    """Rates by temperature, figures and examples."""
    rows = summarize(run)
    last = f"T{temperature_name(rows[-1]['temperature'])}"
    drawn = {name: figure(rows, panels) for name, panels in _PANELS.items()} | {
        "gradients": gradients_figure(run),
        "jsma_features": features_figure(run, ("none", last)),
        "jsma_grid": jsma_figure(run, "none"),
        "jsma_grid_distilled": jsma_figure(run, last),
    }
    figures = {name: (drawn[name], caption) for name, caption in _CAPTIONS.items()}
    return [_page.Section("Results", table(run), _NOTE), _page.Section("Figures", figures=figures)]


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


def figure(rows: Sequence[Row], panels: Mapping[str, Sequence[str]]) -> Figure | None:
    """Columns of `summarize` in percent against temperature, with the undistilled network's first column as a level."""
    temperatures = [row["temperature"] for row in rows[1:]]
    ends = [0.85 * min(temperatures), 1.18 * max(temperatures)] if temperatures else []
    drawn = {}
    for title, columns in panels.items():
        level = _percents(rows, columns[0])[:, [0] * len(ends)]
        drawn[title] = [Series("undistilled network", ends, level, {"color": GRAY, "linestyle": "--"})]
        for column in columns:
            label, look = _NAMES[column]
            drawn[title].append(Series(label, temperatures, _percents(rows, column)[:, 1:], look))
    return _figures.lines(drawn, "distillation temperature", "%", xscale="log")


def _percents(rows: Sequence[Row], column: str) -> np.ndarray:
    """[1 or 3, rows]: a column, and where it is a rate, the ends of its intervals."""
    ends = ("", "_low", "_high") if column in _RATES else ("",)
    return 100 * np.array([[row.get(f"{column}{end}") for row in rows] for end in ends], float)


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


def features_figure(run: _page.Run, networks: Sequence[str]) -> Figure | None:
    """How often JSMA changed each feature, on some networks; None for images, which have no features to name."""
    seed, shares = _first_seed(run), {}
    for network in networks:
        arrays = run.arrays(f"examples/seed{seed}_{network}.npz")
        if arrays and arrays["jsma_images"].ndim != 5:
            shares["undistilled network" if network == "none" else network] = arrays["jsma_changed"]
    return _figures.changed_features(shares, run.setting("feature_names"))


def _first_seed(run: _page.Run) -> int:
    return min((record["seed"] for record in run.of("jsma")), default=0)


def jsma_figure(run: _page.Run, network: str) -> Figure | None:
    """The grid of JSMA's examples from each source class to each target class; None without examples."""
    arrays = run.arrays(f"examples/seed{_first_seed(run)}_{network}.npz")
    if not arrays:
        return None
    images, success, present = (arrays[f"jsma_{name}"] for name in ("images", "success", "present"))
    labels = np.arange(len(images))
    # On the diagonal stand the clean images.
    clean = {"images": images[labels, labels], "labels": labels, "predictions": np.where(present, labels, -1)}
    rows, targets = np.indices(success.shape).reshape(2, -1)
    attempts = {"images": images[rows, targets], "success": success.ravel(), "rows": rows, "targets": targets}
    title = "undistilled network" if network == "none" else f"network distilled at {network}"
    return _figures.attempts_grid(clean, attempts, run.setting("class_names"), f"JSMA, {title}")
