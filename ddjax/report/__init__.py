"""Turns a run directory into `table.csv`, `figures/*.png` and a self-contained `report.html`.

Everything is computed from `config.json`, `results.jsonl` and the saved arrays, so a report can be made again at any
time, also of a run that is still going or was stopped. `page` holds what all pages share; each of the other modules is
the page of one kind of run: a sweep over temperatures, the training of a generative model, and the launchers `attack`,
`benchmark`, `carlini`, `evaluate`, `obfuscated` and `transfer`; `masking` is what two of them share.
"""

import os
from pathlib import Path
from types import ModuleType

from ddjax import runs
from ddjax.report import attack, benchmark, carlini, evaluate, generative, generic, obfuscated, page, sweep, transfer
from ddjax.report.page import update_readme, write_table
from ddjax.report.sweep import conclude, gradient_decades, markdown_table, missing_measurements, summarize

__all__ = [
    "conclude", "gradient_decades", "markdown_table", "missing_measurements", "readme_table", "summarize",
    "update_readme", "write", "write_table",
]  # fmt: skip

_OF_LAUNCHER = {
    "attack": attack,
    "benchmark": benchmark,
    "carlini": carlini,
    "evaluate": evaluate,
    "generate": generative,
    "obfuscated": obfuscated,
    "transfer": transfer,
}


def write(workdir: str | os.PathLike[str]) -> Path:
    """Writes `table.csv`, `figures/*.png` and `report.html` of a run directory.

    A run of a kind with a page of its own, finished or not, gets its tables, its figures and a reading of its numbers;
    any other gets a table of all its records.

    Args:
      workdir: the run directory.

    Returns:
      The path of the report, one file that needs neither network nor scripts.
    """
    workdir = Path(workdir)
    config, records = runs.read_config(workdir), runs.read_results(workdir)
    flags, resolved = config.get("flags", {}), config.get("resolved", {})
    kind = _kind(flags)
    sections = kind.sections(records, config, workdir)
    settings = "".join(
        f"<h3>{name.capitalize()}</h3>{page.pairs(config.get(name, {}))}" for name in ("flags", "resolved")
    )
    sections += [
        page.section("Configuration", settings),
        page.section("Environment", page.pairs(config.get("environment", {}))),
    ]
    seeds = flags.get("seeds", sorted({record["seed"] for record in records if "seed" in record}))
    named = {"recipe": flags.get("recipe"), "data set": resolved.get("dataset"), "seeds": page.text(seeds).strip("[]")}
    subtitle = ", ".join(f"{name} {value}" for name, value in named.items() if value)
    written = page.document(kind.HEADING, subtitle or workdir.name, sections)
    runs.write_atomically(workdir / "report.html", written.encode())
    return workdir / "report.html"


def readme_table(workdir: str | os.PathLike[str]) -> str:
    """The table of a run for a README.

    Args:
      workdir: the run directory.

    Returns:
      A Markdown table, without a newline at its end.
    """
    config, records = runs.read_config(workdir), runs.read_results(workdir)
    return _kind(config.get("flags", {})).readme_table(records, config)


def _kind(flags: dict[str, object]) -> ModuleType:
    """The module with this run's page."""
    launcher = flags.get("launcher")
    if isinstance(launcher, str) and launcher in _OF_LAUNCHER:
        return _OF_LAUNCHER[launcher]
    return sweep if "temperatures" in flags else generic
