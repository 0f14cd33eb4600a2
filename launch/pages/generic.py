"""The page of a run that has no page of its own: a table of all its records."""

import pandas as pd

from . import _page

HEADING = "Results of a run"


def sections(run: _page.Run) -> list[_page.Section]:
    """The records."""
    return [_page.Section("Results", table(run))]


def table(run: _page.Run) -> pd.DataFrame:
    """All records."""
    names = dict.fromkeys(name for record in run.records for name in record)
    return _page.table_of(run.records, {name: _page.field(name, _page.text) for name in names})


def files(run: _page.Run) -> dict[str, list[_page.Row]]:
    """The records without those that hold times alone, with all their digits."""
    timeless = [record for record in run.records if record.get("measure") != "loader"]
    names = dict.fromkeys(name for record in timeless for name in record)
    return {"table.csv": [{name: _page.text(record.get(name)) for name in names} for record in timeless]}
