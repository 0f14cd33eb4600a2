"""The pages of runs: `table.csv`, `table.md`, `figures/*.png` and a self-contained `report.html`.

Everything is computed from `config.json`, `results.jsonl` and the saved arrays, so a report can be made again at any
time, also of a run that is still going or was stopped. Each module without an underscore holds the page of one
launcher:

- `HEADING`, the title of the page;
- `table(run)`, the table that the launcher prints and that stands in `table.md`;
- `sections(run)`, the parts of the page, with its figures and captions;
- `files(run)`, the rows of its CSV files; without it, `table.csv` holds all records without their times.
"""

from pathlib import Path
from types import ModuleType

from ddjax import runs

from . import _page, attack, benchmark, carlini, evaluate, generative, generic, obfuscated, sweep, transfer

__all__ = ["table", "write"]

_OF_LAUNCHER: dict[object, ModuleType] = {
    "attack": attack, "benchmark": benchmark, "carlini": carlini, "evaluate": evaluate, "generate": generative,
    "obfuscated": obfuscated, "sweep": sweep, "transfer": transfer,
}  # fmt: skip


def write(workdir: runs.PathLike) -> Path:
    """Writes the report of a run, finished or not, with its tables and figures.

    Args:
      workdir: the run directory.

    Returns:
      The path of the report, one file that needs neither network nor scripts.

    Raises:
      runs.RunError: if the directory holds no run, or a damaged one.
    """
    run = _page.Run.read(workdir)
    page = _page_of(run)
    for name, rows in getattr(page, "files", _page.plain_files)(run).items():
        _page.write_csv(rows, run.workdir / name)
    runs.write_atomically(run.workdir / "table.md", _page.markdown(page.table(run)).encode() + b"\n")
    sections = page.sections(run)
    for name in ("flags", "resolved", "environment"):
        sections.append(_page.Section(f"Configuration, {name}", _page.pairs(run.config.get(name) or {})))
    seeds = run.setting("seeds") or sorted({record["seed"] for record in run.records if "seed" in record})
    named = {"recipe": run.setting("recipe"), "data set": run.setting("dataset"), "seeds": ", ".join(map(str, seeds))}
    subtitle = ", ".join(f"{name} {value}" for name, value in named.items() if value)
    _page.write_html(run.workdir / "report.html", page.HEADING, subtitle or run.workdir.name, sections)
    return run.workdir / "report.html"


def table(workdir: runs.PathLike) -> str:
    """The table of a run as Markdown, which a terminal shows as well, without a newline at its end.

    Args:
      workdir: the run directory.

    Raises:
      runs.RunError: if the directory holds no run, or a damaged one.
    """
    run = _page.Run.read(workdir)
    return _page.markdown(_page_of(run).table(run))


def _page_of(run: _page.Run) -> ModuleType:
    """The module with this run's page."""
    flags = run.config.get("flags", {})
    # The flags of a sweep do not name their launcher.
    launcher = flags.get("launcher", "sweep" if "temperatures" in flags else None)
    return _OF_LAUNCHER.get(launcher, generic)
