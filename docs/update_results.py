"""Fills the tables of `docs/results.md` from the runs under `docs/results/`: `python -m docs.update_results`.

The table of the run `docs/results/NAME` stands between `<!-- BEGIN NAME -->` and `<!-- END NAME -->`.
"""

import pathlib
import re

from launch import pages

PAGE = pathlib.Path(__file__).with_name("results.md")


def blocks(text: str) -> dict[str, str]:
    """The tables that stand between the markers of a text, by the names of their runs."""
    found = re.findall(r"<!-- BEGIN (\w+) -->\n(.*?)\n<!-- END \1 -->", text, re.DOTALL)
    return dict(found)


def update(text: str) -> str:
    """The text with the tables of the runs as they are now."""
    for name, table in blocks(text).items():
        begin, end = f"<!-- BEGIN {name} -->\n", f"\n<!-- END {name} -->"
        text = text.replace(begin + table + end, begin + pages.table(PAGE.with_suffix("") / name) + end)
    return text


if __name__ == "__main__":
    PAGE.write_text(update(PAGE.read_text()))
