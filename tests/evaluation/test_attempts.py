import numpy as np
import pytest

from ddjax import evaluation
from ddjax.attacks import ATTACKS


@pytest.mark.parametrize("how", ["all", "random", "next", "least_likely"])
def test_targets_are_never_the_label(how):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 5)), rng.integers(0, 5, 50).astype(np.int32)
    choose = lambda: evaluation.make_attempts(how, np.zeros((50, 2), np.float32), labels, logits=logits, seed=3)
    rows, _, _, targets, _ = choose()
    assert (targets != labels[rows]).all()
    assert len(rows) == (200 if how == "all" else 50)
    if how == "all":
        assert len({*zip(rows.tolist(), targets.tolist(), strict=True)}) == 200
    if how == "next":
        np.testing.assert_array_equal(targets, (labels + 1) % 5)
    if how == "least_likely":
        masked = np.where(np.arange(5) == labels[:, None], np.inf, logits)
        np.testing.assert_array_equal(masked[np.arange(50), targets], masked.min(1))
    if how == "random":
        np.testing.assert_array_equal(targets, choose().targets)
        assert len(set((targets - labels) % 5)) == 4


def test_settings_are_read_by_the_type_of_their_default():
    parsed = evaluation.parse_attack("jsma:score_space=tempered,theta=-1.0,gamma=0.25,temperature=7")
    assert parsed.attack is ATTACKS["jsma"]
    assert parsed.numbers == {"theta": -1.0, "gamma": 0.25, "temperature": 7.0}
    assert parsed.words == {"score_space": "tempered"}
    parsed = evaluation.parse_attack("pgd:epsilon=1,num_steps=7,random_start=False,norm=l2,temperature=100")
    assert parsed.numbers == {"epsilon": 1.0}
    assert parsed.norm == "l2"
    assert parsed.words == {"num_steps": 7, "random_start": False, "norm": "l2"}
    assert parsed.temperature == 100
    assert evaluation.parse_attack("jsma:temperature=20").words == {"score_space": "tempered"}
    assert evaluation.parse_attack("pgd:epsilon=8/255").numbers == {"epsilon": 8 / 255}
    assert evaluation.parse_attack("fgsm").temperature is None
    assert evaluation.parse_attack("fgsm").forward == "float32"
    assert evaluation.parse_attack("ddn:forward=bfloat16").forward == "bfloat16"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jsma:theta", "'theta' needs a value"),
        ("pgd:num_steps=2.5", "num_steps must be a whole number"),
        ("pgd:random_start=1", "random_start must be true or false"),
        ("pgd:epsilon=nan", "epsilon must be a finite number"),
        ("pgd:epsilon=big", "epsilon must be a number"),
        ("pgd:temperature=0", "a temperature must be positive"),
        ("pgd:forward=int8", "unknown forward 'int8'; known: float32, bfloat16"),
        ("pgd:targets=3", "has no setting 'targets'; known: epsilon"),
    ],
)
def test_settings_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=message):
        evaluation.parse_attack(text)


def test_targets_of_attacks_that_need_them_or_take_none():
    assert evaluation.resolve_targets("auto", ATTACKS["jsma"]) == "all"
    assert evaluation.resolve_targets("auto", ATTACKS["pgd"]) == "none"
    assert evaluation.resolve_targets("random", ATTACKS["pgd"]) == "random"
    assert evaluation.resolve_targets("auto", ATTACKS["deepfool"]) == "none"
