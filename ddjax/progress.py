"""How the library tells of its progress: through a callable that the caller gives; it prints nothing itself."""

import contextlib
from collections.abc import Callable
from typing import Any

# Starts to show a piece of work: takes how many units it has, a description, and the name of a unit in the singular.
# Returns a context manager whose value is of the form of tqdm's bars: `update(n)` adds to the units that are done, and
# `set_postfix(**values)` shows values, such as the loss.
Progress = Callable[[int, str, str], contextlib.AbstractContextManager[Any]]


class _Nothing:
    def update(self, n: int = 1) -> None:
        """Shows nothing."""

    def set_postfix(self, **values: Any) -> None:
        """Shows nothing."""


def silent(total: int, description: str, unit: str) -> contextlib.AbstractContextManager[Any]:
    """A `Progress` that shows nothing; the default of the library."""
    return contextlib.nullcontext(_Nothing())
