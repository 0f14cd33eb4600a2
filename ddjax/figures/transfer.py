"""The figure of the transfer of adversarial examples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ddjax.figures.style import BLUE, RED, row_of_axes, styled

_COLORS = {"plain": BLUE, "distilled": RED}


@styled()
def transfer_curves(curves: Sequence[Mapping[str, Any]]) -> Figure | None:
    """How often adversarial examples fool another network, against the confidence they were made with.

    Args:
      curves: objects with `target` ("plain" or "distilled"), `targeted` and `published` (bool), `kappas` and `rates`,
        and, of what was measured, `lows` and `highs`, the ends of the intervals.

    Returns:
      The figure; None if nothing was measured.
    """
    if not any(len(curve["kappas"]) and not curve["published"] for curve in curves):
        return None
    figure = Figure(figsize=(8.6, 4.3), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    for curve in curves:
        if not len(curve["kappas"]):
            continue
        color, targeted, published = _COLORS[curve["target"]], curve["targeted"], curve["published"]
        label = f"{curve['target']}, {'targeted' if targeted else 'untargeted'}{', published' if published else ''}"
        axes.plot(
            curve["kappas"], 100 * np.asarray(curve["rates"]), label=label, color=color,
            linestyle="--" if targeted else "-", linewidth=0.8 if published else 2,
            marker="^" if targeted else "o", markersize=3 if published else 5,
            markerfacecolor="white" if published else color, markeredgewidth=0.8, zorder=2 if published else 3,
        )  # fmt: skip
        if not published:
            low, high = (100 * np.asarray(curve[end]) for end in ("lows", "highs"))
            axes.fill_between(curve["kappas"], low, high, color=color, alpha=0.13, linewidth=0)
    axes.set(xlabel="confidence κ of the attack on the source network", ylabel="transferred (%)", ylim=(-3, 103))
    axes.set_title("Adversarial examples that fool another network")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="target network", alignment="left")
    return figure
