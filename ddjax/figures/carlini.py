"""The figure of Carlini and Wagner's comparison of attacks."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ddjax.figures.style import BLUE, RED, label_log_axis, styled

# Series of the plot: (network, published or not) to offset from the attack's line, color and marker.
_LOOKS = {
    ("undistilled", False): (-0.27, BLUE, "o"),
    ("undistilled", True): (-0.10, BLUE, "D"),
    ("distilled", False): (0.10, RED, "s"),
    ("distilled", True): (0.27, RED, "D"),
}


@styled()
def comparison(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Distance of each attack on both networks, a panel a norm, with the published ones beside.

    Args:
      rows: objects with `norm` (the panel's title), `attack`, `network` ("undistilled" or "distilled"), `published`
        (bool) and the distances `best`, `average` and `worst`, None where there is none.

    Returns:
      The figure: from best to worst case a line, at the average or the only case a mark; None if nothing was measured.
    """
    rows = [row for row in rows if any(row[case] for case in ("best", "average", "worst"))]
    if all(row["published"] for row in rows):
        return None
    panels = {norm: [row for row in rows if row["norm"] == norm] for norm in dict.fromkeys(row["norm"] for row in rows)}
    attacks = {norm: list(dict.fromkeys(row["attack"] for row in found)) for norm, found in panels.items()}
    heights = [len(names) for names in attacks.values()]
    figure = Figure(figsize=(7.6, 0.72 * sum(heights) + 0.75 * len(panels) + 0.7), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 0.3 for n in heights]})
    for axes, (norm, found) in zip(grid[:, 0], panels.items(), strict=True):
        for row in found:
            offset, color, marker = _LOOKS[row["network"], row["published"]]
            place = attacks[norm].index(row["attack"]) + offset
            ends = [row[case] for case in ("best", "average", "worst") if row[case]]
            thickness = 1 if row["published"] else 2
            axes.plot([min(ends), max(ends)], [place, place], color=color, linewidth=thickness)
            # An attack with a single case has its mark there.
            signs = {"best": "|" if len(ends) > 1 else marker, "average": marker, "worst": "|"}
            for case, sign in signs.items():
                if row[case]:
                    face = "white" if row["published"] else color
                    axes.plot(row[case], place, sign, color=color, markerfacecolor=face, markersize=6.5)
        axes.set_xscale("log")
        label_log_axis(axes.xaxis)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(attacks[norm])), attacks[norm])
        axes.set(ylim=(len(attacks[norm]) - 0.5, -0.5), title=norm)
        axes.tick_params(axis="y", length=0)
    present = {(row["network"], row["published"]) for row in rows}
    handles = [
        Line2D([], [], color=color, marker=marker, markerfacecolor="white" if published else color,
               linewidth=1 if published else 2, label=f"{network}{', published' if published else ''}")
        for (network, published), (_, color, marker) in _LOOKS.items() if (network, published) in present
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
