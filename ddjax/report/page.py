"""What the pages of all runs share: HTML, CSV, Markdown and where figures go."""

import base64
import csv
import html
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ddjax import figures, runs
from ddjax.figures import temperature_name

Row = dict[str, Any]

# Of the pages without a heading of their own.
HEADING = "Defensive distillation under attack"

_CSS = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
h1 + p, figcaption, .note, .ends { opacity: .72; } .note, figcaption { font-size: .9rem; max-width: 60rem; }
#summary p { border-left: 4px solid #0072b2; padding-left: 1rem; max-width: 60rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; } .ends { display: block; font-size: .75rem; white-space: nowrap; }
.pairs th, .pairs td { text-align: left; overflow-wrap: anywhere; } .pairs th { vertical-align: top; }
figure { margin: 1.5rem 0 2.2rem; } img { max-width: 100%; background: #fff; border-radius: 4px; }
"""


def percent(share: float) -> str:
    """A share in percent, with one decimal."""
    return f"{100 * share:.1f} %"


def number(value: float | int | None) -> str:
    """A distance or a count to three digits; nothing for None."""
    return "" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def rate_cell(record: Mapping[str, Any], field: str, n: str = "n") -> str:
    """A share with its interval, and below it the number of trials; nothing where there was no trial."""
    if not record.get(n) or record.get(field) is None:
        return ""
    low, high = (100 * record[f"{field}_{end}"] for end in ("low", "high"))
    return f"{percent(record[field])}\n{low:.1f} to {high:.1f}\nn = {record[n]}"


def dataset(config: Mapping[str, Any]) -> str | None:
    """The data set of a run."""
    return config.get("flags", {}).get("dataset") or config.get("resolved", {}).get("dataset")


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The classes of a run's data set; empty where it does not say."""
    return list(config.get("resolved", {}).get("class_names") or [])


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Saved arrays; empty where there is no such file."""
    if not path.exists():
        return {}
    with np.load(path) as data:
        return dict(data)


def without_seconds(record: Mapping[str, Any]) -> Row:
    """A record without what a second run of the same command would measure differently."""
    return {key: value for key, value in record.items() if not key.startswith("seconds")}


def write_table(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Writes rows as CSV, byte for byte the same for the same rows.

    Args:
      rows: the rows; the columns are the union of their keys in order of first appearance.
      path: the file to write, replaced at once when complete.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(column, row.get(column)) for column in columns] for row in rows)
    runs.write_atomically(Path(path), buffer.getvalue().encode())


def _cell(column: str, value: Any) -> str:
    if column == "temperature" and (value is None or isinstance(value, int | float)):
        return temperature_name(None if value is None else float(value))
    if isinstance(value, float):
        # Adding zero to the rounded value turns -0.0 and everything that rounds to it into 0.0.
        return f"{round(value, 6) + 0.0:.6f}"
    return "" if value is None else str(value)


def update_readme(path: str | os.PathLike[str], block: str, text: str) -> None:
    """Replaces what stands between `<!-- BEGIN block -->` and `<!-- END block -->`, and nothing else.

    Args:
      path: the file.
      block: the name of the block.
      text: what to put between the markers.

    Raises:
      ValueError: if the markers are not there, in this order.
    """
    path = Path(path)
    begin, end = f"<!-- BEGIN {block} -->", f"<!-- END {block} -->"
    before, opened, rest = path.read_bytes().decode().partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{path} has no block {begin} ... {end}")
    runs.write_atomically(path, f"{before}{begin}\n{text.strip()}\n{end}{after}".encode())


def text(value: Any) -> str:
    """A JSON value as a person reads it: strings without quotes, nothing for null."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def section(title: str, body: str) -> str:
    """A titled part of the page; `body` is HTML."""
    name = title.lower().replace(" ", "-")
    return f'<section id="{name}">\n<h2>{html.escape(title)}</h2>\n{body}\n</section>'


def paragraph(sentences: str) -> str:
    """A paragraph of plain text, its numbers kept beside their units."""
    escaped = html.escape(sentences)
    return f"<p>{escaped.replace('T = ', 'T&nbsp;=&nbsp;').replace(' %', '&nbsp;%')}</p>"


def note(sentences: str) -> str:
    """A paragraph of plain text in small print."""
    return f'<p class="note">{html.escape(sentences)}</p>'


def grid(header: Sequence[str], cells: Iterable[Sequence[str]], groups: Sequence[tuple[str, int]] = ()) -> str:
    """A table as HTML.

    Args:
      header: the titles of the columns.
      cells: the lines; a cell's lines after its first are set small.
      groups: a line above the header, each title with the number of columns below it.

    Returns:
      HTML, in a box that scrolls sideways where the table is too wide.
    """
    top = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    if groups:
        above = (f'<th colspan="{width}" style="text-align: center">{html.escape(name)}</th>' for name, width in groups)
        top = f"{''.join(above)}</tr>\n<tr>{top}"
    lines = []
    for line in cells:
        parts = [[html.escape(part) for part in cell.split("\n")] for cell in line]
        tds = (
            f"<td>{first}{''.join(f'<span class=ends>{part}</span>' for part in rest)}</td>" for first, *rest in parts
        )
        lines.append(f"<tr>{''.join(tds)}</tr>\n")
    return f'<div class="wide"><table>\n<tr>{top}</tr>\n{"".join(lines)}</table></div>'


def markdown(header: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A table as Markdown, without a newline at its end; lines within a cell stay lines."""
    lines = [header, ["---:"] * len(header), *cells]
    # A bar would end the cell.
    escaped = ([cell.replace("|", r"\|").replace("\n", "<br>") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def pairs(settings: Mapping[str, Any]) -> str:
    """Names and values as a table of two columns."""
    lines = (
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(text(value))}</td></tr>\n" for key, value in settings.items()
    )
    return f'<table class="pairs">\n{"".join(lines)}</table>'


def show_figures(drawn: Mapping[str, tuple[Figure | None, str]], workdir: Path) -> str:
    """Writes figures to `figures/`, and removes what an earlier report drew and this one has no data for.

    Args:
      drawn: name to figure, None where there is nothing to show, and caption.
      workdir: the run directory.

    Returns:
      The figures as HTML that needs no other file.
    """
    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    shown = []
    for name, (figure, caption) in drawn.items():
        if figure is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
            continue
        picture = figures.to_png(figure)
        runs.write_atomically(folder / f"{name}.png", picture)
        data = base64.b64encode(picture).decode()
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        shown.append(f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,{data}">{below}</figure>')
    return "\n".join(shown) or "<p>Nothing to show yet.</p>"


def document(heading: str, subtitle: str, sections: Iterable[str]) -> str:
    """The page of a run, one file that needs neither network nor scripts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>ddjax: {html.escape(subtitle)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(heading)}</h1>\n<p>{html.escape(subtitle)}</p>\n"
        + "\n".join(sections)
        + "\n</body>\n</html>\n"
    )
