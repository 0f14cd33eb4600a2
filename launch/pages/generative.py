"""The page of the training of a generative model, of `launch.train`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import _page, _style
from ._page import Record
from ._style import BLUE, GREEN, PURPLE, RED, row_of_axes, styled

HEADING = "Generative model"

_SHOWN = 12
# What is drawn of each kind of model: field to label, and the unit.
_CURVES: dict[str, tuple[dict[str, str], str]] = {
    "pixelcnn": (
        {"bits_per_dimension": "training", "held_out_bits_per_dimension": "held out"}, "bits per dimension",
    ),
    "gan": (
        {"wasserstein": "Wasserstein distance estimated by the critic", "generator_loss": "generator's loss"},
        "critic's score",
    ),
}  # fmt: skip
_LOOKS = ((BLUE, "-", "o"), (RED, "--", "s"), (GREEN, "-.", "^"), (PURPLE, ":", "D"))
_CAPTIONS = {
    "training": "Loss values after each epoch of training.",
    "samples": "Samples during training. The images of a column are drawn with the same key.",
    "reconstructions": "Held-out images, and the nearest images that the search found among the generator's, by the "
    "search's steps and starts.",
}
_RECONSTRUCTIONS_NOTE = (
    "Mean and median over held-out images of the mean squared difference, per pixel, to the nearest generated image "
    "that the search found."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """Figures, reconstructions and epochs."""
    epochs = run.of("epoch")
    fields, unit = _CURVES.get(run.resolved.get("model", ""), ({}, ""))
    curves = {label: [r[name] for r in epochs] for name, label in fields.items() if epochs and name in epochs[0]}
    drawn = {
        "training": curves_figure([record["epoch"] for record in epochs], curves, unit),
        "samples": images_figure(_samples(run)),
        "reconstructions": images_figure(_reconstructions(run)),
    }
    return [
        _page.Section("Figures", figures={name: (figure, _CAPTIONS[name]) for name, figure in drawn.items()}),
        _page.Section("Reconstructions", _reconstructions_table(run), _RECONSTRUCTIONS_NOTE),
        _page.Section("Epochs", _epochs_table(run)),
    ]


def table(run: _page.Run) -> _page.Table:
    """The errors of reconstructions where there are any; else the epochs."""
    return _reconstructions_table(run) if run.of("reconstruction") else _epochs_table(run)


def _reconstructions_table(run: _page.Run) -> _page.Table:
    rows = []
    for record in run.of("reconstruction"):
        errors = [f"{record[name]:.4f}" for name in ("mean_error", "median_error")]
        rows.append([str(record["num_steps"]), str(_starts(record)), *errors, str(record["n"])])
    return _page.Table(["steps", "starts", "mean squared error", "median", "images"], rows)


def _epochs_table(run: _page.Run) -> _page.Table:
    epochs = run.of("epoch")
    names = [name for name in (epochs[0] if epochs else {}) if name not in ("measure", "epoch", "seconds")]
    rows = [[str(r["epoch"]), *(f"{r[name]:.4f}" for name in names), f"{r['seconds']:.0f}"] for r in epochs]
    return _page.Table(["epoch", *(name.replace("_", " ") for name in names), "seconds"], rows)


def _starts(record: Record) -> int:
    """The number of starts of a search, which older runs call restarts."""
    return record["num_restarts"] if "num_restarts" in record else record["restarts"]


def _samples(run: _page.Run) -> list[tuple[str, np.ndarray]]:
    """Rows of samples, by ascending epoch."""
    epochs = sorted(int(path.stem.removeprefix("epoch")) for path in (run.workdir / "samples").glob("epoch*.npz"))
    return [(f"epoch {epoch}", run.arrays(f"samples/epoch{epoch}.npz")["images"][:_SHOWN]) for epoch in epochs]


def _reconstructions(run: _page.Run) -> list[tuple[str, np.ndarray]]:
    """Held-out images, and a row of reconstructions for each setting of the search."""
    lines = []
    for record in run.of("reconstruction"):
        steps, starts = record["num_steps"], _starts(record)
        arrays = run.arrays(f"reconstructions/steps{steps}_starts{starts}.npz")
        if arrays and not lines:
            lines.append(("held out", arrays["originals"][:_SHOWN] / 255))
        if arrays:
            name = f"{steps} steps, {starts} {'start' if starts == 1 else 'starts'}"
            lines.append((name, arrays["images"][:_SHOWN]))
    return lines


@styled()
def curves_figure(epochs: Sequence[int], curves: Mapping[str, Sequence[float]], unit: str) -> Figure | None:
    """Values against epochs, at most four curves by name; None without epochs."""
    if not epochs:
        return None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    for (name, values), (color, line, marker) in zip(curves.items(), _LOOKS, strict=False):
        axes.plot(epochs, values, label=name, color=color, linestyle=line, marker=marker)
    axes.set(xlabel="epoch", ylabel=unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    return figure


@styled()
def images_figure(lines: Sequence[tuple[str, np.ndarray]]) -> Figure | None:
    """Rows of images, `[N, H, W, C]` in [0, 1] of the same shape, by name; None without rows."""
    if not lines:
        return None
    mosaic = _style.Mosaic(len(lines), len(lines[0][1]), lines[0][1].shape[1:], 2)
    for row, (_, images) in enumerate(lines):
        for column, image in enumerate(images):
            mosaic.put(row, column, image)
    side = 0.6
    height = 0.3 + side * len(lines) * mosaic.pitch[0] / mosaic.pitch[1]
    figure = Figure(figsize=(1.4 + side * len(lines[0][1]), height), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    mosaic.draw(axes)
    axes.set_yticks(mosaic.centers(0, len(lines)), [name for name, _ in lines])
    return figure
