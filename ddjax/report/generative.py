"""The page of the training of a generative model, of `launch.train`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddjax import figures
from ddjax.report import page

HEADING = "Generative model"

Record = Mapping[str, Any]
_SHOWN = 12
# What is drawn of each kind of model, and in what unit.
_CURVES = {
    "pixelcnn": (("bits_per_dimension", "held_out_bits_per_dimension"), "bits for each dimension"),
    "gan": (("wasserstein", "generator_loss"), "critic's score"),
}
_NAMES = {
    "bits_per_dimension": "training",
    "held_out_bits_per_dimension": "held out",
    "wasserstein": "distance as the critic sees it",
    "generator_loss": "loss of the generator",
}


def sections(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `table.csv` and the figures; the arguments and the result are those of `sweep.sections`."""
    resolved = config.get("resolved", {})
    epochs = [record for record in records if record.get("measure") == "epoch"]
    found = [record for record in records if record.get("measure") == "reconstruction"]
    page.write_table([page.without_seconds(record) for record in records], workdir / "table.csv")
    names, unit = _CURVES.get(resolved.get("model", ""), ((), ""))
    curves = {_NAMES[name]: [r[name] for r in epochs] for name in names if epochs and name in epochs[0]}
    drawn = {
        "training": (
            figures.training_curves([r["epoch"] for r in epochs], curves, unit),
            "What training told after each epoch.",
        ),
        "samples": (
            figures.image_rows(_samples(workdir)),
            "Samples as training went on, by the same keys in each row.",
        ),
        "reconstructions": (
            figures.image_rows(_reconstructions(found, workdir)),
            "Held-out images, and the nearest found among the generator's, by steps and starts of the search.",
        ),
    }
    written = [
        page.section("Summary", page.paragraph(conclude(records))),
        page.section("Figures", page.show_figures(drawn, workdir)),
    ]
    if found:
        written.append(page.section("Reconstructions", page.grid(*_reconstruction_table(found))))
    if epochs:
        written.append(page.section("Epochs", page.grid(*_epoch_table(epochs))))
    return written


def readme_table(records: Sequence[Record], config: Mapping[str, Any]) -> str:
    """The last epoch, and the errors of reconstructions where there are any, as Markdown."""
    del config
    epochs = [record for record in records if record.get("measure") == "epoch"]
    found = [record for record in records if record.get("measure") == "reconstruction"]
    if found:
        return page.markdown(*_reconstruction_table(found))
    # First, middle and last say how it went.
    chosen = sorted({0, len(epochs) // 2, len(epochs) - 1}) if epochs else []
    header, cells = _epoch_table([epochs[place] for place in chosen])
    # Without the seconds, which are those of the machine.
    return page.markdown(header[:-1], [line[:-1] for line in cells])


def conclude(records: Sequence[Record]) -> str:
    """Says in a paragraph what training and reconstruction came to.

    Args:
      records: the records of `results.jsonl`.

    Returns:
      Plain text.
    """
    epochs = [record for record in records if record.get("measure") == "epoch"]
    found = [record for record in records if record.get("measure") == "reconstruction"]
    if not epochs:
        return "Nothing has been measured yet."
    first, last = epochs[0], epochs[-1]
    said = []
    name = "held_out_bits_per_dimension"
    if name in last:
        said.append(
            f"A held-out image takes {last[name]:.3f} bits for each dimension after {last['epoch']} epochs, and took "
            f"{first[name]:.3f} after the first."
        )
    elif "wasserstein" in last:
        said.append(
            f"After {last['epoch']} epochs the critic sees a distance of {last['wasserstein']:.3f} between images and "
            f"samples, after the first {first['wasserstein']:.3f}."
        )
    if found:
        worst, best = (pick(found, key=lambda r: r["mean_error"]) for pick in (max, min))
        said.append(
            f"The nearest generated image is off by a mean square of {best['mean_error']:.4f} for each pixel with "
            f"{_cost(best)}, and of {worst['mean_error']:.4f} with {_cost(worst)}."
        )
    return " ".join(said)


def _cost(record: Record) -> str:
    starts = "start" if record["restarts"] == 1 else "starts"
    return f"{record['num_steps']} steps from {record['restarts']} {starts}"


def _samples(workdir: Path) -> list[tuple[str, Any]]:
    """Rows of samples, by epoch."""
    files = {int(path.stem.removeprefix("epoch")): path for path in (workdir / "samples").glob("epoch*.npz")}
    loaded = {epoch: page.load_arrays(files[epoch]) for epoch in sorted(files)}
    return [(f"epoch {epoch}", arrays["images"][:_SHOWN]) for epoch, arrays in loaded.items() if arrays]


def _reconstructions(records: Sequence[Record], workdir: Path) -> list[tuple[str, Any]]:
    lines = []
    for record in records:
        name = f"steps{record['num_steps']}_starts{record['restarts']}.npz"
        arrays = page.load_arrays(workdir / "reconstructions" / name)
        if arrays and not lines:
            lines.append(("held out", arrays["originals"][:_SHOWN] / 255))
        if arrays:
            lines.append((_cost(record), arrays["images"][:_SHOWN]))
    return lines


def _reconstruction_table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    header = ["steps", "starts", "mean squared error", "median", "images"]
    fields = ("mean_error", "median_error")
    return header, [
        [str(r["num_steps"]), str(r["restarts"]), *(f"{r[name]:.4f}" for name in fields), str(r["n"])] for r in records
    ]


def _epoch_table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    names = [name for name in (records[0] if records else {}) if name not in ("measure", "epoch", "seconds")]
    header = ["epoch", *(name.replace("_", " ") for name in names), "seconds"]
    return header, [[str(r["epoch"]), *(f"{r[name]:.4f}" for name in names), f"{r['seconds']:.0f}"] for r in records]
