import threading

import numpy as np

from ddjax import data

RNG = np.random.default_rng(0)


def test_batches_are_read_ahead_in_order_and_not_further(tmp_path):
    images = np.memmap(tmp_path / "images", np.uint8, "w+", shape=(50, 2, 2, 3))
    images[:] = RNG.integers(0, 256, images.shape)
    rows = RNG.integers(0, 50, (6, 2, 4))
    batches = data.Batches(images, ahead=2)
    started, enough = [], threading.Event()
    read = batches._read

    def counted(some):
        started.append(some)
        if len(started) == 3:
            enough.set()
        return read(some)

    batches._read = counted
    reader = batches.read(rows)
    np.testing.assert_array_equal(next(reader), images[rows[0]])
    assert enough.wait(10)
    assert len(started) == 3
    for got, some in zip(reader, rows[1:], strict=True):
        np.testing.assert_array_equal(got, images[some])
    assert batches.images_read == 48
    assert batches.seconds_reading > 0
