from ddjax import runs


def test_small_benchmark(launch, tmp_path):
    sizes = ["--network=digits", "--train_batch=16", "--batch_size=16", "--repetitions=2"]
    done = launch("benchmark", "--work=layers", "--work=train_step", "--work=jsma", *sizes, f"--workdir={tmp_path}")
    records = runs.read_results(tmp_path)
    works = {record["work"] for record in records}
    assert works >= {"training in a scan", "input gradient in a loop", "jsma"}
    # Without PyTorch the comparison is named as missing, not left out in silence.
    assert "training step" in works or "no PyTorch to compare with" in done.stdout
    for record in records:
        assert record["median_ms"] > 0
        assert record["ratio_low"] <= record["ratio"] <= record["ratio_high"]
        assert record["side"] != record["base"] or record["ratio"] == 1
