"""The page of `launch.sweep`, from synthetic records."""

import numpy as np
import pytest

from ddjax import metrics
from launch import pages
from launch.pages import _page, sweep
from tests.launch.pages import reading
from tests.launch.pages.synthetic import figures, rows, run_of, save_run, write

FLAGS = {"recipe": "mnist_quick", "dataset": "other", "temperatures": [1, 100], "seeds": [0]}
CONFIG = {"flags": FLAGS}
RATES = ("accuracy", "jsma_success", "jsma_tempered_success", "fgsm_success", "zero_gradient_share")


def network(temperature, seed=0, *, plain=90, tempered=90, zero=0, correct=95, transfer=60, white=60):
    """All records of one network: JSMA of 100 pairs, 100 test images."""
    where = {"seed": seed, "temperature": temperature, "network": "student" if temperature else "baseline", "n": 100}
    share = lambda successes: {"successes": successes, "success": successes / 100}
    jsma = {**where, "measure": "jsma", "theta": 1.0, "gamma": 0.75, "max_features": 12, "images": 10}
    large = 40 * (100 - zero) // 100
    records = [
        {**where, "measure": "accuracy", "correct": correct, "accuracy": correct / 100},
        {**where, "measure": "logits", "mean_abs_logit": 8.5},
        {**where, "measure": "gradients", "zero": zero, "log10_adversarial_gradient": -0.0}
        | {"decades": [-300, -31, -30, -1], "decade_counts": [zero, 0, large, 100 - zero - large]},
        {**jsma, "space": "probs", **share(plain), "robustness": 0.25, "capped_images": 2}
        | {"mean_features": 4.0 if plain else None},
        {**jsma, "space": "tempered", **share(tempered), "robustness": 0.125, "capped_images": 0, "mean_features": 3.0},
        {**where, "measure": "fgsm", "epsilon": 0.3, **share(white)},
    ]
    if temperature:
        records.append({**where, "measure": "fgsm_transfer", "epsilon": 0.3, **share(transfer)})
        records.append({**where, "network": "teacher", "measure": "accuracy", "correct": 97, "accuracy": 0.97})
    return [*records, {**where, "measure": "finished"}]


def sweep_of(**distilled):
    return network(None) + network(1.0) + network(100.0, **distilled)


MASKED = {"plain": 2, "tempered": 88, "zero": 98, "white": 5}


def save_examples(folder, tag):
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    success = np.ones((3, 3), bool)
    success[0, 1] = False
    np.savez(
        folder / f"seed0_{tag}.npz",
        jsma_images=random.random((3, 3, 4, 4, 1), np.float32), jsma_success=success,
        jsma_present=np.array([True, True, False]),
    )  # fmt: skip


def save(path, records, **flags):
    save_run(path, "sweep", records, flags=FLAGS | flags, class_names=["nought", "one", "two"])


@pytest.fixture
def masked_run(tmp_path):
    save(tmp_path, sweep_of(**MASKED))
    for tag in ("none", "T1", "T100"):
        save_examples(tmp_path / "examples", tag)
    return tmp_path


def test_csv_is_exact(tmp_path):
    save(tmp_path, network(None) + network(100.0, plain=0, zero=100, correct=94), temperatures=[100], dataset="mnist")
    write(tmp_path)
    header, none, hot, end = (tmp_path / "table.csv").read_text().split("\n")
    intervals = ",".join(f"{rate}_{end}" for rate in (*RATES, "fgsm_transfer_success") for end in ("n", "low", "high"))
    assert header == (
        "temperature,accuracy,accuracy_variation,jsma_success,jsma_tempered_success,fgsm_success,robustness,mean_abs_logit,"
        "zero_gradient_share,log10_adversarial_gradient,teacher_accuracy,fgsm_transfer_success,robustness_capped_share,"
        f"jsma_mean_features,num_seeds,robustness_tempered,{intervals},published_jsma_success"
    )
    ninety, sixty = "100,0.825634,0.944771", "100,0.502003,0.690599"
    assert none == (
        "none,0.950000,0.000000,0.900000,0.900000,0.600000,0.250000,8.500000,0.000000,0.000000,,,0.200000,4.000000,1,0.125000,"
        f"100,0.888250,0.978456,{ninety},{ninety},{sixty},100,0.000000,0.036993,,,,0.958900"
    )
    assert hot == (
        "100,0.940000,-0.010000,0.000000,0.900000,0.600000,0.250000,8.500000,1.000000,0.000000,0.970000,0.600000,0.200000,,1,"
        f"0.125000,100,0.875232,0.972214,100,0.000000,0.036993,{ninety},{sixty},100,0.963007,1.000000,{sixty},0.004500"
    )
    assert end == ""


def test_seeds_are_pooled():
    records = network(None) + network(10, plain=10) + network(10, seed=1, plain=40)
    shorter = next(r for r in records if r["seed"] == 1 and r.get("space") == "probs")
    shorter |= {"n": 50, "robustness": 0.75, "capped_images": 6, "mean_features": None}
    row = sweep.summarize(run_of(records))[1]
    assert (row["temperature"], row["num_seeds"]) == (10.0, 2)
    assert (row["jsma_success"], row["jsma_success_n"]) == (50 / 150, 150)
    assert (row["jsma_success_low"], row["jsma_success_high"]) == metrics.wilson_interval(50, 150)
    assert (row["robustness"], row["robustness_capped_share"], row["jsma_mean_features"]) == (0.5, 8 / 20, 4.0)


def test_repeated_measurement_counts_once():
    (row,) = sweep.summarize(run_of(network(None) + network(None, correct=80)))
    assert (row["accuracy"], row["accuracy_n"]) == (0.8, 100)


def test_teachers_stay_out_of_the_student_columns():
    row = sweep.summarize(run_of(sweep_of(correct=90), CONFIG))[2]
    assert (row["accuracy"], row["teacher_accuracy"]) == (0.9, 0.97)


@pytest.mark.parametrize(("dataset", "shown"), [("mnist", ["95.9 %", "91.0 %", "0.4 %"]), ("digits", None)])
def test_published_rates_belong_to_their_data_set(tmp_path, dataset, shown):
    save(tmp_path, sweep_of(), dataset=dataset)
    header, *lines = reading.markdown(pages.table(tmp_path))
    assert ([line[-1] for line in lines] if "JSMA, published" in header else None) == shown


def test_page_has_rates_with_intervals_and_all_figures(masked_run):
    page = write(masked_run)
    assert page.subtitle == "recipe mnist_quick, data set other, seeds 0"
    results = page.sections["results"]
    assert results.column("T") == ["none", "1", "100"]
    assert results.column("JSMA, T=1 probabilities")[2] == "2.0 %\n0.6 to 7.0\nn = 100"
    assert results.column("JSMA, tempered")[2] == "88.0 %\n80.2 to 93.0\nn = 100"
    assert results.column("zero gradients")[2] == "98.0 %\n93.0 to 99.4\nn = 100"
    assert results.column("FGSM, transferred") == ["", *["60.0 %\n50.2 to 69.1\nn = 100"] * 2]
    assert results.column("change") == ["+0.0"] * 3
    assert page.sections["figures"].figures == [
        "success", "accuracy", "robustness", "gradients", "jsma_grid", "jsma_grid_distilled"
    ]  # fmt: skip
    assert figures(masked_run) == set(page.sections["figures"].figures)
    assert len(page.sections["figures"].captions) == 6
    # A figure without data goes away.
    for path in (masked_run / "examples").iterdir():
        path.unlink()
    assert write(masked_run).sections["figures"].figures == ["success", "accuracy", "robustness", "gradients"]
    assert "jsma_grid" not in figures(masked_run)


def test_sweep_without_launcher_in_its_flags_is_one(tmp_path):
    save(tmp_path, sweep_of(), launcher=None)
    assert "T" in write(tmp_path).sections["results"].rows[0]


def test_unfinished_sweep_has_empty_cells(tmp_path):
    save(tmp_path, network(None) + network(1.0)[:4])
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"seed": 0, "tempera')
    assert write(tmp_path).sections["results"].rows[3] == ["100", *[""] * 10]
    none, one, hundred = rows(tmp_path)
    assert none["jsma_success"] == "0.900000"
    assert (one["jsma_success"], one["fgsm_success"]) == ("0.900000", "")
    assert set(hundred.values()) == {"100", "", "0"}


def heights(figure, panel=0):
    """What the lines of a panel show."""
    assert figure is not None
    return [np.asarray(line.get_ydata(), float).tolist() for line in figure.axes[panel].lines]


def test_success_figure_shows_rates_and_intervals():
    config = {"flags": FLAGS | {"dataset": "mnist"}}
    figure = sweep.sections(run_of(sweep_of(**MASKED), config))[1].figures["success"][0]
    assert figure is not None
    jsma, fgsm = figure.axes
    assert (jsma.get_title(loc="left"), fgsm.get_title(loc="left")) == ("Success of JSMA", "Success of FGSM")
    assert jsma.get_xscale() == "log"
    assert [label.get_text() for label in jsma.get_xticklabels()] == ["1", "100"]
    assert heights(figure) == [[90, 90], [90, 2], [90, 88], [91, pytest.approx(0.45)]]
    assert heights(figure, 1) == [[60, 60], [60, 5], [60, 60]]
    _, plain, tempered = jsma.collections
    low, high = np.asarray(plain.get_segments()[1])[:, 1]
    np.testing.assert_allclose((low / 100, high / 100), metrics.wilson_interval(2, 100))
    assert len(tempered.get_segments()) == 2
    legend = jsma.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "undistilled network"


def test_gradients_figure_has_the_share_of_each_range():
    figure = sweep.gradients_figure(run_of(sweep_of(**MASKED), CONFIG))
    assert figure is not None
    shares = np.asarray(figure.axes[0].images[0].get_array())
    assert shares.shape == (11, 3)
    np.testing.assert_allclose(shares[:-1].sum(axis=0), 100)
    np.testing.assert_allclose(shares[[0, 8, 9, 10], 0], [60, 40, 0, 0])
    np.testing.assert_allclose(shares[-2:, 2], [98, 98])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-3:] == ["1e-30 to 1e-25", "0 to 1e-30", "exactly 0 in float32"]


def test_other_figures_show_both_networks():
    figures = sweep.sections(run_of(sweep_of(correct=92), CONFIG))[1].figures
    assert heights(figures["accuracy"][0]) == [[95, 95], [95, 92]]
    assert heights(figures["robustness"][0]) == [[25, 25], [25, 25], [12.5, 12.5]]


def test_jsma_figure_has_a_row_for_each_source(masked_run):
    figure = sweep.jsma_figure(_page.Run.read(masked_run), "none")
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["nought", "one"]
    assert (len(axes.images), len(axes.patches)) == (6, 4)
    assert sweep.jsma_figure(_page.Run.read(masked_run), "T5") is None


def test_no_figure_without_data():
    drawn = {name: figure for name, (figure, _) in sweep.sections(run_of(network(None)))[1].figures.items()}
    assert [name for name, figure in drawn.items() if figure is not None] == ["gradients"]
    assert not any(figure for figure, _ in sweep.sections(run_of([]))[1].figures.values())
