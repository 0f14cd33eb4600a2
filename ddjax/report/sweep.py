"""The page of a sweep over distillation temperatures."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ddjax import figures, metrics
from ddjax.figures import temperature_name
from ddjax.report import generic, page
from ddjax.report.page import Row, percent

HEADING = page.HEADING

# Column of the table to (kind of record, field with the hits), pooled over seeds as hits / n with an interval.
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

# From this share of all-zero Jacobians on the report calls a network's gradients dead.
_DEAD_SHARE = 0.5

_Key = tuple[float | None, str]


def _kind(record: Mapping[str, Any]) -> str:
    kind = record["measure"]
    if kind == "jsma":
        kind += f"/{record['space']}"
    return f"teacher/{kind}" if record["network"] == "teacher" else kind


def _by_seed(records: Iterable[Mapping[str, Any]]) -> dict[_Key, dict[int, Mapping[str, Any]]]:
    """(temperature, kind) to the record of each seed; a repeated measurement replaces the earlier one."""
    groups: dict[_Key, dict[int, Mapping[str, Any]]] = {}
    for record in records:
        if record.get("measure") in _MEASURES:
            temperature = None if record["temperature"] is None else float(record["temperature"])
            groups.setdefault((temperature, _kind(record)), {})[record["seed"]] = record
    return groups


def _planned(records: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> list[float | None]:
    """None and, ascending, every temperature that was asked for or measured."""
    asked = [t for t in config.get("flags", {}).get("temperatures") or [] if isinstance(t, int | float)]
    measured = [r["temperature"] for r in records if r.get("measure") in _MEASURES and r["temperature"] is not None]
    return [None, *sorted({float(t) for t in [*asked, *measured]})]


def sections(records: Sequence[Row], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `table.csv` and the figures of a sweep, finished or not.

    Args:
      records: the records of `results.jsonl`.
      config: the contents of `config.json`.
      workdir: the run directory.

    Returns:
      The parts of the page that are about its results.
    """
    rows = summarize(records, config)
    page.write_table(rows, workdir / "table.csv")
    written = [
        page.section("Summary", page.paragraph(conclude(rows, missing_measurements(records, config)))),
        page.section("Results", _results(rows, records)),
        page.section("Figures", page.show_figures(_draw(rows, records, config, workdir), workdir)),
    ]
    foreign = [record for record in records if record.get("measure") not in (*_MEASURES, _DONE)]
    if foreign:
        written.append(page.section("Other records", page.grid(*generic.table(foreign))))
    return written


def readme_table(records: Sequence[Row], config: Mapping[str, Any]) -> str:
    """The compact table for a README."""
    return markdown_table(summarize(records, config))


def summarize(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[Row]:
    """Pools the seeds of a sweep into a row a temperature.

    Counts are summed over seeds before a rate is taken; other values are averaged with equal weight.

    Args:
      records: the records of `results.jsonl`.
      config: the contents of `config.json`; only planned temperatures and published values are read.

    Returns:
      The rows, the undistilled network (temperature None) first and then by ascending temperature; what has not been
      measured is None. Rates come with `_n`, `_low` and `_high`, their 95 % Wilson interval.
    """
    groups = _by_seed(records)
    published = config.get("resolved", {}).get("published_jsma_success") or {}
    rows = []
    for temperature in _planned(records, config):

        def of(kind: str, temperature: float | None = temperature) -> list[Mapping[str, Any]]:
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
        if published:
            row["published_jsma_success"] = published.get(temperature_name(temperature))
        if row["accuracy"] is not None and (rows or [row])[0]["accuracy"] is not None:
            row["accuracy_variation"] = row["accuracy"] - (rows or [row])[0]["accuracy"]
        rows.append(row)
    return rows


def _pool(
    records: Sequence[Mapping[str, Any]], hits: str, total: str = "n"
) -> tuple[float | None, int | None, float | None, float | None]:
    """Pooled rate, number of trials and Wilson interval."""
    n = sum(int(record[total]) for record in records)
    if not n:
        return None, (0 if records else None), None, None
    count = sum(int(record[hits]) for record in records)
    low, high = metrics.wilson_interval(count, n)
    return count / n, n, float(low), float(high)


def _mean(records: Sequence[Mapping[str, Any]], field: str) -> float | None:
    values = [record[field] for record in records if record.get(field) is not None]
    return sum(values) / len(values) if values else None


def gradient_decades(records: Sequence[Mapping[str, Any]]) -> dict[float | None, Counter[int]]:
    """Pools the histograms of gradient amplitude over seeds.

    Args:
      records: the records of `results.jsonl`.

    Returns:
      Temperature (None: undistilled) to floor(log10 amplitude) to number of images.
    """
    pooled: dict[float | None, Counter[int]] = {}
    for (temperature, kind), seeds in _by_seed(records).items():
        for record in seeds.values() if kind == "gradients" else ():
            counts = dict(zip(record["decades"], record["decade_counts"], strict=True))
            pooled.setdefault(temperature, Counter()).update(counts)
    return pooled


def missing_measurements(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> tuple[int, int]:
    """Counts the measurements a complete sweep would have and this one has not.

    Args:
      records: the records of `results.jsonl`.
      config: the contents of `config.json`; the planned temperatures and seeds are read from its flags.

    Returns:
      How many are missing, and how many there should be.
    """
    groups = _by_seed(records)
    seeds = config.get("flags", {}).get("seeds") or sorted({seed for found in groups.values() for seed in found})
    wanted = []
    for temperature in _planned(records, config):
        # The undistilled network has nothing to transfer from and, as at T = 1, tempering changes nothing.
        skipped = {None: ("fgsm_transfer", "jsma/tempered"), 1.0: ("jsma/tempered",)}.get(temperature, ())
        wanted += [(temperature, kind) for kind in _KINDS if kind not in skipped]
    missing = sum(seed not in groups.get(key, {}) for key in wanted for seed in seeds)
    return missing, len(wanted) * len(seeds)


def conclude(rows: Sequence[Row], missing: tuple[int, int] = (0, 0)) -> str:
    """Says in a paragraph what the numbers say: the cost in accuracy, dead gradients, whether robustness is real.

    Two rates count as different only if their 95 % intervals do not overlap.

    Args:
      rows: the rows of `summarize`.
      missing: how many measurements are missing, of how many.

    Returns:
      Plain text.
    """
    said = []
    if missing[0]:
        said.append(f"This sweep is unfinished: {missing[0]} of {missing[1]} measurements are not there yet.")
    said += _say_accuracy(rows) + _say_gradients(rows)
    verdicts = {row["temperature"]: _verdict(rows[0], row) for row in rows[1:]}
    judged = [row for row in rows[1:] if verdicts[row["temperature"]] != "open"]
    if not judged:
        said.append("The attacks that decide whether any robustness is real have not all been measured: no conclusion.")
        return " ".join(said)
    focus = judged[-1]
    said += _say_attacks(rows[0], focus, verdicts[focus["temperature"]])
    others = {
        verdict: [row["temperature"] for row in judged[:-1] if verdicts[row["temperature"]] == verdict]
        for verdict in _VERDICTS
    }
    listed = "; ".join(f"{_VERDICTS[verdict]} at {_list(found)}" for verdict, found in others.items() if found)
    if listed:
        said.append(f"The same comparison elsewhere: {listed}.")
    return " ".join(said)


_VERDICTS = {
    "none": "no clear drop in JSMA success",
    "masked": "gradient masking",
    "partly": "partly gradient masking",
    "stands": "a drop that the tempered attack does not undo",
    "unclear": "too small a difference to tell",
}


def _verdict(base: Row, row: Row) -> str:
    """A key of `_VERDICTS`, or "open" where a measurement it takes is missing."""
    if base["jsma_success"] is None or row["jsma_success"] is None:
        return "open"
    if row["jsma_success_high"] >= base["jsma_success_low"]:
        return "none"
    if row["jsma_tempered_success"] is None:
        return "open"
    lower = row["jsma_tempered_success_high"] < base["jsma_success_low"]
    if row["jsma_tempered_success_low"] > row["jsma_success_high"]:
        return "partly" if lower else "masked"
    return "stands" if lower else "unclear"


def _say_accuracy(rows: Sequence[Row]) -> list[str]:
    known = [row for row in rows[1:] if row["accuracy_variation"] is not None]
    if not known:
        return []
    low, high = (pick(known, key=lambda row: row["accuracy_variation"]) for pick in (min, max))
    start = f"The undistilled network classifies {percent(rows[0]['accuracy'])} of the test images correctly; "
    if len(known) == 1:
        name, change = temperature_name(low["temperature"]), 100 * low["accuracy_variation"]
        return [f"{start}distillation at T = {name} changes that by {change:+.2f} percentage points."]
    ends = [
        f"{100 * row['accuracy_variation']:+.2f} (T = {temperature_name(row['temperature'])})" for row in (low, high)
    ]
    return [f"{start}distillation changes that by between {ends[0]} and {ends[1]} percentage points."]


def _say_gradients(rows: Sequence[Row]) -> list[str]:
    known = [row for row in rows[1:] if row["zero_gradient_share"] is not None]
    if not known:
        return []
    most = max(known, key=lambda row: row["zero_gradient_share"])
    peak = f"{percent(most['zero_gradient_share'])} at T = {temperature_name(most['temperature'])}"
    dead = [row["temperature"] for row in known if row["zero_gradient_share"] >= _DEAD_SHARE]
    if dead:
        said = f"Evaluated at T = 1, the networks distilled at {_list(dead)} have dead gradients: at least half of the "
        return [f"{said}test images get a Jacobian that is exactly zero in float32 (up to {peak})."]
    if most["zero_gradient_share"] > 0:
        return [f"At no temperature are the float32 gradients at T = 1 zero for half of the images (at most {peak})."]
    return ["No test image has an exactly zero float32 gradient at T = 1, at any temperature."]


def _say_attacks(base: Row, row: Row, verdict: str) -> list[str]:
    """The two versions of JSMA at one temperature, FGSM beside them, and what follows."""
    name = f"T = {temperature_name(row['temperature'])}"
    plain, tempered, without = row["jsma_success"], row["jsma_tempered_success"], base["jsma_success"]
    said = f"At {name}, JSMA on T=1 probabilities succeeds in {percent(plain)} of its attempts ({percent(without)} "
    said += "without distillation)"
    if tempered is not None:
        said += f"; JSMA on softmax(Z/T) of the same network succeeds in {percent(tempered)}"
    lines = [said + "."]
    transfer, white = row["fgsm_transfer_success"], row["fgsm_success"]
    if transfer is not None and white is not None and row["fgsm_transfer_success_low"] > row["fgsm_success_high"]:
        said = (
            f"FGSM tells of masking too: on the network itself it succeeds in {percent(white)}, while images made on "
        )
        lines.append(f"{said}the undistilled network fool it in {percent(transfer)}.")
    if verdict == "none":
        lines.append(
            "Conclusion: there is no robustness to explain, since plain JSMA does not succeed clearly less often."
        )
        if tempered is not None and row["jsma_tempered_success_low"] > row["jsma_success_high"]:
            lines.append("The tempered attack succeeds more often still.")
    elif verdict == "masked":
        share = row["zero_gradient_share"]
        how = (
            ""
            if share is None or share >= _DEAD_SHARE
            else ", though fewer than half of its gradients are exactly zero"
        )
        lines.append(
            "Conclusion: the robustness is not real but gradient masking. The network is fooled about as often as "
            f"without distillation once the attack gets gradients it can use{how}."
        )
    elif verdict == "partly":
        back, lost = 100 * (tempered - plain), 100 * (without - plain)
        lines.append(
            f"Conclusion: part of the robustness is gradient masking. The tempered attack wins back {back:.1f} of the "
            f"{lost:.1f} points lost; the rest is resistance to this one attack, not shown against stronger ones."
        )
    elif verdict == "stands":
        lines.append(
            "Conclusion: the tempered attack is not higher, so these numbers do not show gradient masking. The drop "
            "stands against both versions of JSMA, which is no proof of robustness against stronger attacks."
        )
    else:
        lines.append(
            "Conclusion: undecided. The tempered attack is not clearly higher than the plain one, nor clearly lower "
            "than plain JSMA without distillation."
        )
    return lines


def _list(temperatures: Sequence[float]) -> str:
    names = [temperature_name(temperature) for temperature in temperatures]
    return "T = " + (", ".join(names[:-1]) + " and " if len(names) > 1 else "") + names[-1]


def _shown(rows: Sequence[Row], interval: str) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the compact table; `interval` formats the low, high and n behind a rate."""
    layout = [
        ("test accuracy", "accuracy"), ("JSMA, T=1 probabilities", "jsma_success"),
        ("JSMA, tempered", "jsma_tempered_success"), ("FGSM", "fgsm_success"),
        ("FGSM, transferred", "fgsm_transfer_success"), ("robustness", "robustness"),
        ("at the cap", "robustness_capped_share"), ("mean abs. logit", "mean_abs_logit"),
        ("zero gradients", "zero_gradient_share"),
        ("log10 gradient", "log10_adversarial_gradient"),
    ]  # fmt: skip
    if any(row.get("published_jsma_success") is not None for row in rows):
        layout.append(("JSMA, published", "published_jsma_success"))

    def cell(row: Row, column: str) -> str:
        value = row[column]
        if value is None:
            return ""
        if column in ("mean_abs_logit", "log10_adversarial_gradient"):
            return f"{round(value, 1) + 0.0:.1f}"
        if column not in _RATES:
            return percent(value)
        ends = {end: f"{100 * row[f'{column}_{end}']:.1f}" for end in ("low", "high")}
        return percent(value) + interval.format(**ends, n=row[f"{column}_n"])

    header = ["T", *(title for title, _ in layout)]
    return header, [
        [temperature_name(row["temperature"]), *(cell(row, column) for _, column in layout)] for row in rows
    ]


def markdown_table(rows: Sequence[Row]) -> str:
    """The compact table for a README.

    Args:
      rows: the rows of `summarize`.

    Returns:
      A Markdown table, without a newline at its end; rates carry their 95 % interval in brackets.
    """
    return page.markdown(*_shown(rows, " [{low}, {high}]"))


def _draw(
    rows: Sequence[Row], records: Sequence[Mapping[str, Any]], config: Mapping[str, Any], workdir: Path
) -> dict[str, tuple[Figure | None, str]]:
    resolved, examples = config.get("resolved", {}), _examples(workdir / "examples")
    names, source = resolved.get("class_names") or [], resolved.get("published_source") or ""
    highest = max((t for t in examples if t is not None), default=None)
    grids: dict[str, tuple[float | None, str]] = {"jsma_grid": (None, "Undistilled network")}
    if highest is not None:
        grids["jsma_grid_distilled"] = (highest, f"Distilled at T = {highest:g}")
    drawn = {
        "success": figures.success(rows),
        "accuracy_variation": figures.accuracy_variation(rows),
        "gradients": figures.gradients(rows, gradient_decades(records)),
        "robustness": figures.robustness(rows),
        **{name: figures.jsma_grid(examples.get(t, {}), names, title) for name, (t, title) in grids.items()},
        "fgsm": figures.fgsm(examples, names),
    }
    captions = dict(figures.CAPTIONS)
    if any(row.get("published_jsma_success") is not None for row in rows):
        captions["success"] += f" Open diamonds: published values{f' ({source})' if source else ''}."
    return {name: (drawn.get(name), caption) for name, caption in captions.items()}


def _examples(folder: Path) -> dict[float | None, dict[str, np.ndarray]]:
    """The saved examples of the lowest seed, by temperature."""
    found: dict[int, dict[float | None, Path]] = {}
    for path in sorted(folder.glob("seed*_*.npz")):
        seed, _, tag = path.stem.removeprefix("seed").partition("_")
        found.setdefault(int(seed), {})[None if tag == "none" else float(tag.removeprefix("T"))] = path
    examples = {}
    for temperature, path in found[min(found)].items() if found else ():
        with np.load(path) as data:
            examples[temperature] = dict(data)
    return examples


def _results(rows: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    header, cells = _shown(rows, "\n{low} to {high}\nn = {n}")
    attacks = {
        "JSMA": ("jsma", "theta", "gamma", "max_features", "num_features"),
        "FGSM": ("fgsm", "epsilon"),
    }
    notes = ["Below a rate: its 95 % Wilson interval and the number of trials, pooled over seeds."]
    for name, (measure, *fields) in attacks.items():
        found = [record for record in records if record.get("measure") == measure]
        used = {field: sorted({record[field] for record in found if record.get(field) is not None}) for field in fields}
        settings = [
            f"{field} {', '.join(f'{value:g}' for value in values)}" for field, values in used.items() if values
        ]
        if settings:
            notes.append(f"{name}: {'; '.join(settings)}.")
    notes.append(
        "JSMA counts pairs of an image and a target class; FGSM, not targeted, the correctly classified test images. "
        "Robustness: mean share of features plain JSMA has to change, failures counted at the cap; beside it the "
        "share of images on which every target failed. Zero gradients: "
        "images whose Jacobian of the T=1 probabilities is all zero in float32. Log10 gradient: mean over images of "
        "log10 of that Jacobian's mean absolute entry. All columns are in table.csv."
    )
    return f"{page.grid(header, cells)}\n{page.note(' '.join(notes))}"
