"""What all pages share: reading a run, cells and tables of text, and the writing of a page."""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ddjax import metrics, runs

from . import _figures

Record = Mapping[str, Any]
Row = dict[str, Any]
# The text of a record in one column. The lines after the first are set small, or in parentheses in Markdown.
Cell = Callable[[Any], str]

# Whether an attack knows the defense, to the word for it.
KNOWLEDGE = {False: "unaware", True: "aware"}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory as pages read it.

    Attributes:
      workdir: the directory.
      config: the contents of `config.json`.
      records: the contents of `results.jsonl`.
    """

    workdir: Path
    config: Mapping[str, Any]
    records: Sequence[Record]

    @classmethod
    def read(cls, workdir: runs.PathLike) -> "Run":
        """Reads a directory, finished or not."""
        return cls(Path(workdir), runs.read_config(workdir), runs.read_results(workdir))

    def setting(self, name: str) -> Any:
        """A flag, or else what the launcher derived from the flags and the data; None where neither has this name."""
        flag = self.config.get("flags", {}).get(name)
        return self.config.get("resolved", {}).get(name) if flag is None else flag

    def of(self, *measures: str) -> list[Record]:
        """The records of these measures."""
        return [record for record in self.records if record.get("measure") in measures]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Saved arrays, by the path of their file in the directory; empty where there is no such file."""
        if not (self.workdir / name).is_file():
            return {}
        with np.load(self.workdir / name) as data:
            return dict(data)


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of a page. It is left out if its table has no rows and none of its figures shows anything.

    Attributes:
      title: its title.
      table: its table, as `table_of` makes it.
      note: one or more sentences below the table.
      figures: name to figure and caption; the figure is None where there is nothing to show.
    """

    title: str
    table: pd.DataFrame | None = None
    note: str = ""
    figures: Mapping[str, tuple[Figure | None, str]] = dataclasses.field(default_factory=dict)


def percent(share: float) -> str:
    """A share in percent with one decimal."""
    return f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+z.1f}"


def number(value: float) -> str:
    """A distance or a count to three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def temperature_name(temperature: float | None) -> str:
    """The name of a temperature in tables and on axes: `none` for the undistilled network, else the number."""
    return "none" if temperature is None else f"{temperature:g}"


def in_lines(attack: str) -> str:
    """An attack with its settings in small print, a line each, which keeps a column narrow."""
    return attack.replace(":", "\n").replace(",", "\n")


def field(name: str, form: Callable[[Any], str] | Mapping[Any, str] = str) -> Cell:
    """A cell with a field of a record, formatted or named by `form`; empty where the field is None or missing."""

    def cell(record: Record) -> str:
        value = record.get(name)
        return "" if value is None else form.get(value, str(value)) if isinstance(form, Mapping) else form(value)

    return cell


def rate(name: str) -> Cell:
    """A cell with a share, its 95 % interval and the number of trials, from `metrics.rate_fields`."""

    def cell(record: Record) -> str:
        if not record.get(f"{name}_n") or record.get(name) is None:
            return ""
        low, high = (100 * record[f"{name}_{end}"] for end in ("low", "high"))
        return f"{percent(record[name])}\n{low:.1f} to {high:.1f}\nn = {record[f'{name}_n']}"

    return cell


def counts(hits: str, n: str = "n") -> Cell:
    """A cell with a share as `rate` shows it, from the numbers of hits and of trials."""

    def cell(record: Record) -> str:
        known = record.get(hits) is not None
        return rate("share")(metrics.rate_fields("share", record[hits], record[n])) if known else ""

    return cell


def stack(*cells: Cell) -> Cell:
    """A cell with the texts of several, one below the other."""
    return lambda record: "\n".join(filter(None, (cell(record) for cell in cells)))


# Columns that several pages have, and what stands below their tables.
COSTS = {
    "zero gradients": field("zero_gradient_share", percent),
    "steps": field("mean_steps", number),
    "gradients": field("mean_gradients", number),
    "seconds": field("seconds_per_example", number),
}
ZERO_GRADIENTS = (
    "Zero gradients: share of the attack's gradients that were exactly zero; an attack cannot follow such a gradient, "
    "and its failure is no sign of robustness."
)
COSTS_NOTE = (
    "After 8-bit rounding: success with pixels rounded to the values that an image file can hold. "
    f"{ZERO_GRADIENTS} Steps, gradients and seconds: mean for one attempt."
)
CASES = ("best", "average", "worst")
CASES_NOTE = (
    "Best case: the nearest target that was reached. Average case: all targets. Worst case: the farthest target; it is "
    "a success only if all targets were reached."
)
DETECTION = {
    "attack": field("attack"),
    "knowledge": field("aware", KNOWLEDGE),
    "detected": rate("detection"),
    "AUC": field("auc", "{:.3f}".format),
}


def table_of(records: Iterable[Any], columns: Mapping[str, Cell]) -> pd.DataFrame:
    """A table of text: a row for each record, a column for each cell; a column that no row fills is left out."""
    rows = [[cell(record) for cell in columns.values()] for record in records]
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)
    return table.loc[:, (table != "").any()] if rows else table


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, without a newline at its end."""
    lines = [list(table.columns), ["---:"] * len(table.columns)]
    lines += [[_in_one_line(cell) for cell in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _in_one_line(cell: str) -> str:
    first, *rest = cell.split("\n")
    return f"{first} ({', '.join(rest)})".strip() if rest else first


def accuracies(run: Run, names: Mapping[str, str]) -> pd.DataFrame:
    """The test accuracies of networks, by their names in the results and on the page."""
    columns = {
        "network": field("network", names),
        "T": lambda record: temperature_name(record.get("temperature")),
        "test accuracy": counts("correct"),
    }
    return table_of([record for record in run.of("accuracy") if record["network"] in names], columns)


def pairs(settings: Mapping[str, Any]) -> pd.DataFrame:
    """Names and values."""
    return table_of(settings.items(), {"name": lambda pair: pair[0], "value": lambda pair: text(pair[1])})


def text(value: Any) -> str:
    """A JSON value as a person reads it: strings without quotes, nothing for null."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


_FEATURES_CAPTION = (
    "How often each feature was changed, in percent of the successful attempts; of many features, those that were "
    "changed most often."
)


def examples(
    run: Run, clean: Mapping[str, np.ndarray], attempts: Mapping[str, np.ndarray], title: str, caption: str
) -> tuple[Figure | None, str]:
    """`_figures.attempts_grid` with its caption; of inputs that are no images, the features that were changed."""
    if not clean or not attempts or clean["images"].ndim == 4:
        return _figures.attempts_grid(clean, attempts, run.setting("class_names"), title), caption
    won = attempts["success"]
    share = metrics.share_changed(clean["images"][attempts["rows"][won]], attempts["images"][won])
    return _figures.changed_features({title: share}, run.setting("feature_names")), _FEATURES_CAPTION


def plain_files(run: Run) -> dict[str, list[Row]]:
    """`table.csv` with all records, without what a second run of the same command would measure differently."""
    rows = [{name: value for name, value in record.items() if not name.startswith("seconds")} for record in run.records]
    return {"table.csv": rows}


def write_csv(rows: Iterable[Record], path: Path) -> None:
    """Writes rows as CSV, byte for byte the same for the same rows; the columns are the union of their keys."""
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_csv_cell(column, row.get(column)) for column in columns] for row in rows]
    runs.write_atomically(path, pd.DataFrame(cells, columns=columns).to_csv(index=False).encode())


def _csv_cell(column: str, value: Any) -> str | None:
    if column == "temperature" and (value is None or isinstance(value, int | float)):
        return temperature_name(value)
    if isinstance(value, float):
        return f"{value:z.6f}"
    return None if value is None else str(value)


def write_html(path: Path, heading: str, subtitle: str, sections: Iterable[Section]) -> None:
    """Writes a page as one file that needs neither network nor scripts; all text is escaped.

    Figures are also written to `figures/` beside the page. A figure that has nothing to show is removed there.
    """
    folder = path.parent / "figures"
    folder.mkdir(exist_ok=True)
    shown = []
    for section in sections:
        pictures = []
        for name, (figure, caption) in section.figures.items():
            if figure is None:
                (folder / f"{name}.png").unlink(missing_ok=True)
                continue
            png = _figures.to_png(figure)
            runs.write_atomically(folder / f"{name}.png", png)
            pictures.append({"name": name, "caption": caption, "data": base64.b64encode(png).decode()})
        table = None if section.table is None or section.table.empty else section.table
        if table is not None or pictures:
            shown.append({"title": section.title, "note": section.note, "table": table, "pictures": pictures})
    source = Path(__file__).with_name("report.html.j2").read_text()
    settings = {"autoescape": True, "undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    page = jinja2.Environment(**settings).from_string(source).render(heading=heading, subtitle=subtitle, sections=shown)
    runs.write_atomically(path, page.strip().encode() + b"\n")
