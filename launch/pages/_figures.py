"""The figures of all pages: lines, dots, heat maps and grids of images, in one style.

Everything goes through `matplotlib.figure.Figure` directly, so nothing here touches pyplot's global state. A function
that draws returns None where its data holds nothing to show. Its `settings` are properties of the axes.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rcParams, style
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# These can be told apart with the common color deficiencies (mostly Okabe and Ito's); markers and dashes differ, too.
BLUE, GREEN, PURPLE, RED, GRAY = "#0072B2", "#009E73", "#AA4499", "#D55E00", "#666666"
# Properties of lines, as matplotlib names them.
Look = Mapping[str, Any]
LOOKS: tuple[Look, ...] = (
    {"color": BLUE, "marker": "o"},
    {"color": RED, "marker": "s"},
    {"color": GREEN, "marker": "^"},
    {"color": PURPLE, "marker": "D"},
)
# Added to the look of what others published.
PUBLISHED: Look = {"markerfacecolor": "white", "linewidth": 0.9, "linestyle": ":"}
# Of more classes, the first are shown.
_MAX_CLASSES = 10
# Of more features, those that are changed most often.
_MAX_FEATURES = 20
_STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9.5,
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.7,
    "figure.constrained_layout.h_pad": 0.1, "figure.constrained_layout.w_pad": 0.1,
    "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.6, "lines.markersize": 5.5, "savefig.dpi": 130,
    "text.parse_math": False,
}  # fmt: skip
# A decorator under which a function draws in this style, whatever the user's matplotlibrc says.
_styled = style.context(["default", _STYLE])


@_styled
def to_png(figure: Figure) -> bytes:
    """Renders a figure as PNG; the same figure gives the same bytes, since no date and no version is in them."""
    buffer = io.BytesIO()
    figure.set_dpi(rcParams["savefig.dpi"])
    # `Figure.savefig` draws twice, the first time for the layout alone.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


class Series(NamedTuple):
    """A line of `lines`.

    Attributes:
      label: its name; empty for none.
      x: [N], the places of its points.
      y: [N], their heights, or [3, N] with the ends of their intervals; None or NaN where there is no point.
      look: how it is drawn. Intervals are bars; they are a band where the look has no marker.
    """

    label: str
    x: Any
    y: Any
    look: Look


@_styled
def lines(panels: Mapping[str, Sequence[Series]], xlabel: str, ylabel: str, **settings: Any) -> Figure | None:
    """Lines, with a panel for each title."""
    kept = {title: [one for one in series if _is_any(one.y)] for title, series in panels.items()}
    kept = {title: series for title, series in kept.items() if series}
    if not kept:
        return None
    # Long names need the whole width.
    columns = 1 if any(len(one.label) > 40 for series in kept.values() for one in series) else 2
    height = sum(3.1 + 0.2 * len(series) / columns for series in kept.values())
    figure = Figure(figsize=(7.2, height), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(len(kept), squeeze=False)[:, 0], kept.items(), strict=True):
        for label, x, y, look in series:
            middle, *ends = np.array(y, float).reshape(-1, len(x))
            axes.plot(x, middle, label=label, **look)
            if ends and "marker" in look:
                axes.vlines(x, *ends, color=look["color"], linewidth=1)
            elif ends:
                axes.fill_between(x, *ends, color=look["color"], alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, **settings)
        if axes.get_xscale() == "log":
            places = sorted({x for one in series if "marker" in one.look for x in one.x})
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.minorticks_off()
        else:
            axes.locator_params(axis="x", integer=True)
        if axes.get_yscale() == "log":
            _label_log_axis(axes.yaxis)
        axes.legend(loc="upper left", bbox_to_anchor=(0, -0.17), ncols=columns)
    return figure


@_styled
def dots(
    rows: Sequence[tuple[str, str, Sequence[Any]]], looks: Mapping[str, Look], xlabel: str, **settings: Any
) -> Figure | None:
    """Values with intervals, one below the other.

    Args:
      rows: the name of the group, the name of the look, and the value with the ends of its interval, or alone.
      looks: the looks by name, in the order of the legend.
      xlabel: the name of the axis.
      **settings: properties of the axes.
    """
    rows = [row for row in rows if row[2][0] is not None]
    if not rows:
        return None
    groups = list(dict.fromkeys(group for group, *_ in rows))
    # With a gap between groups.
    places = [place + groups.index(group) for place, (group, *_) in enumerate(rows)]
    figure = Figure(figsize=(7.6, 1.2 + 0.13 * places[-1]), layout="constrained")
    axes = figure.subplots()
    for place, (_, name, (value, *ends)) in zip(places, rows, strict=True):
        axes.plot(value, place, **{**looks[name], "linestyle": "none"})
        axes.plot(ends, [place] * len(ends), color=looks[name]["color"], linewidth=1.2)
    middles = [np.mean([place for place, row in zip(places, rows, strict=True) if row[0] == group]) for group in groups]
    axes.set_yticks(middles, groups, fontsize=8)
    axes.set(xlabel=xlabel, ylim=(places[-1] + 1, -1), **settings)
    if axes.get_xscale() == "log":
        _label_log_axis(axes.xaxis)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x")
    shown = [name for name in looks if any(name == row[1] for row in rows)]
    handles = [Line2D([], [], label=name, **{**looks[name], "linestyle": "none"}) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def _label_log_axis(axis: Axis) -> None:
    """Puts numbers on a logarithmic axis also where it spans less than a power of ten."""
    low, high = axis.get_view_interval()
    # With room, so that there is a number on the axis of a flat curve, too.
    axis.set_view_interval(low / 1.6, high * 1.6, ignore=True)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _is_any(values: Any) -> bool:
    return bool(np.isfinite(np.array(values, float)).any())


@_styled
def heat_map(shares: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str) -> Figure | None:
    """Shares [rows, columns] in [0, 1] as colors with their percentages; NaN is left out."""
    if not _is_any(shares):
        return None
    figure = Figure(figsize=(2.6 + 0.72 * len(columns), 1.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(100 * shares, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows)
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            color = "black" if share > 0.6 else "white"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    return figure


@_styled
def image_grid(
    rows: Sequence[tuple[str, Any]],
    columns: Sequence[str] = (),
    won: Mapping[tuple[int, int], bool] | None = None,
    **settings: Any,
) -> Figure | None:
    """Images in rows and columns.

    Args:
      rows: names and images [H, W, C], of uint8 or in [0, 1]; None leaves a place empty. Other inputs are not
        shown.
      columns: the names of the columns, if any.
      won: row and column to whether an attack succeeded: a solid green frame, or a dashed red one.
      **settings: properties of the axes.
    """
    shown = {(y, x): image for y, (_, images) in enumerate(rows) for x, image in enumerate(images) if image is not None}
    if not shown:
        return None
    if next(iter(shown.values())).ndim != 3:
        return None
    height, width = next(iter(shown.values())).shape[:2]
    count = 1 + max(column for _, column in shown)
    letters = max(len(line) for name, _ in rows for line in name.split("\n"))
    size = 0.8 + 0.07 * letters + 0.8 * count, 1 + 0.8 * len(rows) * height / width
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for (row, column), image in shown.items():
        picture = np.clip(image / 255 if image.dtype == np.uint8 else image, 0, 1)
        # Without three channels, the first one is shown in gray.
        picture = picture if picture.shape[-1] == 3 else np.repeat(picture[..., :1], 3, axis=-1)
        axes.imshow(picture, interpolation="nearest", extent=(column, column + 0.88, row + 0.88, row))
    for (row, column), success in (won or {}).items():
        look: Look = {"edgecolor": GREEN} if success else {"edgecolor": RED, "linestyle": (0, (2, 1))}
        axes.add_patch(Rectangle((column - 0.03, row - 0.03), 0.94, 0.94, fill=False, linewidth=2, **look))
    turn = 45 if max(map(len, columns), default=0) > 12 else 0
    axes.set_xticks(np.arange(len(columns)) + 0.44, columns, rotation=turn, fontsize=8)
    axes.set_yticks(np.arange(len(rows)) + 0.44, [name for name, _ in rows], fontsize=8)
    axes.set(xlim=(-0.1, count), ylim=(len(rows), -0.1), aspect=height / width, **settings)
    axes.xaxis.set(ticks_position="top", label_position="top")
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def changed_features(shares: Mapping[str, np.ndarray], names: Sequence[str] | None) -> Figure | None:
    """How often each feature was changed.

    Args:
      shares: of what is compared, by its name: for each feature, the share of the successes in which it was changed;
        NaN where there was no success.
      names: of the features, if they have any.
    """
    known = {name: values for name, values in shares.items() if _is_any(values)}
    if not known:
        return None
    order = np.argsort(-np.max([*known.values()], axis=0), kind="stable")[:_MAX_FEATURES]
    named = list(names or ()) or [f"feature {number}" for number in range(1 + order.max())]
    rows = [(named[place], name, [100 * values[place]]) for place in order for name, values in known.items()]
    looks = dict(zip(known, LOOKS, strict=False))
    return dots(rows, looks, "successes in which it was changed (%)", xlim=(-3, 103))


def attempts_grid(
    clean: Mapping[str, np.ndarray], attempts: Mapping[str, np.ndarray], class_names: Sequence[str] | None, title: str
) -> Figure | None:
    """What an attack made of the first correctly classified image of each class (row), by target class (column).

    The clean images stand on the diagonal. The column of an untargeted attempt is the class that it reached.

    Args:
      clean: the attacked `images`, their `labels` and the network's `predictions`.
      attempts: of each attempt its row in `clean`, its `images` and `success`, and `targets` or `predictions`.
      class_names: the names of the classes, if they have any.
      title: the title of the figure.
    """
    if not clean or not attempts:
        return None
    labels, reached = clean["labels"], attempts["targets" if "targets" in attempts else "predictions"]
    classes = range(min(_MAX_CLASSES, 1 + max(labels.max(initial=0), reached.max(initial=0))))
    names = [str(class_names[label]) if class_names else str(label) for label in classes]
    correct = np.flatnonzero((labels == clean["predictions"]) & (labels < _MAX_CLASSES))
    rows, won = [], {}
    for source, first in zip(*np.unique(labels[correct], return_index=True), strict=True):
        images: list[np.ndarray | None] = [None] * len(classes)
        for attempt in np.flatnonzero((attempts["rows"] == correct[first]) & (reached < _MAX_CLASSES)):
            images[reached[attempt]] = attempts["images"][attempt]
            won[len(rows), int(reached[attempt])] = bool(attempts["success"][attempt])
        images[source] = clean["images"][correct[first]]
        won.pop((len(rows), int(source)), None)
        rows.append((names[source], images))
    return image_grid(rows, names, won, title=title, xlabel="target class", ylabel="source class")
