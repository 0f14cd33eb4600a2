"""The page of the training of generative models, from synthetic records."""

import numpy as np
import pytest

from launch import pages
from launch.pages import _page, generative
from tests.launch.pages import reading
from tests.launch.pages.synthetic import figures, rows, save_run, write

EPOCHS = [(1, 4.8, 4.6), (2, 4.5, 4.4), (3, 4.3, 4.25)]
DENSITY = [
    {"measure": "epoch", "epoch": epoch, "bits_per_dimension": bits, "held_out_bits_per_dimension": held, "seconds": 7}
    for epoch, bits, held in EPOCHS
]
GAN = [
    {"measure": "epoch", "epoch": epoch, "generator_loss": -0.5, "penalty": 0.1, "wasserstein": 2 / epoch, "seconds": 7}
    for epoch in (1, 2)
]
# An older run calls its starts restarts.
SEARCHES = [
    {"num_steps": 25, "restarts": 1, "mean_error": 0.03},
    {"num_steps": 200, "num_restarts": 10, "mean_error": 0.004},
]
SEARCHES = [{"measure": "reconstruction", "n": 50, "median_error": 0.002} | search for search in SEARCHES]


def save_samples(path, epochs):
    (path / "samples").mkdir()
    for epoch in epochs:
        np.savez(path / "samples" / f"epoch{epoch}.npz", images=np.full((14, 4, 5, 1), 1 / epoch, np.float32))


@pytest.fixture
def density(tmp_path):
    save_run(tmp_path, "generate", DENSITY, model="pixelcnn")
    # 10 comes after 2, though not in the order of letters.
    save_samples(tmp_path, (2, 10))
    return tmp_path


@pytest.fixture
def generator(tmp_path):
    save_run(tmp_path, "generate", [*GAN, *SEARCHES], model="gan")
    save_samples(tmp_path, (1, 2))
    (tmp_path / "reconstructions").mkdir()
    for name in ("steps25_starts1", "steps200_starts10"):
        shown = {"images": np.zeros((3, 4, 5, 1), np.float32), "originals": np.full((3, 4, 5, 1), 255, np.uint8)}
        np.savez(tmp_path / "reconstructions" / f"{name}.npz", **shown)
    return tmp_path


def test_page_of_a_density_has_its_epochs(density):
    page = write(density)
    assert page.sections["epochs"].rows[0] == ["epoch", "bits per dimension", "held out bits per dimension", "seconds"]
    assert page.sections["epochs"].rows[3] == ["3", "4.3000", "4.2500", "7"]
    assert "reconstructions" not in page.sections
    assert figures(density) == {"training", "samples"}
    assert [float(row["held_out_bits_per_dimension"]) for row in rows(density)] == [4.6, 4.4, 4.25]
    assert len(reading.markdown(pages.table(density))) == 4


def test_page_of_a_generator_has_its_reconstructions(generator):
    page = write(generator)
    expected = [["25", "1", "0.0300", "0.0020", "50"], ["200", "10", "0.0040", "0.0020", "50"]]
    assert page.sections["reconstructions"].rows[1:] == expected
    assert figures(generator) == {"training", "samples", "reconstructions"}
    header, *lines = reading.markdown(pages.table(generator))
    assert (header, lines) == (["steps", "starts", "mean squared error", "median", "images"], expected)


def test_stopped_run_without_arrays_keeps_its_tables(generator):
    for path in generator.rglob("*.npz"):
        path.unlink()
    save_run(generator, "generate", GAN[:1], model="gan")
    page = write(generator)
    assert page.sections["epochs"].column("wasserstein") == ["2.0000"]
    assert page.sections["figures"].figures == ["training"]


def test_samples_stand_by_epoch(density):
    figure = generative.sections(_page.Run.read(density))[0].figures["samples"][0]
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["epoch 2", "epoch 10"]


def test_curves_are_those_of_the_epochs(density):
    figure = generative.curves_figure(_page.Run.read(density))
    assert figure is not None
    (axes,) = figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [[4.8, 4.5, 4.3], [4.6, 4.4, 4.25]]
    assert axes.get_legend_handles_labels()[1] == [
        f"bits per dimension, {name} images" for name in ("training", "held-out")
    ]
