"""What all pages share: dispatch, escaping, formats, and the runs that the repository keeps."""

import json
import pathlib
import shutil

import matplotlib
import pytest

from ddjax import runs
from launch import pages, recipes
from launch.pages import _page, sweep
from launch.recipes import published
from tests.launch.pages import reading, synthetic

RESULTS = sorted((pathlib.Path(__file__).parents[3] / "docs" / "results").iterdir())


@pytest.mark.parametrize("kept", RESULTS, ids=lambda path: path.name)
def test_kept_runs_are_reported_with_the_same_tables(kept, tmp_path):
    for name in ("config.json", "results.jsonl"):
        shutil.copy(kept / name, tmp_path)
    page = reading.Page(pages.write(tmp_path))
    assert (tmp_path / "table.md").read_text() == (kept / "table.md").read_text()
    for table in kept.glob("*.csv"):
        assert (tmp_path / table.name).read_bytes() == table.read_bytes()
    # Every page has results, and the settings that belong to them.
    assert any(len(section.rows) > 1 for section in list(page.sections.values())[:2])
    assert {"configuration-flags", "configuration-environment"} <= page.sections.keys()
    # Pictures beside the tables are figures of these pages.
    pictures = {path.stem for path in kept.glob("*.png")} - {"reconstructions", "samples"}
    assert pictures <= synthetic.figures(tmp_path)
    assert sum(len(section.figures) for section in page.sections.values()) == len(synthetic.figures(tmp_path))


@pytest.mark.parametrize(
    "launcher", ["attack", "carlini", "evaluate", "obfuscated", "transfer", "generate", "sweep", "x"]
)
def test_run_that_has_just_begun_is_reported(launcher, tmp_path):
    synthetic.save_run(tmp_path, launcher, [])
    page = synthetic.write(tmp_path)
    assert page.sections.pop("configuration-flags").column("value")[0] == launcher
    assert not any(section.figures for section in page.sections.values())


def test_text_of_users_is_escaped_on_every_page(tmp_path):
    script = "<script>alert('&')</script>"
    for launcher in ("attack", "carlini", "evaluate", "obfuscated", "transfer", "generate", "other"):
        path = tmp_path / launcher
        records = [{"measure": "note", "name": script, script: 1.0}]
        if launcher == "attack":
            records = [synthetic.attack(f"pgd:{script}")]
        elif launcher == "carlini":
            records = [synthetic.carlini("baseline", script, script)]
        synthetic.save_run(path, launcher, records, class_names=[script], dataset=script)
        page = synthetic.write(path)
        assert "script" not in page.tags
        assert script in page.subtitle
        assert any(script in cell for row in page.sections["configuration-resolved"].rows for cell in row)


def test_run_of_unknown_launcher_becomes_a_plain_table(tmp_path):
    records = [
        {"measure": "attack", "attack": "pgd|<x>", "success": 0.5, "norms": [1, 2], "file": None},
        {"measure": "attack", "attack": "fgsm", "mean_steps": 1e-9, "linf": None, "file": None},
        {"measure": "loader", "seconds": 1.0},
    ]
    synthetic.save_run(tmp_path, "unknown", records)
    page = synthetic.write(tmp_path)
    assert page.sections["results"].column("attack") == ["pgd|<x>", "fgsm", ""]
    assert page.sections["results"].column("norms") == ["[1, 2]", "", ""]
    assert r"| attack | pgd\|<x> | 0.5 |" in pages.table(tmp_path)
    # The records of the loader are times, which tables of two runs must not be compared by.
    assert (tmp_path / "table.csv").read_text() == (
        'measure,attack,success,norms,file,mean_steps,linf\nattack,pgd|<x>,0.5,"[1, 2]",,,\nattack,fgsm,,,,1e-09,\n'
    )


def test_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(runs.RunError, match="is not the directory of a run"):
        pages.write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"flags": {}}))
    with pytest.raises(runs.RunError, match="cannot read"):
        pages.table(tmp_path)


def test_csv_has_six_decimals_and_no_negative_zero(tmp_path):
    rows = [{"a": -0.0, "b": -1e-9, "c": -2e-6, "temperature": 2}, {"d": None, "temperature": None, "e": True}]
    _page.write_csv(rows, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == (
        "a,b,c,temperature,d,e\n0.000000,0.000000,-0.000002,2,,\n,,,none,,True\n"
    )
    _page.write_csv([], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().strip() == ""


def test_markdown_is_one_line_a_row():
    columns = {"a|b": _page.field("first"), "c": _page.field("second")}
    table = _page.table_of([{"first": "1\n2\n3"}, {"first": "|", "second": "x"}], columns)
    assert _page.markdown(table) == "| a\\|b | c |\n| ---: | ---: |\n| 1 (2, 3) |  |\n| \\| | x |"


def test_columns_that_no_row_fills_are_left_out():
    columns = {"a": _page.field("a"), "b": _page.field("b", lambda value: ""), "c": _page.field("c")}
    assert list(_page.table_of([{"a": 0, "b": 1}, {"a": None}], columns).columns) == ["a"]
    assert list(_page.table_of([], columns).columns) == ["a", "b", "c"]


RATE = {"share": 0.5, "share_n": 4, "share_low": 0.15, "share_high": 0.85}


@pytest.mark.parametrize(
    ("formatted", "expected"),
    [
        (_page.number(1234.5), "1234"), (_page.number(0.012345), "0.0123"), (_page.percent(0.12345), "12.3 %"),
        (_page.points(-0.004), "-0.4"), (_page.points(-0.0), "+0.0"),
        (_page.field("x", _page.number)({"x": None}), ""), (_page.field("x", _page.number)({}), ""),
        (_page.rate("share")(RATE | {"share_n": 0}), ""),
        (_page.rate("share")(RATE), "50.0 %\n15.0 to 85.0\nn = 4"),
        (_page.counts("hits")({"hits": 90, "n": 100}), "90.0 %\n82.6 to 94.5\nn = 100"),
        (_page.counts("hits")({"hits": None, "n": 100}), ""), (_page.counts("hits")({"hits": 0, "n": 0}), ""),
        (_page.stack(_page.field("a"), _page.field("b"), _page.field("c"))({"a": 1, "c": 2}), "1\n2"),
    ],
)  # fmt: skip
def test_formats(formatted, expected):
    assert formatted == expected


def test_figures_ignore_and_keep_the_style_of_users():
    run = synthetic.run_of([synthetic.accuracy("baseline", 95), synthetic.accuracy("student", 90, 2.0)])
    with matplotlib.rc_context({"font.size": 30.0}):
        figure = sweep.sections(run)[1].figures["accuracy"][0]
        assert matplotlib.rcParams["font.size"] == 30.0
    assert figure is not None
    assert figure.axes[0].xaxis.label.get_fontsize() == pytest.approx(9.5)


def test_published_numbers_are_those_of_the_papers():
    assert published.jsma("mnist_quick", "mnist")["100"] == 0.0045
    assert published.jsma("cifar10_quick", "cifar10")["none"] == 0.8789
    for recipe, dataset in (("mnist_quick", "digits"), ("digits", "digits"), ("small_mnist", "mnist"), (None, None)):
        assert not published.jsma(recipe, dataset)
    known = {name for name, recipe in recipes.RECIPES.items() if published.jsma(name, recipe.dataset)}
    assert known == {"papernot_mnist", "carlini_mnist", "mnist_quick", "papernot_cifar10", "cifar10_quick"}
    for networks in published.DISTANCES.values():
        assert set(networks["student"]) < set(networks["baseline"])
        assert all(case.percent == 100 for cases in networks["student"].values() for case in cases.values())
    mnist = published.DISTANCES["mnist"]
    assert mnist["student"]["carlini_wagner_l2"]["average"].distance == 2.2
    assert mnist["baseline"]["fgsm"]["worst"] == (None, 0)
    assert "average" not in mnist["baseline"]["deepfool"]
    for curves in published.TRANSFER.values():
        for points in curves.values():
            assert list(points) == sorted(points)
