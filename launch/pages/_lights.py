"""The signs of masked gradients, as pages show them."""

from collections.abc import Sequence

from ._page import Record, Row, Section, field, table_of

_SIGNS = {"green": "🟢", "yellow": "🟡", "red": "🔴", "unknown": "⚪"}
_NAMES = {
    "one_step": "one step beats many",
    "transfer": "black box beats white box",
    "whole_box": "unbounded attacks fail",
    "random": "random search finds more",
    "radius": "a larger radius does not help",
    "zero_gradient": "gradients are zero",
}
_NOTE = (
    "The lights are six signs of masked gradients (Athalye, Carlini and Wagner 2018, section 3.1), in this order: "
    f"{'; '.join(_NAMES.values())}. Green: not seen. Yellow: seen, but chance can explain it. Red: seen, beyond chance "
    "at the 5 % level. White: not known. They are measured with the classifier's own gradients. Green lights do not "
    "prove robustness."
)


def row(lights: Sequence[Record]) -> str:
    """The lights of one classifier as signs, in the order of `ddjax.masking.lights`; empty where there are none."""
    colors = {light["name"]: light["color"] for light in lights}
    return "".join(_SIGNS[colors[name]] for name in _NAMES if name in colors)


def section(lights: Sequence[Record], *where: str) -> Section:
    """All lights with their explanations, a row for each classifier; `where` are the fields that name a classifier."""
    rows: dict[tuple[str, ...], Row] = {}
    for light in lights:
        known = {name: light[name] for name in where}
        explained = f"{_SIGNS[light['color']]}\n{light['explanation']}"
        rows.setdefault(tuple(known.values()), known)[light["name"]] = explained
    columns = {name: field(name) for name in where} | {title: field(name) for name, title in _NAMES.items()}
    return Section("Masked gradients", table_of(rows.values(), columns), _NOTE)
