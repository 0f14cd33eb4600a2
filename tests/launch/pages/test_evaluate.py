"""The page of `launch.evaluate`, from records whose numbers are known."""

import numpy as np
import pytest

from launch import pages
from launch.pages import evaluate
from tests.launch.pages import reading
from tests.launch.pages.synthetic import figures, save_clean, save_run, share, write

WHERE = {"network": "baseline abc", "defense": "squeezing"}
LIGHT = {"measure": "light", **WHERE, "name": "radius", "color": "red", "explanation": "It does not <help>."}
RECORDS = [
    {"measure": "network", "network": "baseline abc", "title": "baseline"},
    {"measure": "clean", **WHERE, **share("accuracy", 98), "threshold": 0.01, "scores": "images/clean_scores.npz"}
    | share("false_positive", 4),
    {"measure": "evaluate", **WHERE, "attack": "ddn", "aware": False, **share("accuracy", 90), "auc": 0.99}
    | {**share("detection", 76, 80), "mean_l2": 1.25, "judged": "images/judged.npz", "views": "images/views.npz"},
    {"measure": "worst", **WHERE, "aware": True, **share("accuracy", 25), "attacks": []},
    {"measure": "evaluate", **WHERE, "attack": "ddn", "aware": True, **share("accuracy", 20), "auc": None}
    | {"detection": None, "detection_n": 0, "file": "f", "judged": "images/none.npz", "zero_gradient_share": 0.5},
    {"measure": "worst", **WHERE, "aware": False, **share("accuracy", 89), "attacks": ["ddn"]},
    {"measure": "worst", **WHERE, "aware": True, **share("accuracy", 19), "attacks": ["ddn"]},
]


@pytest.fixture
def run(tmp_path):
    save_run(tmp_path, "evaluate", RECORDS)
    save_clean(tmp_path)
    np.savez(tmp_path / "images" / "views.npz", row=2, adversarial=np.zeros((6, 6, 1)), defended=np.ones((6, 6, 1)))
    return tmp_path


def test_page_has_matrix_accuracies_and_detectors(run):
    page = write(run)
    assert page.sections["matrix"].rows == [
        ["network", "defense", "clean", "ddn", "worst"],
        ["baseline", "squeezing", "98.0 %\n93.0 to 99.4\nn = 100", "90.0 % / 20.0 %", "89.0 % / 19.0 %"],
    ]
    accuracy = page.sections["accuracy"]
    assert accuracy.column("knowledge") == ["", "unaware", "aware", "aware", "unaware", "aware"]
    assert accuracy.column("accuracy")[1] == "90.0 %\n82.6 to 94.5\nn = 100"
    assert accuracy.column("L2")[1] == "1.25"
    assert accuracy.column("zero gradients") == ["", "", "", "50.0 %", "", ""]
    detectors = page.sections["detectors"].rows
    assert detectors[1][2:] == [
        "0.01", "4.0 %\n1.6 to 9.8\nn = 100", "ddn", "unaware", "95.0 %\n87.8 to 98.0\nn = 80", "0.990"
    ]  # fmt: skip
    assert detectors[2][4:] == ["ddn", "aware", "", ""]
    assert page.sections["figures"].figures == ["matrix", "gallery"]
    assert figures(run) == {"matrix", "gallery"}
    # The latest worst case replaces the earlier one, and stands last.
    assert (run / "matrix.csv").read_text().splitlines() == [
        "network,defense,clean,ddn unaware,ddn aware,worst unaware,worst aware",
        "baseline,squeezing,0.980000,0.900000,0.200000,0.890000,0.190000",
    ]
    header = (run / "table.csv").read_text().splitlines()[0].split(",")
    assert "accuracy_low" in header
    assert not {"file", "judged"} & set(header)


def test_signs_of_masked_gradients_have_their_explanations(tmp_path):
    lights = [LIGHT | {"name": "one_step", "color": "green"}, LIGHT, LIGHT | {"defense": "none", "color": "unknown"}]
    save_run(tmp_path, "evaluate", [*RECORDS, *lights])
    page = write(tmp_path)
    assert page.sections["matrix"].column("lights") == ["🟢🔴"]
    header, first, second = page.sections["masked-gradients"].rows
    assert header == ["network", "defense", "one step beats many", "a larger radius does not help"]
    assert first == ["baseline", "squeezing", "🟢\nIt does not <help>.", "🔴\nIt does not <help>."]
    assert second[1:] == ["none", "", "⚪\nIt does not <help>."]


def test_networks_with_one_title_keep_their_names(tmp_path):
    other = [{**record, "network": "baseline def"} for record in RECORDS]
    save_run(tmp_path, "evaluate", [*RECORDS, *other])
    assert [row[0] for row in reading.markdown(pages.table(tmp_path))[1:]] == ["baseline abc", "baseline def"]


def test_attacks_with_one_name_keep_their_settings(tmp_path):
    attack = next(record for record in RECORDS if record["measure"] == "evaluate")
    save_run(tmp_path, "evaluate", [attack | {"attack": "pgd:epsilon=0.1"}, attack | {"attack": "pgd:epsilon=0.2"}])
    assert reading.markdown(pages.table(tmp_path))[0][2:] == ["pgd:epsilon=0.1", "pgd:epsilon=0.2"]


@pytest.mark.parametrize(
    ("defense", "expected"),
    [
        ("pixel_defend:epsilon=0.2,model=/a/b/seed0_none/density", "pixel_defend:epsilon=0.2,model=density"),
        ("defense_gan:model=generator,restarts=2", "defense_gan:model=generator,restarts=2"),
        ("bit_depth:bits=3", "bit_depth:bits=3"),
        ("none", "none"),
    ],
)
def test_titles_have_no_directories(defense, expected):
    assert evaluate.without_directory(defense) == expected
