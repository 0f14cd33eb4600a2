"""The figures of generative models: how training went, and rows of images."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ddjax.figures.pictures import pixels
from ddjax.figures.style import BLUE, GREEN, PURPLE, RED, row_of_axes, styled

_LOOKS = ((BLUE, "-", "o"), (RED, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"))


@styled()
def training_curves(epochs: Sequence[int], curves: Mapping[str, Sequence[float]], unit: str) -> Figure | None:
    """What a model's training told after each epoch.

    Args:
      epochs: their numbers.
      curves: by name, a value for each epoch; at most four.
      unit: of the values.

    Returns:
      The figure; None without epochs.
    """
    if not epochs:
        return None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    for (name, values), (color, line, marker) in zip(curves.items(), _LOOKS, strict=False):
        axes.plot(epochs, values, label=name, color=color, linestyle=line, marker=marker)
    axes.set(xlabel="epoch", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


@styled()
def image_rows(lines: Sequence[tuple[str, np.ndarray]]) -> Figure | None:
    """Rows of images under each other, of which those in one column belong together.

    Args:
      lines: for each row its name and its images, `[N, H, W, C]` in [0, 1], of the same shape in all rows.

    Returns:
      The figure; None without rows.
    """
    if not lines:
        return None
    count, height, width, _ = lines[0][1].shape
    pitch = (height + 2, width + 2)
    # One picture with gaps instead of as many axes, which would take matplotlib seconds.
    mosaic = np.ones((len(lines) * pitch[0], count * pitch[1], 3))
    for row, (_, images) in enumerate(lines):
        for column, image in enumerate(images):
            top, left = row * pitch[0] + 1, column * pitch[1] + 1
            mosaic[top : top + height, left : left + width] = pixels(image)
    side = 0.6
    figure = Figure(figsize=(1.4 + side * count, 0.3 + side * len(lines) * pitch[0] / pitch[1]), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([(row + 0.5) * pitch[0] - 0.5 for row in range(len(lines))], [name for name, _ in lines])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
