"""The page of `launch.benchmark`, from synthetic records."""

import matplotlib
import pytest

from ddjax import figures, report
from ddjax.report import benchmark
from tests.report import synthetic
from tests.report.synthetic import files

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


def save(path, *records):
    synthetic.save_run(path, "benchmark", records)
    return path


def readme(path, *records):
    return report.readme_table(save(path, *records)).split("\n")


def test_page(tmp_path):
    inside = [timed("compaction", "ddjax", 0.1), timed("compaction", "batches that stay whole", 0.2, 2.0)]
    save(tmp_path, MACHINE, MISSING, BROKEN, *attacks(), *grown(), *inside)
    page = report.write(tmp_path).read_text()
    for name in ("summary", "machine", "figures", "beside-other-libraries", "details", "growth", "inside-ddjax"):
        assert f'<section id="{name}' in page
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["growth.png", "speedups.png"]
    # Times are all there is, and no table of a run holds any.
    assert not (tmp_path / "table.csv").exists()
    assert "140 GFLOP/s" in page
    assert "No comparison with ART: it is not installed." in page
    assert "To compare with all: pip install &lt;art&gt;" in page
    assert "adv-lib is broken for PGD, batch 16: TypeError: no &lt;such&gt; argument" in page
    assert "<td>50<span class=ends>36 %</span></td>" in page


def test_same_bytes_again(tmp_path):
    report.write(save(tmp_path, MACHINE, *attacks(), *grown()))
    first = files(tmp_path)
    report.write(tmp_path)
    assert files(tmp_path) == first


def test_readme_table(tmp_path):
    header, _, line = readme(tmp_path, MACHINE, BROKEN, *attacks())
    assert header == "| work | batch | ddjax | best peer | others |"
    assert line == "| PGD | 16 | 2 ms per example | foolbox 3x | torchattacks 5x, adv-lib broken |"


@pytest.mark.parametrize(
    ("fields", "best"),
    [
        ({"success": 0.5}, "torchattacks 5x | foolbox 3x*"),
        ({"mean_distance": 1.2}, "torchattacks 5x | foolbox 3x*"),
        ({"max_difference": 0.5}, "torchattacks 5x | foolbox 3x*"),
        ({"success": 0.5, "success_same": 0.5}, "foolbox 3x | torchattacks 5x"),
        ({"success": None, "mean_distance": None}, "foolbox 3x | torchattacks 5x"),
        ({"mean_distance": 1.2, "mean_distance_same": 1.3}, "foolbox 3x | torchattacks 5x"),
    ],
)
def test_only_a_peer_that_did_as_much_can_be_the_best(tmp_path, fields, best):
    assert best in readme(tmp_path, *attacks(**fields))[-1]


def test_several_networks_have_a_column(tmp_path):
    header, _, first, second = readme(
        tmp_path, timed("jacobian", "ddjax", 0.1, network="b"), timed("jacobian", "ddjax", 0.1, network="a")
    )
    assert header.startswith("| network | work |")
    assert first.startswith("| a | Jacobian | 16 | 100 ms per example |  |")
    assert second.startswith("| b |")


def test_works_stand_in_order(tmp_path):
    lines = readme(
        tmp_path,
        timed("sweep", "ddjax", 30.0, unit="sweep", batch=None),
        timed("later", "ddjax", 0.1),
        timed("fgsm", "ddjax", 1e-5, batch=128),
        timed("fgsm", "ddjax", 1e-5, batch=1),
    )[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| FGSM", "1"],
        ["| FGSM", "128"],
        ["| sweep, nine temperatures", ""],
        ["| later", "16"],
    ]
    assert "10 µs per example" in lines[0]


@pytest.mark.parametrize(
    "records",
    [
        [],
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
def test_parts_of_a_run(tmp_path, records):
    page = report.write(save(tmp_path, *records)).read_text()
    assert '<section id="summary">' in page
    assert report.readme_table(tmp_path).startswith("| ")


def test_growth_is_fitted(tmp_path):
    lines = readme(tmp_path, *grown(unit_seconds=0.002))
    assert lines[2] == "| growth, examples | PGD | 100: 200, 200: 400, 400: 800 | n | 1.00 | 0 % |  |"
    quadratic = [point | {"seconds": 1e-5 * point["size"]} for point in grown()]
    assert "| 2.00 | 100 % |" in readme(tmp_path / "quadratic", *quadratic)[2]


def test_conclusion():
    slow = [timed("fgsm", "ddjax", 0.1, batch=1), timed("fgsm", "torch, loop", 0.05, 0.5, batch=1)]
    said = benchmark.conclude([*attacks(), *slow])
    assert "in 1 of 2 comparisons" in said
    assert "1.22 times as long in the geometric mean, from 0.5 (FGSM, batch 1, PyTorch, loop) to 3 (PGD" in said
    assert said.endswith("Not faster: FGSM, batch 1 (0.5).")
    assert benchmark.conclude([]) == "Nothing has been measured yet."
    assert "No other library was there" in benchmark.conclude([timed("fgsm", "ddjax", 0.1)])
    assert "none did as much" in benchmark.conclude(attacks()[:1] + attacks(success=0.1)[1:2])


def test_speedups_figure():
    bar = {"group": "PGD", "library": "foolbox", "ratio": 2.0, "low": 1.5, "high": 3.0, "correct": True}
    figure = figures.speedups([bar, bar | {"library": "new", "ratio": 0.5, "low": 0.4, "high": 0.6, "correct": False}])
    assert figure is not None
    (axes,) = figure.axes
    assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [(1, 1), (1, -0.5)]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in figure.legends[0].texts] == ["foolbox", "new", "does less or worse"]
    with matplotlib.rc_context():
        assert figures.to_png(figure)
    assert figures.speedups([]) is None


def test_growth_figure():
    curve = {"name": "pgd", "sizes": [1, 10], "seconds": [0.1, 1.0], "lows": [0.1, 0.9], "highs": [0.2, 1.1]}
    figure = figures.growth({"steps": [curve | {"order": "n"}], "classes": [curve | {"sizes": [], "order": "1"}]})
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_xlabel() == "steps"
    expected = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert list(expected.get_ydata()) == pytest.approx([100, 1000])
    assert figures.growth({}) is None
