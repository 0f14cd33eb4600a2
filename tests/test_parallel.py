import jax
import numpy as np
import pytest

from ddjax import parallel


@pytest.mark.parametrize(("total", "batch_size"), [(1, 4), (8, 4), (9, 4), (10, 100)])
def test_all_examples_in_order_by_one_program(total, batch_size):
    traces, finished = [], []

    @jax.jit
    def double(values, more):
        traces.append(values.shape[0])
        return {"twice": 2 * values, "sum": values + more}

    values = np.arange(total, dtype=np.float32)
    result = parallel.map_batches(double, values, values, batch_size=batch_size, progress=finished.append)
    np.testing.assert_array_equal(result["twice"], 2 * values)
    np.testing.assert_array_equal(result["sum"], 2 * values)
    assert len(traces) == 1
    assert traces[0] <= batch_size
    assert sum(finished) == total


def test_bad_arguments():
    ones = np.ones(3)
    with pytest.raises(ValueError, match="different numbers of examples"):
        parallel.map_batches(lambda a, b: a, ones, ones[:2], batch_size=2)
    with pytest.raises(ValueError, match="no examples"):
        parallel.map_batches(lambda a: a, ones[:0], batch_size=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        parallel.map_batches(lambda a: a, ones, batch_size=0)
