"""The figure of broken defenses: what each attacker leaves of each."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ddjax.figures.style import BLUE, GRAY, GREEN, PURPLE, RED, styled

# Column to color, mark and size of the mark.
_MARKS = {
    "clean": (GRAY, "o", 6),
    "unaware": (GREEN, "o", 6),
    "transfer": (PURPLE, "D", 5),
    "aware": (RED, "o", 6),
    "published": (BLUE, "|", 12),
}


@styled()
def claims_and_breaks(rows: Sequence[Mapping[str, float | str | None]]) -> Figure | None:
    """Accuracy of each defense on clean images and under each attacker, from the claim down to the break.

    Args:
      rows: for each defense its `defense`, and the shares `clean`, `unaware`, `transfer`, `aware` and `published`; None
        where something was not measured.

    Returns:
      The figure; None if nothing was measured.
    """
    rows = [row for row in rows if any(row.get(name) is not None for name in _MARKS)]
    if not rows:
        return None
    figure = Figure(figsize=(7.6, 1.5 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        ends = [row.get(name) for name in ("unaware", "aware")]
        if all(isinstance(end, float) for end in ends):
            axes.plot([100 * float(end or 0) for end in ends], [place, place], color=RED, linewidth=1, alpha=0.5)
    for name, (color, mark, size) in _MARKS.items():
        found = [(place, row[name]) for place, row in enumerate(rows) if row.get(name) is not None]
        if found:
            places, shares = zip(*found, strict=True)
            axes.plot([100 * share for share in shares], places, mark, color=color, markersize=size, label=name)
    axes.set_yticks(range(len(rows)), [str(row["defense"]) for row in rows])
    axes.set(xlabel="accuracy (%)", xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=5, fontsize=8, frameon=False)
    return figure
