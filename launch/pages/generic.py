"""The page of a run that has no page of its own: a table of all its records."""

from . import _page

HEADING = "Results of a run"


def sections(run: _page.Run) -> list[_page.Section]:
    """The records."""
    return [_page.Section("Results", table(run))]


def table(run: _page.Run) -> _page.Table:
    """All records."""
    return _page.records_table(run.records)


def files(run: _page.Run) -> dict[str, list[_page.Row]]:
    """The records without those that hold times alone, with all their digits."""
    timeless = _page.records_table([record for record in run.records if record.get("measure") != "loader"])
    return {"table.csv": [dict(zip(timeless.header, row, strict=True)) for row in timeless.rows]}
