from tests.launch import hostile_flags


def test_failure_tells_sentences_from_everything_else():
    assert hostile_flags.failure(0, "") is None
    assert hostile_flags.failure(2, "a warning\nerror: --seed must be positive\n") is None
    assert hostile_flags.failure(1, "Traceback (most recent call last):\n  x\nValueError: y\n") == "a traceback"
    assert hostile_flags.failure(2, "") == "no sentence at the end"
    assert hostile_flags.failure(1, "error: TypeError: x (unexpected; --traceback shows)") is not None
    assert hostile_flags.failure(-11, "error: x") == "killed by signal 11"


def test_nasty_flags_end_in_a_sentence_or_work(environment, tmp_path):
    failures = hostile_flags.hostile(16, 0, tmp_path, environment | {"HOME": str(tmp_path)})
    assert not failures, "\n".join(failures)
