"""Images in figures: as pixels, and as a grid of classes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ddjax.figures.style import GRAY, GREEN, RED, row_of_axes, styled

# Frames of the grid of examples: what they say, color, line style, width.
FRAMES: tuple[tuple[str, str, Any, float], ...] = (
    ("target reached", GREEN, "-", 2),
    ("not reached", RED, (0, (2, 1)), 2),
    ("clean image", GRAY, "-", 1),
)


def class_name(label: int, class_names: Sequence[str]) -> str:
    """The name of a class as matplotlib text; its number where it has no name."""
    # A dollar sign would switch matplotlib to math text.
    return str(class_names[label]).replace("$", r"\$") if 0 <= label < len(class_names) else str(label)


def pixels(image: np.ndarray) -> np.ndarray:
    """[H, W, C] in [0, 1] as an RGB picture; anything but three channels is shown by its first, in gray."""
    image = np.clip(np.asarray(image, float), 0, 1)
    return image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, axis=-1)


@styled()
def class_grid(
    images: np.ndarray, reached: np.ndarray, shown: np.ndarray, class_names: Sequence[str], title: str
) -> Figure | None:
    """Adversarial examples from every source class (row) towards every target class (column).

    Args:
      images: [K, K, H, W, C], on the diagonal the clean images.
      reached: [K, K], whether the target was reached.
      shown: [K, K], where there is an image.
      class_names: the names of the K classes.
      title: what the figure is called; the number of successes is put behind it.

    Returns:
      The figure; None if there is no example.
    """
    if not np.any(shown):
        return None
    k, _, height, width, _ = images.shape
    gap = max(2, round(0.18 * max(height, width)))
    pitch = np.array((height + gap, width + gap))
    # One picture with gaps instead of K * K axes, which would take matplotlib seconds.
    mosaic = np.ones((k * pitch[0], k * pitch[1], 3))
    boxes: list[Rectangle] = []
    for source, target in np.ndindex(k, k):
        if not shown[source, target]:
            continue
        top, left = pitch * (source, target) + gap // 2
        mosaic[top : top + height, left : left + width] = pixels(images[source, target])
        _, color, line, thickness = FRAMES[2 if source == target else 0 if reached[source, target] else 1]
        margin = gap / 4
        corner = (left - 0.5 - margin, top - 0.5 - margin)
        boxes.append(Rectangle(corner, width + 2 * margin, height + 2 * margin, fill=False))
        boxes[-1].set(edgecolor=color, linestyle=line, linewidth=thickness)
    side = max(4.0, 0.62 * k)
    figure = Figure(figsize=(side + 0.9, side * pitch[0] / pitch[1] + 1.2), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    axes.imshow(mosaic, interpolation="nearest")
    # As one artist, and without limits of their own, which the picture sets: a hundred patches take longer.
    axes.add_collection(PatchCollection(boxes, match_original=True), autolim=False)
    names = [class_name(label, class_names) for label in range(k)]
    turn = 45 if max(map(len, names)) > 4 else 0
    centers = [pitch * place + gap // 2 + (np.array((height, width)) - 1) / 2 for place in range(k)]
    axes.set_xticks([x for _, x in centers], names, rotation=turn, ha="right" if turn else "center")
    axes.set_yticks([y for y, _ in centers], names)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    tried = shown & ~np.eye(k, dtype=bool)
    score = f"{np.sum(reached & tried)} of {np.sum(tried)} targets reached"
    axes.set(title=f"{title}: {score}", xlabel="target class", ylabel="source class")
    figure.legend(
        [Patch(fill=False, edgecolor=color, linestyle=line, linewidth=thick) for _, color, line, thick in FRAMES],
        [meaning for meaning, *_ in FRAMES],
        loc="outside lower center", ncols=3, handlelength=1.3, handleheight=1.1,
    )  # fmt: skip
    return figure
