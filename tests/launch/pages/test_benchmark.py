"""The page of `launch.benchmark`, from synthetic records."""

import numpy as np
import pytest

from launch import pages
from launch.pages import benchmark, speed
from tests.launch.pages import reading
from tests.launch.pages.synthetic import figures, save_run, write

MACHINE = {"measure": "machine", "cores": 2, "device": "cpu", "jax_gflops": 140.0, "torch_gflops": None}
MISSING = {"measure": "peer_missing", "side": "art", "error": "it is not installed", "command": "pip install <art>"}
BROKEN = {"measure": "peer_broken", "work": "pgd", "network": "digits", "batch": 16, "side": "adv_lib"}
BROKEN |= {"error": "TypeError: no <such> argument"}


def timed(work, side, seconds, speedup=1.0, batch=16, network="digits", base="ddjax", **fields):
    record = {"measure": "benchmark", "work": work, "network": network, "batch": batch, "side": side, "base": base}
    record |= {"unit": "example", "units": 16, "repetitions": 3, "seconds": seconds}
    record |= {"seconds_low": 0.9 * seconds, "seconds_high": 1.1 * seconds, "first_seconds": 2.0}
    record |= {"speedup": speedup, "speedup_low": 0.8 * speedup, "speedup_high": 1.2 * speedup, "peak_bytes": None}
    return record | fields


def attacks(success=0.9, **fields):
    done = {"norm": "l2", "mean_distance": 1.0}
    return [
        timed("pgd", "ddjax", 0.002, success=0.9, flops=1e8, gflops=50.0, matmul_share=0.357, **done),
        timed("pgd", "foolbox", 0.006, 3.0, success=success, **{**done, **fields}),
        timed("pgd", "torchattacks", 0.01, 5.0, success=0.91, **done, note="one by one"),
    ]


def grown(work="growth_examples", sizes=(100, 200, 400), unit_seconds=0.001, **fields):
    fields = {"curve": "pgd", "order": "n", "base": str(sizes[0])} | fields
    return [timed(work, str(size), unit_seconds, units=size, size=size, **fields) for size in sizes]


def table(path, *records):
    save_run(path, "benchmark", records)
    return reading.markdown(pages.table(path))


def test_page_has_comparisons_growth_variants_and_machine(tmp_path):
    inside = [timed("compaction", "ddjax", 0.1), timed("compaction", "batches that stay whole", 0.2, 2.0)]
    save_run(tmp_path, "benchmark", [MACHINE, MISSING, BROKEN, *attacks(), *grown(), *inside])
    page = write(tmp_path)
    assert page.sections["missing-libraries"].rows[1:] == [
        ["ART", "missing", "", "it is not installed", "pip install <art>"],
        ["adv-lib", "PGD", "16", "TypeError: no <such> argument", ""],
    ]
    details = page.sections["details-digits"]
    assert details.column("side") == ["ddjax", "foolbox", "torchattacks"]
    assert details.column("time")[0] == "2 ms\nper example\n1.8 ms to 2.2 ms"
    assert details.column("times the base") == ["", "3x\n2.4 to 3.6", "5x\n4 to 6"]
    assert details.column("mean distance")[0] == "1\nl2"
    assert details.column("GFLOP/s") == ["50\n36 %", "", ""]
    assert details.column("more") == ["", "", "one by one"]
    # Columns that no side fills are left out.
    assert "memory" not in details.rows[0]
    assert page.sections["inside-ddjax"].column("times the base") == ["", "2x\n1.6 to 2.4"]
    assert page.sections["machine"].rows[1:] == [
        ["cores", "2"], ["device", "cpu"], ["jax gflops", "140.0"]
    ]  # fmt: skip
    assert figures(tmp_path) == {"growth", "speedups"}
    # Times are all there is, and no CSV of a run holds any.
    assert not (tmp_path / "table.csv").exists()


def test_table_has_the_best_and_the_other_libraries(tmp_path):
    header, line = table(tmp_path, MACHINE, BROKEN, *attacks())
    assert header == ["network", "work", "batch", "ddjax", "best other library", "other libraries"]
    assert line == ["digits", "PGD", "16", "2 ms per example", "foolbox 3x", "torchattacks 5x, adv-lib broken"]


@pytest.mark.parametrize(
    ("fields", "best", "others"),
    [
        ({"success": 0.5}, "torchattacks 5x", "foolbox 3x*"),
        ({"mean_distance": 1.2}, "torchattacks 5x", "foolbox 3x*"),
        ({"max_difference": 0.5}, "torchattacks 5x", "foolbox 3x*"),
        ({"success": 0.5, "success_same": 0.5}, "foolbox 3x", "torchattacks 5x"),
        ({"success": None, "mean_distance": None}, "foolbox 3x", "torchattacks 5x"),
        ({"mean_distance": 1.2, "mean_distance_same": 1.3}, "foolbox 3x", "torchattacks 5x"),
    ],
)
def test_only_a_library_that_did_the_same_work_is_the_best(tmp_path, fields, best, others):
    assert table(tmp_path, *attacks(**fields))[-1][-2:] == [best, others]


def test_several_networks_have_a_column(tmp_path):
    records = [timed("jacobian", "ddjax", 0.1, network=network) for network in ("b", "a")]
    header, first, second = table(tmp_path, *records)
    assert header[:2] == ["network", "work"]
    assert first[:4] == ["a", "Jacobian", "16", "100 ms per example"]
    assert second[0] == "b"


def test_works_stand_in_order(tmp_path):
    lines = table(
        tmp_path,
        timed("sweep", "ddjax", 30.0, unit="sweep", batch=None),
        timed("later", "ddjax", 0.1),
        timed("fgsm", "ddjax", 1e-5, batch=128),
        timed("fgsm", "ddjax", 1e-5, batch=1),
    )[1:]
    assert [line[1] for line in lines] == ["FGSM", "FGSM", "sweep, nine temperatures", "later"]
    assert [line[2] for line in lines] == ["1", "128", "", "16"]


@pytest.mark.parametrize(("seconds", "expected"), [(2.5, "2.5 s"), (0.002, "2 ms"), (1e-5, "10 µs"), (5e-8, "50 ns")])
def test_durations_have_suitable_units(seconds, expected):
    assert speed.duration(seconds) == expected


@pytest.mark.parametrize(
    "records",
    [
        [MACHINE],
        [MACHINE, MISSING],
        [BROKEN],
        [timed("train_step", "ddjax", 0.1)],
        [timed("stack", "ddjax", 0.1, networks=4), timed("stack", "vmap", 0.2, 2.0, networks=4)],
        [timed("jsma_step", "two gradients", 0.1, base="two gradients"), timed("jsma_step", "ddjax, probs", 0.1)],
        [timed("pgd", "foolbox", 0.1, success=None, mean_distance=None, note=None, gradients=None, matmul_share=None)],
        [timed("pgd", "ddjax", 0.1, success=0.0, mean_distance=None), timed("pgd", "art", 0.1, 0.9, success=0.0)],
        grown(sizes=(100,)),
        grown("growth_features", (196, 784), space="logits", order="n log n"),
        grown("growth_temperatures", (1, 3, 9), traces=1, attack=None),
    ],
)
def test_parts_of_a_run_are_reported(tmp_path, records):
    save_run(tmp_path, "benchmark", records)
    write(tmp_path)
    has_growth = any("size" in record for record in records)
    assert ("growth" in figures(tmp_path)) == has_growth
    assert pages.table(tmp_path).startswith("| ")


def test_growth_has_its_exponent():
    quadratic = [point | {"seconds": 1e-5 * point["size"]} for point in grown()]
    for points, exponent in ((grown(), "1.00"), (quadratic, "2.00")):
        figure = benchmark.growth_figure([points])
        assert figure is not None
        assert figure.axes[0].get_legend_handles_labels()[1] == [f"PGD, digits, exponent {exponent}"]


def test_speedups_figure_has_the_best_way_of_each_library():
    sides = [
        timed("pgd", "ddjax", 1.0, success=0.9),
        timed("pgd", "foolbox", 2.0, 2.0, success=0.9),
        timed("pgd", "torch, loop", 3.0, 3.0, success=0.9),
        timed("pgd", "torch", 0.5, 0.5, success=0.1),
    ]
    figure = benchmark.speedups_figure(speed.comparisons(sides))
    assert figure is not None
    (axes,) = figure.axes
    # Of PyTorch, the way that does the same work.
    assert [np.asarray(line.get_xdata()).tolist() for line in axes.lines] == [
        [2], pytest.approx([1.6, 2.4]), [3], pytest.approx([2.4, 3.6])
    ]  # fmt: skip
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in figure.legends[0].texts] == ["PyTorch", "foolbox"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["PGD, batch 16, digits"]
    figure = benchmark.speedups_figure(speed.comparisons([*sides[:2], sides[3]]))
    assert figure is not None
    assert [label.get_text() for label in figure.legends[0].texts] == ["foolbox", "PyTorch, worse"]
    assert benchmark.speedups_figure([]) is None


def test_growth_figure_has_the_expected_growth():
    figure = benchmark.growth_figure([grown("growth_steps", (1, 10), 0.1)])
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "steps"
    expected = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert np.asarray(expected.get_ydata()).tolist() == pytest.approx([100, 1000])
    assert benchmark.growth_figure([]) is None
