"""The page of attacks against defenses, from records whose numbers are known."""

import numpy as np

from ddjax import report
from ddjax.report import evaluate

WHERE = {"network": "baseline abc", "defense": "squeezing"}
RECORDS = [
    {"measure": "network", "network": "baseline abc", "title": "baseline"},
    {"measure": "clean", **WHERE, "accuracy": 0.98, "threshold": 0.01, "scores": "images/clean_scores.npz"}
    | {"false_positive": 0.04, "false_positive_low": 0.01, "false_positive_high": 0.1, "false_positive_n": 100},
    {"measure": "evaluate", **WHERE, "attack": "ddn", "aware": False, "accuracy": 0.9, "detection": 0.95, "auc": 0.99}
    | {"detection_low": 0.9, "detection_high": 0.97, "detection_n": 80, "file": "f", "judged": "images/judged.npz"},
    {"measure": "evaluate", **WHERE, "attack": "ddn", "aware": True, "accuracy": 0.2, "detection": None, "auc": None}
    | {"detection_low": 0.0, "detection_high": 1.0, "detection_n": 0, "file": "f", "judged": "images/none.npz"},
    {"measure": "worst", **WHERE, "aware": False, "accuracy": 0.89, "attacks": ["ddn"]},
    {"measure": "worst", **WHERE, "aware": True, "accuracy": 0.19, "attacks": ["ddn"]},
]


def test_sections_table_and_conclusion(tmp_path):
    (tmp_path / "images").mkdir()
    np.savez(tmp_path / "images" / "clean_scores.npz", scores=np.linspace(0, 0.02, 100))
    fooled = np.arange(80) % 2 == 0
    np.savez(tmp_path / "images" / "judged.npz", scores=np.linspace(0, 2, 80), fooled=fooled, broken=fooled)
    text = "".join(evaluate.sections(RECORDS, {}, tmp_path))
    assert "0.99" in text
    assert "95.0 %" in text
    header, row = (tmp_path / "matrix.csv").read_text().splitlines()
    assert header == "network,defense,clean,ddn unaware,ddn aware,worst unaware,worst aware"
    assert row == "baseline,squeezing,0.980000,0.900000,0.200000,0.890000,0.190000"
    assert evaluate.readme_table(RECORDS, {}).splitlines()[-1] == (
        "| baseline | squeezing | 98.0 % | 90.0 % / 20.0 % | 89.0 % / 19.0 % |"
    )
    said = evaluate.conclude(RECORDS)
    assert "right on 98.0 % of clean images, on 89.0 % under the worst attack that does not know it, on 19.0 %" in said
    assert "95.0 % (ddn)" in said
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"matrix.png", "roc.png"}


def test_two_networks_of_one_title_keep_their_names():
    other = [{**record, "network": "baseline def"} for record in RECORDS]
    table = evaluate.readme_table([*RECORDS, *other], {})
    assert "| baseline abc |" in table
    assert "| baseline def |" in table


def test_a_title_has_no_room_for_the_directory_of_a_model():
    long = "pixel_defend:epsilon=0.2,model=/home/someone/runs/train/checkpoints/seed0_none/density"
    assert evaluate._in_a_title(long) == "pixel_defend:epsilon=0.2,model=density"
    assert evaluate._in_a_title("defense_gan:model=generator,restarts=2") == "defense_gan:model=generator,restarts=2"
    assert evaluate._in_a_title("bit_depth:bits=3") == "bit_depth:bits=3"


def test_a_run_that_has_just_begun(tmp_path):
    assert evaluate.conclude([]) == "Nothing has been measured yet."
    (tmp_path / "config.json").write_text('{"flags": {"launcher": "evaluate"}, "resolved": {}}')
    (tmp_path / "results.jsonl").write_text("")
    assert report.write(tmp_path).exists()
