"""The page of a run that has none of its own: a table of all its records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddjax.report import page

HEADING = page.HEADING


def sections(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `table.csv`; the arguments and the result are those of `sweep.sections`."""
    header, cells = table(records)
    # The table is compared between runs, and holds no times.
    timeless, lines = table([record for record in records if record.get("measure") != "loader"])
    page.write_table([dict(zip(timeless, line, strict=True)) for line in lines], workdir / "table.csv")
    return [page.section("Results", page.grid(header, cells) if records else "<p>No records yet.</p>")]


def readme_table(records: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """All records for a README."""
    return page.markdown(*table(records))


def table(records: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of all records: the union of their keys in order of first appearance."""
    header = list(dict.fromkeys(key for record in records for key in record))
    return header, [[page.text(record[key]) if key in record else "" for key in header] for record in records]
