"""Tables, figures and the page of a run, from synthetic records."""

import csv
import json
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.collections import PatchCollection

from ddjax import figures, metrics, report

CONFIG = {
    "flags": {"recipe": "digits", "temperatures": [1, 100], "seeds": [0]},
    "resolved": {
        "dataset": "digits",
        "class_names": ["nought", "one", "two"],
        "image_shape": [4, 4, 1],
        "published_jsma_success": {},
    },
    "environment": {"jax": "0.10", "device": "cpu <&>"},
}


def network(temperature, seed=0, *, plain=90, tempered=90, zero=0, correct=95, transfer=60, white=60):
    """All records of one network: JSMA of 100 pairs, 100 test images."""
    where = {"seed": seed, "temperature": temperature, "network": "student" if temperature else "baseline"}
    jsma = {"theta": 1.0, "gamma": 0.75, "max_features": 12, "num_features": 16, "n": 100, "images": 10}
    records = [
        {**where, "measure": "accuracy", "correct": correct, "n": 100, "accuracy": correct / 100},
        {**where, "measure": "logits", "n": 100, "mean_abs_logit": 8.5, "std_abs_logit": 1.0},
        {
            **where,
            "measure": "gradients",
            "n": 100,
            "zero": zero,
            "zero_gradient_share": zero / 100,
            "log10_adversarial_gradient": -0.0,
            "decades": [-300, -31, -30, -1],
            "decade_counts": [zero, 0, 40 * (100 - zero) // 100, 100 - zero - 40 * (100 - zero) // 100],
        },
        {
            **where,
            **jsma,
            "measure": "jsma",
            "space": "probs",
            "attack_temperature": 1.0,
            "successes": plain,
            "success": plain / 100,
            "robustness": 0.25,
            "capped_images": 2,
            "capped_share": 0.2,
            "mean_features": 4.0 if plain else None,
        },
        {
            **where,
            **jsma,
            "measure": "jsma",
            "space": "tempered",
            "attack_temperature": temperature or 1.0,
            "successes": tempered,
            "success": tempered / 100,
            "robustness": 0.125,
            "capped_images": 0,
            "capped_share": 0.0,
            "mean_features": 3.0,
        },
        {**where, "measure": "fgsm", "epsilon": 0.3, "n": 100, "successes": white, "success": white / 100},
    ]
    if temperature:
        rate = {"n": 100, "successes": transfer, "success": transfer / 100}
        records.append({**where, "measure": "fgsm_transfer", "epsilon": 0.3, **rate})
        records.append(
            {**where, "network": "teacher", "measure": "accuracy", "correct": 97, "n": 100, "accuracy": 0.97}
        )
    return [*records, {**where, "measure": "finished"}]


def sweep(**distilled):
    return network(None) + network(1.0) + network(100.0, **distilled)


MASKED = {"plain": 2, "tempered": 88, "zero": 98, "white": 5}


def save_examples(folder, tag, prediction=1):
    random = np.random.default_rng(0)
    clean = random.random((4, 4, 1), np.float32)
    folder.mkdir(exist_ok=True)
    success = np.ones((3, 3), bool)
    success[0, 1] = False
    np.savez(
        folder / f"seed0_{tag}.npz",
        jsma_images=random.random((3, 3, 4, 4, 1), np.float32),
        jsma_success=success,
        jsma_present=np.array([True, True, False]),
        fgsm_label=np.int32(0),
        fgsm_clean=clean,
        fgsm_clean_prediction=np.int32(0),
        fgsm_adversarial=np.clip(clean + 0.3, 0, 1),
        fgsm_baseline_prediction=np.int32(1),
        fgsm_prediction=np.int32(prediction),
    )


def save_run(path, records, config=CONFIG):
    (path / "config.json").write_text(json.dumps(config))
    (path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def masked_run(tmp_path):
    save_run(tmp_path, sweep(**MASKED))
    for tag, prediction in (("none", 1), ("T1", 1), ("T100", 0)):
        save_examples(tmp_path / "examples", tag, prediction)
    return tmp_path


def test_table_is_exact(tmp_path):
    records = network(None) + network(100.0, plain=0, zero=100, correct=94)
    config = {"flags": {"temperatures": [100]}, "resolved": {"published_jsma_success": {"none": 0.9589}}}
    report.write_table(report.summarize(records, config), tmp_path / "table.csv")
    header, none, hot, end = (tmp_path / "table.csv").read_bytes().decode().split("\n")
    rates = ("accuracy", "jsma_success", "jsma_tempered_success", "fgsm_success", "zero_gradient_share")
    intervals = ",".join(f"{rate}_{end}" for rate in (*rates, "fgsm_transfer_success") for end in ("n", "low", "high"))
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
        f"0.125000,100,0.875232,0.972214,100,0.000000,0.036993,{ninety},{sixty},100,0.963007,1.000000,{sixty},"
    )
    assert end == ""
    assert not list(tmp_path.glob(".*"))


def test_no_negative_zero(tmp_path):
    report.write_table([{"a": -0.0, "b": -1e-9, "c": -2e-6, "temperature": 2}], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == "a,b,c,temperature\n0.000000,0.000000,-0.000002,2\n"


def test_seeds_are_pooled():
    records = network(None) + network(10, plain=10) + network(10, seed=1, plain=40)
    shorter = next(r for r in records if r["seed"] == 1 and r.get("space") == "probs")
    shorter |= {"n": 50, "robustness": 0.75, "capped_images": 6, "mean_features": None}
    row = report.summarize(records, {})[1]
    assert (row["temperature"], row["num_seeds"]) == (10.0, 2)
    assert row["jsma_success"] == 50 / 150
    assert row["jsma_success_n"] == 150
    assert (row["jsma_success_low"], row["jsma_success_high"]) == metrics.wilson_interval(50, 150)
    assert row["robustness"] == 0.5
    assert row["robustness_capped_share"] == 8 / 20
    assert row["jsma_mean_features"] == 4.0
    assert report.gradient_decades(records)[10.0][-1] == 120


def test_repeated_measurement_counts_once():
    records = network(None) + network(None, correct=80)
    (row,) = report.summarize(records, {})
    assert (row["accuracy"], row["accuracy_n"]) == (0.8, 100)


def test_teachers_stay_out_of_the_student_columns():
    row = report.summarize(sweep(correct=90), CONFIG)[2]
    assert (row["accuracy"], row["teacher_accuracy"]) == (0.9, 0.97)


def test_published_rates():
    config = {"resolved": {"published_jsma_success": {"none": 0.9589, "100": 0.0045}}}
    rows = report.summarize(sweep(), config)
    assert [row["published_jsma_success"] for row in rows] == [0.9589, None, 0.0045]
    assert "| JSMA, published |" in report.markdown_table(rows)
    assert "published" not in report.markdown_table(report.summarize(sweep(), CONFIG))


def test_unfinished_sweep(tmp_path):
    records = network(None) + network(1.0)[:4]
    save_run(tmp_path, records)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"seed": 0, "tempera')
    page = report.write(tmp_path).read_text()
    assert "This sweep is unfinished: 9 of 18 measurements are not there yet." in page
    with (tmp_path / "table.csv").open() as file:
        none, one, hundred = csv.DictReader(file)
    assert none["jsma_success"] == "0.900000"
    assert (one["jsma_success"], one["fgsm_success"]) == ("0.900000", "")
    assert set(hundred.values()) == {"100", "", "0"}
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "accuracy_variation.png",
        "gradients.png",
        "robustness.png",
        "success.png",
    ]


def test_empty_sweep(tmp_path):
    save_run(tmp_path, [])
    page = report.write(tmp_path).read_text()
    assert "no conclusion" in page
    assert "Nothing to show yet" in page
    assert "<img" not in page


def test_page(masked_run):
    page = report.write(masked_run).read_text()
    for section in ("summary", "results", "figures", "configuration", "environment"):
        assert f'<section id="{section}">' in page
    assert "recipe digits, data set digits, seeds 0" in page
    assert page.count('<img alt="') == page.count('src="data:image/png;base64,') == 7
    assert sorted(path.stem for path in (masked_run / "figures").iterdir()) == sorted(figures.CAPTIONS)
    for outside in ('src="http', "<script", "<link", "url(", "@import"):
        assert outside not in page
    assert "cpu &lt;&amp;&gt;" in page
    assert "gradient masking" in page
    assert "Other records" not in page
    assert "unfinished" not in page


def test_report_is_reproducible(masked_run):
    def contents():
        return {path: path.read_bytes() for path in sorted(masked_run.rglob("*")) if path.is_file()}

    report.write(masked_run)
    first = contents()
    report.write(masked_run)
    assert contents() == first
    assert not any(b"Software" in content or b"matplotlib" in content for content in first.values())


def test_figures_without_data_go_away(masked_run):
    report.write(masked_run)
    for path in (masked_run / "examples").iterdir():
        path.unlink()
    report.write(masked_run)
    assert not (masked_run / "figures" / "fgsm.png").exists()
    assert (masked_run / "figures" / "success.png").exists()


def test_directory_of_another_launcher(tmp_path):
    records = [
        {"measure": "attack", "attack": "pgd <x>", "success": 0.5, "norms": [1, 2]},
        {"measure": "attack", "attack": "fgsm", "mean_steps": 1e-9, "linf": None},
    ]
    save_run(tmp_path, records, {"flags": {"recipe": "digits"}, "resolved": {"dataset": "digits"}, "environment": {}})
    page = report.write(tmp_path).read_text()
    assert "pgd &lt;x&gt;" in page
    assert 'id="summary"' not in page
    assert (tmp_path / "table.csv").read_text() == (
        'measure,attack,success,norms,mean_steps,linf\nattack,pgd <x>,0.5,"[1, 2]",,\nattack,fgsm,,,1e-09,\n'
    )


def test_sweep_with_other_records(tmp_path):
    save_run(tmp_path, [*sweep(), {"measure": "attack", "attack": "pgd|linf"}])
    page = report.write(tmp_path).read_text()
    assert "Other records" in page
    assert "<td>pgd|linf</td>" in page


@pytest.mark.parametrize(
    ("distilled", "expected"),
    [
        (MASKED, "the robustness is not real but gradient masking"),
        (MASKED | {"zero": 10}, "though fewer than half of its gradients are exactly zero"),
        (MASKED | {"tempered": 50}, "wins back 48.0 of the 88.0 points lost"),
        (MASKED | {"tempered": 3}, "the tempered attack is not higher"),
        ({"plain": 75, "tempered": 84}, "Conclusion: undecided"),
        ({"plain": 88}, "there is no robustness to explain"),
        ({"plain": 85, "tempered": 100}, "The tempered attack succeeds more often still."),
    ],
)
def test_conclusion_follows_the_numbers(distilled, expected):
    said = report.conclude(report.summarize(sweep(**distilled), CONFIG))
    assert expected in said
    assert said.count("Conclusion:") == 1
    assert "unfinished" not in said
    assert "The same comparison elsewhere: no clear drop in JSMA success at T = 1." in said


def test_conclusion_reads_the_numbers():
    said = report.conclude(report.summarize(sweep(**MASKED, correct=92), CONFIG))
    assert "classifies 95.0 % of the test images" in said
    assert "between -3.00 (T = 100) and +0.00 (T = 1) percentage points" in said
    assert "distilled at T = 100 have dead gradients" in said
    assert "(up to 98.0 % at T = 100)" in said
    assert "succeeds in 2.0 % of its attempts (90.0 % without distillation)" in said
    assert "softmax(Z/T) of the same network succeeds in 88.0 %" in said
    assert "on the network itself it succeeds in 5.0 %" in said
    alive = report.conclude(report.summarize(sweep(), CONFIG))
    assert "No test image has an exactly zero float32 gradient" in alive
    assert "FGSM" not in alive


def test_conclusion_waits_for_the_deciding_attack():
    records = [record for record in sweep(**MASKED) if record.get("space") != "tempered"]
    rows = report.summarize(records, CONFIG)
    assert "no conclusion" in report.conclude([rows[0], rows[2]])
    assert "masking" not in report.conclude(rows)


def test_missing_measurements():
    assert report.missing_measurements(sweep(), CONFIG) == (0, 18)
    more_seeds = CONFIG | {"flags": {"temperatures": [1, 100], "seeds": [0, 1]}}
    assert report.missing_measurements(sweep(), more_seeds) == (18, 36)


def test_markdown_table():
    lines = report.markdown_table(report.summarize(sweep(**MASKED), CONFIG)).split("\n")
    assert len(lines) == 5
    assert {line.count("|") for line in lines} == {12}
    assert lines[4].startswith("| 100 | 95.0 % [88.8, 97.8] | 2.0 % [0.6, 7.0] | 88.0 % [80.2, 93.0] |")
    assert lines[4].endswith("| 25.0 % | 20.0 % | 8.5 | 98.0 % [93.0, 99.4] | 0.0 |")


def test_update_readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- BEGIN x -->\nold\n<!-- END x -->\nb\n<!-- BEGIN y -->\n<!-- END y -->\n")
    for _ in range(2):
        report.update_readme(path, "x", "| new |\n")
    expected = "a\n<!-- BEGIN x -->\n| new |\n<!-- END x -->\nb\n<!-- BEGIN y -->\n<!-- END y -->\n"
    assert path.read_text() == expected
    with pytest.raises(ValueError, match="no block"):
        report.update_readme(path, "z", "text")
    path.write_text("<!-- END x --> <!-- BEGIN x -->")
    with pytest.raises(ValueError, match="no block"):
        report.update_readme(path, "x", "text")


def heights_of(series: Any) -> list[float]:
    return series.lines[0].get_ydata(orig=False).tolist()


def test_success_figure():
    config = CONFIG | {"resolved": {"published_jsma_success": {"none": 0.9, "100": 0.01}}}
    figure = figures.success(report.summarize(sweep(**MASKED), config))
    assert figure is not None
    left, right = figure.axes
    assert (left.get_title(loc="left"), right.get_title(loc="left")) == ("JSMA", "FGSM")
    assert left.get_xscale() == "log"
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "100"]
    curves = {container.get_label(): container for container in left.containers}
    assert len(curves) == 3
    plain: Any = curves["on T=1 probabilities"]
    np.testing.assert_allclose(heights_of(plain), [90, 2])
    low, high = plain.lines[2][0].get_segments()[1][:, 1]
    np.testing.assert_allclose((low / 100, high / 100), metrics.wilson_interval(2, 100))
    np.testing.assert_allclose(heights_of(curves["published, T=1 probabilities"]), [1])
    assert any(line.get_label() == "undistilled network" for line in left.lines)
    assert len(right.containers) == 2


def test_accuracy_figure():
    figure = figures.accuracy_variation(report.summarize(sweep(correct=92), CONFIG))
    assert figure is not None
    (axes,) = figure.axes
    assert "percentage points" in axes.get_ylabel()
    np.testing.assert_allclose(heights_of(axes.containers[0]), [0, -3], atol=1e-9)


def test_gradients_figure():
    records = sweep(**MASKED)
    figure = figures.gradients(report.summarize(records, CONFIG), report.gradient_decades(records))
    assert figure is not None
    (axes,) = figure.axes
    heights = np.array([[bar.get_height() for bar in container] for container in axes.containers])
    assert heights.shape == (10, 3)
    np.testing.assert_allclose(heights.sum(axis=0), 100)
    np.testing.assert_allclose(heights[[0, 1, 9], 0], [0, 40, 60])
    np.testing.assert_allclose(heights[0], [0, 0, 98])
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), [0, 0, 98])
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 11


def test_robustness_figure():
    figure = figures.robustness(report.summarize(sweep(), CONFIG))
    assert figure is not None
    (axes,) = figure.axes
    assert [heights_of(container)[0] for container in axes.containers] == [25.0, 12.5]


def test_example_figures(tmp_path):
    save_examples(tmp_path / "examples", "none")
    with np.load(tmp_path / "examples" / "seed0_none.npz") as data:
        examples: dict[str, Any] = dict(data)
    grid = figures.jsma_grid(examples, ["nought", "one", "two"], "Undistilled network")
    assert grid is not None
    (axes,) = grid.axes
    assert axes.get_title(loc="left") == "Undistilled network: 3 of 4 targets reached"
    (boxes,) = (child for child in axes.get_children() if isinstance(child, PatchCollection))
    edges = [colors.to_hex(color).upper() for color in np.asarray(boxes.get_edgecolor())]
    assert (edges.count(figures.GREEN), edges.count(figures.RED), edges.count(figures.GRAY)) == (3, 1, 2)
    right: dict[str, Any] = examples | {"fgsm_prediction": np.int32(0)}
    shown = figures.fgsm({None: examples, 10.0: right, 50.0: examples}, ["$0", "$1", "two"])
    assert shown is not None
    assert len(shown.axes) == 4
    words = [text.get_text() for text in shown.axes[3].texts]
    assert words[words.index("distilled, T = 10") :] == [
        "distilled, T = 10", "✓ \\$0", "✓ \\$0", "distilled, T = 50", "✓ \\$0", "✗ \\$1"
    ]  # fmt: skip
    assert figures.to_png(shown).startswith(b"\x89PNG")


def test_nothing_to_show():
    rows = report.summarize(network(None), {})
    assert figures.success(rows) is None
    assert figures.accuracy_variation(rows) is None
    assert figures.robustness(rows) is None
    assert figures.gradients(rows, {}) is None
    assert figures.jsma_grid({}, [], "none") is None
    assert figures.fgsm({}, []) is None


def test_style_ignores_and_keeps_the_users_settings():
    with matplotlib.rc_context({"font.size": 30.0}):
        figure = figures.accuracy_variation(report.summarize(sweep(), CONFIG))
        assert matplotlib.rcParams["font.size"] == 30.0
    assert figure is not None
    assert figure.axes[0].xaxis.label.get_fontsize() == pytest.approx(9.5)
