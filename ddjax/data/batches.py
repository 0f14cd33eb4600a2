"""Batches of images that are on disk, read ahead of a training."""

import collections
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import Int, UInt8


class Batches:
    """Batches of images that are on disk, read ahead on threads.

    Attributes:
      images_read: how many so far.
      seconds_reading: what reading them took, on all threads together.
      images_trained: how many were trained on, without the first batch, which waits for the compiler.
      seconds_training: what training on them took.
    """

    def __init__(self, images: UInt8[np.ndarray, "N H W C"], *, ahead: int = 2) -> None:
        """Takes the images and how many batches to hold in memory beside the one in use."""
        self._images, self._ahead = images, ahead
        self.images_read, self.seconds_reading = 0, 0.0
        self.images_trained, self.seconds_training = 0, 0.0

    def read(self, rows: Iterable[Int[np.ndarray, "..."]]) -> Iterator[UInt8[np.ndarray, "... H W C"]]:
        """Yields the images at each of some arrays of positions, in their order."""
        under_way: collections.deque[Future[np.ndarray]] = collections.deque()
        with ThreadPoolExecutor(self._ahead) as pool:
            for some in rows:
                under_way.append(pool.submit(self._read, some))
                if len(under_way) > self._ahead:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def _read(self, rows: np.ndarray) -> np.ndarray:
        started = time.monotonic()
        images = np.asarray(self._images[rows])
        self.seconds_reading += time.monotonic() - started
        self.images_read += rows.size
        return images

    def rates(self) -> dict[str, float | None] | None:
        """Images a second that were read and trained on; None for nothing read, or a single batch trained on."""
        if not self.images_read:
            return None
        return {
            "read_per_second": self.images_read / self.seconds_reading,
            "trained_per_second": self.images_trained / self.seconds_training if self.images_trained else None,
        }
