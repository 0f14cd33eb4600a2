"""The look that all figures share, and small helpers."""

import io
from typing import Any

from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# Told apart under the common color deficiencies (mostly Okabe and Ito's); markers and dashes repeat the difference.
BLUE, GREEN, PURPLE, RED, GRAY = "#0072B2", "#009E73", "#AA4499", "#D55E00", "#666666"

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.7,
    "figure.constrained_layout.h_pad": 0.1,
    "figure.constrained_layout.w_pad": 0.1,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "savefig.dpi": 130,
}


def styled():
    """A decorator under which a function draws in this module's style, whatever the user's matplotlibrc says."""
    return style.context(["default", STYLE])


@styled()
def to_png(figure: Figure) -> bytes:
    """Renders a figure; the same figure gives the same bytes (no date and no version string inside).

    Args:
      figure: the figure.

    Returns:
      The contents of a PNG file.
    """
    buffer = io.BytesIO()
    figure.set_dpi(rcParams["savefig.dpi"])
    # `Figure.savefig` draws twice, the first time for the layout alone.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def temperature_name(temperature: float | None) -> str:
    """The name of a temperature in tables and on axes: `none` for the undistilled network, else the number.

    Args:
      temperature: the temperature, None for no distillation.

    Returns:
      Its name.
    """
    return "none" if temperature is None else f"{temperature:g}"


def label_log_axis(axis: Axis) -> None:
    """Numbers on a logarithmic axis also where it spans less than powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def row_of_axes(figure: Figure, count: int, **grid: Any) -> list[Axes]:
    """Axes side by side."""
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw=grid)[0])
