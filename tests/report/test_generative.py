"""The page of the training of generative models, from synthetic records."""

import csv

import numpy as np
import pytest

from ddjax import figures, report, runs
from ddjax.report import generative
from tests.report import synthetic
from tests.report.synthetic import files

EPOCHS = [(1, 4.8, 4.6), (2, 4.5, 4.4), (3, 4.3, 4.25), (4, 4.2, 4.2)]
SEARCHES = [(25, 1, 0.03), (200, 10, 0.004)]


def of_density():
    return [
        {
            "measure": "epoch",
            "epoch": epoch,
            "bits_per_dimension": bits,
            "held_out_bits_per_dimension": held,
            "seconds": 7,
        }
        for epoch, bits, held in EPOCHS
    ]


def of_generator():
    epochs = [
        {
            "measure": "epoch",
            "epoch": epoch,
            "generator_loss": -0.5,
            "penalty": 0.1,
            "wasserstein": 2.0 / epoch,
            "seconds": 7,
        }
        for epoch in (1, 2)
    ]
    for steps, starts, error in SEARCHES:
        where = {"measure": "reconstruction", "num_steps": steps, "restarts": starts, "n": 50}
        epochs.append(where | {"mean_error": error, "median_error": error / 2})
    return epochs


def save_samples(path, epochs):
    (path / "samples").mkdir()
    for epoch in epochs:
        np.savez(path / "samples" / f"epoch{epoch}.npz", images=np.full((14, 4, 5, 1), 1 / epoch, np.float32))


@pytest.fixture
def density(tmp_path):
    path = tmp_path / "density"
    synthetic.save_run(path, "generate", of_density(), model="pixelcnn")
    # 10 after 2, though not by its letters.
    save_samples(path, (2, 10))
    return path


@pytest.fixture
def generator(tmp_path):
    path = tmp_path / "generator"
    synthetic.save_run(path, "generate", of_generator(), model="gan")
    save_samples(path, (1, 2))
    (path / "reconstructions").mkdir()
    for steps, starts, _ in SEARCHES:
        shown = {"images": np.zeros((3, 4, 5, 1), np.float32), "originals": np.full((3, 4, 5, 1), 255, np.uint8)}
        np.savez(path / "reconstructions" / f"steps{steps}_starts{starts}.npz", **shown)
    return path


def test_page_of_a_density(density):
    page = report.write(density).read_text()
    for section in ("summary", "figures", "epochs"):
        assert f'<section id="{section}">' in page
    assert '<section id="reconstructions">' not in page
    assert "takes 4.200 bits for each dimension after 4 epochs, and took 4.600 after the first" in page
    assert {path.stem for path in (density / "figures").iterdir()} == {"training", "samples"}
    with open(density / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["held_out_bits_per_dimension"]) for row in rows] == [4.6, 4.4, 4.25, 4.2]
    # First, middle and last.
    table = report.readme_table(density).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == ["1", "3", "4"]
    assert "held out bits per dimension" in table[0]


def test_page_of_a_generator(generator):
    page = report.write(generator).read_text()
    assert '<section id="reconstructions">' in page
    assert (
        "After 2 epochs the critic sees a distance of 1.000 between images and samples, after the first 2.000" in page
    )
    assert "0.0040 for each pixel with 200 steps from 10 starts, and of 0.0300 with 25 steps from 1 start." in page
    assert {path.stem for path in (generator / "figures").iterdir()} == {"training", "samples", "reconstructions"}
    table = report.readme_table(generator).splitlines()
    assert table[0] == "| steps | starts | mean squared error | median | images |"
    assert table[3] == "| 200 | 10 | 0.0040 | 0.0020 | 50 |"


def test_same_bytes_again(density):
    report.write(density)
    first = files(density)
    report.write(density)
    assert files(density) == first


def test_rows_of_samples_go_by_the_number_of_the_epoch(density):
    lines = generative._samples(density)
    assert [name for name, _ in lines] == ["epoch 2", "epoch 10"]
    # No more than fit, and the right ones.
    assert [images.shape[0] for _, images in lines] == [12, 12]
    assert [float(images.max()) for _, images in lines] == [0.5, pytest.approx(0.1)]


def test_an_image_stands_in_its_row_and_column():
    rows = [np.stack([np.full((4, 5, 1), value) for value in values]) for values in ((0.0, 0.25), (0.5, 0.75))]
    figure = figures.image_rows([("first", rows[0]), ("second", rows[1])])
    assert figure is not None
    (axes,) = figure.axes
    (picture,) = axes.images
    mosaic = np.asarray(picture.get_array())
    assert mosaic.shape[:2] == (12, 14)
    # Middles of the four images, and the gap between them.
    found = [[float(mosaic[row, column, 0]) for column in (3, 10)] for row in (3, 9)]
    assert found == [[0.0, 0.25], [0.5, 0.75]]
    assert np.all(mosaic[5:7] == 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert figures.image_rows([]) is None


def test_curves_are_those_of_the_epochs(density):
    curves = {"training": [4.8, 4.5], "held out": [4.6, 4.4]}
    figure = figures.training_curves([1, 2], curves, "bits")
    assert figure is not None
    (axes,) = figure.axes
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == list(curves.values())
    assert axes.get_legend_handles_labels()[1] == list(curves)
    assert figures.training_curves([], {}, "bits") is None


def test_an_empty_run_and_one_that_was_stopped(density, generator):
    assert generative.conclude([]) == "Nothing has been measured yet."
    (density / "results.jsonl").write_text("")
    assert "Nothing has been measured yet." in report.write(density).read_text()
    report.readme_table(density)
    # Before the last epoch there are no reconstructions, and arrays may be missing.
    for path in generator.rglob("*.npz"):
        path.unlink()
    lines = (generator / "results.jsonl").read_text().splitlines(keepends=True)
    (generator / "results.jsonl").write_text(lines[0])
    assert len(runs.read_results(generator)) == 1
    page = report.write(generator).read_text()
    assert "after the first 2.000" in page
    assert '<section id="reconstructions">' not in page
