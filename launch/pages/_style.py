"""The look that all figures share, and the pictures that several pages draw.

Everything goes through `matplotlib.figure.Figure` directly, so nothing here touches pyplot's global state. A function
that draws returns None where its data holds nothing to show.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams, style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# These can be told apart with the common color deficiencies (mostly Okabe and Ito's); markers and dashes differ, too.
BLUE, GREEN, PURPLE, RED, GRAY = "#0072B2", "#009E73", "#AA4499", "#D55E00", "#666666"
# Frames around adversarial examples: meaning, color, line style, width.
FRAMES: tuple[tuple[str, str, Any, float], ...] = (
    ("target reached", GREEN, "-", 2),
    ("not reached", RED, (0, (2, 1)), 2),
    ("clean image", GRAY, "-", 1),
)
REACHED, MISSED, CLEAN = FRAMES
_STYLE = {
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
    """A decorator under which a function draws in this style, whatever the user's matplotlibrc says."""
    return style.context(["default", _STYLE])


@styled()
def to_png(figure: Figure) -> bytes:
    """Renders a figure as PNG; the same figure gives the same bytes, since no date and no version is in them."""
    buffer = io.BytesIO()
    figure.set_dpi(rcParams["savefig.dpi"])
    # `Figure.savefig` draws twice, the first time for the layout alone.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def label_log_axis(axis: Axis) -> None:
    """Puts numbers on a logarithmic axis also where it spans less than a power of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def row_of_axes(figure: Figure, count: int, **grid: Any) -> list[Axes]:
    """Axes side by side."""
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw=grid)[0])


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def class_name(label: int, class_names: Sequence[str]) -> str:
    """The name of a class; its number where it has no name."""
    return plain(str(class_names[label])) if 0 <= label < len(class_names) else str(label)


def pixels(image: np.ndarray) -> np.ndarray:
    """[H, W, C] in [0, 1] as an RGB picture; without three channels, the first one is shown in gray."""
    image = np.clip(np.asarray(image, float), 0, 1)
    return image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)


class Mosaic:
    """Images of one shape in rows and columns, as one picture.

    A picture with gaps is drawn in a fraction of the time that one axes per image would take.
    """

    def __init__(self, rows: int, columns: int, shape: Sequence[int], gap: int) -> None:
        """Makes an empty mosaic for images of `shape` [H, W, ...], `gap` pixels apart."""
        self.height, self.width, self.gap = shape[0], shape[1], gap
        self.pitch = np.array((self.height + gap, self.width + gap))
        self.picture = np.ones((rows * self.pitch[0], columns * self.pitch[1], 3))
        self._frames: list[Rectangle] = []

    def corner(self, row: int, column: int) -> np.ndarray:
        """The top left pixel of a place."""
        return self.pitch * (row, column) + self.gap // 2

    def centers(self, axis: int, count: int) -> list[float]:
        """The middles of the rows (axis 0) or columns (axis 1)."""
        size = (self.height, self.width)[axis]
        return [float(self.pitch[axis] * place + self.gap // 2 + (size - 1) / 2) for place in range(count)]

    def put(self, row: int, column: int, image: np.ndarray, frame: tuple[str, str, Any, float] | None = None) -> None:
        """Puts an image, with values in [0, 1], and one of `FRAMES` around it."""
        top, left = self.corner(row, column)
        self.picture[top : top + self.height, left : left + self.width] = pixels(image)
        if frame is not None:
            margin = self.gap / 4
            corner, size = (left - 0.5 - margin, top - 0.5 - margin), (self.width, self.height)
            box = Rectangle(corner, *(length + 2 * margin for length in size), fill=False)
            box.set(edgecolor=frame[1], linestyle=frame[2], linewidth=frame[3])
            self._frames.append(box)

    def draw(self, axes: Axes) -> None:
        """Shows the mosaic, on axes without a grid and without a frame."""
        axes.imshow(self.picture, interpolation="nearest")
        # One artist without limits of its own; a hundred patches take longer.
        axes.add_collection(PatchCollection(self._frames, match_original=True), autolim=False)
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


@styled()
def class_grid(
    images: np.ndarray, reached: np.ndarray, shown: np.ndarray, class_names: Sequence[str], title: str
) -> Figure | None:
    """Adversarial examples from every source class (row) towards every target class (column).

    Args:
      images: [K, K, H, W, C]; the clean images stand on the diagonal.
      reached: [K, K], whether the target was reached.
      shown: [K, K], where there is an image.
      class_names: the names of the K classes.
      title: the title of the figure; the number of successes follows it.
    """
    if not np.any(shown):
        return None
    k, _, height, width, _ = images.shape
    mosaic = Mosaic(k, k, (height, width), max(2, round(0.18 * max(height, width))))
    for source, target in np.argwhere(shown):
        frame = CLEAN if source == target else REACHED if reached[source, target] else MISSED
        mosaic.put(source, target, images[source, target], frame)
    side = max(4.0, 0.62 * k)
    size = (side + 0.9, side * mosaic.pitch[0] / mosaic.pitch[1] + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    mosaic.draw(axes)
    names = [class_name(label, class_names) for label in range(k)]
    turn = 45 if max(map(len, names)) > 4 else 0
    axes.set_xticks(mosaic.centers(1, k), names, rotation=turn, ha="right" if turn else "center")
    axes.set_yticks(mosaic.centers(0, k), names)
    tried = shown & ~np.eye(k, dtype=bool)
    score = f"{np.sum(reached & tried)} of {np.sum(tried)} targets reached"
    axes.set(title=f"{plain(title)}: {score}", xlabel="target class", ylabel="source class")
    figure.legend(
        [Patch(fill=False, edgecolor=color, linestyle=line, linewidth=thick) for _, color, line, thick in FRAMES],
        [meaning for meaning, *_ in FRAMES],
        loc="outside lower center", ncols=3, handlelength=1.3, handleheight=1.1,
    )  # fmt: skip
    return figure


@styled()
def gallery(lines: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Figure | None:
    """Clean image, adversarial image, and what the defended network sees of it: `[H, W, C]` in [0, 1], a row a line.

    Args:
      lines: for each line its name and its three images.
    """
    if not lines:
        return None
    columns = ("clean", "adversarial", "as defended")
    figure = Figure(figsize=(1.6 + 1.2 * len(columns), 0.5 + 1.2 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), len(columns), squeeze=False)
    for row, (name, images) in zip(grid, lines, strict=True):
        for axes, image in zip(row, images, strict=True):
            axes.imshow(pixels(image), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
        row[0].set_ylabel(plain(name), rotation=0, ha="right", va="center", fontsize=8)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=8)
    return figure
