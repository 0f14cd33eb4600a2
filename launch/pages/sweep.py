"""The page of `launch.sweep`: attacks against distillation temperature."""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from ddjax import metrics

from ..recipes import published
from . import _page, _style
from ._page import Record, Row, temperature_name
from ._style import BLUE, GRAY, GREEN, PURPLE, RED, class_name, row_of_axes, styled

HEADING = "Defensive distillation under attack"

# Column of the table to (kind of record, field with the hits): hits / n, pooled over seeds, with an interval.
_RATES = {
    "accuracy": ("accuracy", "correct"),
    "jsma_success": ("jsma/probs", "successes"),
    "jsma_tempered_success": ("jsma/tempered", "successes"),
    "fgsm_success": ("fgsm", "successes"),
    "zero_gradient_share": ("gradients", "zero"),
    "fgsm_transfer_success": ("fgsm_transfer", "successes"),
}
# Column of the table to (kind of record, field), averaged over seeds.
_MEANS = {
    "robustness": ("jsma/probs", "robustness"),
    "robustness_tempered": ("jsma/tempered", "robustness"),
    "mean_abs_logit": ("logits", "mean_abs_logit"),
    "log10_adversarial_gradient": ("gradients", "log10_adversarial_gradient"),
    "jsma_mean_features": ("jsma/probs", "mean_features"),
}
_COLUMNS = (
    "temperature", "accuracy", "accuracy_variation", "jsma_success", "jsma_tempered_success", "fgsm_success",
    "robustness", "mean_abs_logit", "zero_gradient_share", "log10_adversarial_gradient",
    "teacher_accuracy", "fgsm_transfer_success", "robustness_capped_share", "jsma_mean_features", "num_seeds",
    "robustness_tempered",
)  # fmt: skip
_KINDS = ("accuracy", "logits", "gradients", "jsma/probs", "jsma/tempered", "fgsm", "fgsm_transfer")
_MEASURES = {kind.split("/")[0] for kind in _KINDS}
# A sweep notes with this measure that a network is done; it holds no number.
_DONE = "finished"
# Upper ends (log10) of the ranges of gradient amplitude: ten, as in the paper's Fig. 9; the first is open below.
_RANGE_TOPS = (-30, -25, -20, -15, -10, -8, -6, -4, -2, 0)
# Ten colors for the ten ranges: viridis, dark where the gradient is small.
_RANGE_COLORS = (
    "#440154", "#482878", "#3E4A89", "#31688E", "#26828E", "#1F9E89", "#35B779", "#6DCD59", "#B4DE2C", "#FDE725",
)  # fmt: skip

_NOTE = (
    "Below a rate stand its 95 % Wilson interval and the number of trials, pooled over seeds. JSMA counts pairs of an "
    "image and a target class; untargeted FGSM counts correctly classified test images. Change: test accuracy minus "
    "that of the undistilled network, in percentage points. Robustness: mean share of features that JSMA on the T=1 "
    "probabilities has to change, where a failure counts as the largest share allowed. At the cap: share of images on "
    "which JSMA reached no target. Zero gradients: share of images whose whole Jacobian of the T=1 probabilities is "
    "exactly zero in float32; an attack that follows this gradient has nothing to follow. log10 gradient: mean over "
    "images of the log10 of the Jacobian's mean absolute entry. Published: JSMA success of "
    f"{published.JSMA_SOURCE}. All columns are in table.csv."
)
_CAPTIONS = {
    "success": "Attack success against the distillation temperature, after Fig. 7 of Papernot et al. Left: JSMA on the "
    "probabilities at T = 1, which is the paper's attack, and tempered JSMA on softmax(Z/T) of the same networks. "
    "Where tempered JSMA succeeds and JSMA at T = 1 does not, the gradients at T = 1 are masked. Right: FGSM on the "
    "network itself, and with images made on the undistilled network. Bars and gray band: 95 % Wilson intervals. Open "
    f"diamonds: published values ({published.JSMA_SOURCE}).",
    "accuracy_variation": "Test accuracy minus that of the undistilled network, after Fig. 8 of Papernot et al. Bars: "
    "95 % interval of each network's own accuracy. Band: 95 % interval of the undistilled network.",
    "gradients": "Mean absolute entry of the Jacobian of the T=1 probabilities, one value for each test image, after "
    "Fig. 9 of Papernot et al. It is computed in log space, so that it does not underflow. Diamonds: share of the "
    "images whose whole Jacobian is exactly zero in float32.",
    "robustness": "Share of the features that an attack has to change to reach another class, averaged over images, "
    "after Fig. 10 of Papernot et al. An image on which every attempt failed counts with the largest share allowed, so "
    "masked gradients raise this number, too.",
    "jsma_grid": "JSMA on the T=1 probabilities of the undistilled network, from each source class (row) to each "
    "target class (column), with one test image for each source class.",
    "jsma_grid_distilled": "The same attack on the T=1 probabilities of the network that was distilled at the highest "
    "temperature.",
    "fgsm": "An FGSM image made on the undistilled network, and the predictions of every network for the clean and for "
    "the adversarial image. A check mark is a correct prediction.",
}


def sections(run: _page.Run) -> list[_page.Section]:
    """Rates by temperature, missing measurements, settings of the attacks, and figures."""
    rows, examples = summarize(run), _examples(run)
    highest = max((t for t in examples if t is not None), default=None)
    grids: dict[str, tuple[float | None, str]] = {"jsma_grid": (None, "Undistilled network")}
    if highest is not None:
        grids["jsma_grid_distilled"] = (highest, f"Distilled at T = {highest:g}")
    drawn: dict[str, Figure | None] = {
        "success": success_figure(rows),
        "accuracy_variation": accuracy_figure(rows),
        "gradients": gradients_figure(rows, gradient_decades(run)),
        "robustness": robustness_figure(rows),
        **{name: jsma_figure(examples.get(t, {}), run.class_names, title) for name, (t, title) in grids.items()},
        "fgsm": fgsm_figure(examples, run.class_names),
    }
    lacking = [[temperature_name(t), kind, ", ".join(map(str, seeds))] for (t, kind), seeds in missing(run).items()]
    foreign = [record for record in run.records if record.get("measure") not in (*_MEASURES, _DONE)]
    return [
        _page.Section("Results", table(run), _NOTE),
        _page.Section("Missing measurements", _page.Table(["T", "measurement", "seeds"], lacking)),
        _page.Section("Attacks", _attack_settings(run)),
        _page.Section("Figures", figures={name: (drawn.get(name), caption) for name, caption in _CAPTIONS.items()}),
        _page.Section("Other records", _page.records_table(foreign)),
    ]


def table(run: _page.Run) -> _page.Table:
    """A row for each temperature."""

    def rate(row: Row, column: str) -> str:
        return _page.rate(row[column], *(row[f"{column}_{part}"] for part in ("n", "low", "high")))

    one_decimal = lambda value: "" if value is None else f"{round(value, 1) + 0.0:.1f}"
    cells = {
        "T": lambda row: temperature_name(row["temperature"]),
        "test accuracy": lambda row: rate(row, "accuracy"),
        "change": lambda row: _page.points(row["accuracy_variation"]),
        "JSMA, T=1 probabilities": lambda row: rate(row, "jsma_success"),
        "JSMA, tempered": lambda row: rate(row, "jsma_tempered_success"),
        "FGSM": lambda row: rate(row, "fgsm_success"),
        "FGSM, transferred": lambda row: rate(row, "fgsm_transfer_success"),
        "robustness": lambda row: _page.percent(row["robustness"]),
        "at the cap": lambda row: _page.percent(row["robustness_capped_share"]),
        "mean abs. logit": lambda row: one_decimal(row["mean_abs_logit"]),
        "zero gradients": lambda row: rate(row, "zero_gradient_share"),
        "log10 gradient": lambda row: one_decimal(row["log10_adversarial_gradient"]),
        "JSMA, published": lambda row: _page.percent(row.get("published_jsma_success")),
    }
    rows = [[cell(row) for cell in cells.values()] for row in summarize(run)]
    return _page.Table(list(cells), rows).without_empty_columns(len(cells) - 1)


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
    groups = _by_seed(run)
    known = published.jsma(run.flags.get("recipe"), run.dataset)
    rows: list[Row] = []
    for temperature in _planned(run):

        def of(kind: str, temperature: float | None = temperature) -> list[Record]:
            return list(groups.get((temperature, kind), {}).values())

        rates = {column: _pool(of(kind), hits) for column, (kind, hits) in _RATES.items()}
        row: Row = dict.fromkeys(_COLUMNS)
        row["temperature"] = temperature
        row.update({column: rate for column, (rate, *_) in rates.items()})
        row.update({column: _mean(of(kind), field) for column, (kind, field) in _MEANS.items()})
        row["teacher_accuracy"] = _pool(of("teacher/accuracy"), "correct")[0]
        row["robustness_capped_share"] = _pool(of("jsma/probs"), "capped_images", "images")[0]
        row["num_seeds"] = len({record["seed"] for kind in _KINDS for record in of(kind)})
        for column, (_, n, low, high) in rates.items():
            row |= {f"{column}_n": n, f"{column}_low": low, f"{column}_high": high}
        if known:
            row["published_jsma_success"] = known.get(temperature_name(temperature))
        base = rows[0] if rows else row
        if row["accuracy"] is not None and base["accuracy"] is not None:
            row["accuracy_variation"] = row["accuracy"] - base["accuracy"]
        rows.append(row)
    return rows


def _by_seed(run: _page.Run) -> dict[tuple[float | None, str], dict[int, Record]]:
    """(temperature, kind) to the record of each seed; a repeated measurement replaces the earlier one."""
    groups: dict[tuple[float | None, str], dict[int, Record]] = {}
    for record in run.of(*_MEASURES):
        kind = record["measure"] + (f"/{record['space']}" if record["measure"] == "jsma" else "")
        kind = f"teacher/{kind}" if record["network"] == "teacher" else kind
        temperature = None if record["temperature"] is None else float(record["temperature"])
        groups.setdefault((temperature, kind), {})[record["seed"]] = record
    return groups


def _planned(run: _page.Run) -> list[float | None]:
    """None and, ascending, every temperature that was asked for or measured."""
    asked = [t for t in run.flags.get("temperatures") or [] if isinstance(t, int | float)]
    measured = [record["temperature"] for record in run.of(*_MEASURES) if record["temperature"] is not None]
    return [None, *sorted({float(t) for t in [*asked, *measured]})]


def _pool(
    records: Sequence[Record], hits: str, total: str = "n"
) -> tuple[float | None, int | None, float | None, float | None]:
    """Pooled rate, number of trials and Wilson interval."""
    n = sum(int(record[total]) for record in records)
    if not n:
        return None, (0 if records else None), None, None
    count = sum(int(record[hits]) for record in records)
    low, high = metrics.wilson_interval(count, n)
    return count / n, n, float(low), float(high)


def _mean(records: Sequence[Record], field: str) -> float | None:
    values = [record[field] for record in records if record.get(field) is not None]
    return sum(values) / len(values) if values else None


def missing(run: _page.Run) -> dict[tuple[float | None, str], list[int]]:
    """The measurements that a complete sweep would have and this one has not: (temperature, kind) to seeds."""
    groups = _by_seed(run)
    seeds = run.flags.get("seeds") or sorted({seed for found in groups.values() for seed in found})
    # There is nothing to transfer to the undistilled network; for it, as at T = 1, tempering changes nothing.
    skipped = {None: ("fgsm_transfer", "jsma/tempered"), 1.0: ("jsma/tempered",)}
    wanted = [(t, kind) for t in _planned(run) for kind in _KINDS if kind not in skipped.get(t, ())]
    lacking = {key: [seed for seed in seeds if seed not in groups.get(key, {})] for key in wanted}
    return {key: found for key, found in lacking.items() if found}


def _attack_settings(run: _page.Run) -> _page.Table:
    """The settings of the attacks, as they stand in the records."""
    names = {"jsma": ("theta", "gamma", "max_features", "num_features"), "fgsm": ("epsilon",)}
    rows = []
    for measure, fields in names.items():
        for field in fields:
            values = sorted({r[field] for r in run.of(measure) if r.get(field) is not None})
            if values:
                rows.append([measure.upper(), field, ", ".join(f"{value:g}" for value in values)])
    return _page.Table(["attack", "setting", "value"], rows)


def gradient_decades(run: _page.Run) -> dict[float | None, Counter[int]]:
    """The histograms of gradient amplitude, pooled over seeds: temperature to floor(log10 amplitude) to images."""
    pooled: dict[float | None, Counter[int]] = {}
    for (temperature, kind), seeds in _by_seed(run).items():
        for record in seeds.values() if kind == "gradients" else ():
            counts = dict(zip(record["decades"], record["decade_counts"], strict=True))
            pooled.setdefault(temperature, Counter()).update(counts)
    return pooled


def _examples(run: _page.Run) -> dict[float | None, dict[str, np.ndarray]]:
    """The saved examples of the lowest seed, by temperature."""
    found: dict[int, dict[float | None, str]] = {}
    for path in sorted((run.workdir / "examples").glob("seed*_*.npz")):
        seed, _, tag = path.stem.removeprefix("seed").partition("_")
        temperature = None if tag == "none" else float(tag.removeprefix("T"))
        found.setdefault(int(seed), {})[temperature] = f"examples/{path.name}"
    return {t: run.arrays(name) for t, name in found[min(found)].items()} if found else {}


@styled()
def success_figure(rows: Sequence[Row]) -> Figure | None:
    """Success against temperature, a panel for JSMA and one for FGSM; None without an attack on a distilled network."""
    jsma = [
        ("jsma_success", "on T=1 probabilities", BLUE, "o", "-"),
        ("jsma_tempered_success", "tempered: on softmax(Z/T)", RED, "s", "-"),
        ("published_jsma_success", "published, T=1 probabilities", "black", "D", ":"),
    ]
    fgsm = [
        ("fgsm_success", "on the network itself", GREEN, "^", "-"),
        ("fgsm_transfer_success", "transferred from the undistilled network", PURPLE, "v", "-"),
    ]
    panels = {"JSMA": jsma, "FGSM": fgsm}
    panels = {name: series for name, series in panels.items() if any(_is_there(rows, part[0]) for part in series[:2])}
    if not panels:
        return None
    figure = Figure(figsize=(5.3 * len(panels) + 0.3, 4.5), layout="constrained")
    for axes, (title, series) in zip(row_of_axes(figure, len(panels)), panels.items(), strict=True):
        _temperature_axis(axes, rows)
        _reference_line(axes, rows, series[0][0])
        for position, (column, label, color, marker, line) in enumerate(series):
            hollow = column == "published_jsma_success"
            # Nudged sideways, so that intervals at the same temperature do not hide one another.
            nudge = 0.0 if hollow else 0.008 * (2 * position - 1)
            _series(axes, rows, column, nudge, label, color, marker, line, hollow=hollow)
        axes.set(title=title, ylabel="success (%)", ylim=(-3, 103))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1, alignment="left")
    return figure


@styled()
def accuracy_figure(rows: Sequence[Row]) -> Figure | None:
    """The change of test accuracy against temperature, in percentage points; None without a change to show."""
    if not _is_there(rows, "accuracy_variation"):
        return None
    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    _temperature_axis(axes, rows)
    base = rows[0]
    if base.get("accuracy_low") is not None:
        low, high = (100 * (base[f"accuracy_{end}"] - base["accuracy"]) for end in ("low", "high"))
        axes.axhspan(low, high, color=GRAY, alpha=0.15, linewidth=0, label="undistilled network, 95 % interval")
    axes.axhline(0, color=GRAY, linewidth=1.2, linestyle="--")
    _series(axes, rows, "accuracy_variation", 0.0, "distilled network", BLUE, "o", "-", interval_of="accuracy")
    axes.set(title="Test accuracy against the undistilled network", ylabel="difference (percentage points)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    return figure


@styled()
def gradients_figure(rows: Sequence[Row], decades: Mapping[float | None, Mapping[int, int]]) -> Figure | None:
    """Amplitudes of gradients, a stacked bar for each temperature; None without a measured gradient."""
    bars = [row for row in rows if sum(decades.get(row["temperature"], {}).values())]
    if not bars:
        return None
    shares = np.array([_range_shares(decades[row["temperature"]]) for row in bars])
    figure = Figure(figsize=(max(5.5, 0.62 * len(bars) + 2.9), 4.2), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    places = np.arange(len(bars))
    bottoms = np.cumsum(shares, axis=1) - shares
    for k, color in enumerate(_RANGE_COLORS):
        axes.bar(places, shares[:, k], 0.74, bottoms[:, k], color=color, edgecolor="white", linewidth=0.4)
    zeros = [(place, row["zero_gradient_share"]) for place, row in zip(places, bars, strict=True)]
    zeros = [(place, 100 * share) for place, share in zeros if share is not None]
    dead = Line2D(
        *np.array(zeros or np.empty((0, 2))).T,
        linestyle="none", marker="D", markersize=7, color=RED, markeredgecolor="white", clip_on=False, zorder=4,
    )  # fmt: skip
    axes.add_line(dead)
    labels = [f"below $10^{{{_RANGE_TOPS[0]}}}$"]
    labels += [f"$10^{{{low}}}$ to $10^{{{high}}}$" for low, high in itertools.pairwise(_RANGE_TOPS)]
    # The legend runs from top to bottom, as the stack does.
    handles: list[Any] = [Patch(color=color) for color in _RANGE_COLORS[::-1]]
    axes.legend(
        [dead, *handles], ["exactly 0 in float32", *labels[::-1]],
        loc="center left", bbox_to_anchor=(1.01, 0.5), title="amplitude", alignment="left",
    )  # fmt: skip
    axes.set(title="Gradients of the T=1 probabilities", xlabel="distillation temperature", ylim=(0, 100))
    axes.set(ylabel="share of test images (%)", xlim=(-0.6, len(bars) - 0.4))
    axes.set_xticks(places, [temperature_name(row["temperature"]) for row in bars])
    axes.tick_params(axis="x", length=0, pad=8)  # room for a diamond at zero
    return figure


def _range_shares(counts: Mapping[int, int]) -> np.ndarray:
    """Percent of the images in each range of amplitude."""
    shares = np.zeros(len(_RANGE_TOPS))
    for decade, count in counts.items():
        # A decade d holds amplitudes in [10^d, 10^(d+1)); what reaches 1 is counted with the last range.
        shares[min(np.searchsorted(_RANGE_TOPS, decade, side="right"), len(_RANGE_TOPS) - 1)] += count
    return 100 * shares / shares.sum()


@styled()
def robustness_figure(rows: Sequence[Row]) -> Figure | None:
    """Share of the features that JSMA changes against temperature; None without a distilled network."""
    if not _is_there(rows, "robustness") and not _is_there(rows, "robustness_tempered"):
        return None
    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    _temperature_axis(axes, rows)
    _reference_line(axes, rows, "robustness")
    _series(axes, rows, "robustness", -0.008, "JSMA on T=1 probabilities", BLUE, "o", "-")
    _series(axes, rows, "robustness_tempered", 0.008, "tempered JSMA", RED, "s", "-")
    axes.set(title="Robustness as each attack measures it", ylabel="features to change (%)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
    return figure


def jsma_figure(examples: Mapping[str, np.ndarray], class_names: Sequence[str], title: str) -> Figure | None:
    """The grid of JSMA's examples from each source class to each target class; None without examples."""
    if "jsma_images" not in examples:
        return None
    images, reached, present = (examples[f"jsma_{name}"] for name in ("images", "success", "present"))
    shown = np.broadcast_to(present[:, None], reached.shape)
    return _style.class_grid(images, reached, shown, class_names, title)


@styled()
def fgsm_figure(examples: Mapping[float | None, Mapping[str, np.ndarray]], class_names: Sequence[str]) -> Figure | None:
    """One FGSM image made on the undistilled network, and every network's predictions; None without examples."""
    usable = {t: data for t, data in examples.items() if "fgsm_clean" in data and "fgsm_adversarial" in data}
    if not usable:
        return None
    first = next(iter(usable.values()))
    clean, adversarial, label = first["fgsm_clean"], first["fgsm_adversarial"], int(first["fgsm_label"])
    before = int(usable[None]["fgsm_clean_prediction"]) if None in usable else None
    lines: list[tuple[str, int | None, int]] = [("undistilled", before, int(first["fgsm_baseline_prediction"]))]
    for temperature in sorted(t for t in usable if t is not None):
        data, name = usable[temperature], f"distilled, T = {temperature_name(temperature)}"
        lines.append((name, int(data["fgsm_clean_prediction"]), int(data["fgsm_prediction"])))
    figure = Figure(figsize=(10.2, max(2.7, 0.25 * (len(lines) + 2))), layout="constrained")
    *panels, words = row_of_axes(figure, 4, width_ratios=[1, 1, 1, 2])
    change = np.asarray(adversarial, float) - np.asarray(clean, float)
    largest = float(np.max(np.abs(change)))
    # Gray is no change; otherwise a negative change would be cut off at black.
    titles = ("clean", f"perturbation (at most {largest:.2g})", "adversarial")
    for axes, title, image in zip(panels, titles, (clean, 0.5 + change / (2 * largest or 1), adversarial), strict=True):
        axes.imshow(_style.pixels(image), interpolation="nearest")
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=GRAY)
        axes.set_title(title, loc="center", fontweight="normal")
    words.set_axis_off()
    words.set(xlim=(0, 1), ylim=(max(len(lines), 7) + 0.5, -1.5))
    columns = (0.02, 0.46, 0.73)
    words.text(columns[0], -0.9, f"true class: {class_name(label, class_names)}", weight="bold", va="center")
    for x, text in zip(columns, ("network", "clean", "adversarial"), strict=True):
        words.text(x, 0, text, color=GRAY, va="center")
    for y, (network, *predictions) in enumerate(lines, start=1):
        words.text(columns[0], y, network, va="center")
        for x, prediction in zip(columns[1:], predictions, strict=True):
            if prediction is not None:
                right = prediction == label
                text = f"{'✓' if right else '✗'} {class_name(prediction, class_names)}"
                words.text(x, y, text, color=GREEN if right else RED, va="center")
    return figure


def _is_there(rows: Sequence[Row], column: str) -> bool:
    """Whether a distilled network has this column."""
    return any(row.get(column) is not None for row in rows[1:])


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the temperature axis (log10), with room at both sides."""
    logs = [math.log10(row["temperature"]) for row in rows[1:]]
    room = max(0.06 * (max(logs) - min(logs)), 0.1)
    return min(logs) - room, max(logs) + room


def _temperature_axis(axes: Axes, rows: Sequence[Row]) -> None:
    low, high = _span(rows)
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_minor_locator(NullLocator())
    temperatures = [row["temperature"] for row in rows[1:]]
    labels: list[str] = []
    nearest = math.inf
    # Every temperature has a tick; one too close to its right neighbor has no number.
    for temperature in reversed(temperatures):
        clear = nearest - math.log10(temperature) > 0.04 * (high - low)
        labels.insert(0, temperature_name(temperature) if clear else "")
        nearest = math.log10(temperature) if clear else nearest
    axes.set_xticks(temperatures, labels, fontsize=8.5)
    axes.set_xlabel("distillation temperature")


def _reference_line(axes: Axes, rows: Sequence[Row], column: str) -> None:
    """The undistilled network's value as a dashed line, its interval as a band."""
    base = rows[0]
    if base.get(column) is None:
        return
    axes.axhline(100 * base[column], color=GRAY, linewidth=1.2, linestyle="--", label="undistilled network")
    if base.get(f"{column}_low") is not None:
        low, high = 100 * base[f"{column}_low"], 100 * base[f"{column}_high"]
        axes.axhspan(low, high, color=GRAY, alpha=0.15, linewidth=0)


def _series(
    axes: Axes, rows: Sequence[Row], column: str, nudge: float, label: str, color: str, marker: str, line: str,
    *, hollow: bool = False, interval_of: str | None = None,
) -> None:  # fmt: skip
    """One line over the temperatures, in percent, with the Wilson intervals of `interval_of` (default: `column`)."""
    low, high = _span(rows)
    kept = [row for row in rows[1:] if row.get(column) is not None]
    if not kept:
        return
    rate, ends = interval_of or column, [f"{interval_of or column}_{end}" for end in ("low", "high")]
    bars = None
    if ends[0] in kept[0]:
        bars = [[100 * abs(row[end] - row[rate]) for row in kept] for end in ends]
    axes.errorbar(
        [row["temperature"] * 10 ** (nudge * (high - low)) for row in kept],
        [100 * row[column] for row in kept],
        yerr=bars, label=label, color=color, marker=marker, linestyle=line, capsize=2, elinewidth=1,
        markerfacecolor="white" if hollow else color, linewidth=1 if hollow else 1.6,
    )  # fmt: skip
