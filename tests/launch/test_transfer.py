import pytest

from ddjax import runs

ARGUMENTS = [
    "--num_train=1000",
    "--num_test=100",
    "--epochs=8",
    "--num_examples=20",
    "--temperature=20",
    "--num_steps=40",
    "--search_steps=3",
]


def test_rates_for_both_networks_and_kinds_and_no_repetition(launch, tmp_path):
    done = launch("transfer", *ARGUMENTS, "--kappas=0,4", f"--workdir={tmp_path}")
    records = runs.read_results(tmp_path)
    named = {record["network"]: record["accuracy"] for record in records if record["measure"] == "accuracy"}
    assert set(named) == {"source", "plain", "teacher", "student"}
    rates = [record for record in records if record["measure"] == "transfer"]
    assert len({(r["target"], r["kappa"], r["targeted"]) for r in rates}) == len(rates) == 8
    for record in rates:
        assert 0 <= record["transferred"] <= record["n"] <= record["source_successes"] <= record["sources"] <= 20
        assert record["low"] <= record["rate"] <= record["high"]
    low, high = (
        next(r for r in rates if r["kappa"] == kappa and not r["targeted"] and r["target"] == "plain")
        for kappa in (0, 4)
    )
    assert low["source_successes"] == low["sources"] > 0
    assert high["mean_l2"] > low["mean_l2"]
    assert "report:" in done.stdout
    before = (tmp_path / "results.jsonl").read_bytes()
    launch("transfer", *ARGUMENTS, "--kappas=0,4", f"--workdir={tmp_path}")
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize("kappas", ["0,0", "-1", "a", "nan", ""])
def test_kappas_that_are_none(launch, tmp_path, kappas):
    done = launch("transfer", *ARGUMENTS, f"--kappas={kappas}", f"--workdir={tmp_path / 'run'}", ok=False)
    assert "--kappas must be" in done.stderr
    assert not (tmp_path / "run").exists()
