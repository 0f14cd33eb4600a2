"""The lights of masked gradients, as pages show them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ddjax.report import page

Record = Mapping[str, Any]
_SIGNS = {"green": "🟢", "yellow": "🟡", "red": "🔴", "unknown": "⚪"}
_NAMES = {
    "one_step": "one step beats many",
    "transfer": "black box beats white box",
    "whole_box": "unbounded attacks fail",
    "random": "random search finds more",
    "radius": "a larger radius does not help",
    "zero_gradient": "gradients are zero",
}


def light_row(records: Sequence[Record]) -> str:
    """The lights of one classifier in the order of `ddjax.masking.lights`, as signs; empty where there are none."""
    colors = {r["name"]: r["color"] for r in records if r.get("measure") == "light"}
    return "".join(_SIGNS[colors[name]] for name in _NAMES if name in colors)


def lights_table(records: Sequence[Record], *where: str) -> str:
    """A table of all lights as HTML; empty where there are none.

    Args:
      records: the records of `results.jsonl`.
      *where: the fields by which a classifier is known.
    """
    lights = [record for record in records if record.get("measure") == "light"]
    if not lights:
        return ""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for light in lights:
        text = f"{_SIGNS[light['color']]}\n{light['explanation']}"
        cells.setdefault(tuple(light[field] for field in where), {})[light["name"]] = text
    shown = [name for name in _NAMES if any(name in line for line in cells.values())]
    header = [*where, *(_NAMES[name] for name in shown)]
    table = page.grid(header, [[*known, *(line.get(name, "") for name in shown)] for known, line in cells.items()])
    return f"{table}\n{page.note(_NOTE)}"


_NOTE = (
    "Behaviors that give masked gradients away (Athalye, Carlini and Wagner 2018, section 3.1): green, not seen; "
    "yellow, seen, but perhaps by chance; red, seen beyond chance at 5 %. Measured with the classifier's own "
    "gradients. Green lights are no proof of robustness."
)
