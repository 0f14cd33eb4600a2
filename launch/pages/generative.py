"""The page of the training of a generative model, of `launch.train`."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import _figures, _page
from ._figures import LOOKS, Series
from ._page import Record, field

HEADING = "Generative model"

_SHOWN = 12
_four = "{:.4f}".format
# What is drawn of each epoch, where a model has it.
_CURVES = {
    "bits_per_dimension": "bits per dimension, training images",
    "held_out_bits_per_dimension": "bits per dimension, held-out images",
    "wasserstein": "Wasserstein distance estimated by the critic",
    "generator_loss": "generator's loss",
}
_RECONSTRUCTIONS = {
    "steps": field("num_steps"),
    "starts": lambda record: str(_starts(record)),
    "mean squared error": field("mean_error", _four),
    "median": field("median_error", _four),
    "images": field("n"),
}
_RECONSTRUCTIONS_NOTE = (
    "Mean and median over held-out images of the mean squared difference, per pixel, to the nearest generated image "
    "that the search found."
)
_RECONSTRUCTIONS_CAPTION = "Held-out images, and the nearest images of the generator that the search found."
_SAMPLES_CAPTION = "Samples during training. The images of a column are drawn with the same key."


def sections(run: _page.Run) -> list[_page.Section]:
    """Figures, reconstructions and epochs."""
    drawn = {
        "training": (curves_figure(run), "Loss values after each epoch of training."),
        "samples": (_figures.image_grid(_samples(run)), _SAMPLES_CAPTION),
        "reconstructions": (_figures.image_grid(_reconstructed(run)), _RECONSTRUCTIONS_CAPTION),
    }
    return [
        _page.Section("Figures", figures=drawn),
        _page.Section("Reconstructions", _reconstructions(run), _RECONSTRUCTIONS_NOTE),
        _page.Section("Epochs", _epochs(run)),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """The errors of reconstructions where there are any; else the epochs."""
    return _reconstructions(run) if run.of("reconstruction") else _epochs(run)


def _reconstructions(run: _page.Run) -> pd.DataFrame:
    return _page.table_of(run.of("reconstruction"), _RECONSTRUCTIONS)


def _epochs(run: _page.Run) -> pd.DataFrame:
    epochs = run.of("epoch")
    names = [name for name in (epochs[0] if epochs else {}) if name not in ("measure", "epoch", "seconds")]
    losses = {name.replace("_", " "): field(name, _four) for name in names}
    return _page.table_of(epochs, {"epoch": field("epoch"), **losses, "seconds": field("seconds", "{:.0f}".format)})


def _starts(record: Record) -> int:
    """The number of starts of a search, which older runs call restarts."""
    return record["num_restarts"] if "num_restarts" in record else record["restarts"]


def _samples(run: _page.Run) -> list[tuple[str, np.ndarray]]:
    """Rows of samples, by ascending epoch."""
    epochs = sorted(int(path.stem.removeprefix("epoch")) for path in (run.workdir / "samples").glob("epoch*.npz"))
    return [(f"epoch {epoch}", run.arrays(f"samples/epoch{epoch}.npz")["images"][:_SHOWN]) for epoch in epochs]


def _reconstructed(run: _page.Run) -> list[tuple[str, np.ndarray]]:
    """Held-out images, and a row of reconstructions for each setting of the search."""
    rows = []
    for record in run.of("reconstruction"):
        steps, starts = record["num_steps"], _starts(record)
        arrays = run.arrays(f"reconstructions/steps{steps}_starts{starts}.npz")
        if arrays and not rows:
            rows.append(("held out", arrays["originals"][:_SHOWN]))
        if arrays:
            name = f"{steps} steps, {starts} {'start' if starts == 1 else 'starts'}"
            rows.append((name, arrays["images"][:_SHOWN]))
    return rows


def curves_figure(run: _page.Run) -> Figure | None:
    """The losses against epochs; None without epochs."""
    epochs = run.of("epoch")
    places = [record["epoch"] for record in epochs]
    series = [
        Series(label, places, [record.get(name) for record in epochs], look)
        for (name, label), look in zip(_CURVES.items(), LOOKS, strict=True)
    ]
    return _figures.lines({"Training": series}, "epoch", "loss")
