"""What all pages share: reading a run, formats of numbers, tables, and the writing of a report."""

import base64
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ddjax import metrics, runs

from . import _style

Record = Mapping[str, Any]
Row = dict[str, Any]
# A figure, or None where there is nothing to show, and its caption.
Picture = tuple[Figure | None, str]


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

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags that determine the numbers."""
        return self.config.get("flags", {})

    @property
    def resolved(self) -> Mapping[str, Any]:
        """What the launcher derived from the flags and the data."""
        return self.config.get("resolved", {})

    @property
    def dataset(self) -> str | None:
        """The name of the data set."""
        return self.flags.get("dataset") or self.resolved.get("dataset")

    @property
    def class_names(self) -> list[str]:
        """The classes of the data set; empty where the run does not say."""
        return list(self.resolved.get("class_names") or [])

    def of(self, *measures: str) -> list[Record]:
        """The records of these measures."""
        return [record for record in self.records if record.get("measure") in measures]

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Saved arrays, by the path of their file in the directory; empty where there is no such file."""
        if not (self.workdir / name).exists():
            return {}
        with np.load(self.workdir / name) as data:
            return dict(data)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      header: the titles of the columns.
      rows: the cells; the lines of a cell after its first are set small, or in parentheses in Markdown.
      groups: titles above the header, each with the number of columns below it.
      words: whether the cells are words, which are aligned to the left.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[tuple[str, int]] = ()
    words: bool = False

    def markdown(self) -> str:
        """The table as Markdown, without a newline at its end."""
        groups = [name for name, width in self.groups for _ in range(width)] or [""] * len(self.header)
        header = [", ".join(filter(None, names)) for names in zip(groups, self.header, strict=True)]
        lines = [header, ["---:"] * len(header), *([_in_one_line(cell) for cell in row] for row in self.rows)]
        return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)

    def without_empty_columns(self, kept: int) -> "Table":
        """The table without the columns that no row fills; the first `kept` columns stay."""
        filled = [i for i in range(len(self.header)) if i < kept or any(row[i] for row in self.rows)]
        return dataclasses.replace(
            self, header=[self.header[i] for i in filled], rows=[[row[i] for i in filled] for row in self.rows]
        )


def _in_one_line(cell: str) -> str:
    first, *rest = cell.split("\n")
    return f"{first} ({', '.join(rest)})".strip() if rest else first


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of a page.

    Attributes:
      title: its title.
      table: its table; a section whose table has no rows, and without figures, is left out.
      note: one or more sentences below the table.
      figures: name to figure and caption.
    """

    title: str
    table: Table | None = None
    note: str = ""
    figures: Mapping[str, Picture] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The section's anchor on the page."""
        return self.title.lower().replace(",", "").replace(" ", "-")


def percent(share: float | None) -> str:
    """A share in percent with one decimal; empty for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def number(value: float | int | None) -> str:
    """A distance or a count to three digits; empty for None."""
    return "" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def points(difference: float | None) -> str:
    """A difference of two shares in percentage points, with its sign; empty for None."""
    return "" if difference is None else f"{100 * difference + 0.0:+.1f}"


def rate(share: float | None, n: int | None, low: float | None, high: float | None) -> str:
    """A share with its 95 % interval and the number of trials; empty without a trial."""
    if not n or share is None or low is None or high is None:
        return ""
    return f"{percent(share)}\n{100 * low:.1f} to {100 * high:.1f}\nn = {n}"


def rate_of(record: Record, field: str, n: str = "n") -> str:
    """`rate` of the fields `field`, `field_low` and `field_high` of a record."""
    return rate(record.get(field), record.get(n), record.get(f"{field}_low"), record.get(f"{field}_high"))


def count_rate(record: Record, hits: str, n: str = "n") -> str:
    """`rate` of two counts of a record, with the Wilson interval."""
    if not record.get(n) or record.get(hits) is None:
        return ""
    return rate(record[hits] / record[n], record[n], *metrics.wilson_interval(record[hits], record[n]))


def temperature_name(temperature: float | None) -> str:
    """The name of a temperature in tables and on axes: `none` for the undistilled network, else the number."""
    return "none" if temperature is None else f"{temperature:g}"


def accuracies(run: Run, names: Mapping[str, str]) -> Table:
    """The test accuracies of networks, by their names in the results and on the page."""
    rows = []
    for record in run.of("accuracy"):
        if record["network"] in names:
            temperature = temperature_name(record.get("temperature"))
            rows.append([names[record["network"]], temperature, count_rate(record, "correct")])
    return Table(["network", "T", "test accuracy"], rows)


def pairs(settings: Mapping[str, Any]) -> Table:
    """Names and values."""
    return Table(["name", "value"], [[name, _text(value)] for name, value in settings.items()], words=True)


def records_table(records: Sequence[Record]) -> Table:
    """A table of any records: the union of their fields in order of first appearance."""
    header = list(dict.fromkeys(key for record in records for key in record))
    return Table(header, [[_text(record[key]) if key in record else "" for key in header] for record in records])


def _text(value: Any) -> str:
    """A JSON value as a person reads it: strings without quotes, nothing for null."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def without_seconds(record: Record) -> Row:
    """A record without what a second run of the same command would measure differently."""
    return {key: value for key, value in record.items() if not key.startswith("seconds")}


def plain_files(run: Run) -> dict[str, list[Row]]:
    """`table.csv` with all records, without their times."""
    return {"table.csv": [without_seconds(record) for record in run.records]}


def write_csv(rows: Iterable[Record], path: Path) -> None:
    """Writes rows as CSV, byte for byte the same for the same rows; the columns are the union of their keys."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [{column: _csv_cell(column, row.get(column)) for column in columns} for row in rows]
    runs.write_atomically(path, pd.DataFrame(cells, columns=columns).to_csv(index=False).encode())


def _csv_cell(column: str, value: Any) -> str:
    if column == "temperature" and (value is None or isinstance(value, int | float)):
        return temperature_name(value)
    if isinstance(value, float):
        # Adding zero to the rounded value turns -0.0 and everything that rounds to it into 0.0.
        return f"{round(value, 6) + 0.0:.6f}"
    return "" if value is None else str(value)


def write_html(path: Path, heading: str, subtitle: str, sections: Iterable[Section]) -> None:
    """Writes a page as one file that needs neither network nor scripts; all text is escaped.

    Figures are also written to `figures/` beside the page. A figure that has nothing to show is removed there.
    """
    shown = []
    for section in sections:
        table = section.table if section.table and section.table.rows else None
        if table or section.figures:
            pictures = _write_figures(section.figures, path.parent / "figures")
            part = {"title": section.title, "name": section.name, "note": section.note if table or pictures else ""}
            shown.append(part | {"table": table, "pictures": pictures})
    written = _template().render(heading=heading, subtitle=subtitle, sections=shown)
    runs.write_atomically(path, written.strip().encode() + b"\n")


def _write_figures(figures: Mapping[str, Picture], folder: Path) -> list[dict[str, str]]:
    folder.mkdir(exist_ok=True)
    shown = []
    for name, (figure, caption) in figures.items():
        if figure is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        png = _style.to_png(figure)
        runs.write_atomically(folder / f"{name}.png", png)
        shown.append({"name": name, "caption": caption, "data": base64.b64encode(png).decode()})
    return shown


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
